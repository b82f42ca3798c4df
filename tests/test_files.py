"""Which images a folder holds, and that a file is written whole or not at all."""

import contextlib
import gc
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import FrameType

import pytest
from error_parts import raises_error

import imgrec.files
from imgrec.config.plain_data import read_plain
from imgrec.errors import ConfigError, DataError, first_line
from imgrec.export.plain_files import check_program_output
from imgrec.files import atomic_file, atomic_write, begins_with, check_output, write_together
from imgrec.image_folders import find_images
from imgrec.inference.stored_predictions import read_predictions
from imgrec.paths import CHECKPOINT, expand_files, file_kind
from imgrec.training.restart_count import saved_step


def make_tree(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_images_at_any_depth_sorted_and_without_hidden_ones(tmp_path):
    shown = ["a/z.JPG", "a/b/c/1.png", "a/b/0.webp", "dir.jpg/2.tiff", "b.bmp"]
    make_tree(tmp_path, [*shown, "a/notes.txt", "a/.x.png", ".hidden/3.png", "a/.b/4.png"])
    os.symlink("a/z.JPG", tmp_path / "link.jpg")
    os.symlink("nowhere", tmp_path / "notes")
    assert find_images(str(tmp_path)) == sorted([*shown, "link.jpg"])
    ignored = Counter()
    assert find_images(str(tmp_path), "a", ignored=ignored) == ["a/b/0.webp", "a/b/c/1.png", "a/z.JPG"]
    assert ignored == {".txt": 1}


@pytest.mark.parametrize("target", ["nowhere.png", "x.png", "a.txt/x.png"])
def test_an_image_that_a_link_has_lost_is_one_that_cannot_be_read(tmp_path, target):
    make_tree(tmp_path, ["a.txt"])
    os.symlink(target, tmp_path / "x.png")
    assert find_images(str(tmp_path)) == ["x.png"]


def test_links_are_followed_except_to_a_folder_that_contains_them(tmp_path):
    make_tree(tmp_path, ["a/1.png", "b/2.png", "c/d/3.png"])
    os.symlink("../b", tmp_path / "a/b")  # b, and by the next link back into a
    os.symlink("../a", tmp_path / "b/a")
    os.symlink("../..", tmp_path / "c/d/up")
    os.symlink("../..", tmp_path / "c/d/here")
    assert find_images(str(tmp_path), "a") == ["a/1.png", "a/b/2.png"]
    assert find_images(str(tmp_path), "c") == ["c/d/3.png"]
    assert find_images(str(tmp_path)) == ["a/1.png", "a/b/2.png", "b/2.png", "b/a/1.png", "c/d/3.png"]
    os.symlink(tmp_path / "a", tmp_path / "c/other")  # elsewhere, and not above
    assert find_images(str(tmp_path), "c") == ["c/d/3.png", "c/other/1.png", "c/other/b/2.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with raises_error(DataError, f"{tmp_path}/none", "No such file"):
        find_images(str(tmp_path), "none")


def test_a_reader_sees_the_whole_file_or_the_one_before(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "before ä")
    with atomic_file(path, previous=tmp_path / "previous") as file:
        file.write(b"after")
        assert path.read_text() == "before ä"
    assert path.read_bytes() == b"after"
    assert (tmp_path / "previous").read_text() == "before ä"
    atomic_write(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert sorted(os.listdir(tmp_path)) == ["file", "previous"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_could_not_be_written_leaves_the_one_before(fault, tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "before")

    def write() -> None:
        with atomic_file(path, previous=tmp_path / "previous") as file:
            file.write(b"half")
            raise fault

    with pytest.raises(type(fault)):
        write()
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "before"


def test_a_full_disk_ends_in_one_line(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with raises_error(DataError, f"{tmp_path}/file", "No space left on device", "disk space"):
        atomic_write(tmp_path / "file", "text")
    assert not os.listdir(tmp_path)


def test_two_writers_of_one_file_have_names_of_their_own_and_what_a_killed_one_left_is_used_again(tmp_path):
    path = tmp_path / "file"
    (tmp_path / "file.unfinished").write_text("of a killed process, and longer")
    with atomic_file(path) as first:
        first.write(b"first")
        assert sorted(os.listdir(tmp_path)) == ["file.unfinished"]
        with atomic_file(path) as second:
            second.write(b"second")
            assert sorted(os.listdir(tmp_path)) == ["file.1.unfinished", "file.unfinished"]
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_without_locks_two_writers_have_names_of_their_own_too(tmp_path, without_locks):
    """What a killed process left may be another's, and stays."""
    path = tmp_path / "file"
    (tmp_path / "file.unfinished").write_text("of another process")
    with atomic_file(path) as first:
        first.write(b"first, and longer")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first, and longer"
    assert (tmp_path / "file.unfinished").read_text() == "of another process"
    assert sorted(os.listdir(tmp_path)) == ["file", "file.unfinished"]


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(f"there/{name}")
    (tmp_path / "there/old").write_text("before")
    for name in ("old", "new"):
        atomic_write(tmp_path / name, "after")
        assert os.readlink(tmp_path / name) == f"there/{name}"
        assert (tmp_path / "there" / name).read_text() == "after"


def test_files_that_belong_together_are_all_written_or_none(tmp_path):
    before, other = tmp_path / "a", tmp_path / "none/b"
    before.write_text("before")
    with raises_error(DataError, other, "No such file"):
        write_together({before: b"after", other: b"after"})
    assert (os.listdir(tmp_path), before.read_text()) == (["a"], "before")
    write_together({before: b"1", tmp_path / "b": b"2"})
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"1", b"2"]


def make_at(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "link":
        path.with_name("theirs").touch()
        path.symlink_to("theirs")
    else:
        path.write_text({"empty": "", "theirs": "text"}[kind])


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("folder", ("no regular file", "out=FILE")),
        ("pipe", ("no regular file", "out=FILE")),
        ("loop", ("no regular file", "out=FILE")),
        ("link", ("exists", "overwrite=true")),
        ("empty", ("exists", "overwrite=true")),
        ("theirs", ("exists", "overwrite=true")),
    ],
)
def test_what_imgrec_did_not_write_is_not_replaced(kind, parts, tmp_path):
    make_at(kind, path := tmp_path / "m.json")
    with raises_error(ConfigError, f"out={path}", *parts):
        check_output("out", path, (".json",), ours=begins_with(b"ours"), overwrite=False)
    if "overwrite=true" in parts:
        check_output("out", path, (".json",), ours=begins_with(b"ours"), overwrite=True)
    else:
        with raises_error(ConfigError, f"out={path}", *parts):
            check_output("out", path, (".json",), ours=begins_with(b"ours"), overwrite=True)


@pytest.mark.parametrize("length", [242, 243, 244, 255, 256])
def test_a_name_too_long_to_be_written_is_refused_before_the_work(length, tmp_path):
    """Two writers at once need 13 bytes beside it, and file systems have room for 255."""
    path = tmp_path / ("a" * (length - 5) + ".json")
    if length <= 242:
        check_output("out", path, (".json",), ours=begins_with(b"ours"), overwrite=False)
        with atomic_file(path), atomic_file(path):
            pass
    else:
        with raises_error(ConfigError, "out=", "too long", "out=FILE"):
            check_output("out", path, (".json",), ours=begins_with(b"ours"), overwrite=True)


def test_a_folder_that_is_read_only_is_refused_before_the_work(tmp_path, monkeypatch):
    """A file that could be written is replaced by a new one, for which its folder has to be writable."""
    path = tmp_path / "m.json"
    path.write_text("ours")
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)  # nothing is read-only for root
    with raises_error(ConfigError, f"out={path}", "cannot be written", "out=FILE"):
        check_output("out", path, (".json",), ours=begins_with(b"ours"), overwrite=False)


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\none.\ntwo"), "one"), (OSError(2, "No such file"), "[Errno 2] No such file"), (EOFError(), "EOFError")],
)
def test_the_first_line_of_an_exception(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize(
    "read",
    [
        lambda file: read_plain(file, fix="Remove it."),
        lambda file: read_predictions(file, None, fix="Remove it."),
        lambda file: expand_files(str(file)),
    ],
)
def test_a_pipe_is_refused_instead_of_waiting_for_a_writer(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=f"{tmp_path}/pipe.*no regular file"):
        read(tmp_path / "pipe")


class _Interrupt(BaseException):
    pass


def interrupted_at(number: int, write: Callable[[], None]) -> bool:
    """Raises at the `number`th moment at which Python may handle a signal: a call, or the end of one of C; False: there are less."""
    left = number

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event != "return" and frame.f_code.co_filename in (imgrec.files.__file__, contextlib.__file__):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise _Interrupt

    sys.setprofile(profile)
    try:
        write()
    except _Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of a file just opened
@pytest.mark.parametrize("others", [0, 1])
def test_an_exception_at_any_moment_leaves_nothing_unfinished(others, tmp_path):
    """others: processes that write the same file meanwhile."""
    path, stays = tmp_path / "file", ["file.unfinished"] * others
    with atomic_file(path) if others else nullcontext():
        for number in count(1):
            path.write_text("before")
            stopped = interrupted_at(number, lambda: atomic_write(path, "after"))
            gc.collect(0)
            assert sorted(os.listdir(tmp_path)) == ["file", *stays]
            assert path.read_text() in (("before", "after") if stopped else ("after",))
            if not stopped:
                break
    assert number > 40


def flag_as_utf8(content: bytes, listed: int) -> bytes:
    return content[: listed + 9] + b"\x08" + content[listed + 10 :].replace(b"archive", b"arch\xe2ve")


DAMAGED_ZIPS = {  # an archive, and where its list begins
    "cut": lambda content, listed: content[: listed + 20],
    "a name that is no UTF-8": flag_as_utf8,
    "a version of the future": lambda content, listed: content[: listed + 6] + b"\xff" + content[listed + 7 :],
    "no record": lambda content, listed: content.replace(b"data.pkl", b"data.pkk"),
    "no pickle": lambda content, listed: content,
}


@pytest.mark.parametrize("damage", DAMAGED_ZIPS)
def test_a_damaged_archive_is_a_checkpoint_without_a_step_and_no_program(damage, tmp_path):
    with zipfile.ZipFile(file := tmp_path / "a.ckpt", "w") as records:
        records.writestr("archive/data.pkl", b"\xff no pickle")
    content = file.read_bytes()
    file.write_bytes(DAMAGED_ZIPS[damage](content, content.index(b"PK\1\2")))
    assert file_kind(file) == ("an archive of other files" if damage == "no record" else CHECKPOINT)
    assert saved_step(file) == 0
    program = file.rename(tmp_path / "a.pt2")
    with raises_error(ConfigError, f"out={program}", "overwrite=true"):
        check_program_output(program, overwrite=False)
