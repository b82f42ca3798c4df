"""imgrec pack and data=shards: the tar files that others read, and the same batches and runs as from the folder."""

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from error_parts import assert_error, assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from numpy.typing import NDArray
from PIL import Image
from processes import wait_until
from small_run import SMALL
from test_data_folder import PREPROCESSING, folder, make, whole

import imgrec
from imgrec import cli, config
from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build
from imgrec.config.start_checks import check_start
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.decode import load_image
from imgrec.data.readable import find_unreadable
from imgrec.data.split_record import DataRecord, find_changes
from imgrec.errors import ConfigError, DataError, SourceError
from imgrec.files import composed
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.storage import pack_folder
from imgrec.storage.index import INDEX, PLACE, PackedSplit, ShardIndex
from imgrec.storage.pack import Packing, encode_image, pack_images
from imgrec.storage.shards import Shards

KEEP = Packing("keep", size=32, quality=90, shard_images=7)
SPLITS = ("train", "val", "test")


def shards(root: Path, **change) -> Shards:
    settings = {**PREPROCESSING, "num_classes": None, "val_share": 0.25, "split_seed": 0, "changed": "refuse", "test_share": 0.25}
    settings |= {"check": "auto", "decoder": "auto", "cache": "none", "on_bad_image": "refuse", "on_bad_image_eval": "refuse"}
    settings |= {"window_shards": None, "cache_gb": 1.0}
    return Shards(root=str(root), **{**settings, **change})


def pack(data, out: Path, packing: Packing = KEEP, num_workers: int = 0) -> Path:
    pack_images(data, out, packing, num_workers=num_workers, advance=lambda images: None)
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = make(tmp_path_factory.mktemp("photos"), {"cat": 9, "dog": 14, "eel": 10})
    for name in ("dog/000", "eel/003"):
        picture = Image.open(root / f"{name}.jpg")
        picture.convert("L").save(root / f"{name}.png")
        (root / f"{name}.jpg").unlink()
    return root


@pytest.fixture(scope="module")
def kept(photos, tmp_path_factory) -> Path:
    return pack(folder(photos), tmp_path_factory.mktemp("kept") / "out")


