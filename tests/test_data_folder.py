"""Folders of images: equal to torchvision's ImageFolder and PIL, classes by name, and every bad file named."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from error_parts import assert_error, raises_error
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from imgrec.data import counter_rng
from imgrec.data import decode as decoding
from imgrec.data.batch import Request
from imgrec.data.datamodule import DataModule
from imgrec.data.datasets import ImageFolder
from imgrec.data.decode import Preprocessing, decode, fit_to_size, load_image
from imgrec.data.folder import ImageFiles, folder_split, pack_names
from imgrec.data.splits import split_by_name
from imgrec.errors import ConfigError, DataError

PREPROCESSING = Preprocessing(image_size=24, channels=3, mean=[0.5] * 3, std=[0.25] * 3, resize="squash", crop_share=1.0)


def picture(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    """A smooth colour picture with some noise: what JPEG is made for, and no two alike."""
    made = np.random.default_rng(seed)
    coarse = Image.fromarray(made.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray(np.clip(smooth + made.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def make(root: Path, counts: dict[str, int], suffix: str = ".jpg") -> Path:
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * k + i).save(root / name / f"{i:03d}{suffix}", quality=92)
    return root


def folder(root: Path, **change) -> ImageFolder:
    settings = {**PREPROCESSING, "num_classes": None, "val_share": 0.25, "split_seed": 0, "changed": "refuse", "test_share": 0.25}
    return ImageFolder(root=str(root), **{**settings, "on_bad_image": "refuse", "on_bad_image_eval": "refuse", **change})


def whole(split: ImageFiles, epoch: int = 0):
    return split[Request(epoch, np.arange(len(split)), len(split))]


RUN = {"seed": 5, "batch_size": 4, "max_device_batch": 64, "num_workers": 0, "sampling": "shuffle", "class_weights": None}
LIMITS = SimpleNamespace(limit_train_batches=1.0, limit_val_batches=1.0, limit_test_batches=1.0)


@pytest.fixture
def data_module() -> Iterator[Callable[..., DataModule]]:
    with ExitStack() as stack:
        yield lambda data, augment=None, **change: stack.enter_context(
            closing(DataModule(SimpleNamespace(**{**RUN, "trainer": LIMITS, **change}), data, augment, devices=1))
        )


def close(ours: torch.Tensor, theirs: torch.Tensor, levels: int = 2) -> bool:
    return ours.shape == theirs.shape and bool((ours.int() - theirs.int()).abs().max() <= levels)


# What files become


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_upright_and_what_pil_decodes(tmp_path, channels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(1).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        reference = ImageOps.exif_transpose(opened).convert("RGB" if channels == 3 else "L")
    # Colour is exact; gray is the JPEG's own luma in torchvision, and computed from RGB in PIL.
    assert close(decode(str(tmp_path / "a.jpg"), channels), pil_to_tensor(reference), 0 if channels == 3 else 4)


def converted(mode: str) -> Image.Image:
    return picture(2).convert(mode)


KINDS = {
    "gray.jpg": ("L", {}),
    "cmyk.jpg": ("CMYK", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "png.jpg": ("RGB", {"format": "PNG"}),
    "rgba.png": ("RGBA", {}),
    "palette.png": ("P", {}),
    "bilevel.png": ("1", {}),
    "la.png": ("LA", {}),
    "a.gif": ("P", {}),
    "a.bmp": ("RGB", {}),
    "a.tiff": ("CMYK", {}),
    "a.ppm": ("RGB", {}),
    "a.webp": ("RGB", {"lossless": True}),
}


@pytest.mark.parametrize("torchvision_decodes", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_what_pil_makes_of_it(tmp_path, monkeypatch, name, channels, torchvision_decodes):
    if not torchvision_decodes:  # as in a later torchvision, which will have no decoders
        monkeypatch.setattr(decoding, "decode_image", None)
    mode, options = KINDS[name]
    path = tmp_path / name
    converted(mode).save(path, **options)
    with Image.open(path) as opened:
        reference = pil_to_tensor(opened.convert("RGB" if channels == 3 else "L"))
    assert close(decode(str(path), channels), reference, 0 if channels == 3 or not torchvision_decodes else 4)


@pytest.mark.parametrize("torchvision_decodes", [True, False])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, monkeypatch, torchvision_decodes):
    if not torchvision_decodes:
        monkeypatch.setattr(decoding, "decode_image", None)
    values = (np.arange(2400).reshape(40, 60) * 27).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert decode(str(tmp_path / "a.png"), 1)[0].tolist() == (values >> 8).tolist()


def test_squash_and_crop_are_torchvisions_on_pil_images(tmp_path):
    for k, (width, height) in enumerate([(61, 44), (44, 61), (300, 100), (20, 30), (24, 24)]):
        path = tmp_path / f"{k}.png"
        picture(k, width, height).save(path)
        with Image.open(path) as image:
            squashed = pil_to_tensor(v2.Resize([24, 24])(image))
            middle = pil_to_tensor(v2.Compose([v2.Resize(32), v2.CenterCrop(24)])(image))
        assert close(load_image(str(path), PREPROCESSING), squashed)
        assert close(load_image(str(path), {**PREPROCESSING, "resize": "crop", "crop_share": 0.75}), middle)


def jpeg(seed: int = 3, **options) -> bytes:
    buffer = io.BytesIO()
    picture(seed, 200, 150).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "half": jpeg()[: len(jpeg()) // 2],
    "half_progressive": jpeg(progressive=True)[: len(jpeg(progressive=True)) // 2],
    "half_then_zeros": jpeg()[: len(jpeg()) // 2]
    + bytes(len(jpeg()) // 2),  # a download that was given its full length at the start
    "no_end": jpeg()[:-2],
    "half_png": png()[: len(png()) // 2],
    "empty": b"",
    "garbage": np.random.default_rng(0).bytes(5000),
    "text": b"<html>404 Not Found</html>",
}


@pytest.mark.parametrize("torchvision_decodes", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path, monkeypatch, kind, torchvision_decodes):
    if not torchvision_decodes:
        monkeypatch.setattr(decoding, "decode_image", None)
    path = tmp_path / "broken.jpg"
    path.write_bytes(BROKEN[kind])
    with raises_error(DataError, path, "cannot be read"):
        load_image(str(path), PREPROCESSING)


def test_bytes_after_the_end_do_no_harm_and_a_missing_file_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg() + bytes(100))
    with Image.open(io.BytesIO(jpeg())) as image:
        assert torch.equal(decode(str(path), 3), pil_to_tensor(image))
    with pytest.raises(DataError, match="No such file"):
        decode(str(tmp_path / "b.jpg"), 3)


# Folders


def test_split_folders_equal_torchvisions_imagefolder(tmp_path):
    for name, counts in {
        "train": {"cat": 3, "dog": 4, "eel": 2},
        "valid": {"cat": 1, "dog": 2, "eel": 2},
        "test": {"dog": 2},
    }.items():
        make(tmp_path / name, counts)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/cat/.hidden.jpg").write_bytes(b"")
    (tmp_path / "train/.cache").mkdir()
    data = folder(tmp_path)
    (tmp_path / "train/cat/.hidden.jpg").unlink()  # torchvision takes hidden files and folders
    (tmp_path / "train/.cache").rmdir()
    for split, name in (("train", "train"), ("val", "valid")):
        reference = datasets.ImageFolder(tmp_path / name, v2.Compose([v2.Resize([24, 24]), v2.PILToTensor()]))
        files = data.split(split)
        assert [(files.path(i), k) for i, k in enumerate(files.labels)] == reference.samples
        assert data.classes == tuple(reference.classes)
        assert close(whole(files).images, torch.stack([image for image, _ in reference]))
        assert whole(files).labels.tolist() == reference.targets
    assert data.counts("test").tolist() == [0, 2, 0]  # the folder that lacks cat and eel shifts nothing
    assert whole(data.split("test")).labels.tolist() == [1, 1]


def test_one_folder_is_cut_by_the_names_of_its_files(tmp_path):
    make(tmp_path, {"a": 8, "b": 12})
    data = folder(tmp_path)
    names = np.array([f"{name}/{i:03d}.jpg" for name, count in (("a", 8), ("b", 12)) for i in range(count)])
    labels = np.repeat([0, 1], [8, 12])
    test = split_by_name(pack_names(names), labels, 0.25, seed=0, stream=counter_rng.TEST_SPLIT)
    val = split_by_name(pack_names(names[~test]), labels[~test], 0.25, seed=0, stream=counter_rng.VAL_SPLIT)
    for split, rows in (("train", ~np.isin(names, [*names[test], *names[~test][val]])), ("test", test)):
        files = data.split(split)
        assert [files.path(i) for i in range(len(files))] == [str(tmp_path / name) for name in names[rows]]
        assert files.labels.tolist() == labels[rows].tolist()
    assert all((data.counts(split) > 0).all() for split in ("train", "val", "test"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_a_folder_hold_the_files_they_name(data_module, tmp_path, num_workers):
    make(tmp_path, {"a": 6, "b": 6})
    data = folder(tmp_path)
    loaders = data_module(data, num_workers=num_workers)
    files = data.split("train")
    seen = []
    for batch in loaders.train_dataloader():
        for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
            assert torch.equal(image, load_image(files.path(int(index)), PREPROCESSING))
            assert Path(files.path(int(index))).parent.name == "ab"[int(label)]
            seen.append(int(index))
    assert sorted(seen) == list(range(len(files)))


def test_names_of_any_bytes_come_back(tmp_path):
    names = ["a/x.jpg", "b/\u00fc \U0001f600.png", "c/d/e.png", os.fsdecode(b"c/\xff.jpg")]
    assert [os.fsdecode(name) for name in pack_names(names)] == names
    (tmp_path / "c/d").mkdir(parents=True)
    picture(0).save(tmp_path / "c/d/E.PNG")
    files = folder_split(str(tmp_path), ["c"], PREPROCESSING, on_bad_image="refuse", on_bad_image_eval="refuse")
    assert files.path(0) == f"{tmp_path}/c/d/E.PNG"


class Crops:
    """An augmentation that takes the upper left quarter and inverts."""

    mixes = False

    def crop_box(self, height: int, width: int, *, seed: int, epoch: int, index: int) -> tuple[int, int, int, int]:
        assert (seed, epoch) == (5, 2)
        return 0, 0, height // 2, width // 2

    def sample(self, image: torch.Tensor, *, seed: int, epoch: int, index: int) -> torch.Tensor:
        return 255 - image


def test_training_crops_while_decoding_and_evaluation_does_not(data_module, tmp_path):
    make(tmp_path, {"a": 4, "b": 4})
    data = folder(tmp_path)
    loaders = data_module(data, augment=Crops())
    trained, plain = loaders.train_dataloader().dataset, data.split("train")
    images = whole(trained, epoch=2).images
    for i in range(len(plain)):
        image = decode(plain.path(i), 3)
        assert torch.equal(images[i], 255 - fit_to_size(image[:, :22, :30], PREPROCESSING))
    assert torch.equal(next(iter(loaders.val_dataloader())).images[0], load_image(data.split("val").path(0), PREPROCESSING))


# What is refused


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_training_image_is_refused_or_left_out_and_counted(data_module, tmp_path, num_workers):
    make(tmp_path / "train", {"a": 3, "b": 3})
    make(tmp_path / "val", {"a": 2, "b": 1})
    bad = tmp_path / "train/b/001.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    data = folder(tmp_path)
    loaders = data_module(data, num_workers=num_workers)
    with raises_error(DataError, bad, "data.on_bad_image=skip"):
        list(loaders.train_dataloader())
    data = folder(tmp_path, on_bad_image="skip")
    loaders = data_module(data, num_workers=num_workers)
    batches = [loaders.on_before_batch_transfer(batch, 0) for batch in loaders.train_dataloader()]
    assert sorted(i for batch in batches for i in batch.indices.tolist()) == [0, 1, 2, 3, 5]
    assert loaders.bad_images() == [str(bad)]
    assert all(batch.bad == () and len(batch.images) == len(batch.labels) for batch in batches)


def test_evaluation_refuses_a_bad_image_unless_told(data_module, tmp_path):
    make(tmp_path / "train", {"a": 3, "b": 3})
    make(tmp_path / "val", {"a": 2, "b": 1})
    (tmp_path / "val/a/000.jpg").write_bytes(b"")
    for told, change in ((False, {"on_bad_image": "skip"}), (True, {"on_bad_image_eval": "skip"})):
        data = folder(tmp_path, **change)
        loaders = data_module(data)
        if told:
            assert [batch.bad for batch in loaders.val_dataloader()] == [(str(tmp_path / "val/a/000.jpg"),)]
        else:
            with raises_error(DataError, f"{tmp_path}/val/a/000.jpg", "empty", "data.on_bad_image_eval=skip"):
                list(loaders.val_dataloader())


def refusal(root: Path, **change) -> str:
    with pytest.raises(DataError) as error:
        _ = folder(root, **change).splits
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_cannot_be_used(tmp_path):
    layouts = ("data.root=FOLDER", "train/CLASS/*.jpg", "CLASS/*.jpg")
    assert_error(refusal(tmp_path / "none"), f"data.root={tmp_path}/none", *layouts)
    assert_error(refusal(tmp_path), tmp_path, "no class folders", *layouts)
    (tmp_path / "a").mkdir()
    assert_error(refusal(tmp_path), tmp_path, "only", "a", *layouts)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/readme.txt").write_text("none")
    assert_error(refusal(tmp_path), tmp_path, "no images", ".jpg", f"{tmp_path}/CLASS/")
    picture(0).save(tmp_path / "b/a.jpg")
    assert_error(refusal(tmp_path), "the class folder", f"{tmp_path}/a", "remove")
    picture(0).save(tmp_path / "a/a.jpg")
    assert_error(refusal(tmp_path), "class a", "1 image", "data.test_share=0.25", 2, "its own folder")


def test_a_class_that_train_lacks(tmp_path):
    make(tmp_path / "train", {"siamese_cat": 3, "dog": 3})
    make(tmp_path / "test", {"siamese-cat": 1})
    assert_error(refusal(tmp_path), f"{tmp_path}/test", "siamese-cat", "dog, siamese_cat", "siamese_cat", "Rename")


def test_num_classes_against_the_folders(tmp_path):
    make(tmp_path, {"a": 4, "b": 4, "c": 4, "d": 4})
    with raises_error(ConfigError, "data.num_classes=3", tmp_path, 4, "a, b, c, ...", "data.num_classes=4"):
        _ = folder(tmp_path, num_classes=3).splits


def test_another_folder_is_evaluated_by_class_name(tmp_path):
    make(tmp_path / "other", {"b": 2})
    files = folder_split(str(tmp_path / "other"), ["a", "b"], PREPROCESSING, on_bad_image="refuse", on_bad_image_eval="refuse")
    assert files.labels.tolist() == [1, 1]
    assert whole(files).images.shape == (2, 3, 24, 24)
