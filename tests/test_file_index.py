"""What a folder holds is found in the cache as long as it is what the folder holds."""

import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marks import fewer

from imgrec import config
from imgrec.config.split_folders import class_folders
from imgrec.data import cache, file_index, readable
from imgrec.data.file_index import FileIndex, join_names, listed_images, pack_names
from imgrec.data.folder_classes import filled_class_folders
from imgrec.errors import DataError
from imgrec.files import on_progress
from imgrec.image_folders import find_images

CLOCK = itertools.count(1)


@pytest.fixture
def listings(tmp_path, monkeypatch) -> Path:
    """Where the listings of any folder are kept, also of a small one that has just changed."""
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "LEAST_IMAGES", 1)
    monkeypatch.setattr(file_index, "SETTLED_NS", -(10**18))
    return tmp_path / "cache/imgrec/listings"


def tick(folder: Path) -> None:
    """A change at a time of its own, as the steps of the file system's clock may be longer than a test."""
    os.utime(folder, (next(CLOCK),) * 2)


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    for folder in (file.parent, file.parent.parent):
        tick(folder)


def without_scans(monkeypatch) -> None:
    def scan(folder: str) -> None:
        raise AssertionError(f"{folder} was listed again")

    monkeypatch.setattr(file_index, "list_folder", scan)


def test_a_second_look_lists_no_folder(tmp_path, listings, monkeypatch):
    root = tmp_path / "data"
    names = ["a/1.jpg", "a/x/2.png", "a-b/3.jpg", "b/é.jpg", "b/\udcff.jpg", "b/note.txt"]
    for name in names:
        write(root / name)
    (root / "empty").mkdir()
    tick(root)
    first, ignored = listed_images(str(root)), Counter()
    assert first == find_images(str(root), ignored=ignored)
    without_scans(monkeypatch)
    again, counted = FileIndex(str(root)), Counter()
    assert [os.fsdecode(name) for name in again.find(ignored=counted).tolist()] == first
    assert counted == ignored == {".txt": 1}
    assert filled_class_folders(again) == ["a", "a-b", "b"]
    assert again.find("a").tolist() == [b"a/1.jpg", b"a/x/2.png"]
    assert stored(listings)[0].stat().st_mode & 0o777 == 0o600


def stored(listings: Path) -> list[Path]:
    return sorted(listings.glob("listing-*"))


PLACES = ["a", "b", "a/x", "a/x/y", "b/.hidden"]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "rename", "move", "delete folder", "link", "link file"]), *[st.integers(0, 9)] * 2
    ),
    max_size=12,
)


def change(root: Path, kind: str, first: int, second: int) -> None:
    folder, other = root / PLACES[first % len(PLACES)], root / PLACES[second % len(PLACES)]
    file = folder / f"{second}.jpg"
    if kind == "add" and not any(path.is_symlink() and not path.is_dir() for path in (folder, *folder.parents)):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    elif kind == "remove" and file.exists():
        file.unlink()
    elif kind == "rename" and file.exists():
        file.replace(folder / f"{second} {first}.png")
    elif (
        kind == "move"
        and folder.is_dir()
        and not os.path.lexists(other)
        and other.parent.is_dir()
        and folder not in other.parents
    ):
        folder.rename(other)
    elif kind == "delete folder" and folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    elif kind == "link" and not other.exists() and not other.is_symlink() and other.parent.is_dir():
        other.symlink_to(folder)
    elif kind == "link file" and folder.is_dir() and not (folder / "l.jpg").is_symlink():
        (folder / "l.jpg").symlink_to(other / f"{first}.jpg")  # which may come and go


