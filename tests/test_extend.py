"""imgrec extend: more classes for a trained network, whose old answers stay to the bit."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from error_parts import assert_error, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from processes import exit_codes
from resumed_runs import assert_same, kill_this_process, patch_call
from small_run import SMALL
from torch import Tensor, nn
from untrained_run import save_untrained_run

import imgrec
from imgrec import cli, config
from imgrec.analysis.changed_answers import changed_answers, few_images_sentence
from imgrec.config.instantiate import build
from imgrec.config.schema import Parent, RunConfig
from imgrec.data.image_data import ImageData
from imgrec.data.in_memory import InMemoryImages
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.extend import extended_run
from imgrec.inference.checkpoint import load_checkpoint, read_checkpoint
from imgrec.inference.stored_code import build_stored
from imgrec.models.catalog import CatalogQuery, candidates
from imgrec.models.layers import head_names
from imgrec.models.pretrained import PretrainedWeights, transfer_weights
from imgrec.models.split_head import SplitLinear, split_heads
from imgrec.train import fit
from imgrec.training.extension import measure_extension
from imgrec.training.module import Classifier
from imgrec.training.new_classes import add_rows

OLD = ("class_0", "class_1", "class_2")
QUICK = (
    "num_workers=0",
    "logger=none",
    "report=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.pictures=null",
)


def pictures(root: Path, counts: dict[str, int], size: int = 16, seed: int = 0) -> Path:
    """A folder of noise for each class, brighter from class to class."""
    random = np.random.default_rng(seed)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = (random.random((size, size, 3)) * 60 + 40 * number).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three classes in memory."""
    folder = tmp_path_factory.mktemp("parent")
    words = [word for word in SMALL if not word.startswith("trainer.limit")]
    return fit([*words, "augment=none", f"runs_dir={folder}", "name=old", "id=1"], quiet=True).folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return pictures(tmp_path / "new", {"wolf": 8, "elk": 8})


def extension(parent: Path, new: Path, *words: str) -> RunConfig:
    return extended_run(
        [str(parent), f"data.root={new}", *QUICK, "epochs=2", "batch_size=8", f"runs_dir={new.parent}/runs", *words]
    )


def logits(run: Path, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = load_checkpoint(run).network().eval()(images)
    return out


# The network

NATIVE = {network.name: network for network in candidates(CatalogQuery(source="imgrec"))}
LIBRARY = [
    ("torchvision", "squeezenet1_1"),  # the head is a convolution
    ("torchvision", "mobilenet_v3_small"),
    ("timm", "deit_tiny_distilled_patch16_224"),  # two heads
    ("timm", "mobilenetv3_small_050"),
]


def build_network(source: str, name: str, classes: int) -> tuple[nn.Module, int]:
    """The network and the side of its images."""
    (network,) = candidates(CatalogQuery(source=source, filter=name))
    size = network.image_size if source != "imgrec" else min(network.image_size, 64)
    (network,) = candidates(CatalogQuery(source=source, filter=name, num_classes=classes, image_size=size))
    return network.build(), size


@pytest.mark.parametrize(
    ("source", "name"),
    slow_but(("imgrec", "lenet"), among=[*(("imgrec", name) for name in sorted(NATIVE)), *LIBRARY]),
)
def test_new_rows_change_no_bit_of_the_old_logits(source: str, name: str) -> None:
    torch.manual_seed(0)
    (old, size), (new, _) = build_network(source, name, 7), build_network(source, name, 9)
    with torch.no_grad():
        for head in head_names(old, 7):  # some begin at zero
            for parameter in old.get_submodule(head).parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    classes = [f"c{k}" for k in range(9)]
    transfer_weights(new, PretrainedWeights("old", old.state_dict(), tuple(classes[:7]), ""), classes)
    add_rows(new, Parent("", [7], frozen=True), 9)
    trained = {key for key, parameter in new.named_parameters() if parameter.requires_grad}
    assert trained == {f"{head}.{key}" for head in head_names(new, 9) for key, _ in new.get_submodule(head).named_parameters()}
    for net in (old, new):
        net.eval()
    for batch in (1, 5):
        images = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            assert torch.equal(new(images)[:, :7], old(images))
            assert old(images).std() > 0


def test_a_head_in_parts_is_the_head() -> None:
    """With the same values, gradients and state, but for the rounding."""
    torch.manual_seed(0)
    whole, images = nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), torch.randn(3, 8)
    parts = nn.Sequential(nn.Flatten(), SplitLinear(nn.Linear(8, 5), [2, 2, 1]))
    parts.load_state_dict(whole.state_dict())
    torch.testing.assert_close(parts(images), whole(images))
    for net in (whole, parts):
        net(images).square().sum().backward()
    torch.testing.assert_close([p.grad for p in parts.parameters()], [p.grad for p in whole.parameters()])


