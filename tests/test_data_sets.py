"""Sets held in memory: equal to what torchvision and scikit-learn read from the same files."""

import gzip
import pickle
import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor, rgb_to_grayscale

from imgrec.data.batch import Request
from imgrec.data.datasets import CIFAR10, CIFAR100, MNIST, Digits, Fake, FashionMNIST, download_lock
from imgrec.data.in_memory import InMemoryImages, to_channels
from imgrec.errors import ConfigError, DataError

COMMON = {
    "num_classes": None,
    "resize": "squash",
    "crop_share": 1.0,
    "interpolation": "bilinear",
    "max_pixels": 10**8,
    "scale": None,
    "val_share": 0.2,
    "split_seed": 0,
    "changed": "refuse",
}
GRAY = {**COMMON, "image_size": 28, "channels": 1, "mean": [0.5], "std": [0.25]}
COLOUR = {**COMMON, "image_size": 32, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}


def write_mnist(root: Path, kind: str, labels: np.ndarray) -> None:
    """MNIST's idx files: big-endian magic and sizes, then bytes."""
    made = np.random.default_rng(0)
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", len(labels)), ("t10k", 20)):
        images = made.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + images.tobytes())
        values = labels[:count].astype(np.uint8).tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + values)


def write_cifar(root: Path, kind: type, monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    """CIFAR's pickles; torchvision knows the real ones by their MD5, so that check is told to expect none."""
    made = np.random.default_rng(0)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    for name, _ in [*kind.train_list, *kind.test_list]:
        labels = [int(k) for k in made.permutation(np.arange(5 * classes) % classes)]
        pixels = made.integers(0, 256, (5 * classes, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels" if classes == 10 else "fine_labels": labels}))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [f"thing {k}" for k in range(classes)]}))
    monkeypatch.setattr(kind, "train_list", [(name, None) for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [(name, None) for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})


def everything(split: InMemoryImages) -> tuple[torch.Tensor, torch.Tensor]:
    batch = split[Request(0, np.arange(len(split)), len(split))]
    return batch.images, batch.labels


@pytest.mark.parametrize(("ours", "theirs"), [(MNIST, datasets.MNIST), (FashionMNIST, datasets.FashionMNIST)])
def test_mnist_files_give_torchvisions_images_cut_as_scikit_learn_does(tmp_path, ours, theirs):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6))
    write_mnist(tmp_path, theirs.__name__, labels)
    data = ours(root=str(tmp_path), download=False, **GRAY)
    reference = theirs(tmp_path, train=True)
    train, val = (np.sort(part) for part in train_test_split(np.arange(60), test_size=12, stratify=labels, random_state=0))
    for name, rows in (("train", train), ("val", val)):
        images, found = everything(data.split(name))
        assert torch.equal(images, torch.stack([pil_to_tensor(reference[i][0]) for i in rows]))
        assert found.tolist() == [reference[i][1] for i in rows]
    images, found = everything(data.split("test"))
    test = theirs(tmp_path, train=False)
    assert torch.equal(images[:, 0], test.data)
    assert torch.equal(found, test.targets)
    assert data.counts("val").tolist() == np.bincount(labels[val]).tolist()
    assert len(data.classes) == 10
    assert data.classes[:2] == (("0", "1") if ours is MNIST else ("T-shirt/top", "Trouser"))


@pytest.mark.parametrize(("ours", "theirs", "classes"), [(CIFAR10, datasets.CIFAR10, 10), (CIFAR100, datasets.CIFAR100, 100)])
def test_cifar_pickles_give_torchvisions_images(tmp_path, monkeypatch, ours, theirs, classes):
    write_cifar(tmp_path, theirs, monkeypatch, classes)
    data = ours(root=str(tmp_path), download=False, **COLOUR)
    reference = theirs(tmp_path, train=False)
    images, labels = everything(data.split("test"))
    assert torch.equal(images, torch.stack([pil_to_tensor(image) for image, _ in reference]))
    assert labels.tolist() == reference.targets
    assert data.classes == tuple(reference.classes)
    gray = ours(root=str(tmp_path), download=False, **{**COLOUR, "channels": 1, "mean": [0.5], "std": [0.25]})
    # A level apart where the float sum lies between two: it is added up in another order for other shapes.
    assert (everything(gray.split("test"))[0].int() - rgb_to_grayscale(images).int()).abs().max() <= 1


def test_digits_are_scikit_learns_over_a_byte():
    data = Digits(test_share=0.2, **{**GRAY, "image_size": 8, "val_share": 0.1})
    raw = load_digits()
    rest, test = (np.sort(part) for part in train_test_split(np.arange(1797), test_size=360, stratify=raw.target, random_state=0))
    images, labels = everything(data.split("test"))
    assert (images[:, 0].double() - torch.from_numpy(raw.images[test] * 255 / 16)).abs().max() <= 0.5
    assert labels.tolist() == raw.target[test].tolist()
    total = data.counts("train") + data.counts("val")
    assert total.tolist() == np.bincount(raw.target[rest]).tolist()
    assert len(data.split("val")) == 144
    assert data.classes == tuple("0123456789")


def test_fake_images_can_be_learnt_and_come_again():
    settings = {**COLOUR, "num_classes": 4, "image_size": 16}
    first, again = (Fake(train_samples=80, test_samples=40, noise=0.1, **settings) for _ in range(2))
    images, labels = everything(first.split("train"))
    assert torch.equal(images, everything(again.split("train"))[0])
    means = torch.stack([images[labels == k].float().mean(0) for k in range(4)])
    test, truth = everything(first.split("test"))
    nearest = torch.cdist(test.float().flatten(1), means.flatten(1)).argmin(1)
    assert torch.equal(nearest, truth)
    with pytest.raises(ConfigError, match=r"Set data.num_classes=10\."):
        Fake(train_samples=80, test_samples=40, noise=0.1, **COLOUR)


def test_gray_is_repeated_and_colour_becomes_luma():
    gray = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    assert torch.equal(to_channels(gray, 3), torch.cat([gray] * 3, 1))
    colour = torch.randint(0, 256, (5000, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (to_channels(colour, 1).int() - rgb_to_grayscale(colour).int()).abs().max() <= 1


def test_without_locks_data_is_downloaded_all_the_same(tmp_path, without_locks):
    with download_lock(str(tmp_path / "new"), "MNIST"):
        assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("download", [False, True])
def test_missing_files_say_where_to_put_them(tmp_path, monkeypatch, download):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(DataError) as error:
        _ = MNIST(root=str(tmp_path), download=download, **GRAY).splits
    where = f"{tmp_path}/MNIST/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte"
    assert where in str(error.value)
    assert ("set data.download=true" in str(error.value)) is not download
    assert ("could not be downloaded" in str(error.value)) is download
    assert "\n" not in str(error.value)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    """From a mirror on this machine, packed as torchvision's are."""
    write_mnist(tmp_path / "origin", "MNIST", np.arange(60) % 10)
    mirror, resources = tmp_path / "mirror", []
    mirror.mkdir()
    for file in sorted((tmp_path / "origin/MNIST/raw").iterdir()):
        packed = mirror / f"{file.name}.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((packed.name, None))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        data = MNIST(root=str(tmp_path / "new"), download=True, **GRAY)
        test = data.split("test")
        server.shutdown()
    assert torch.equal(everything(test)[0][:, 0], datasets.MNIST(tmp_path / "origin", train=False).data)


def test_a_damaged_file_is_no_traceback(tmp_path):
    write_mnist(tmp_path, "MNIST", np.arange(60) % 10)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="missing or damaged"):
        _ = MNIST(root=str(tmp_path), download=False, **GRAY).splits
