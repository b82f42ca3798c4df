"""The data sets: scikit-learn's digits, torchvision's MNIST and CIFAR families, folders, and generated images for tests."""

import fcntl
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from imgrec.config.annotations import read_pattern
from imgrec.config.schema import Split
from imgrec.config.split_folders import class_folders, find_split_folders, split_meant
from imgrec.config.start_checks import missing_files
from imgrec.data.batch import Indices
from imgrec.data.file_index import FileIndex, listed_images
from imgrec.data.file_splits import folder_split, named_split
from imgrec.data.folder import FileData, FileKeys, ImageFiles
from imgrec.data.folder_classes import read_class_folders, read_class_names
from imgrec.data.image_data import Common, ImageData, Splits
from imgrec.data.in_memory import InMemoryImages, to_channels
from imgrec.data.skip_list import without_listed
from imgrec.errors import ConfigError, first_line
from imgrec.locks import lock_file


class Digits(ImageData):
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships (Alpaydin and Kaynak 1998); no download."""

    def __init__(self, *, test_share: float, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self.test_share = test_share

    def read(self) -> Splits:
        from sklearn.datasets import load_digits

        digits = load_digits()
        classes = tuple(map(str, digits.target_names))
        # 17 gray levels, 0 to 16, spread over a byte.
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        images = InMemoryImages(to_channels(torch.from_numpy(pixels), self.preprocessing()["channels"]), digits.target)
        train, test = self.cut(images, classes, "test", self.test_share)
        return Splits(classes, train=train, val=None, test=test)


@contextmanager
def download_lock(root: str, kind: str) -> Iterator[None]:
    """One process of those that share the folder downloads the files of a data set, the others wait for it."""
    Path(root).mkdir(parents=True, exist_ok=True)
    with open(Path(root) / f".{kind}.lock", "w") as lock:
        lock_file(lock, fcntl.LOCK_EX)
        yield


class _Torchvision(ImageData):
    """A data set that torchvision reads, and whose files it checks, below `root`."""

    kind: ClassVar[str]  # class in torchvision.datasets

    def __init__(self, *, root: str, download: bool, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self.root, self.download = root, download

    def read(self) -> Splits:
        train, test = self._open(train=True), self._open(train=False)
        # MNIST calls its classes "0 - zero".
        classes = tuple(str(name).split(" - ")[0] for name in train.classes)
        return Splits(classes, train=self._images(train), val=None, test=self._images(test))

    def _images(self, dataset: Any) -> InMemoryImages:
        # MNIST has uint8 [N, 28, 28], CIFAR uint8 [N, 32, 32, 3].
        pixels: Tensor = torch.as_tensor(dataset.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        return InMemoryImages(to_channels(pixels, self.preprocessing()["channels"]), np.asarray(dataset.targets, dtype=np.int64))

    def _open(self, *, train: bool, download: bool = False) -> Any:
        try:
            return getattr(datasets, self.kind)(self.root, train=train, download=download)
        except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            if download or not self.download:
                problem = f"could not be downloaded ({first_line(error)})" if download else "are missing or damaged"
                raise missing_files(self.kind, self.root, problem, download=self.download) from error
        with download_lock(self.root, self.kind):
            return self._open(train=train, download=True)


class MNIST(_Torchvision):
    """60,000 + 10,000 handwritten digits of 28x28 (LeCun et al. 1998)."""

    kind = "MNIST"


class FashionMNIST(_Torchvision):
    """60,000 + 10,000 pieces of clothing of 28x28 (Xiao et al. 2017)."""

    kind = "FashionMNIST"


class CIFAR10(_Torchvision):
    """50,000 + 10,000 colour images of 32x32 in 10 classes (Krizhevsky 2009)."""

    kind = "CIFAR10"


class CIFAR100(_Torchvision):
    """50,000 + 10,000 colour images of 32x32 in 100 classes (Krizhevsky 2009)."""

    kind = "CIFAR100"


MOST_FAKE = 2**30  # values of all pictures, of which 9 bytes each are needed while they are made


class Fake(ImageData):
    """Generated images that can be learned: each is the smooth random pattern of its class, with noise."""

    def __init__(self, *, train_samples: int, test_samples: int, noise: float, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if self.num_classes is None:
            raise ConfigError("data.num_classes=null: data=fake needs a number. Set data.num_classes=10.")
        self.classes_count, self.noise = self.num_classes, noise
        self.train_samples, self.test_samples = train_samples, test_samples

    def read(self) -> Splits:
        generator = np.random.default_rng(self.split_seed)
        size, channels = self.preprocessing()["image_size"], self.preprocessing()["channels"]
        count = self.train_samples + self.test_samples + self.classes_count
        if count * channels * size**2 > MOST_FAKE:
            raise ConfigError(
                f"data.train_samples={self.train_samples} data.test_samples={self.test_samples}: {count:,} pictures of "
                f"{size}x{size}x{channels} are too many for the memory. Set data.train_samples=512 data.test_samples=128."
            )
        coarse = torch.from_numpy(generator.random((self.classes_count, channels, 4, 4), np.float32))
        patterns = torch.nn.functional.interpolate(coarse, size=[size, size], mode="bicubic")

        def images(count: int) -> InMemoryImages:
            labels: Indices = np.arange(count, dtype=np.int64) % self.classes_count
            noise = torch.from_numpy(generator.standard_normal((count, channels, size, size), np.float32))
            pixels = patterns[torch.from_numpy(labels)].add_(noise, alpha=self.noise).mul_(255).round_().clamp_(0, 255)
            return InMemoryImages(pixels.to(torch.uint8), labels)

        names = tuple(f"class_{k:0{len(str(self.classes_count - 1))}d}" for k in range(self.classes_count))
        return Splits(names, train=images(self.train_samples), val=None, test=images(self.test_samples))


class ImageFolder(FileData):
    """Any folder of images: ROOT/train|val|test/CLASS/*, or ROOT/CLASS/*, which is split by class.

    skip_list: a file with names of images below `root` that are left out.
    label_from: no class folders, but the classes in the paths below these folders, where the expression finds them.
    """

    least_classes = 2

    def __init__(
        self,
        *,
        root: str,
        label_from: str | None,
        group_from: str | None,
        skip_list: str | None,
        **keys: Unpack[FileKeys],
    ) -> None:
        super().__init__(**keys)
        self.root, self.skip_list = root, skip_list
        self.label_from = None if label_from is None else read_pattern("data.label_from", label_from)
        self.group_from = None if group_from is None else read_pattern("data.group_from", group_from)

    def describe_classes(self, count: int) -> str:
        return f"{self.root} has {count} class{'es in its file names' if self.label_from else ' folders'}"

    def read(self) -> Splits:
        folders, unlabelled = find_split_folders(self.root, by_name=self.label_from is not None)
        if self.label_from is not None:
            classes, splits = self._read_names(folders, self.label_from)
            unlabelled = None if "test" in splits else folders.get("test")
        else:
            classes, splits = self._read_folders(folders)
        if self.skip_list is not None:
            splits = without_listed(splits, classes, self.root, self.skip_list)
        if folders["train"] == self.root:
            return self.cut_test(splits["train"], classes)  # there are no split folders
        self.beside = [name for name in class_folders(self.root) if split_meant(name) is None]
        return Splits(classes, splits["train"], splits.get("val"), splits.get("test"), unlabelled)

    def _read_folders(self, folders: Mapping[Split, str]) -> tuple[tuple[str, ...], dict[Split, ImageFiles]]:
        files = {split: FileIndex(folder) for split, folder in folders.items()}
        classes = read_class_folders(self.root, folders["train"], files["train"], least=self.least_classes)
        return classes, {
            split: folder_split(
                folder,
                classes,
                self.preprocessing(),
                whole=split == "train",
                ignored=self.ignored,
                group_from=self.group_from,
                files=files[split],
                **self.reading,
            )
            for split, folder in folders.items()
        }

    def _read_names(
        self, folders: Mapping[Split, str], label_from: re.Pattern[str]
    ) -> tuple[tuple[str, ...], dict[Split, ImageFiles]]:
        """A test folder in none of whose names a class is found is left out: it is one to predict."""
        names = {split: listed_images(folder, ignored=self.ignored) for split, folder in folders.items()}
        if "test" in names and not any(map(label_from.search, names["test"])):
            del names["test"]
        classes = read_class_names(folders["train"], names["train"], label_from, least=self.least_classes)
        return classes, {
            split: named_split(
                folders[split],
                files,
                classes,
                self.preprocessing(),
                label_from=label_from,
                group_from=self.group_from,
                **self.reading,
            )
            for split, files in names.items()
        }
