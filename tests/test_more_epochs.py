"""More epochs for a finished run: in its directory, bit for bit as the unbroken one; where their number matters, what to type."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from error_parts import assert_error, assert_refused, raises_error
from marks import slow_but
from resumed_runs import STEPS_PER_EPOCH, assert_same, finish_run, kill_run, load_run
from small_run import SMALL
from torch import nn

from imgrec import cli, config
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import RunConfig
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit
from imgrec.training.callbacks.batch_norm import BatchNormStatistics
from imgrec.training.callbacks.progressive_size import ProgressiveSize
from imgrec.training.module import Classifier
from imgrec.training.more_epochs import Beginning, longer_command
from imgrec.training.run_dir import choose_run_dir

ALIKE = ("scheduler=constant", "scheduler.warmup_share=0", "callbacks.batch_norm=null", "callbacks.early_stopping.patience=0")
SCHEDULES = (
    "scheduler=constant",
    "scheduler=step scheduler.every_epochs=1",
    "scheduler=multistep scheduler.milestones_epochs=[1,3]",
    "scheduler=exponential",
    "scheduler=cyclic scheduler.up_epochs=0.7",
    "scheduler=plateau scheduler.patience_epochs=0 scheduler.threshold=0.5",
)


def small(folder: Path, *words: str) -> RunConfig:
    return config.load("train", [*SMALL, "scheduler=constant", f"runs_dir={folder}", "name=r", "id=1", *words])


def weights(run: RunConfig) -> list[Any]:
    folder = Path(run.runs_dir) / "r/1"
    return [read_checkpoint(folder / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("last", "best")]


def test_they_are_trained_in_its_directory_bit_for_bit(tmp_path: Path) -> None:
    results = {}
    for name, lengths in {"unbroken": [3], "longer": [1, 3]}.items():
        for epochs in lengths:
            results[name] = fit(small(tmp_path / name, f"epochs={epochs}", "augment=light"), quiet=True)
    unbroken, longer = (small(tmp_path / name) for name in results)
    assert_same(weights(longer), weights(unbroken))
    assert longer.epochs == 1
    assert results["longer"]["last"]["epoch"] == 3
    for key in ("summary", "test", "weights"):
        assert results["longer"][key] == results["unbroken"][key]


def test_the_same_command_again_finds_it(tmp_path: Path) -> None:
    """Its config.yaml is as it was typed, also where the number of classes is the data's."""
    words = ["data=digits", "data.image_size=16", "scheduler=constant", f"runs_dir={tmp_path}", "name=r", "id=1"]
    words += [word for word in SMALL if not word.startswith("data")]
    for epochs in (1, 2):
        run = config.load("train", [*words, f"epochs={epochs}"])
        fit(run, quiet=True)
        assert read_mapping(tmp_path / "r/1/config.yaml", {}, fix="") == run.to_dict()
    assert choose_run_dir(run).state == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_on_is_bit_for_bit_the_unbroken_run(tmp_path: Path, schedule: str) -> None:
    words = (*ALIKE, *schedule.split())
    outcome = finish_run(load_run(tmp_path / "unbroken", *words, "epochs=5"))
    for epochs in (2, 5):
        longer = finish_run(load_run(tmp_path / "longer", *words, f"epochs={epochs}"))
    assert_same(longer, outcome)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, STEPS_PER_EPOCH + 2])
def test_killed_meanwhile_it_is_trained_to_the_same_end(tmp_path: Path, steps: int) -> None:
    outcome = finish_run(load_run(tmp_path / "unbroken", *ALIKE, "epochs=4"))
    finish_run(load_run(tmp_path / "killed", *ALIKE, "epochs=2"))
    longer = load_run(tmp_path / "killed", *ALIKE, "epochs=4", "trainer.save_every_steps=3")
    kill_run(longer, 2 * steps, Classifier, "training_step")  # two micro-batches a step
    assert not (tmp_path / "killed/r/a/result.json").exists()
    assert_same(finish_run(longer), outcome)


@pytest.mark.slow
def test_two_processes_train_it_on(tmp_path: Path) -> None:
    words = (*ALIKE, "trainer.devices=2", "trainer.strategy=ddp", "model.norm=none")
    outcome = finish_run(load_run(tmp_path / "unbroken", *words, "epochs=3"), size=2)
    for epochs in (2, 3):
        longer = finish_run(load_run(tmp_path / "longer", *words, f"epochs={epochs}"), size=2)
    assert_same(longer, outcome)


@pytest.mark.slow
def test_an_unfinished_run_is_given_more_too(tmp_path: Path) -> None:
    outcome = finish_run(load_run(tmp_path / "unbroken", *ALIKE, "epochs=4"))
    words = (*ALIKE, "trainer.save_every_steps=3")
    kill_run(load_run(tmp_path / "killed", *words, "epochs=2"), 2 * STEPS_PER_EPOCH + 2, Classifier, "training_step")
    assert_same(finish_run(load_run(tmp_path / "killed", *words, "epochs=4")), outcome)


def test_what_depends_on_their_number_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", *SMALL, "scheduler=cosine", f"runs_dir={tmp_path}/my runs", "name=r"]
    assert cli.main(words) == 0
    folder = tmp_path / "my runs/r/1"
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "result.json", "checkpoints/last.ckpt")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgrec.training.data_check.build_data", None)  # it is refused before the images are listed
        assert cli.main([*words, "epochs=3", "id=1"]) == 2
    typed = ("2 more", "epochs=2", f"'continue_from={folder}'")
    assert_refused(capsys.readouterr().err, "epochs=3", folder, "epochs=1", "schedule cosine", *typed, "another id")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert cli.main([*words, "epochs=3"]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "continue_from=" in line)
    assert_error(said, folder, "epochs=1", *typed)