@pytest.fixture
def copied(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copied"))


def samples(out: Path, split: str) -> dict[str, dict[str, bytes]]:
    """As webdataset groups them: by the path up to the first dot of the name, extensions in the order of the file."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((out / split).glob("*.tar")):
        last = None
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                assert key == last or key not in found, "the files of a sample follow one another"
                last = key
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return found


# Shards


def test_shards_hold_the_files_and_labels_as_webdataset_reads_them(photos, kept):
    data = folder(photos)
    for split in SPLITS:
        images = data.split(split)
        found = samples(kept, split)
        assert sorted(found) == [f"{row:08d}" for row in range(len(images))]
        for row, sample in enumerate(map(found.get, sorted(found))):
            path = Path(images.path(row))
            assert sample == {path.suffix[1:]: path.read_bytes(), "cls": str(images.labels[row]).encode()}
    assert len(list((kept / "train").glob("*.tar"))) == -(-len(data.split("train")) // 7)


def test_tar_reads_them_and_the_first_shard_has_several_classes(kept, tmp_path):
    listed = subprocess.run(["tar", "xvf", kept / "train/00000.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == members(kept / "train/00000.tar")
    assert len({file.read_text() for file in tmp_path.glob("*.cls")}) > 1
    info = json.loads((kept / "_info.json").read_text())["splits"]["train"]  # as timm reads it
    assert [len(members(kept / name)) // 2 for name in info["filenames"]] == info["shard_lengths"]


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_workers_write_the_same_bytes(photos, kept, tmp_path):
    other = pack(folder(photos), tmp_path / "other", num_workers=2)
    assert files(other) == files(kept)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# Reading


@pytest.mark.parametrize("augment", slow_but(None, "basic", among=[None, "basic", "trivial"]))
def test_batches_equal_those_of_the_folder(photos, kept, augment):
    drawn = augment and build("augment", compose_config("train", [f"augment={augment}"])["augment"], Augment)
    for split in SPLITS:
        theirs, ours = folder(photos).split(split), shards(kept).split(split)
        assert ours.names.tolist() == theirs.names.tolist()
        rows = np.random.default_rng(0).permutation(3 * len(theirs))  # with earlier occurrences
        request = Request(3, rows, len(rows))
        for one, other in zip(ours.for_training(drawn, 5)[request], theirs.for_training(drawn, 5)[request], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


RUN = (
    *(word for word in SMALL if not word.startswith("data")),
    *("data.image_size=24", "data.val_share=0.25", "data.test_share=0.25", "augment=basic", "epochs=2"),
)


def test_a_run_equals_that_of_the_folder_bit_for_bit(photos, kept, tmp_path):
    found = []
    for words in (["data=imagefolder", f"data.root={photos}"], ["data=shards", f"data.root={kept}"]):
        run = config.load("train", [*RUN, *words, f"runs_dir={tmp_path}/{words[0]}"])
        result = imgrec.fit(run, quiet=True)
        found.append((result["test"], load_checkpoint(result.folder).content["state_dict"]))
    (theirs, their_weights), (ours, weights) = found
    assert ours == theirs
    assert weights.keys() == their_weights.keys()
    assert all(torch.equal(weights[key], their_weights[key]) for key in weights)


def test_raw_pixels_are_those_of_the_folder_in_evaluation(photos, tmp_path):
    """Where the size is that to which evaluation resizes."""
    change = {"resize": "crop", "crop_share": 0.75}  # 24 / 0.75
    out = pack(folder(photos, **change), tmp_path / "out", Packing("raw", 32, 90, 7))
    for split in SPLITS:
        assert torch.equal(whole(shards(out, **change).split(split)).images, whole(folder(photos, **change).split(split)).images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3])
def test_raw_files_equal_pil(photos, tmp_path, channels, stored):
    def of(count: int) -> dict:
        return {"channels": count, "mean": [0.5] * count, "std": [0.5] * count}

    out = pack(folder(photos, **of(stored)), tmp_path / "out", Packing("raw", 20, 90, 50))
    found = samples(out, "train")
    images = shards(out, **of(channels)).split("train")
    for row in range(len(images)):
        (extension,) = found[f"{row:08d}"].keys() - {"cls"}
        picture = Image.open(io.BytesIO(found[f"{row:08d}"][extension]))
        assert min(picture.size) == 20
        expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(*picture.size[::-1], channels)
        assert np.array_equal(images.decode(row).permute(1, 2, 0), expected)


def test_jpeg_is_small_and_near(photos, tmp_path):
    out = pack(folder(photos), tmp_path / "out", Packing("jpeg", 32, 95, 50))
    raw = pack(folder(photos), tmp_path / "raw", Packing("raw", 32, 95, 50))
    for row, image in enumerate(map(shards(out).split("train").decode, range(10))):
        exact = shards(raw).split("train").decode(row)
        assert image.shape == exact.shape
        assert (image.float() - exact.float()).square().mean() < 255**2 / 10 ** (28 / 10)  # 28 dB


def test_a_picture_that_no_jpeg_holds_is_named(tmp_path):
    root = make(tmp_path / "photos", {"cat": 6, "dog": 6})
    Image.new("L", (65_600, 4)).save(root / "cat/0.png")
    with raises_error(DataError, root / "cat/0.png", "65,600x4 pixels", "65,500", "format=raw or keep"):
        pack(folder(root), tmp_path / "out", Packing("jpeg", 32, 90, 7))
    pack(folder(root), tmp_path / "raw", Packing("raw", 32, 90, 7))


def test_images_of_a_loader_process_survive_pickling(kept):
    images = shards(kept).split("train")
    whole(images)
    assert torch.equal(whole(pickle.loads(pickle.dumps(images))).images, whole(images).images)


# Continued and other packs


class Killed(Exception):
    pass


def kill_after(count: int) -> Callable[[int], None]:
    left = iter(range(count))

    def advance(images: int) -> None:
        if next(left, None) is None:
            raise Killed

    return advance


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_pack_that_was_stopped_is_continued(photos, kept, tmp_path, stop):
    out, data = tmp_path / "out", folder(photos)
    with pytest.raises(Killed):
        pack_images(data, out, KEEP, num_workers=0, advance=kill_after(stop))
    assert not (out / INDEX).exists()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert len(before) == stop + 1
    pack(folder(photos), out)
    assert files(out) == files(kept)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_pack_that_is_killed_at_any_time_is_continued(photos, tmp_path, start_command):
    words = [str(photos), "shard_images=4", "num_workers=1"]
    for written in range(3):
        process = start_command(sys.executable, "-m", "imgrec.pack", *words, f"out={tmp_path}/out")
        wait_until(lambda n=written, p=process: p.poll() is not None or len(list(tmp_path.glob("out/*/*.tar*"))) > n)
        process.kill()
        process.wait()
    assert cli.main(["pack", *words, f"out={tmp_path}/out"]) in (0, 2)  # 2: it was done when it was killed
    assert cli.main(["pack", *words, f"out={tmp_path}/unbroken"]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "unbroken")


def test_a_pack_that_is_killed_in_its_first_moment_is_continued(photos, kept, tmp_path):
    for left in ([], ["lock"], ["lock", "source.unfinished"]):
        out = tmp_path / f"out{len(left)}"
        (out / "unfinished").mkdir(parents=True)
        for name in left:
            (out / "unfinished" / name).touch()
        assert files(pack(folder(photos), out)) == files(kept)


def test_a_shard_cut_short_meanwhile_is_written_again(photos, kept, tmp_path):
    out, data = tmp_path / "out", folder(photos)
    with pytest.raises(Killed):
        pack_images(data, out, KEEP, num_workers=0, advance=kill_after(1))
    os.truncate(out / "test/00000.tar", 1000)
    pack(data, out)
    assert files(out) == files(kept)


def test_a_shard_that_becomes_shorter_while_it_is_read_is_named(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "out")
    images = shards(tmp_path / "out").split("train")
    images.read(0)
    shard = images.files.path(images.places[0]["shard"])
    os.truncate(shard, 0)
    with raises_error(DataError, shard, "0 bytes", "by the index"):
        images.read(0)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x93NUMPY", "cut"], ids=ascii)
def test_a_shard_of_which_nothing_is_known_any_more_is_written_again(photos, kept, tmp_path, monkeypatch, content):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ShardIndex, "write", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(folder(photos), out)
    part = next((out / "unfinished").glob("train-*.npz"))
    part.write_bytes(part.read_bytes()[:-50] if content == "cut" else content)
    assert files(pack(folder(photos), out)) == files(kept)


def test_a_folder_with_something_else_is_refused(photos, kept, tmp_path):
    with raises_error(ConfigError, f"out={kept}", "already", "data=shards", f"data.root={kept}"):
        pack(folder(photos), kept)
    other = Packing("jpeg", 32, 90, 7)
    with raises_error(ConfigError, f"out={kept}", "other images or settings", "out=ANOTHER"):
        pack(folder(photos), kept, other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with raises_error(ConfigError, f"out={tmp_path}/mine", "not empty", "out=ANOTHER"):
        pack(folder(photos), tmp_path / "mine")
    for place in (tmp_path / "mine/file/out", Path("/proc/out")):
        with raises_error(ConfigError, f"out={place}", "cannot be made", "out=FOLDER"):
            pack(folder(photos), place)
    assert [*(tmp_path / "mine").iterdir()] == [tmp_path / "mine/file"]
    (tmp_path / "begun/unfinished").mkdir(parents=True)
    (tmp_path / "begun/unfinished/source").write_text("other")
    with raises_error(ConfigError, f"out={tmp_path}/begun", "unfinished pack", "out=ANOTHER"):
        pack(folder(photos), tmp_path / "begun")


def test_a_folder_that_another_process_has_filled_meanwhile_is_refused(photos, kept, tmp_path, monkeypatch):
    def other_was_faster(*_: object) -> bool:
        shutil.copytree(kept, tmp_path / "out", dirs_exist_ok=True)
        return True

    monkeypatch.setattr(pack_folder, "lock_file", other_was_faster)
    with raises_error(ConfigError, f"out={tmp_path}/out", "other images or settings"):
        pack(folder(photos), tmp_path / "out", Packing("jpeg", 32, 90, 7))
    monkeypatch.setattr(pack_folder, "lock_file", Mock(side_effect=FileNotFoundError))
    with raises_error(ConfigError, f"out={tmp_path}/more", "another process"):
        pack(folder(photos), tmp_path / "more")


@pytest.mark.parametrize("num_workers", slow_but(0, among=[0, 2]))
def test_a_folder_in_it_that_cannot_be_made_is_refused(photos, tmp_path, num_workers):
    with pytest.raises(Killed):
        pack_images(folder(photos), tmp_path, KEEP, num_workers=0, advance=kill_after(0))
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").touch()
    with raises_error(ConfigError, f"out={tmp_path}", "cannot be made", "out=FOLDER"):
        pack(folder(photos), tmp_path, num_workers=num_workers)


# Damage


def test_without_locks_a_folder_is_packed_the_same(tmp_path, photos, without_locks):
    out = pack(folder(photos), tmp_path / "out")
    assert torch.equal(whole(shards(out).split("train")).images, whole(folder(photos).split("train")).images)


def test_unreadable_images_are_refused_or_left_out(photos, tmp_path):
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    data = folder(root)
    bad = Path(data.split("train").path(3))
    bad.write_bytes(bad.read_bytes()[:300])
    jpeg = Packing("jpeg", 32, 90, 7)
    with raises_error(DataError, bad, "cannot be read", "data.on_bad_image=skip"):
        pack(data, tmp_path / "a", jpeg)
    skipping = folder(root, on_bad_image="skip")
    _, left_out = pack_images(skipping, tmp_path / "b", jpeg, num_workers=0, advance=lambda images: None)
    assert left_out == [str(bad)]
    names = data.split("train").names.tolist()
    assert shards(tmp_path / "b").split("train").names.tolist() == names[:3] + names[4:]
    # keep copies it, and a run treats it as one from the folder does
    kept = shards(pack(data, tmp_path / "c"))
    with raises_error(
        DataError, f"{tmp_path}/c/train/00000.tar: {names[3].decode()}", "cannot be read", "data.on_bad_image=skip"
    ):
        whole(kept.split("train").for_training(None, 0))
    found = [image.path for part in find_unreadable(kept, rank=0, size=1) for image in part]
    assert [path.rpartition(": ")[2] for path in found] == [names[3].decode()]
    batch = whole(shards(tmp_path / "c", on_bad_image="skip").split("train").for_training(None, 0))
    assert len(batch.labels) == len(names) - 1
    assert [path.rpartition(": ")[2] for path in batch.bad] == [names[3].decode()]


def test_verify_waits_for_no_pipe(copied, capsys):
    (copied / "train/00001.tar").unlink()
    os.mkfifo(copied / "train/00001.tar")
    assert cli.main(["pack", "verify", str(copied)]) == 2
    assert_refused(capsys.readouterr().err, f"verify={copied}: 1 damaged: {copied}/train/00001.tar", "not a file")


def test_verify_names_the_damaged_shard_and_image(copied, capsys):
    assert cli.main(["pack", "verify", str(copied)]) == 0
    assert f"33 images in {len(list(copied.glob('*/*.tar')))} shards" in capsys.readouterr().out
    packed = ShardIndex.read(copied).splits["train"]
    shard, offset, length, checksum = packed.places[5].item()
    path = copied / ShardIndex.read(copied).shards[shard]
    content = bytearray(path.read_bytes())
    assert zlib.crc32(content[offset : offset + length]) == checksum
    content[offset + length // 2] ^= 4
    path.write_bytes(content)
    name = packed.names[5].decode()
    assert cli.main(["pack", "verify", str(copied)]) == 2
    assert_refused(capsys.readouterr().err, f"verify={copied}: 1 damaged: {path}: {name}", "pack the images again")
    content[offset + length // 2] ^= 4
    content[offset - 512] ^= 1  # in the header before it
    path.write_bytes(content)
    assert cli.main(["pack", f"verify={copied}"]) == 2
    assert_refused(capsys.readouterr().err, f"verify={copied}: 1 damaged: {path}", "between the images")
    path.write_bytes(content[:offset])
    assert cli.main(["pack", f"verify={copied}"]) == 2
    said = capsys.readouterr().err
    in_order = packed.names[packed.places["shard"] == shard]
    after = packed.places["offset"][packed.places["shard"] == shard] >= offset
    for name, lost in zip(in_order.tolist(), after, strict=True):
        assert (f"{path}: {name.decode()}" in said) == lost


def test_a_damaged_image_is_named_with_its_shard_when_it_is_read(copied):
    packed = ShardIndex.read(copied).splits["train"]
    shard, offset, _, _ = packed.places[5].item()
    path = copied / ShardIndex.read(copied).shards[shard]
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = bytes(200)
    path.write_bytes(content)
    with raises_error(DataError, f"{path}: {packed.names[5].decode()}", "checksum", "imgrec pack verify"):
        whole(shards(copied).split("train"))


@contextmanager
def no_more_files() -> Iterator[None]:
    """In the block the process can open no file more than it has open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    with ExitStack() as held:
        with suppress(OSError):
            while True:
                held.callback(os.close, os.dup(0))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_image_is_at_fault_where_too_many_files_are_open(photos, kept, tmp_path):
    skip = {"on_bad_image": "skip"}
    parts = ("Too many open files", "ulimit -n 4096")
    for images in (
        folder(photos, **skip).split("train").for_training(None, 0),
        shards(kept, **skip).split("train").for_training(None, 0),
    ):
        with no_more_files(), raises_error(SourceError, images.path(0).partition(": ")[0], *parts):
            _ = images[Request(0, np.array([0]), 1)]
    images = folder(photos, **skip).split("train")
    with no_more_files(), raises_error(SourceError, images.path(0), *parts):
        encode_image(images, 0, KEEP)


def test_shards_that_were_read_give_their_descriptors_to_others(kept):
    images = shards(kept).split("train")
    rows = [int(np.flatnonzero(images.places["shard"] == shard)[0]) for shard in np.unique(images.places["shard"])]
    expected = [bytes(images.read(row)) for row in rows]
    assert len(rows) >= 3
    images.files._open.cache_clear()
    assert [bytes(images.read(row)) for row in rows[:2]] == expected[:2]
    with no_more_files():
        assert [bytes(images.read(row)) for row in rows[2:]] == expected[2:]


def test_a_shard_that_is_missing_or_cut_short_is_named_before_the_first_step(copied):
    path = copied / "train/00001.tar"
    size = path.stat().st_size
    os.truncate(path, size - 512)
    with raises_error(DataError, path, f"{size - 512:,}", f"{size:,}", "Copy it again"):
        _ = shards(copied).splits
    path.unlink()
    with raises_error(DataError, path, "No such file", "Copy it again"):
        _ = shards(copied).splits


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "cut"], ids=["empty", "no archive", "cut short"])
def test_a_damaged_index_is_named(copied, content):
    whole = (copied / INDEX).read_bytes()
    (copied / INDEX).write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with raises_error(DataError, copied / INDEX, "damaged", "pack the images again"):
        _ = shards(copied).splits


