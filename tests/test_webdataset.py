"""data=shards with tar files that others wrote: read in imgrec's order by an index that is built once."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
import torch
from error_parts import assert_refused, raises_error
from image_files import picture
from range_server import served
from test_data_folder import PREPROCESSING, folder, make, whole
from test_pack import KEEP, pack, samples, shards

from imgrec import cli
from imgrec.data.decode import load_image
from imgrec.errors import DataError
from imgrec.storage import webdataset
from imgrec.storage.index import INDEX, ShardIndex
from imgrec.storage.verify import find_damage


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, kind)
    return content.getvalue()


def write(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, seed: int, label: object, extension: str = "jpg") -> list[tuple[str, bytes]]:
    image = (f"{key}.{extension}", encoded(seed, "PNG" if extension == "png" else "JPEG"))
    return [image, (f"{key}.cls", str(label).encode()), (f"{key}.json", b'{"x": 1}')]


def write_set(root: Path, names: dict[str, int], labels=(0, 1, 2)) -> Path:
    """Shards of 12 images each, in forms and with names of several lengths."""
    for number, (name, form) in enumerate(names.items()):
        members = []
        for k in range(12):
            key = f"{'deep/' * (30 * (k == 3))}s{number}_{k}"
            members += sample(key, 100 * number + k, labels[k % len(labels)], "png" if k == 5 else "jpg")
        write(root / name, members, form)
    return root


LAYOUTS = {
    "folders": ["train/0.tar", "train/1.tar", "val/0.tar", "test/0.tar"],
    "names": ["set-train-0.tar", "set-train-1.tar", "set-validation-0.tar", "set-test-0.tar"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("labels", [(0, 1, 10), ("wolf", "ant", "größe")], ids=["numbers", "names"])
def test_images_labels_and_splits_are_those_of_the_shards(tmp_path, layout, labels):
    forms = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
    forms[0] = tarfile.GNU_FORMAT  # USTAR holds no long names
    root = write_set(tmp_path / "set", dict(zip(LAYOUTS[layout], forms, strict=True)), labels)
    data = shards(root)
    assert data.classes == tuple(map(str, labels if labels[0] == 0 else sorted(labels)))
    for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        images = data.split(split)
        assert len(images) == 12 * len(numbers)
        batch = whole(images)
        for row in range(len(images)):
            number, k = numbers[row // 12], row % 12
            assert data.classes[batch.labels[row]] == str(labels[k % 3])
            (tmp_path / "one").write_bytes(encoded(100 * number + k, "PNG" if k == 5 else "JPEG"))
            assert torch.equal(batch.images[row], load_image(str(tmp_path / "one"), PREPROCESSING))


def test_shards_without_splits_are_cut(tmp_path):
    data = shards(write_set(tmp_path / "set", {f"{k}.tar": tarfile.PAX_FORMAT for k in range(6)}))  # by several processes
    counts = {split: len(data.split(split)) for split in ("train", "val", "test")}
    assert sum(counts.values()) == 72
    assert min(counts.values()) >= 3


def test_the_index_is_built_once_and_anew_when_shards_change(tmp_path, cache, monkeypatch):
    root = write_set(tmp_path / "set", {"train/0.tar": tarfile.PAX_FORMAT, "val/0.tar": tarfile.PAX_FORMAT})
    built = []
    build = webdataset._build
    monkeypatch.setattr(webdataset, "_build", lambda *args: built.append(args[0]) or build(*args))
    first = shards(root).split("train")
    assert torch.equal(whole(shards(root).split("train")).images, whole(first).images)
    assert built == [str(root)]
    write(root / "train/0.tar", sample("a", 1, 0) + sample("b", 2, 1) + sample("c", 3, 2))
    assert len(shards(root).split("train")) == 3
    assert len(built) == 2
    for file in cache.rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert len(shards(root).split("train")) == 3
    monkeypatch.setenv("IMGREC_CACHE", "")
    assert len(shards(root).split("train")) == 3
    assert len(built) == 4
    assert sorted(path.name for path in root.rglob("*")) == ["0.tar", "0.tar", "train", "val"]  # nothing is written there


def test_our_shards_without_their_index_are_read_as_those_of_others(tmp_path):
    photos = make(tmp_path / "photos", {"cat": 9, "dog": 14})
    out = pack(folder(photos), tmp_path / "out", KEEP)
    ours = shards(out).split("train")
    (out / INDEX).unlink()
    theirs = shards(out).split("train")
    assert theirs.labels.tolist() == ours.labels[[int(name.decode().rpartition("/")[2]) for name in theirs.names]].tolist()


def test_an_index_beside_them_is_written_by_a_command_and_offered_by_a_server(tmp_path, capsys):
    root = write_set(tmp_path / "set", dict.fromkeys(LAYOUTS["folders"], tarfile.PAX_FORMAT), ("cat", "dog", "eel"))
    before = shards(root).split("train")
    assert cli.main(["pack", "index", str(root)]) == 0
    assert f"imgrec train data=shards data.root={root}" in capsys.readouterr().out
    assert find_damage(root, advance=lambda done: None) == []
    index = ShardIndex.read(root)
    assert (index.splits["train"].places["checksum"] >= 0).all()
    with served(root) as (url, _):
        for after in (shards(root), shards(url)):
            assert after.split("train").names.tolist() == before.names.tolist()
            assert torch.equal(whole(after.split("train")).images, whole(before).images)
    for place, what in ((root, "already"), (tmp_path / "none", "not a folder")):
        assert cli.main(["pack", f"index={place}"]) == 2
        assert_refused(capsys.readouterr().err, f"index={place}", what, "index=DIR")


def test_what_is_wrong_with_a_shard_is_said_with_its_name(tmp_path):
    def said(*parts: object, members=None, **change) -> None:
        root = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        write(root / "val/0.tar", sample("a", 1, 0))
        if members is not None:
            write(root / "train/0.tar", members)
        for name, content in change.items():
            (root / name.replace("_", "/", 1)).with_suffix(".tar").write_bytes(content)
        with raises_error(DataError, *(str(part).replace("ROOT", str(root)) for part in parts)):
            _ = shards(root).splits

    good = sample("a", 1, 0) + sample("b", 2, 1)
    said("data.root=ROOT", "val", "train")
    said("ROOT/train/0.tar", "c", "no c.cls", members=[*good, ("c.jpg", encoded(3))])
    said("ROOT/train/0.tar", "a", "two images", members=[*good[:1], ("a.png", encoded(3, "PNG"))])
    said("data.root=ROOT", "no images", "train", members=[("a.txt", b"text")])
    said("ROOT/train/0.tar", "tar file", "Copy it again", members=good, train_0=b"x" * 1024)
    said("val/0.tar/a", "the class 0", "train", "1, 2", members=sample("a", 1, 1) + sample("b", 2, 2))
    content = write(tmp_path / "cut.tar", [("a.cls", b"0"), ("b.cls", b"0"), *good]).read_bytes()
    said("ROOT/train/0.tar", "Copy it again", members=good, train_0=content[: 2 * 1024 + 900])
    said("ROOT/train/0.tar", "b", "no b.cls", members=[*[one for one in good if one[0] != "b.cls"], ("b.cls", b" \n")])
    said("data.root=ROOT", "other.tar", "train, val or test", members=good, other=content)
    (tmp_path / "none").mkdir()
    with raises_error(DataError, f"data.root={tmp_path / 'none'}", "*.tar", "imgrec pack FOLDER out=DIR"):
        _ = shards(tmp_path / "none").splits
    assert os.listdir(tmp_path / "none") == []


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_a_shard_that_is_no_file_is_named(tmp_path, kind):
    write(tmp_path / "train/0.tar", sample("a", 1, 0) + sample("b", 2, 1))
    path = tmp_path / "train/1.tar"
    {"pipe": os.mkfifo, "folder": os.mkdir, "link to nothing": lambda path: os.symlink("nothing", path)}[kind](path)
    with raises_error(DataError, path, "is not a file", "Remove it"):
        _ = shards(tmp_path).splits


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"\xff" * 12, b"-0000000001\0"]
)
@pytest.mark.parametrize("member", [0, 1])
def test_a_size_that_no_file_has_is_damage(tmp_path, size, member):
    content = bytearray(write(tmp_path / "train/0.tar", sample("a", 1, 0) + sample("b", 2, 1)).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        header = tar.getmembers()[member].offset
    content[header + 124 : header + 136] = size
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    (tmp_path / "train/0.tar").write_bytes(content)
    with raises_error(DataError, tmp_path / "train/0.tar"):
        _ = shards(tmp_path).splits


# Archives that are odd, damaged or made to harm


def packed(members: list[tarfile.TarInfo | tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """The bytes of an archive; a TarInfo has the content b"1" where it has a size."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(b"1") if member.size else None)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return made.getvalue()


