"""A check of a folder in which nothing has changed says and writes what it did before; any change is noticed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, fail_to_open, picture

import imgrec.scan.file_scan
import imgrec.scan.kept_findings
from imgrec import check, cli
from imgrec.config.compose import compose_config
from imgrec.data.cache import cache_folder
from imgrec.scan.kept_findings import findings_file, read_findings


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, a copy of an image of train in val, half of a file, and a name that is no UTF-8."""
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(imgrec.scan.file_scan, "SETTLED_NS", 0)
    monkeypatch.setattr(imgrec.scan.kept_findings, "SETTLED_NS", 0)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for k, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(encode(picture(10 * k + i + 50 * len(split), 60, 60), "PNG"))
    (root / "val/a/copy.png").write_bytes((root / "train/a/0.png").read_bytes())
    (root / "train/b/half.png").write_bytes((root / "train/b/0.png").read_bytes()[:200])
    (root / os.fsdecode(b"train/b/\xff.png")).write_bytes(encode(picture(99, 60, 60), "PNG"))
    return root


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str, str, bool]]:
    """Of a check: exit code, output, JSON and page, and whether what was kept was said again."""

    def run(root: Path, *words: str) -> tuple[int, str, str, str, bool]:
        code = cli.main(["check", str(root), "data.image_size=48", "num_workers=0", *words])
        first, rest = capsys.readouterr().out.split("\n", 1)
        summary, how = first.split("; ")
        return code, summary + rest, Path("check.json").read_text(), Path("check.html").read_text(), how.startswith("none")

    return run


def no_data(*_: object) -> None:
    raise AssertionError("the data is read")


def test_an_unchanged_folder_is_not_read_again(
    photos: Path, said: Callable[..., tuple[int, str, str, str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said(photos)
    assert {finding["kind"] for finding in json.loads(first[2])["findings"]} >= {"leak", "truncated"}
    assert (first[0], first[4]) == (3, False)
    (known,) = (cache_folder() or Path()).glob("checked-*")
    content = known.read_bytes()
    known.unlink()  # as the cache has a bound
    with monkeypatch.context() as patched:
        patched.setattr(check, "_build", no_data)
        assert said(photos) == (*first[:4], True)
        assert said(photos, "num_workers=2") == (*first[:4], True)
        assert known.read_bytes() == content
        with pytest.raises(AssertionError):
            said(photos, "data.split_seed=1")
        with pytest.raises(AssertionError):
            said(photos, "write=skip")
    monkeypatch.setenv("IMGREC_CACHE", "")
    assert said(photos) == first
    assert said(photos) == first


def test_a_folder_without_faults_has_exit_code_0_again(
    photos: Path, said: Callable[..., tuple[int, str, str, str, bool]]
) -> None:
    (photos / "val/a/copy.png").unlink()
    (photos / "train/b/half.png").unlink()
    first = said(photos)
    assert (first[0], first[4]) == (0, False)
    assert said(photos) == (*first[:4], True)


def edit(root: Path) -> None:
    """A byte of the pixels; size and time of the content as before, which archives and rsync set back."""
    file = root / "train/a/1.png"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(root: Path) -> None:
    (root / "train/a/1.png").rename(root / "spare")
    (root / "train/b/1.png").rename(root / "train/a/1.png")
    (root / "spare").rename(root / "train/b/1.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": edit,
    "added": lambda root: shutil.copy(root / "train/a/1.png", root / "test/b/9.png"),
    "removed": lambda root: (root / "train/a/1.png").unlink(),
    "renamed": lambda root: (root / "train/a/1.png").rename(root / "train/a/7.png"),
    "moved": lambda root: (root / "train/a/1.png").rename(root / "val/a/7.png"),
    "swapped": swap,
    "another class": lambda root: (root / "train/a").rename(root / "train/c"),
    "empty folder": lambda root: (root / "train/c").mkdir(),
    "text in a new folder": lambda root: [(root / "train/c").mkdir(), (root / "train/c/note.md").touch()],
}


@pytest.fixture(scope="module")
def keys() -> dict[str, object]:
    return dict(compose_config("check", ["data=imagefolder"])["data"])


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_noticed(change: str, photos: Path, keys: dict[str, object]) -> None:
    data = keys | {"root": str(photos)}
    before = findings_file(data)
    assert before is not None
    assert findings_file(data) == before
    CHANGES[change](photos)
    assert findings_file(data) not in (before, None)


def test_a_new_name_is_noticed_where_it_changes_no_time_of_the_file(
    photos: Path, keys: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imgrec.scan.kept_findings, "file_stamps", lambda root, names: np.zeros((len(names), 3), dtype=np.int64))
    before = findings_file(keys | {"root": str(photos)})
    CHANGES["renamed"](photos)
    assert findings_file(keys | {"root": str(photos)}) not in (before, None)


def test_other_settings_lists_and_roots_are_other_checks(photos: Path, keys: dict[str, object]) -> None:
    (listed := photos.parent / "skip.txt").write_text("train/a/0.png\n")
    linked = photos.parent / "linked"
    linked.symlink_to(photos)
    data = keys | {"root": str(photos)}
    changed = [{"root": str(linked)}, {"image_size": 48}, {"split_seed": 1}, {"skip_list": str(listed)}, {"num_classes": 2}]
    files = [findings_file(data | keys) for keys in ({}, *changed)]
    listed.write_text("train/a/1.png\n")
    files.append(findings_file(data | {"skip_list": str(listed)}))
    assert len(set(files)) == len(changed) + 2
    assert None not in files
    assert findings_file(data | {"_target_": "mine.data.MyFolder"}) is None
    assert findings_file(data | {"skip_list": str(photos)}) is None  # a folder


def test_what_is_read_seconds_after_a_change_is_not_kept(
    photos: Path, keys: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change in the same step of the file system's clock would not show."""
    monkeypatch.setattr(imgrec.scan.kept_findings, "SETTLED_NS", 3600 * 10**9)
    assert findings_file(keys | {"root": str(photos)}) is None


def test_a_changed_folder_is_said_as_with_an_empty_cache_and_replaces_what_was_kept(
    photos: Path, said: Callable[..., tuple[int, str, str, str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said(photos)
    edit(photos)
    changed = said(photos)
    assert (changed[2] == first[2], changed[4]) == (False, False)
    assert said(photos) == (*changed[:4], True)
    (file,) = (cache_folder() or Path()).glob("findings-*")
    kept = file.read_bytes()
    places = range(0, len(kept), 97)
    for damaged in [kept[:-20], *(kept[:k] + bytes([kept[k] ^ 1]) + kept[k + 1 :] for k in places)]:
        file.write_bytes(damaged)
        assert read_findings(file) is None
    assert said(photos)[:4] == changed[:4]
    assert read_findings(file) is not None
    monkeypatch.setenv("IMGREC_CACHE", "")
    assert said(photos) == (*changed[:4], False)


def test_a_file_that_could_not_be_opened_is_tried_again(
    photos: Path, said: Callable[..., tuple[int, str, str, str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fail_to_open(patched, b"a/0.png")
        assert "not_opened" in said(photos)[1]
    again = said(photos)
    assert "not_opened" not in again[1]
    assert said(photos) == (*again[:4], True)