@pytest.mark.slow
def test_without_an_id_it_is_a_new_run_and_says_how_to_train_the_other_on(tmp_path: Path, capsys: Any) -> None:
    words = ["train", *SMALL, "scheduler=constant", f"runs_dir={tmp_path}", "name=r"]
    assert cli.main(words) == 0
    assert cli.main([*words, "epochs=2"]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "id=" in line)
    assert_error(said, f"{tmp_path}/r/1", "epochs=1", "1 more", "id=1")
    assert json.loads((tmp_path / "r/2/result.json").read_text())["last"]["epoch"] == 2
    with raises_error(ConfigError, f"{tmp_path}/r/2", "epochs=1", 2):  # fewer
        choose_run_dir(small(tmp_path, "id=2"))
    shutil.rmtree(tmp_path / "r/2/checkpoints")
    with raises_error(ConfigError, f"{tmp_path}/r/2", "checkpoints/last.ckpt", "another id"):
        choose_run_dir(small(tmp_path, "id=2", "epochs=3"))


@pytest.mark.slow
def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    words = ("callbacks.early_stopping.patience=1", "optim.lr=1e-12", "monitor=val/accuracy")
    fit(small(tmp_path, *words, "epochs=4"), quiet=True)
    with raises_error(
        ConfigError, "epochs=8", f"{tmp_path}/r/1", "epochs=4", "ended early", "epoch 2", f"continue_from={tmp_path}/r/1"
    ):
        fit(small(tmp_path, *words, "epochs=8"), quiet=True)


def obstacle(*words: str, callbacks: tuple[Any, ...] = (), net: nn.Module | None = None) -> str | None:
    run = config.load("train", [*SMALL, *words])
    return Beginning(run, net or nn.Linear(1, 1), callbacks, 10).obstacle(4, 8)


@pytest.mark.parametrize(
    ("words", "name"),
    slow_but(
        *(("scheduler=exponential", None), ("scheduler=one_cycle", "one_cycle"), ("scheduler=constant time=1h", "time=1h")),
        among={
            "scheduler=constant": None,
            "scheduler=constant scheduler.warmup_share=0.1": "constant",
            "scheduler=step": None,
            "scheduler=multistep": None,
            "scheduler=exponential": None,
            "scheduler=cyclic": None,
            "scheduler=plateau": None,
            "scheduler=plateau scheduler.warmup_share=0.1": "Plateau",
            "scheduler=cosine": "cosine",
            "scheduler=one_cycle": "one_cycle",
            "scheduler=polynomial": "polynomial",
            "scheduler=constant time=1h": "time=1h",
        }.items(),
    ),
)
def test_which_schedules_depend_on_the_number_of_epochs(words: str, name: str | None) -> None:
    found = obstacle(*words.split())
    assert found is None if name is None else found is not None and found.endswith(name)


def test_which_callbacks_do() -> None:
    sizes = {"first": 8, "last": 16, "end_share": 0.9, "multiple": 1}
    assert (
        obstacle("scheduler=constant", callbacks=(ProgressiveSize(begin_share=0.1, **sizes),)) == "the callback ProgressiveSize"
    )
    same = ProgressiveSize(begin_share=0.89, **sizes)  # epoch 3 of 4 is within both
    assert [same.side(epoch, 4) for epoch in range(4)] == [same.side(epoch, 8) for epoch in range(4)]
    assert obstacle("scheduler=constant", callbacks=(same,)) is None
    measured = [BatchNormStatistics(images=images, until_step=until) for images, until in ((8, 40), (0, 40), (8, 39))]
    found = [obstacle("scheduler=constant", callbacks=(callback,), net=nn.BatchNorm2d(1)) for callback in measured]
    assert found == ["the callback BatchNormStatistics", None, None]
    assert obstacle("scheduler=constant", callbacks=(measured[0],)) is None, "a network without batch norm"


@pytest.mark.parametrize(
    ("words", "argv", "command"),
    [
        ("scheduler=constant", "/bin/imgrec train my.folder epochs=4", "imgrec train my.folder epochs=8 id=2"),
        ("scheduler=constant", "/x/imgrec/train.py epochs=4 resume=false", "python -m imgrec.train epochs=8 id=2"),
        ("scheduler=constant", "/x/mine.py --fast", "epochs=8 id=2"),
        ("scheduler=constant", "imgrec train folds=5 epochs=4 id=x", "imgrec train folds=5 epochs=8"),
        ("parent", "/x/imgrec/cli.py extend runs/n/1 new epochs=4 id=2", "imgrec extend runs/n/1 new epochs=8"),
        ("parent", "/x/imgrec/extend.py runs/n/1 new", "python -m imgrec.extend runs/n/1 new epochs=8"),
        ("scheduler=cosine", "imgrec train epochs=4 id=2 continue_from=a", "imgrec train epochs=4 'continue_from=r s/n/2'"),
        ("scheduler=constant time=1h", "imgrec train time=1h", "imgrec train time=1h 'continue_from=r s/n/2'"),
    ],
)
def test_the_command_that_trains_longer(words: str, argv: str, command: str) -> None:
    run = config.load("train", [*SMALL, *words.replace("parent", "").split(), "epochs=4"])
    run = replace(run, parent={}) if words == "parent" else run
    beginning = Beginning(run, nn.Linear(1, 1), (), 10)
    assert longer_command(beginning, Path("r s/n/2"), argv.split(), 4) == command


def test_the_command_after_an_early_end_extends_the_run() -> None:
    beginning = Beginning(config.load("train", [*SMALL, "scheduler=constant", "epochs=4"]), nn.Linear(1, 1), (), 10)
    assert longer_command(beginning, Path("r/n/2"), ["imgrec", "train"], 3) == "imgrec train epochs=3 continue_from=r/n/2"