def test_every_flipped_byte_of_the_index_is_noticed_or_without_effect(copied):
    whole = (copied / INDEX).read_bytes()
    index = ShardIndex.read(copied)
    first = whole.index(b"PK\1\2")  # of the archive's directory, where each byte means something else
    directory = [*range(first, first + 130), *range(len(whole) - 22, len(whole))]
    for position in [*np.random.default_rng(0).integers(0, len(whole), 100).tolist(), *directory]:
        (copied / INDEX).write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            read = ShardIndex.read(copied)
        except DataError:
            continue
        assert equal(read, index)


HEADERS: dict[str, dict[str, object]] = {
    "no text": {"classes": [1, 2, 3]},
    "null": {"classes": [None, None, None]},
    "twice": {"classes": ["cat", "cat", "eel"]},
    "long version": {"version": "9" * 10_000},
    **{f"shard {name!a}": {"shards": [name]} for name in ("", ".", "a\0b", "\ud800", "a//b", "train/", 5, None)},
}
COLUMNS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "0-D": lambda column: column[0],
    "2-D": lambda column: column[:, None],
    "text": lambda column: np.full(len(column), "1"),
    "fraction": lambda column: np.zeros(len(column)) + 0.5,
    "NaN": lambda column: np.full(len(column), np.nan),
    "complex": lambda column: np.zeros(len(column), complex),
    "zeros": lambda column: np.full(len(column), b"a\0b"),
    "object": lambda column: np.array([[1]] * len(column), dtype=object),
    "shorter": lambda column: column[:-1],
}