@example(changes=[("link", 3, 4), ("add", 4, 0)])  # a link to nothing
@fewer(10)  # an eighth of a second each
@given(changes=CHANGES)
def test_it_finds_what_is_there_after_any_change(tmp_path_factory, changes):
    with pytest.MonkeyPatch.context() as patch:
        listings.__wrapped__(tmp := tmp_path_factory.mktemp("changed"), patch)  # type: ignore[attr-defined]
        root = tmp / "data"
        for place in ("a", "b", "a/x"):
            write(root / place / "0.jpg")
        for kind, first, second in [("", 0, 0), *changes]:
            before = {folder: folder.stat().st_mtime_ns for folder in root.rglob("*") if folder.is_dir()}
            change(root, kind, first, second)
            for folder in (root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())):
                if folder.stat().st_mtime_ns != before.get(folder, 0):
                    tick(folder)
            try:
                there = find_images(str(root))
            except DataError as error:  # of a link that leads to itself
                with pytest.raises(DataError, match=re.escape(str(error))):
                    listed_images(str(root))
                return
            assert listed_images(str(root)) == there
            files = FileIndex(str(root))
            for name in class_folders(str(root)):
                assert list(map(os.fsdecode, files.find(name).tolist())) == find_images(str(root), name)


def test_a_folder_that_changed_just_now_is_listed_again(tmp_path, monkeypatch):
    """What comes in the same step of the file system's clock leaves no trace."""
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "LEAST_IMAGES", 1)
    write(tmp_path / "data/a/1.jpg")
    state = os.stat(tmp_path / "data/a")
    assert listed_images(str(tmp_path / "data")) == ["a/1.jpg"]
    (tmp_path / "data/a/2.jpg").write_bytes(b"")
    os.utime(tmp_path / "data/a", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert listed_images(str(tmp_path / "data")) == ["a/1.jpg", "a/2.jpg"]


def test_a_damaged_listing_is_none(tmp_path, listings):
    root = str(tmp_path / "data")
    for k in range(3):
        write(tmp_path / f"data/{k}/{k}.jpg")
    expected = listed_images(root)
    (file,) = stored(listings)
    content = file.read_bytes()
    places = [*range(24), *range(24, len(content), 9)]  # all of the header
    damaged = [content[:length] for length in places]
    damaged += [bytes(len(content)), bytes(24)]  # zeros, as a power failure may leave them
    damaged += [content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :] for k in places]
    for wrong in damaged:
        file.write_bytes(wrong)
        assert listed_images(root) == expected
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_or_is_switched_off_is_none(tmp_path, listings, monkeypatch):
    write(tmp_path / "data/a/1.jpg")
    (tmp_path / "cache").write_bytes(b"a file")
    for place in (tmp_path / "cache", "", "relative"):
        monkeypatch.setenv("IMGREC_CACHE", str(place))
        assert listed_images(str(tmp_path / "data")) == ["a/1.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]
    assert cache.cache_folder() is None


def test_it_lies_in_the_cache_folder_of_the_user_and_never_in_the_data(tmp_path, listings, monkeypatch):
    monkeypatch.delenv("IMGREC_CACHE")
    write(tmp_path / "data/a/1.jpg")
    for variable, place in (("XDG_CACHE_HOME", "xdg"), ("HOME", "home/.cache")):
        monkeypatch.setenv(variable, str(tmp_path / place.split("/")[0]))
        listed_images(str(tmp_path / "data"))
        assert len(stored(tmp_path / place / "imgrec/listings")) == 1
        monkeypatch.delenv(variable)
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["a", "1.jpg"]


def test_few_images_are_not_worth_a_file(tmp_path, listings, monkeypatch):
    monkeypatch.setattr(file_index, "LEAST_IMAGES", 2)
    write(tmp_path / "data/a/1.jpg")
    listed_images(str(tmp_path / "data"))
    assert not listings.exists()


def test_the_cache_has_a_bound_and_drops_what_was_used_longest_ago(tmp_path, listings, monkeypatch):
    roots = [tmp_path / f"data{k}" for k in range(4)]
    for age, root in enumerate(roots):
        write(root / "a" / f"{'x' * 100}.jpg")
        listed_images(str(root))
        os.utime(max(stored(listings), key=lambda file: file.stat().st_mtime_ns), (age, age))
    kept = {file.name: file.stat() for file in stored(listings)}
    monkeypatch.setattr(cache, "MOST_CACHED", 3 * next(iter(kept.values())).st_size)
    others = [listings / "mine.tar", listings / "folder/mine.tar"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10_000))
        os.utime(path, (0, 0))
    FileIndex(str(roots[0]))  # uses the oldest
    write(roots[3] / "b/1.jpg")
    listed_images(str(roots[3]))
    names = {f"listing-{file_index.hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()}-2" for root in roots}
    gone = names - {file.name for file in stored(listings)}
    assert min(kept[name].st_mtime for name in gone) == 1
    assert file_index._cache_file(str(roots[0])).exists()
    assert file_index._cache_file(str(roots[3])).exists()
    assert all(path.exists() for path in others)


