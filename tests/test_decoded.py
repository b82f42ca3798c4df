"""data.cache=ram: the same batches, bit for bit, from images that are decoded once by any process of the machine."""

import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import raises_error
from image_files import picture
from marks import slow_but
from PIL import Image
from processes import run_ranks
from resumed_runs import assert_same, finish_run, kill_run
from test_data_folder import data_module, folder, make  # noqa: F401  # a fixture
from test_file_index import progress
from test_resume_skipped import load
from test_resume_skipped import root as skipping_root  # noqa: F401  # a fixture

from imgrec import config
from imgrec.config.instantiate import build
from imgrec.data import decoded
from imgrec.data.augment import Augment
from imgrec.data.batch import Batch, Request
from imgrec.data.decoded import DecodedImages, decoded_images
from imgrec.data.folder import ImageFiles
from imgrec.errors import ConfigError, SourceError
from imgrec.training.step_boundary import StepBoundary


def augmentation(*words: str) -> Augment:
    return build("augment", config.load("train", ["data=digits", *words]).augment, Augment)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Pictures of several sizes, formats and modes, one that EXIF turns, one of one value, and one that is damaged."""
    root = make(tmp_path / "photos", {"a": 6, "b": 6})
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).resize((40, 25)).save(root / "a/turned.jpg", exif=exif)
    picture(2).convert("L").save(root / "a/gray.png")
    picture(3).convert("RGBA").resize((31, 64)).save(root / "b/alpha.webp", lossless=True)
    picture(4).convert("P").save(root / "b/palette.gif")
    Image.new("RGB", (20, 20), "red").save(root / "b/constant.png")
    for k in range(8):
        (root / f"b/damaged{k}.jpg").write_bytes((root / "b/000.jpg").read_bytes()[:300])
    return root


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))
        and one.images.stride() == other.images.stride()
        for one, other in zip(ours, theirs, strict=True)
    )


SETTINGS = [["augment=none"], ["augment=basic", "augment.crop_scale=[0.3,1]", "augment.crop_padding=0"], ["augment=randaug"]]


@pytest.mark.parametrize(
    ("number", "num_workers"), slow_but((0, 0), (1, 2), among=[(number, workers) for number in range(3) for workers in (0, 2)])
)
def test_batches_are_the_same_and_no_file_is_read_twice(data_module, photos, number, num_workers):  # noqa: F811
    augment = augmentation(*SETTINGS[number])
    expected, found = [], []
    for cache, batches in (("none", expected), ("ram", found)):
        data = folder(photos, cache=cache, on_bad_image="skip")
        loaders = data_module(data, augment, num_workers=num_workers)
        loaders._epoch = lambda: 0
        for split in (loaders.train_dataloader, loaders.val_dataloader):
            loader = split()
            for epoch in range(2):
                if cache == "ram" and epoch:
                    photos.rename(away := photos.with_name("away"))
                    photos.mkdir()
                    (photos / "b").mkdir()
                    for bad in away.rglob("damaged*"):  # they are decoded each time, and left out
                        shutil.copy(bad, photos / "b")
                batches += list(loader)
                if cache == "ram" and epoch:
                    shutil.rmtree(photos)
                    away.rename(photos)
    assert same(found, expected)
    assert any(batch.bad for batch in expected)
    assert len(found) > 4


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_as_it_was_decoded(photos, channels):
    change = {} if channels == 3 else {"channels": 1, "mean": [0.5], "std": [0.5]}
    images: ImageFiles = folder(photos, **change, on_bad_image="skip", on_bad_image_eval="skip").split("train")
    shared = images.decoded_once()
    other = pickle.loads(pickle.dumps(shared.decoded))  # as in a worker that is not forked
    for index, name in enumerate(images.names.tolist()):
        if b"damaged" in name:
            continue
        image = images.decode(index)
        assert other.get(index) is None
        assert torch.equal(shared._image(index), image)
        for kept in (shared.decoded.get(index), other.get(index)):
            assert torch.equal(kept, image)
            assert kept.stride() == image.stride()
    assert images.decoded is None
    assert shared.take(np.arange(2)).decoded is None


def test_ranks_of_a_machine_share_it(photos):
    images = folder(photos, on_bad_image="skip", on_bad_image_eval="skip").split("train")

    def work(rank: int) -> list[bool]:
        shared = images.decoded_once()
        there = [shared.decoded.get(index) is not None for index in range(len(images))]
        rows = np.arange(rank, len(images), 2)
        batch = shared[Request(0, rows, len(rows))]
        torch.distributed.barrier()
        there = [shared.decoded.get(index) is not None for index in range(len(images))]
        torch.distributed.barrier()
        assert torch.equal(batch.images, images[Request(0, rows, len(rows))].images)
        return there

    expected = [b"damaged" not in name for name in images.names.tolist()]
    assert run_ranks(2, work, group=True) == [expected] * 2


def test_what_does_not_fit_is_refused_with_both_sizes(photos, monkeypatch):
    images = folder(photos).split("train")
    monkeypatch.setattr(decoded, "available_memory", lambda: 1000)
    with raises_error(ConfigError, "data.cache=ram", "0.0 GB", "available", "data.cache=none", "imgrec pack"):
        decoded_images(images.open, len(images), 3)


def test_every_rank_is_told_that_it_does_not_fit(photos, monkeypatch):
    """The others would wait for memory that rank 0 did not get."""
    monkeypatch.setattr(decoded, "usable_memory", lambda: 10)
    images = folder(photos).split("train")

    def work(rank: int) -> None:
        with raises_error(ConfigError, "data.cache=ram", "0.0 GB", "data.cache=none", "imgrec pack"):
            images.decoded_once()

    assert run_ranks(2, work, group=True) == [None] * 2


def test_a_server_that_does_not_answer_is_no_damaged_image_and_every_rank_is_told(photos):
    images = folder(photos).split("train")

    def fail(index: int) -> None:
        raise SourceError(f"image {index} cannot be read: no answer")

    def work(rank: int) -> None:
        with raises_error(SourceError, "image 0", "no answer"):
            decoded_images(fail, len(images), 3)

    assert run_ranks(2, work, group=True) == [None] * 2


def test_the_sizes_that_are_read_are_counted_for_a_bar(monkeypatch, photos):
    monkeypatch.setattr(decoded, "HEADERS_AT_ONCE", 3)
    images = folder(photos, on_bad_image="skip", on_bad_image_eval="skip").split("train")
    assert progress(images.decoded_once) == {("reading the sizes of images", len(images)): len(images)}


def test_a_killed_process_leaves_nothing_behind_and_shared_memory_may_be_small():
    """Anonymous memory: no file of /dev/shm, whose size a container may have set to 64 MB, nor of another file system."""
    read, written = os.pipe()
    if not (child := os.fork()):
        file, number = decoded._allocate(np.array([10**6]))
        os.write(written, f"{file} {os.fstat(number).st_dev} {os.fstat(number).st_nlink}".encode())
        signal.pause()
    file, device, links = os.read(read, 1000).decode().split()
    with open(file, "rb") as opened:
        assert os.fstat(opened.fileno()).st_size > 10**6
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not os.path.exists(file)
    assert (int(device) != os.stat("/dev/shm").st_dev, links) == (True, "0")


@pytest.mark.slow  # batches are compared above
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_in_an_epoch_and_resumed_is_the_one_without_it(tmp_path, skipping_root, ranks):  # noqa: F811
    outcomes = []
    for cache in ("none", "ram"):
        words = (f"data.cache={cache}", "trainer.devices=auto", "trainer.save_every_steps=1")
        run = load(tmp_path / cache, skipping_root, *words)
        if cache == "ram":
            kill_run(run, 7, StepBoundary, "on_before_optimizer_step", size=ranks)
        outcomes.append(finish_run(run, size=ranks))
    assert_same(*outcomes)


def test_an_image_that_has_grown_is_not_kept(tmp_path):
    file, number = decoded._allocate(np.array([12, 12]))
    images = DecodedImages(file, 2, 3)
    images.put(0, torch.zeros(3, 9, 9, dtype=torch.uint8))
    images.put(1, ones := torch.ones(3, 2, 2, dtype=torch.uint8))
    assert images.get(0) is None
    assert torch.equal(images.get(1), ones)
    decoded.os.close(number)


def test_the_available_memory_is_that_of_the_machine_or_of_its_container():
    total = decoded.os.sysconf("SC_PAGE_SIZE") * decoded.os.sysconf("SC_PHYS_PAGES")
    assert 0 < decoded.available_memory() < total


@pytest.mark.parametrize(
    ("line", "root", "files", "unlimited"),
    [
        ("0::", "", ("memory.max", "memory.current", "inactive_file"), "max"),
        ("7:memory:", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), 2**63 - 4096),
    ],
    ids=["version 2", "version 1"],
)
def test_the_available_memory_is_that_of_the_job(
    tmp_path: Path, line: str, root: str, files: tuple[str, str, str], unlimited: object
) -> None:
    """As SLURM makes control groups: the job has a limit, and what is below and above it has none."""
    (tmp_path / "own").write_text(f"5:cpu:/elsewhere\n{line}/slurm/job_7/step_0\n")
    for place, limit in (("slurm/job_7/step_0", unlimited), ("slurm/job_7", 9_000_000), ("slurm", unlimited)):
        folder = tmp_path / "groups" / root / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip((*files[:2], "memory.stat"), (limit, 3_000_000, f"anon 7\n{files[2]} 500000"), strict=True):
            (folder / name).write_text(f"{value}\n")
    assert decoded.available_memory(tmp_path / "own", tmp_path / "groups") == 6_500_000


def test_a_system_without_shared_memory_of_this_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with raises_error(ConfigError, "data.cache=ram", "Linux", "data.cache=none"):
        decoded_images(open, 1, 3)