def changed_index(content: bytes, header: dict[str, object], **arrays: Any) -> bytes:
    """An index with other entries in its header and other arrays, as an archive of numpy's."""
    found = dict(np.load(io.BytesIO(content))) | arrays
    found["header"] = np.frombuffer(json.dumps(json.loads(found["header"].tobytes()) | header).encode(), dtype=np.uint8)
    made = io.BytesIO()
    np.savez(made, **found)
    return made.getvalue()


def assert_no_index(content: bytes) -> None:
    with pytest.raises(DataError) as caught:
        ShardIndex.unpack(content, "DIR/index.npz")
    assert len(str(caught.value)) < 250
    assert_error(str(caught.value), "DIR/index.npz")


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_imgrec_does_not_write_is_refused(kept, header):
    index = ShardIndex.read(kept)
    if "shards" in header:
        header = {"shards": [*header["shards"], *index.shards[1:]]}
    assert_no_index(changed_index((kept / INDEX).read_bytes(), header))


@pytest.mark.parametrize("change", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("name", ["sizes", "checksums", "train_labels", "train_names", "train_places"])
def test_an_array_that_imgrec_does_not_write_is_refused(kept, name, change):
    content = (kept / INDEX).read_bytes()
    assert_no_index(changed_index(content, {}, **{name: change(np.load(io.BytesIO(content))[name])}))


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_an_index_with_a_label_of_no_class_is_refused(kept, label):
    content = (kept / INDEX).read_bytes()
    labels = np.load(io.BytesIO(content))["train_labels"]
    labels[3] = label
    assert_no_index(changed_index(content, {}, train_labels=labels))


def test_an_index_without_images_is_refused(kept):
    with raises_error(DataError, "index.npz", "does not fit to itself"):
        ShardIndex.read(kept)._replace(splits={}).check("index.npz")


@given(
    offset=st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30_000),
    length=st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30_000),
    shard=st.integers(-3, 9),
)
def test_no_image_is_outside_its_shard(kept, offset, length, shard):
    index = ShardIndex.read(kept)
    places = index.splits["train"].places.copy()
    places[3] = (shard, offset, length, -1)
    changed = index._replace(splits={"train": index.splits["train"]._replace(places=places)})
    if 0 <= shard < len(index.shards) and offset >= 0 and length >= 0 and offset + length <= int(index.sizes[shard]):
        changed.check("index.npz")
    else:
        with raises_error(DataError, "index.npz", "does not fit to itself", "pack the images again"):
            changed.check("index.npz")