def _look_often(root: str, expected: list[str]) -> bool:
    for _ in range(30):
        file_index._cache_file(root).unlink(missing_ok=True)
        if listed_images(root) != expected:
            return False
    return True


def progress(work: Callable[[], object]) -> Counter[tuple[str, int | None]]:
    """How many images were done in all, by what is done to how many."""
    counts: Counter[tuple[str, int | None]] = Counter()
    token = on_progress.set(lambda what, count, of: counts.update({(what, of): count}))
    work()
    on_progress.reset(token)
    return counts


def test_the_images_that_are_listed_are_counted_for_a_bar(tmp_path, listings):
    for k in range(50):
        write(tmp_path / f"data/{k % 5}/{k}.jpg")
    assert progress(lambda: listed_images(str(tmp_path / "data"))) == {("listing images", None): 50}


def test_several_processes_share_it(tmp_path, listings):
    for k in range(50):
        write(tmp_path / f"data/{k % 5}/{k}.jpg")
    expected = find_images(str(tmp_path / "data"))
    with get_context("fork").Pool(4) as pool:
        assert all(pool.starmap(_look_often, [(str(tmp_path / "data"), expected)] * 4))
        pool.close()
        pool.join()
    assert len(list(listings.iterdir())) == 1  # nothing unfinished is left


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/none cannot be read: No such file"):
        listed_images(f"{tmp_path}/none")


@given(
    names=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1),
    cuts=st.lists(st.integers(0, 20), min_size=1),
    swap=st.booleans(),
)
def test_names_that_lie_together_are_joined_without_a_copy(names, cuts, swap):
    whole = pack_names(names)
    parts = [whole[a:b] for a, b in itertools.pairwise(sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))}))]
    parts = parts[::-1] if swap else parts
    joined = join_names(parts)
    assert joined.tolist() == [name for part in parts for name in part.tolist()]
    assert (joined.base is whole) == (not swap or len(parts) == 1)


def test_images_that_were_readable_once_are_not_looked_at_again(tmp_path, listings, monkeypatch):
    import numpy as np
    from PIL import Image

    from imgrec.data.datamodule import build_data
    from imgrec.distributed.world import read_world
    from imgrec.training.data_check import checked_data

    monkeypatch.setattr(readable, "LEAST_REMEMBERED", 1)
    for k in range(20):
        file = tmp_path / f"data/{k % 2}/{k}.png"
        write(file)
        Image.fromarray(np.full((8, 8 + k, 3), k, dtype=np.uint8)).save(file)
    looked: list[str] = []
    error = readable._error
    monkeypatch.setattr(
        readable, "_error", lambda images, row, **keys: looked.append(images.path(row)) or error(images, row, **keys)
    )

    def start(*words: str) -> int:
        looked.clear()
        data, _ = build_data(
            config.load("train", ["data=imagefolder", f"data.root={tmp_path}/data", "data.image_size=8", *words])
        )
        checked_data(data, None, print, read_world())
        return len(looked)

    assert start() == 20
    assert start() == 0
    assert start("data.check=all") == 20
    assert start("data.max_pixels=1000") == 20
    (tmp_path / "data/0/0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"0/0\.png"):
        start()
    with pytest.raises(DataError, match=r"0/0\.png"):
        start()
