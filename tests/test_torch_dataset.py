"""data=torch_dataset: a torch Dataset of (image, label) trains as the same images do in a data set of imgrec."""

import numpy as np
import pytest
import torch
import torchvision
from error_parts import raises_error
from marks import slow_but
from small_run import SMALL
from test_data_folder import make
from test_data_sets import write_mnist
from torch.utils.data import ConcatDataset, Subset

import imgrec
from imgrec import config
from imgrec.data.batch import Request
from imgrec.data.datamodule import build_data
from imgrec.data.torch_dataset import read_labels
from imgrec.errors import ConfigError, DataError
from imgrec.inference.stored_code import build_stored

MODULE = """
import fcntl
import numpy as np, torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

class Squares(Dataset):
    def __init__(self, form="pil", count=12, fault=None):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
        self.form, self.fault = form, fault
        if fault == "targets":
            self.targets = [0] * count

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        pixels, label = self.pixels[index], index % 3
        if self.fault == "raises" and index == 5:
            raise KeyError("no such row")
        if self.fault == "float":
            label = float(label)
        if self.fault == "alone":
            return pixels
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        forms = {"pil": Image.fromarray(pixels), "array": pixels, "tensor": tensor, "scaled": tensor / 255}
        return forms[self.form], torch.tensor(label) if self.form == "tensor" else label

class Named(Squares):
    classes = ("ant", "bee", "cat")

class Other(Squares):
    classes = ("bee", "ant", "cat")

class Twice(Squares):
    classes = [("crane", "bird"), ("crane", "bird"), ("cat",)]

class Downloaded(Squares):
    def __init__(self, root, download=False):
        super().__init__()
        with open(f"{root}/.own_squares.Downloaded.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            raise OSError("another rank can download too")

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

def squares(count=3):
    return Squares(count=count)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_squares.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("IMGREC_ALLOW", "own_squares")
    yield
    import sys

    sys.modules.pop("own_squares", None)


def node(name="Squares", **settings):
    return {"_target_": name if "." in name else f"own_squares.{name}", **settings}


def built(train, *words, **splits):
    """The data set and the augmentation of data=torch_dataset."""
    nodes = {"train": train, **splits}
    run = config.load("train", ["data=torch_dataset", "data.image_size=8", "data.val_share=0.34", *words], data=nodes)
    return build_data(run)


def whole(images, epoch=3):
    batch = images[Request(epoch, np.arange(len(images)), len(images))]
    return batch.images, batch.labels


@pytest.mark.parametrize("augment", slow_but("basic", among=["none", "randaug", "basic"]))
def test_the_images_are_those_of_the_same_folder(tmp_path, augment):
    root = tmp_path / "images"
    for split in ("train", "test"):
        make(root / split, {"cat": 4, "dog": 5})
    folder = {split: node("torchvision.datasets.ImageFolder", root=str(root / split)) for split in ("train", "test")}
    data, drawn = built(folder.pop("train"), f"augment={augment}", **folder)
    words = ["data=imagefolder", f"data.root={root}", "data.image_size=8", "data.val_share=0.34", f"augment={augment}"]
    expected, _ = build_data(config.load("train", words))
    assert data.classes == expected.classes
    for ours, theirs in ((data.splits.test, expected.splits.test), (data._as_read.train, expected._as_read.train)):
        assert all(map(torch.equal, whole(ours), whole(theirs)))
        assert all(map(torch.equal, whole(ours.for_training(drawn, 7)), whole(theirs.for_training(drawn, 7))))


def test_images_of_another_side_are_those_of_a_set_with_that_image_size() -> None:
    data, drawn = built(node(count=20), "augment.crop_scale=[0.3,1.0]")
    smaller, _ = built(node(count=20), "augment.crop_scale=[0.3,1.0]", "data.image_size=5")
    rows = np.arange(6)
    ours, theirs = (built.splits.train.for_training(drawn, 7) for built in (data, smaller))
    assert torch.equal(ours[Request(3, rows, 6, 5)].images, theirs[Request(3, rows, 6)].images)


def test_the_images_are_those_of_the_same_set_in_memory(tmp_path):
    write_mnist(tmp_path, "MNIST", np.arange(60) % 10)
    mnist = {split: node("torchvision.datasets.MNIST", root=str(tmp_path), train=split == "train") for split in ("train", "test")}
    data, _ = built(
        mnist.pop("train"),
        "data.image_size=28",
        "data.resize=squash",
        "data.channels=1",
        "data.mean=[0.5]",
        "data.std=[0.5]",
        **mnist,
    )
    expected, _ = build_data(config.load("train", ["data=mnist", f"data.root={tmp_path}", "data.val_share=0.34"]))
    assert all(map(torch.equal, whole(data.splits.val), whole(expected.splits.val)))  # cut off by the same rule
    assert all(map(torch.equal, whole(data.splits.test), whole(expected.splits.test)))


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_every_form_of_an_image_is_the_same(form):
    expected, _ = built(node(form="pil"))
    data, _ = built(node(form=form))
    assert data.classes == ("0", "1", "2")
    assert all(map(torch.equal, whole(data.splits.train), whole(expected.splits.train)))


def test_labels_are_found_without_reading_the_images():
    def unread(index):
        raise AssertionError("an image was read")

    dataset = torchvision.datasets.FakeData(size=6)
    dataset.__class__ = type("Unread", (torchvision.datasets.FakeData,), {"__getitem__": lambda self, index: unread(index)})
    for name, labels in (("targets", [2, 0, 1, 1, 0, 2]), ("labels", np.array([5, 0, 1, 1, 0, 2])), ("_labels", torch.arange(6))):
        setattr(dataset, name, labels)
        assert read_labels(dataset, "data.train").tolist() == list(map(int, labels))
        part = Subset(dataset, [4, 1])
        assert read_labels(ConcatDataset([part, dataset]), "data.train").tolist() == [
            int(labels[4]),
            int(labels[1]),
            *map(int, labels),
        ]
        delattr(dataset, name)
    with raises_error(DataError, "data.train[0]", "an image was read"):
        read_labels(dataset, "data.train")


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        (node("Stream"), ("data.train._target_=own_squares.Stream", "__len__", "Stream")),
        (node(fault="raises"), ("data.train[5]", "(image, label)", "KeyError", "no such row")),
        (node(fault="float"), ("data.train[0]", "the number of a class", "TypeError")),
        (node(fault="alone"), ("data.train[0]", "(image, label)", "ValueError")),
        (node(fault="targets"), ("data.train[1]", "1", "0", "targets")),
        (node(form="scaled"), ("data.train[1]", "float32 [3, 9, 7]", "uint8", "transforms")),
        (node(cuont=3), ("data.train.cuont=3", "count")),
        (node("Twice"), ("data.train", "crane, bird", "data.classes=[NAME,...]")),
        (node("torchvision.datasets.SVHN", root="none"), ("data.train", "torchvision.datasets.SVHN", "data.train.KEY=VALUE")),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_one_sentence(train, parts):
    with raises_error((DataError, ConfigError), *parts):
        data, _ = built(train)
        for images in (data.splits.train, data.splits.val):
            for row in range(len(images)):
                images[Request(0, np.array([row]), 1)]


def test_without_a_data_set_and_with_other_classes():
    with raises_error(ConfigError, "data.train=null", "data.train=", "torchvision.datasets.SVHN"):
        build_data(config.load("train", ["data=torch_dataset"]))
    with raises_error(ConfigError, "data.train has no _target_", "PACKAGE.MODULE.NAME"):
        _ = build_data(config.load("train", ["data=torch_dataset", "data.train={root: x}"]))[0].splits
    with raises_error(DataError, "data.test", "'bee', 'ant', 'cat'", "data.train", "'ant', 'bee', 'cat'"):
        _ = built(node("Named"), test=node("Other"))[0].splits
    data, _ = built(node("Twice"), "data.classes=[a,b,c]", test=node("Twice"))
    assert data.classes == ("a", "b", "c")


def test_one_rank_downloads_at_a_time(tmp_path):
    data, _ = built(node("Downloaded", root=str(tmp_path / "new"), download=True))
    assert len(data.splits.train) + len(data.splits.val) == 12


def test_a_run_is_trained_and_evaluated_from_its_checkpoint_where_the_package_is_allowed(tmp_path, monkeypatch):
    keys = [word for word in SMALL if not word.startswith("data")]
    nodes = {"train": node("Named", count=24), "test": node("Named", count=9)}
    result = imgrec.fit(
        ["data=torch_dataset", "data.image_size=16", *keys, "trainer.limit_test_batches=1.0"],
        data=nodes,
        runs_dir=tmp_path,
        quiet=True,
    )
    predictor = result.load(device="cpu")
    assert predictor.classes == ("ant", "bee", "cat")
    assert predictor.evaluate("test").accuracy == result.metrics["test/accuracy"]
    monkeypatch.setenv("IMGREC_ALLOW", "")
    assert len(result.load(device="cpu").predict(np.zeros((9, 7, 3), np.uint8))) == 1
    with raises_error(ConfigError, "data.train._target_=own_squares.Named", "export IMGREC_ALLOW=own_squares"):
        predictor.evaluate("test")


@pytest.mark.parametrize(
    ("target", "allowed", "parts"),
    [
        ("own_squares.squares", "own_squares", ("a Dataset",)),
        ("own_squares.IterableDataset", "own_squares", ("defined in torch",)),
        ("torchvision.datasets.FakeData", "own_squares", ("export IMGREC_ALLOW=torchvision",)),
        ("torchvision.datasets.utils.download_url", "torchvision", ("a Dataset",)),
        ("os.system", "own_squares", ("export IMGREC_ALLOW=os",)),
        (5, "own_squares", ("no data set but yours",)),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_stored_config_calls_no_other_code(target, allowed, parts, split, monkeypatch):
    monkeypatch.setenv("IMGREC_ALLOW", allowed)
    monkeypatch.setattr("imgrec.data.torch_dataset.instantiate", pytest.fail)
    run = config.load("train", ["data=torch_dataset"])
    stored = run.data.to_node() | {"train": node("Squares")} | {split: {"_target_": target}}
    if allowed == "torchvision":
        stored["train"] = {"_target_": target}
    with raises_error(ConfigError, f"data.{'train' if allowed == 'torchvision' else split}._target_={target}", *parts):
        build_stored("data", stored)