def test_an_archive_that_is_larger_in_memory_than_on_disk_is_not_read(kept):
    made = io.BytesIO()
    np.savez_compressed(made, **dict(np.load(kept / INDEX)), more=np.zeros(10**6))
    assert_no_index(made.getvalue())
    for shape in ((2**70,), (2**36,), (-1,)):  # arrays that are said to be larger than they are
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive, archive.open("sizes.npy", "w") as entry:
            np.lib.format.write_array_header_1_0(entry, {"descr": "<i8", "fortran_order": False, "shape": shape})
        assert_no_index(made.getvalue())


@pytest.mark.parametrize("header", [b"[" * 200_000, b"1" * 10_000, b"NaN", b"[1]", b"\xff"], ids=lambda header: ascii(header[:3]))
def test_a_header_that_is_no_header_is_refused(kept, header):
    made = io.BytesIO()
    np.savez(made, **dict(np.load(kept / INDEX)) | {"header": np.frombuffer(header, dtype=np.uint8)})
    assert_no_index(made.getvalue())


def equal(one: ShardIndex, other: ShardIndex) -> bool:
    def plain(index: ShardIndex):
        splits = {name: [column.tolist() for column in split] for name, split in index.splits.items()}
        return index.classes, index.shards, index.sizes.tolist(), index.checksums.tolist(), splits, index.source

    return plain(one) == plain(other)