def member(name: str, **change: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in change.items():
        setattr(info, key, value)
    return info


def headers(*infos: tarfile.TarInfo) -> bytes:
    return b"".join(info.tobuf(tarfile.GNU_FORMAT) for info in infos)


GOOD = sample("a", 1, 0) + sample("b", 2, 1)
WHOLE = packed(GOOD)
SECOND = WHOLE.index(b"b.jpg\0")  # where the header of that file begins
HALF = WHOLE[:SECOND]
ODD: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "cut between two files": (HALF, ("cut short",)),
    "cut in a header": (WHOLE[: SECOND + 100], ("cut short",)),
    "one block of zeros": (WHOLE[:-10240] + bytes(512), ("cut short",)),
    "a damaged header": (HALF + b"B" + WHOLE[SECOND + 1 :], ("damaged",)),
    "two archives": (WHOLE + packed(sample("c", 3, 0)), ("goes on",)),
    "compressed": (gzip.compress(WHOLE), ("decompress it",)),
    "hard link": (packed([*GOOD, member("c.jpg", type=tarfile.LNKTYPE, linkname="a.jpg")]), ("c.jpg", "link", "--dereference")),
    "link": (packed([*GOOD, member("c.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")]), ("c.jpg", "link")),
    "linked class": (packed([*GOOD[:1], member("a.cls", type=tarfile.LNKTYPE, linkname="b.cls")]), ("a.cls", "link")),
    "device": (packed([*GOOD, member("c.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)]), ("c.jpg", "device")),
    "sparse": (
        packed(
            [*GOOD, member("c.jpg", size=1, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"})], tarfile.PAX_FORMAT
        ),
        ("c.jpg", "sparse"),
    ),
    "two classes": (packed([*GOOD, ("a.cls", b"1")]), ("a", "two classes")),
    "long name": (packed([*GOOD, ("x" * 5000 + ".jpg", b"")]), ("at most 4,096 letters", "Rename it")),
    "zero in a name": (
        packed([*GOOD, member("c", pax_headers={"path": "c\0d.jpg"})], tarfile.PAX_FORMAT),
        ("c?d.jpg", "Rename it"),
    ),
    "size below zero": (packed([*GOOD, member("c", pax_headers={"size": "-4096"})], tarfile.PAX_FORMAT), ("negative",)),
    "names of names": (headers(*[member("long", type=tarfile.GNUTYPE_LONGNAME)] * 3000) + WHOLE, ("Copy it again",)),
    "a header larger than any memory": (headers(member("p", type=tarfile.XHDTYPE, size=2**60)) + WHOLE, ("Copy it again",)),
    "a header that is no text": (packed([*GOOD, member("c", type=tarfile.XHDTYPE)]) + b"\xff" * 9, ("Copy it again",)),
}


@pytest.mark.parametrize(("content", "parts"), ODD.values(), ids=ODD)
def test_no_image_of_an_odd_archive_is_lost_or_read_wrongly(tmp_path, content, parts):
    path = tmp_path / "train/0.tar"
    path.parent.mkdir()
    path.write_bytes(content)
    with raises_error(DataError, path, *parts):
        _ = shards(tmp_path).splits


def test_names_in_an_archive_lead_nowhere(tmp_path):
    names = ["/etc/a", "../../b", "c\n\x1b[31m", "d e", "ß/😀", "./f"]
    write(tmp_path / "train/0.tar", [one for k, name in enumerate(names) for one in sample(name, k, k % 2)])
    images = shards(tmp_path).split("train")
    assert {os.fsdecode(name) for name in images.names} <= {f"train/0.tar/{name}" for name in names}
    assert len(whole(images).images) == len(images)


def test_classes_that_are_one_number_or_one_text_in_two_forms(tmp_path):
    write(tmp_path / "a/train/0.tar", [one for k in range(8) for one in sample(f"n{k}", k, ("1", "01")[k % 2])])
    assert shards(tmp_path / "a").classes == ("01", "1")
    write(
        tmp_path / "b/train/0.tar", [one for k in range(8) for one in sample(f"n{k}", k, ("\u00e9", "e\u0301", "f", "f")[k % 4])]
    )
    assert shards(tmp_path / "b").classes == ("f", "\u00e9")
    assert cli.main(["pack", "index", str(tmp_path / "b")]) == 0
    assert shards(tmp_path / "b").classes == ("f", "\u00e9")


def test_shards_of_others_are_packed_under_names_that_webdataset_reads(tmp_path):
    root = write_set(tmp_path / "set", dict.fromkeys(LAYOUTS["folders"], tarfile.PAX_FORMAT))
    data = shards(root)
    out = pack(data, tmp_path / "out", KEEP)
    found = samples(out, "train")
    images = data.split("train")
    assert sorted(found) == [f"{row:08d}" for row in range(len(images))]
    for row, name in enumerate(images.names.tolist()):
        extension = "png" if name.endswith(b"_5") else "jpg"
        assert found[f"{row:08d}"] == {extension: images.open(row).read(), "cls": str(images.labels[row]).encode()}


def test_an_index_is_not_written_through_a_link(tmp_path, capsys):
    root = write_set(tmp_path / "set", {"train/0.tar": tarfile.PAX_FORMAT})
    (root / INDEX).symlink_to(tmp_path / "elsewhere")
    assert cli.main(["pack", "index", str(root)]) == 2
    assert_refused(capsys.readouterr().err, f"index={root}", "already")
    assert not (tmp_path / "elsewhere").exists()
