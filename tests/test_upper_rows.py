"""Images that were read once are decoded down to their crop only: the same pixels, and the same is said of damaged and constant ones."""

import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from image_files import encode, picture
from PIL import ExifTags, Image
from test_data_folder import augmentation, folder
from test_pack import pack, shards

from imgrec.data import jpeg
from imgrec.data.batch import Batch, Request
from imgrec.data.folder import ImageFiles
from imgrec.data.loader import Loader
from imgrec.errors import DataError
from imgrec.storage.pack import Packing

CROPS = augmentation(crop_scale=(0.1, 0.3))


def upper_rows(content: bytes, channels: int, rows: int) -> tuple[np.ndarray, int]:
    """What `decode_jpeg` gives, and how many rows were decoded."""
    header = jpeg.read_header(content)
    assert header is not None
    decoded: list[int] = []

    def decode(data: bytes, colorspace: str, **how: object) -> np.ndarray:
        decoded.append(simplejpeg.decode_jpeg_header(data)[0])
        return decode_jpeg(data, colorspace, **how)

    decode_jpeg = simplejpeg.decode_jpeg
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simplejpeg, "decode_jpeg", decode)
        pixels = jpeg.decode_jpeg(content, header, channels, rows=rows)
    assert pixels is not None
    return pixels, decoded[-1]


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@given(st.integers(1, 70), st.integers(1, 40), st.data(), st.integers(1, 100), st.sampled_from([0, 1, 5]))
@example(64, 40, None, 90, 0)
def test_upper_rows_are_pils(
    subsampling: str, height: int, width: int, data: st.DataObject | None, quality: int, restarts: int
) -> None:
    made = picture(height, width, height)
    gray = subsampling == "Gray"
    if restarts and subsampling in ("444", "422", "420"):
        how = {"subsampling": ":".join(subsampling), "restart_marker_blocks": restarts}
        content = encode(made, "JPEG", quality=quality, **how)
    else:
        pixels = np.atleast_3d(np.asarray(made.convert("L") if gray else made))
        content = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "GRAY" if gray else "RGB", subsampling)
    channels = 1 if gray else 3
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image)
    for rows in range(1, height + 1) if data is None else [data.draw(st.integers(1, height))]:
        pixels, decoded = upper_rows(content, channels, rows)
        assert np.array_equal(pixels[:rows].reshape(whole[:rows].shape), whole[:rows]), rows
        assert pixels.shape[:2] == (height, width)
        assert decoded == (rows + 1 if rows + 1 + jpeg.LEAST_LEFT <= height else height)


@pytest.mark.parametrize(
    ("how", "channels"),
    [({"progressive": True}, 3), ({"keep_rgb": True}, 3), ({}, 1)],
    ids=["progressive", "rgb", "to gray"],
)
def test_other_kinds_are_pils_too(how: dict[str, object], channels: int) -> None:
    content = encode(picture(1), "JPEG", **how)
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    pixels, decoded = upper_rows(content, channels, 20)
    assert np.array_equal(pixels[:20], whole[:20])
    assert decoded == (44 if "progressive" in how else 21)


def test_a_picture_of_several_scans_is_none_of_rows_that_follow_one_another() -> None:
    content = encode(picture(1), "JPEG")
    scan = content.index(b"\xff\xda")
    assert jpeg.read_segments(io.BytesIO(content)).frame == content.index(b"\xff\xc0")
    other = content[: scan + 4] + b"\1" + content[scan + 5 :]  # one of three colours in the first scan
    assert jpeg.read_segments(io.BytesIO(other)).frame is None


def test_damage_in_the_upper_rows_is_found_again() -> None:
    content = encode(picture(1), "JPEG")
    scan = content.index(b"\xff\xda") + 14
    damaged = content[: scan + 100] + content[-2:]
    header = jpeg.read_header(damaged)
    assert header is not None
    with pytest.raises(DataError, match="damaged"):
        jpeg.decode_jpeg(damaged, header, 3, rows=20)


# A training


def make(root: Path) -> Path:
    """Twelve images in two classes: one is damaged at its lower edge, one is constant, and one is turned."""
    for split, count in (("train", 12), ("val", 2), ("test", 2)):
        for k in range(count):
            path = root / split / "ab"[k % 2] / f"{k:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(k, 64, 64).save(path, quality=90)
    cut(root / "train/b/05.jpg")
    Image.new("RGB", (64, 64), "red").save(root / "train/a/08.jpg")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture(2, 64, 64).save(root / "train/a/02.jpg", exif=exif)
    return root


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 6] + content[-2:])


def from_folder(root: Path, out: Path) -> ImageFiles:
    return folder(root, on_bad_image="skip").split("train")


def from_shards(root: Path, out: Path) -> ImageFiles:
    packed = pack(folder(root, on_bad_image="skip"), out, Packing("keep", 64, 90, 100))
    return shards(packed, on_bad_image="skip").split("train")


def all_of(images: ImageFiles, epoch: int) -> Batch:
    return images[Request(epoch, np.arange(len(images)), len(images))]


@pytest.mark.parametrize("opened", [from_folder, from_shards], ids=["folder", "shards"])
def test_every_epoch_has_the_pixels_and_says_the_same_as_one_that_decodes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path, Path], ImageFiles]
) -> None:
    train = opened(make(tmp_path / "photos"), tmp_path / "packed")
    images, reference = train.for_training(CROPS, 0), train.for_training(CROPS, 0)
    reference.found_whole = None
    partly: list[bool] = []

    def decode_rows(*arguments: object) -> np.ndarray | None:
        pixels = decoded(*arguments)
        if pixels is not None:
            rows = arguments[-1]
            assert isinstance(rows, int)
            pixels[rows:] = 77  # what may be there does not matter
        partly.append(pixels is not None)
        return pixels

    decoded = jpeg._decode_rows
    monkeypatch.setattr(jpeg, "_decode_rows", decode_rows)
    for epoch in range(4):
        ours, theirs = all_of(images, epoch), all_of(reference, epoch)
        assert torch.equal(ours.images, theirs.images)
        assert (ours.bad, ours.constant) == (theirs.bad, theirs.constant)
        assert (len(ours.bad), len(ours.constant)) == (1, 1)
        assert len(partly) == epoch * (len(images) - 3)
    assert sum(partly) > len(partly) / 2


def test_a_file_that_changed_is_decoded_whole_again(tmp_path: Path) -> None:
    images = from_folder(make(tmp_path), tmp_path).for_training(CROPS, 0)
    first = all_of(images, 0)
    path = Path(next(path for row in range(len(images)) if (path := images.path(row)) not in (*first.bad, *first.constant)))
    cut(path)
    assert sorted(all_of(images, 1).bad) == sorted([*first.bad, str(path)])
    Image.new("RGB", (64, 64), "red").save(path)
    assert str(path) in all_of(images, 2).constant
    path.unlink()
    assert str(path) in all_of(images, 3).bad


def test_what_a_worker_has_read_the_others_know(tmp_path: Path) -> None:
    images = from_folder(make(tmp_path), tmp_path).for_training(CROPS, 0)
    requests = [Request(0, np.array([row]), 1) for row in range(len(images))]
    with closing(Loader(images, requests, num_workers=2)) as loader:
        batches = list(loader)
    assert images.found_whole is not None
    whole = [not batch.bad and not batch.constant for batch in batches]
    assert (images.found_whole != 0).tolist() == whole
    assert sum(whole) == len(images) - 2