NAMES = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=9), min_size=1, max_size=5, unique=True
)


@given(classes=NAMES, names=NAMES)
def test_an_index_is_read_as_it_was_written(tmp_path_factory, classes, names):
    folder = tmp_path_factory.mktemp("index")
    places = np.array([(0, k, 1, k) for k in range(len(names))], dtype=PLACE)
    packed = PackedSplit(np.arange(len(names)) % len(classes), np.array([os.fsencode(name) for name in names]), places)
    index = ShardIndex(
        tuple(map(composed, classes)), ("train/00000.tar",), np.array([9]), np.array([-1]), {"train": packed}, "abc"
    )
    index.write(folder)
    assert equal(ShardIndex.read(folder), index)


# Runs that are resumed


def test_images_that_changed_are_noticed(photos, kept, tmp_path):
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    path = Path(folder(root).split("train").path(2))
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    then, now = shards(kept), shards(pack(folder(root), tmp_path / "new"))
    assert find_changes(then.record(), shards(kept).record()).counts == {}
    changes = find_changes(then.record(), now.record())
    assert changes.counts == {"replaced": 1}
    assert path.name in str(changes)
    assert isinstance(then.record(), DataRecord)


# The command


def test_the_command_packs_and_says_what_to_type(photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data.test_share=0.25", "data.val_share=0.25", "num_workers=0"]
    assert cli.main(["pack", str(photos), f"out={out}", "format=keep", "shard_images=7", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: train ")
    assert "3 classes" in said
    assert said.endswith(f"next:\n  imgrec train data=shards data.root={out}\n")
    assert whole(shards(out).split("val")).images.equal(whole(folder(photos).split("val")).images)


def test_of_a_pack_of_smaller_images_the_next_training_takes_no_larger_ones(photos, tmp_path, capsys):
    assert cli.main(["pack", str(photos), f"out={tmp_path / 'out'}", "size=32", "num_workers=0"]) == 0
    assert capsys.readouterr().out.endswith(" data.image_size=28\n")


def test_mistakes_are_one_line(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    for words, parts in {
        ("data=digits", f"out={tmp_path}/o"): ("data: Digits", "in memory", "data=imagefolder data.root=FOLDER"),
        (str(tmp_path),): ("out=null", "out=DIR"),
        (str(tmp_path), "out="): ("out=", "out=DIR"),
        (str(tmp_path), f"out={tmp_path}/a/../b"): (f"out={tmp_path}/a/../b", f"data.root={tmp_path}", "out=DIR"),
        (str(tmp_path), f"out={tmp_path}"): (f"out={tmp_path}", f"data.root={tmp_path}", "out=DIR"),
        ("data.root=none", f"out={tmp_path}/o"): ("data.root=none", "data.root=FOLDER"),
        ("format=png",): ("format=png", "jpeg, raw or keep", "jpeg"),
        ("data=shards", "data.cache_gb=1e300"): ("data.cache_gb=1e+300", "more than 0 and at most 1000000000", "4.0"),
        ("size=64", "format=keep"): ("size=64 has no effect", "format=jpeg"),
        ("quality=80", "format=raw"): ("quality=80 has no effect", "format=jpeg"),
        ("quality=101",): ("quality=101", "1 or more and at most 100", "90"),
        ("verify=none",): ("verify=none", INDEX, "verify=DIR"),
    }.items():
        assert cli.main(["pack", *words]) == 2
        assert_refused(capsys.readouterr().err, *parts)


def test_a_root_that_is_no_folder_is_refused_before_torch_is_imported():
    with raises_error(DataError, "data.root=none", "not a folder", "imgrec pack FOLDER out=DIR", "has made"):
        check_start(config.load("train", ["data=shards", "data.root=none"]))


def test_a_folder_without_an_index_is_named(tmp_path):
    with raises_error(DataError, f"data.root={tmp_path}", INDEX, "imgrec pack FOLDER out=DIR"):
        _ = shards(tmp_path).splits


def test_prediction_and_evaluation_read_images_likewise(photos, kept):
    path = folder(photos).split("test").path(0)
    assert torch.equal(load_image(path, PREPROCESSING), whole(shards(kept).split("test")).images[0])
