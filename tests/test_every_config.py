"""Every yaml in conf/, found by glob: its form, its keys against the code they name, and two steps of training."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_data_folder import make
from test_data_sets import write_cifar, write_mnist
from torchvision import datasets

import imgrec
from imgrec.config.compose import compose_config
from imgrec.config.help import documented, option_keys
from imgrec.config.instantiate import EXTRA_PARAMETERS, locate, parameter_types
from imgrec.config.load import load_config
from imgrec.config.options import conf_dir, group_names, option_names
from imgrec.config.schema import target_nodes
from imgrec.data.datasets import ImageFolder
from imgrec.data.table import ImageTable
from imgrec.data.torch_dataset import TorchDataset
from imgrec.errors import DataError
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.training.optimizer import rate

FILES = sorted(conf_dir().rglob("*.yaml"))
CHOICES = [group for group in group_names() if group != "experiment"]
ROOT_KEYS = documented((conf_dir() / "train.yaml").read_text())
LIMITS = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")
HERE = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32", "trainer.compile=false")
TINY = ("epochs=1", "num_workers=0", "max_device_batch=8", *LIMITS, *HERE)

SLOW_IMPORTS = {"mlflow", "wandb"}


def name(file: Path) -> str:
    return str(file.relative_to(conf_dir()).with_suffix(""))


# Form


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_key_has_a_comment_and_a_choice_names_its_code_first(file):
    source = file.read_text()
    assert source.isascii()
    if file.parent == conf_dir():
        keys = documented(source)
    else:
        first = source.partition("\n")[0]
        assert first.startswith(("_target_: ", "# "))
        keys = list(option_keys(file.parent.name, file))  # with what it inherits: basic.yaml shows what differs from none.yaml
    explained = {path for path, _, comment in ROOT_KEYS if comment}
    explained |= {path for path, value, _ in keys if value.startswith("${")}
    bare = [".".join(path) for path, _, comment in keys if not comment and path not in explained]
    assert bare == [] or file.parent.name == "experiment"  # a recipe's values are explained where the keys are


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name == "experiment"], ids=name)
def test_a_recipe_says_its_command_and_what_was_measured(file):
    header = file.read_text().partition("\ndefaults:")[0]
    assert f"experiment={file.stem}" in header
    assert "measured" in header


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=[pytest.mark.slow] * (file.stem in SLOW_IMPORTS))
        for file in FILES
        if "_target_: " in file.read_text()
    ],
    ids=name,
)
def test_every_key_is_one_that_its_target_takes(file):
    for _, node in target_nodes({file.parent.name: yaml.safe_load(file.read_text())}):
        beside = (
            parameter_types(locate(EXTRA_PARAMETERS[file.parent.name])).keys() if file.parent.name in EXTRA_PARAMETERS else set()
        )
        assert node.keys() - {"_target_", "_partial_", "defaults"} - beside <= parameter_types(locate(node["_target_"])).keys()


# Two steps


@pytest.fixture
def words_for(tmp_path, monkeypatch):
    """Overrides that point a composed data node at a few small files of its own kind, made for it; None for an unknown kind."""

    def settle(data):
        target = locate(data["_target_"])
        if target is TorchDataset:
            fake = "_target_: torchvision.datasets.FakeData, num_classes: 3, image_size: [3, 40, 32]"
            return [f"data.{split}={{{fake}, size: {size}}}" for split, size in (("train", 60), ("val", 9), ("test", 12))]
        if "root" not in data:
            return [f"data.{key}=60" for key in ("train_samples", "test_samples") if key in data]
        root = tmp_path / "data"
        if issubclass(target, ImageFolder):
            for split, count in (("train", 8), ("val", 2), ("test", 2)):
                make(root / split, {"cat": count, "dog": count, "eel": count})
        elif issubclass(target, ImageTable):
            make(root, {"cat": 12, "dog": 12, "eel": 12})
            rows = [f"{path.relative_to(root)},{path.parent.name}\n" for path in sorted(root.glob("*/*"))]
            (root / "t.csv").write_text("".join(["path,label\n", *rows]))
            return [f"data.file={root}/t.csv"]
        elif not hasattr(target, "kind"):
            return None
        elif hasattr(source := getattr(datasets, target.kind), "base_folder"):
            write_cifar(root, source, monkeypatch, 100 if target.kind.endswith("100") else 10)
        else:
            write_mnist(root, target.kind, np.arange(60) % 10)
        return [f"data.root={root}", "data.num_classes=null"]

    return settle


def train_two_steps(words, tmp_path):
    run = load_config("train", [*words, f"runs_dir={tmp_path}/runs"])
    result = imgrec.fit(run, quiet=True)
    assert result["last"]["step"] == (1 if run.batch_size == "full" else 2)
    assert math.isfinite(result["last"]["train/loss"])
    confusion = np.array(result["test"]["confusion"])
    assert confusion.sum() == result["test"]["count"] > 0
    assert result["test"]["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    stored = load_checkpoint(tmp_path / "runs" / run.name / "1")
    assert stored.run == run.with_classes(len(stored.classes))


# model=resnet50 is model=resnet of depth 50: tests/test_models.py compares them with torchvision's.
OF_ONE_DEPTH = {file.stem for file in FILES if file.parent.name == "model" and "_target_: " not in file.read_text()}
BIG = {"alexnet", "densenet", "googlenet", "vgg", *SLOW_IMPORTS}  # options that take seconds have slow rows of their own


def rows():
    """Row i takes the i-th option of each group: the longest group decides how many runs there are, a short one starts again.

    The networks end with small ones, the loggers with none, and the BIG options have rows of their own.
    """
    columns = {group: [name for name in option_names(group) if name not in BIG | OF_ONE_DEPTH] for group in CHOICES}
    longest = max(map(len, columns.values()))
    columns["model"] += ["lenet", "simple_cnn"] * longest
    columns["logger"] += ["none"] * longest
    return [[f"{group}={found[i % len(found)]}" for group, found in columns.items()] for i in range(longest)]


BIG_ROWS = [
    pytest.param([f"{group}={name}"], marks=pytest.mark.slow) for group in CHOICES for name in option_names(group) if name in BIG
]


@pytest.mark.parametrize("row", [*rows(), *BIG_ROWS], ids=" ".join)
def test_every_option_trains_two_steps(row, words_for, tmp_path):
    tree = compose_config("train", row)
    batch = [] if tree["batch_size"] == "full" else ["batch_size=4"]
    report = f"report={str('logger=csv' in row).lower()}"  # 0.1 s each
    words = [*TINY, *batch, report, "data.image_size=32", "data.val_share=0.25"]
    files = words_for(tree["data"])
    if files is None:  # the set says in one line that its files are missing; the other options are trained on the digits
        with pytest.raises(DataError, match=r"\. Set data\.root="):
            train_two_steps([*row, *words, f"data.root={tmp_path}/none"], tmp_path)
        row, files = ["data=digits" if word.startswith("data=") else word for word in row], []
    train_two_steps([*row, *files, *words], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", option_names("experiment"))
def test_every_recipe_trains_two_steps(recipe, words_for, tmp_path):
    """Its network, augmentation, optimizer and schedule as they are, on small pictures and batches, on the CPU."""
    tree = compose_config("train", [f"experiment={recipe}"])
    batch = [] if tree["batch_size"] == "full" else ["batch_size=4"]
    small = [f"data.image_size={min(tree['data']['image_size'], 64)}", "data.val_share=0.25", "logger=none", "report=false"]
    small.append("callbacks.progressive_size.first=0")  # its sizes are for the recipe's images
    train_two_steps([f"experiment={recipe}", *words_for(tree["data"]), *TINY, *batch, *small], tmp_path)


# Rates


@pytest.mark.slow
@pytest.mark.parametrize("recipe", option_names("experiment"))
def test_a_recipe_has_the_rate_that_it_states(recipe):
    run = load_config("train", [f"experiment={recipe}"])
    assert rate(run.optim, run.batch_size) == run.optim["lr"]
