"""Folders of images: equal to torchvision's ImageFolder and PIL, classes by name, and every bad file named."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from error_parts import assert_error, raises_error
from image_files import picture
from marks import slow_but
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

import imgrec.data.folder
from imgrec.data import counter_rng
from imgrec.data.augment import Augment
from imgrec.data.batch import Request
from imgrec.data.datamodule import DataModule
from imgrec.data.datasets import ImageFolder
from imgrec.data.decode import Preprocessing, decode, fit_to_size, load_image
from imgrec.data.file_index import pack_names
from imgrec.data.file_splits import folder_split
from imgrec.data.folder import ImageFiles
from imgrec.data.splits import split_by_name
from imgrec.errors import ConfigError, DataError

PREPROCESSING = Preprocessing(
    image_size=24,
    channels=3,
    mean=[0.5] * 3,
    std=[0.25] * 3,
    resize="squash",
    crop_share=1.0,
    interpolation="bilinear",
    max_pixels=10**8,
    scale=None,
)


def make(root: Path, counts: dict[str, int], suffix: str = ".jpg") -> Path:
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * k + i).save(root / name / f"{i:03d}{suffix}", quality=92)
    return root


def folder(root: Path, **change) -> ImageFolder:
    settings = {**PREPROCESSING, "num_classes": None, "val_share": 0.25, "split_seed": 0, "changed": "refuse", "test_share": 0.25}
    settings |= {"label_from": None, "group_from": None, "skip_list": None, "check": "auto", "decoder": "auto", "cache": "none"}
    return ImageFolder(root=str(root), **{**settings, "on_bad_image": "refuse", "on_bad_image_eval": "refuse", **change})


def whole(split: ImageFiles, epoch: int = 0):
    return split[Request(epoch, np.arange(len(split)), len(split))]


SMALLER = 12  # than the image_size of PREPROCESSING


def augmentation(**keys) -> Augment:
    off = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[1] / "conf" / "augment" / "none.yaml"))
    return Augment(**{key: value for key, value in off.items() if key != "_target_"} | keys)


RUN = {"seed": 5, "global_batch": 4, "device_batch": 64, "num_workers": 0, "sampling": "shuffle", "class_weights": None}
LIMITS = SimpleNamespace(
    accelerator="cpu", timeout_s=300.0, limit_train_batches=1.0, limit_val_batches=1.0, limit_test_batches=1.0
)


@pytest.fixture
def data_module() -> Iterator[Callable[..., DataModule]]:
    with ExitStack() as stack:
        yield lambda data, augment=None, **change: stack.enter_context(
            closing(DataModule(SimpleNamespace(**{**RUN, "trainer": LIMITS, **change}), data, augment, devices=1))
        )


def close(ours: torch.Tensor, theirs: torch.Tensor, levels: int = 2) -> bool:
    return ours.shape == theirs.shape and bool((ours.int() - theirs.int()).abs().max() <= levels)


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
    files = folder_split(str(tmp_path), ["c"], PREPROCESSING, on_bad_image="refuse", on_bad_image_eval="refuse", decoder="auto")
    assert files.path(0) == f"{tmp_path}/c/d/E.PNG"


class Crops:
    """An augmentation that takes the upper left quarter and inverts."""

    mixes = False
    crop_scale = (0.25, 0.25)

    def __init__(self, epoch: int = 2) -> None:
        self.epoch = epoch

    def crop_box(self, height: int, width: int, *, seed: int, epoch: int, index: int) -> tuple[int, int, int, int]:
        assert (seed, epoch) == (5, self.epoch)
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
        image = decode(plain.path(i), PREPROCESSING)
        assert torch.equal(images[i], 255 - fit_to_size(image[:, :22, :30], PREPROCESSING))
    assert torch.equal(next(iter(loaders.val_dataloader())).images[0], load_image(data.split("val").path(0), PREPROCESSING))


@pytest.mark.parametrize("num_workers", slow_but(0, among=[0, 2]))
@pytest.mark.parametrize("crop_scale", [None, (0.3, 1.0)])
def test_images_of_another_side_are_those_of_a_folder_with_that_image_size(data_module, tmp_path, crop_scale, num_workers):
    """As callbacks.progressive_size asks for them: cropped and resized from the file, not a second time."""
    make(tmp_path, {"a": 7, "b": 6})
    augment = augmentation(crop_scale=crop_scale)
    sized = data_module(folder(tmp_path), augment=augment, num_workers=num_workers)
    small = data_module(folder(tmp_path, image_size=SMALLER), augment=augment)
    loader, expected = sized.train_dataloader(), list(small.train_dataloader())
    for side in (None, SMALLER):  # by the same workers
        sized.training_side = side
        batches = list(loader)
        assert {batch.images.shape[-1] for batch in batches} == {side or PREPROCESSING["image_size"]}
    assert len(batches) == len(expected) > 1
    for ours, theirs in zip(batches, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.indices, theirs.indices)


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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_of_one_value_are_named_whole_ones_only(data_module, tmp_path, num_workers):
    make(tmp_path / "train", {"a": 3, "b": 3}, ".png")
    make(tmp_path / "val", {"a": 2, "b": 1}, ".png")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "train/a/constant.png")
    Image.new("L", (1, 1)).save(tmp_path / "val/b/constant.png")
    nearly = Image.new("RGB", (40, 30), (1, 2, 3))
    nearly.putpixel((39, 29), (1, 2, 4))
    nearly.save(tmp_path / "train/b/nearly.png")
    loaders = data_module(folder(tmp_path), augment=Crops(epoch=0), num_workers=num_workers)
    for loader in (loaders.train_dataloader(), loaders.val_dataloader()):
        assert all(loaders.on_before_batch_transfer(batch, 0).constant == () for batch in loader)
    assert loaders.constant_images() == [f"{tmp_path}/train/a/constant.png", f"{tmp_path}/val/b/constant.png"]


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
    (tmp_path / "a/readme.txt").write_text("none")
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
    files = folder_split(
        str(tmp_path / "other"), ["a", "b"], PREPROCESSING, on_bad_image="refuse", on_bad_image_eval="refuse", decoder="auto"
    )
    assert files.labels.tolist() == [1, 1]
    assert whole(files).images.shape == (2, 3, 24, 24)


@pytest.mark.parametrize("sampled", [None, (40, 40), (14, 6), (9, 40)])
def test_the_content_is_the_sizes_and_checksums_of_a_sample(tmp_path, monkeypatch, sampled):
    names = [f"a/{k:02}.jpg" for k in range(39)] + [str(tmp_path / "other.jpg")]
    (tmp_path / "root/a/01.jpg").mkdir(parents=True)  # has a size, and cannot be read
    for k, name in enumerate(names[2:]):  # the first is gone
        (tmp_path / "root" / name).write_bytes(np.random.default_rng(k).bytes(300 * k))
    labels = np.zeros(len(names), dtype=np.int64)
    reading = {"on_bad_image": "refuse", "on_bad_image_eval": "refuse", "decoder": "auto"}
    images = ImageFiles(str(tmp_path / "root"), pack_names(names), labels, preprocessing=PREPROCESSING, **reading)
    sizes = np.array([path.stat().st_size if path.exists() else -1 for path in (tmp_path / "root" / name for name in names)])
    middles = [
        (tmp_path / "root" / name).read_bytes()[size // 2 :][:4096] for name, size in zip(names[2:], sizes[2:], strict=True)
    ]
    expected = np.array([sizes, [-1, -1, *map(zlib.crc32, middles)]])
    if sampled is not None:
        monkeypatch.setattr(imgrec.data.folder, "MOST_SIZES", 10)
        monkeypatch.setattr(imgrec.data.folder, "SAMPLED", sampled)
        for row, count in enumerate(sampled):
            expected[row, np.arange(len(names)) % -(-len(names) // count) != 0] = -1
    assert images.content().tolist() == expected.T.tolist()