def test_new_rows_begin_as_the_mean_of_the_old_ones() -> None:
    """So no answer changes before the first step: no mean is above the largest."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    before = net[1].weight.detach().clone()
    add_rows(net, Parent("", [3], frozen=False), 5)
    torch.testing.assert_close(net[1].weight[3:], before[:3].mean(dim=0).expand(2, -1))
    assert torch.equal(net[1].weight[:3], before[:3])


def test_a_head_of_another_kind_is_refused() -> None:
    class Head(nn.Linear):
        pass

    with raises_error(ConfigError, "the head of Sequential", "Head", "frozen=false"):
        split_heads(nn.Sequential(Head(3, 4)), [2, 2])


# The data


def test_the_old_splits_stay_and_come_first(parent: Path, new: Path) -> None:
    pictures(new, {"class_1": 6}, seed=1)
    run = extension(parent, new)
    joined, before = (
        build("data", run.data.to_node(), ImageData),
        build("data", load_checkpoint(parent).run.data.to_node(), ImageData),
    )
    assert joined.classes == (*OLD, "elk", "wolf")
    for split in ("train", "val", "test"):
        images, old = joined.split(split), before.split(split)
        assert isinstance(images, InMemoryImages)
        assert isinstance(old, InMemoryImages)
        assert torch.equal(images.images[: len(old)], old.images)
        assert np.array_equal(images.labels[: len(old)], old.labels)
        assert set(images.labels[len(old) :].tolist()) == {1, 3, 4}
    assert sum(joined.counts(split).sum() for split in ("train", "val", "test")) == 24 + 6 + 22


@pytest.mark.slow
def test_files_of_two_folders_are_known_by_their_paths(tmp_path: Path) -> None:
    old = fit(
        [
            f"data={pictures(tmp_path / 'old', {'a': 9, 'b': 9})}",
            "data.image_size=16",
            "model=lenet",
            "epochs=1",
            *QUICK,
            f"runs_dir={tmp_path}",
            "name=o",
            "id=1",
        ],
        quiet=True,
    )
    run = extension(old.folder, pictures(tmp_path / "new", {"c": 9, "a": 6}, seed=1))
    data = build("data", run.data.to_node(), ImageData)
    names = np.concatenate([data.split(split).names for split in ("train", "val", "test")])  # type: ignore[arg-type]
    assert sorted(names.tolist()) == sorted(str(path).encode() for path in tmp_path.glob("*/*/[0-9].png"))
    result = fit(run, quiet=True)
    assert result["extended"]["old"]["images"] + result["extended"]["new"]["images"] == result["test"]["count"]


@pytest.mark.parametrize(
    ("folders", "words", "parts"),
    [
        ({"class_0": 6, "class_1": 6}, (), ("data.root=", "no new class", "class_0, class_1", "data.root=FOLDER")),
        ({"Class_0": 6}, (), ("data.root=", "Class_0", "class_0", "rename")),
        ({"elk": 6, "class_0": 6}, ("old_images=false",), ("data.root=", 2, "class_1, class_2", "old_images=true")),
    ],
)
def test_folders_that_cannot_be_added(
    parent: Path, tmp_path: Path, folders: dict[str, int], words: tuple[str, ...], parts: tuple[object, ...]
) -> None:
    with raises_error(DataError, *parts):  # before the images of the run are read
        extension(parent, pictures(tmp_path / "new", folders), *words)


def test_what_the_run_decides_is_refused(parent: Path, new: Path, tmp_path: Path) -> None:
    for word, *parts in (
        ("model=resnet", "the run", "weights=RUN"),
        ("model.widths=[4]", "the run"),
        ("data.image_size=32", "Remove it"),
        ("data.channels=1", "Remove it"),
        ("weights=DEFAULT", "ckpt", "Remove it"),
        ("continue_from=x", "Remove it"),
        ("experiment=mnist_cnn", "ckpt", "Remove it"),
        ("data.old=null", "old_images=false", "Remove it"),
        ("data.old_classes=[a]", "ckpt", "Remove it"),
    ):
        with raises_error(ConfigError, f"'{word}'", *parts):
            extension(parent, new, word)
    with raises_error(ConfigError, "ckpt=null", "imgrec extend runs/NAME/ID data.root=FOLDER"):
        extended_run([f"data.root={new}"])
    with raises_error(ConfigError, "data.root", "data.root=FOLDER"):
        extended_run([str(parent)])
    with raises_error(ConfigError, "'third'", "two paths", "ckpt and data.root"):
        extended_run([str(parent), str(new), "third"])
    both = extended_run([str(parent), str(new)]), extended_run([str(parent), f"data.root={new}"])
    assert both[0] == both[1]
    with raises_error(CheckpointError, str(tmp_path / "none"), "no such file or folder"):
        extended_run([str(tmp_path / "none"), f"data.root={new}"])
    with raises_error(ConfigError, "trainer.strategy=fsdp", "trainer.strategy=ddp"):
        fit(extension(parent, new, "trainer.strategy=fsdp"), quiet=True)
    with raises_error(ConfigError, "finetune.freeze_epochs=1", "frozen=false"):
        fit(extension(parent, new, "finetune.freeze_epochs=1"), quiet=True)


@pytest.mark.parametrize("typed", slow_but("keys", among=["keys", "option"]))
def test_augmentation_and_loss_are_those_of_the_run_but_for_what_is_typed(new: Path, tmp_path: Path, typed: str) -> None:
    words = ["data=fake", "data.image_size=16", "augment=randaug", "loss=focal", "loss.class_weights=balanced"]
    old = save_untrained_run(tmp_path / "old", *words, classes=OLD)
    before = load_checkpoint(old).run
    if typed == "keys":
        found = extension(old, new, "augment.mixup=0.3", "loss.l2=0.1")
        assert found.augment == before.augment | {"mixup": 0.3}
        assert found.loss == before.loss | {"class_weights": "none", "l2": 0.1}
    else:
        found = extension(old, new, "augment=none")
        assert found.augment == config.load("train", ["augment=none"]).augment
        assert found.loss == before.loss | {"class_weights": "none"}


def test_a_parent_that_has_changed_is_refused(parent: Path, new: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    run = extension(copy, new)
    for file in (copy / "checkpoints").glob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        next(iter(content["state_dict"].values())).add_(1)
        torch.save(content, file)
    with raises_error(CheckpointError, f"weights={copy}", "changed", f"imgrec extend {copy}"):
        fit(run, quiet=True)
    with raises_error(CheckpointError, f"weights={copy}", "changed during the training", "same command again"):
        measure_extension(run, build("data", run.data.to_node(), ImageData), None, WorkerGroup())


# The training


@pytest.mark.parametrize("optim", slow_but("adamw", among=["adamw", "sgd", "lamb", "muon", "momentum"]))
def test_a_trained_extension_has_the_old_logits_to_the_bit(parent: Path, new: Path, optim: str) -> None:
    """With weight decay, a penalty and an average of the weights, which would move rows without a gradient."""
    run = extension(
        parent, new, f"optim={optim}", "optim.weight_decay=0.1", "loss.l2=0.01", "callbacks.ema.decay=0.5", "optim.lr=0.01"
    )
    result = fit(run, quiet=True)
    images = torch.randn(6, 3, 16, 16)
    before, after = logits(parent, images), logits(result.folder, images)
    assert torch.equal(after[:, :3], before)
    new_rows = read_checkpoint(result.folder)["state_dict"][
        "net." + head_names(load_checkpoint(parent).network(), 3)[0] + ".weight"
    ][3:]
    assert (new_rows[0] - new_rows[1]).abs().max() > 0  # they were the same
    entry = result["extended"]
    assert entry["old_classes"] == list(OLD)
    assert entry["new_classes"] == ["elk", "wolf"]
    assert entry["parent"] == str(parent)
    assert entry["old"]["images"] == 6
    assert entry["old"]["before"] == load_accuracy(parent)
    counts = {split: build("data", run.data.to_node(), ImageData).counts(split) for split in ("val", "test")}
    fewest = 3 if counts["val"][3] <= counts["val"][4] else 4
    assert entry["fewest"] == {"class": ("elk", "wolf")[fewest - 3]} | {split: counts[split][fewest] for split in counts}
    assert_error(few_images_sentence(entry["fewest"], frozen=True), entry["fewest"]["class"], "val", "test", "frozen=false")
    # The command of its report: the labels, whose images do not lie below one folder.
    assert cli.main(["check", f"ckpt={result.folder}", "suspects=true", f"out={new.parent}/check.json"]) == 0
    assert json.loads((new.parent / "check.json").read_text())["root"] == "ExtendedFolder"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["simple_cnn model.dense_dropout=0.5 model.norm=batch", "resnet20", "speed_cnn data.image_size=32"]
)
def test_norms_and_dropout_are_those_of_an_evaluation(new: Path, tmp_path: Path, words: str) -> None:
    small = [word for word in SMALL if not word.startswith(("trainer.limit", "model="))]
    typed = [*small, *f"model={words}".split(), f"runs_dir={tmp_path}/o", "name=old", "id=1"]
    old = fit(typed, quiet=True).folder
    result = fit(extension(old, new), quiet=True)
    side = load_checkpoint(old).preprocessing["image_size"]
    images = torch.randn(6, 3, side, side)
    assert torch.equal(logits(result.folder, images)[:, :3], logits(old, images))


def load_accuracy(run: Path) -> float:
    return float(json.loads((run / "result.json").read_text())["test"]["accuracy"])


@pytest.mark.slow
def test_an_extension_is_extended(parent: Path, new: Path, tmp_path: Path) -> None:
    first = fit(extension(parent, new), quiet=True).folder
    second = fit(extension(first, pictures(tmp_path / "third" / "new", {"ant": 9}, seed=2)), quiet=True).folder
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(logits(second, images)[:, :5], logits(first, images))
    assert load_checkpoint(second).classes == (*OLD, "elk", "wolf", "ant")
    assert load_checkpoint(second).run.extended() == Parent(load_checkpoint(second).run.parent["sha256"], [3, 2], True)  # type: ignore[index]


@pytest.mark.slow
def test_all_of_the_network_is_trained_if_it_is_not_frozen(parent: Path, new: Path) -> None:
    result = fit(extension(parent, new, "frozen=false", "optim.lr=0.01"), quiet=True)
    images = torch.randn(6, 3, 16, 16)
    assert (logits(result.folder, images)[:, :3] - logits(parent, images)).abs().max() > 0
    assert result["extended"]["frozen"] is False


@pytest.mark.slow
def test_a_killed_extension_resumes_bit_for_bit(parent: Path, new: Path) -> None:
    words = ("trainer.save_every_steps=1", "callbacks.ema.decay=0.5")
    whole = read_checkpoint(fit(extension(parent, new, *words, "id=whole"), quiet=True).folder / "checkpoints/last.ckpt")
    again = extension(parent, new, *words, "id=again")

    def work(rank: int) -> None:
        patch_call(5, Classifier, "training_step", kill_this_process)
        fit(again, quiet=True)

    assert exit_codes(1, work) == [-9]
    resumed = read_checkpoint(fit(again, quiet=True).folder / "checkpoints/last.ckpt")
    keys = ("state_dict", "current_model_state", "optimizer_states")
    assert_same([resumed[key] for key in keys], [whole[key] for key in keys])


@pytest.mark.slow
def test_more_epochs_are_those_of_another_run(parent: Path, new: Path) -> None:
    """The schedule depends on their number, and imgrec extend has no continue_from to name."""
    folder = fit(extension(parent, new, "id=a"), quiet=True).folder
    with raises_error(ConfigError, "epochs=4", folder, "epochs=2", "Set another id to train it anew."):
        fit(extension(parent, new, "id=a", "epochs=4"), quiet=True)


@pytest.mark.slow
def test_two_processes_extend_as_one_does(parent: Path, new: Path) -> None:
    alone = fit(extension(parent, new, "id=alone"), quiet=True)
    two = extension(parent, new, "id=two", "trainer.devices=auto")
    assert exit_codes(2, lambda rank: fit(two, quiet=True)) == [0, 0]
    folder = alone.folder.parent / "two"
    torch.testing.assert_close(read_checkpoint(folder)["state_dict"], read_checkpoint(alone.folder)["state_dict"])
    images = torch.randn(6, 3, 16, 16)
    assert torch.equal(logits(folder, images)[:, :3], logits(parent, images))


# What changed


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40))
def test_changes_are_counted(rows: list[tuple[int, int, int]]) -> None:
    true, before, after = (np.array(column) for column in zip(*rows, strict=True))
    found = changed_answers(true, before, after)
    assert found.images == len(rows)
    assert found.changed == sum(row[1] != row[2] for row in rows) == sum(count for _, _, count in found.moves)
    assert found.before == pytest.approx(sum(row[0] == row[1] for row in rows) / len(rows))
    assert found.difference.value == pytest.approx(found.after - found.before)
    assert found.moves == sorted(found.moves, key=lambda move: -move[2])
    assert {(one, other): count for one, other, count in found.moves} == {
        pair: sum(row[1:] == pair for row in rows) for pair in {row[1:] for row in rows if row[1] != row[2]}
    }


def test_a_stored_config_builds_no_other_code_as_its_old_data(parent: Path, new: Path) -> None:
    node = extension(parent, new).data.to_node()
    bad = {"_target_": "torch.hub.load"}
    for key, old in (("data.old", bad), ("data.old.old", node | {"old": bad})):
        with raises_error(ConfigError, f"{key}._target_=torch.hub.load", "IMGREC_ALLOW=torch"):
            build_stored("data", node | {"old": old})


# The page


@pytest.mark.slow
def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs/training.md").read_text()
    section = page.partition("\n## More classes\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "", "text"]
    exec(blocks[0][1], {})
    commands = [shlex.split(line, comments=True)[1:] for line in blocks[1][1].replace("\\\n", "").splitlines()]
    assert [name for name, *_ in commands] == ["train", "extend"]
    for words in commands:
        assert cli.main([*words, "epochs=2", *QUICK]) == 0
    said = capsys.readouterr().out
    for line in blocks[2][1].splitlines()[:2]:  # as it is said there, with other figures
        assert re.search(re.sub(r"\\?[\d.,+-]+", r"\\S+", re.escape(line)), " ".join(said.split())), line
    assert cli.main(["report", "runs/digits_extended/1"]) == 0
    report = Path("runs/digits_extended/1/report.html").read_text()
    assert 'id="extended"' in report
    assert "added to <code>runs/digits/1</code>: 8, 9." in report
    # The images whose answer changed are those of which the two networks say so, and the page shows them.
    table = pq.read_table("runs/digits_extended/1/predictions.parquet").to_pydict()
    old = imgrec.load("runs/digits/1").predict([path for path in table["path"] if "digits_0_7" in path])
    before = dict(zip([path for path in table["path"] if "digits_0_7" in path], [one.class_name for one in old], strict=True))
    changed = {row for row, path in enumerate(table["path"]) if before.get(path, now := table["predicted"][row]) != now}
    entry = json.loads(Path("runs/digits_extended/1/result.json").read_text())["extended"]["old"]
    assert changed
    assert {image["row"] for image in entry["shown"]} == changed
    assert all(before[table["path"][image["row"]]] == image["before"] for image in entry["shown"])
    shown = report.partition('id="extended"')[2].partition("<section")[0]
    assert set(map(int, re.findall(r"thumb t(\d+)", shown))) == changed
    assert all(f".t{row}{{background-image:url(data:image/webp" in report for row in changed)
