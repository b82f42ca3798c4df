"""continue_from=RUN: a new run that starts where a finished one ended."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damaged_content import DAMAGES
from error_parts import raises_error
from marks import slow_but
from processes import exit_codes
from resumed_runs import assert_same, kill_this_process, patch_call
from small_run import SMALL

from imgrec import config
from imgrec.config.schema import RunConfig
from imgrec.errors import CheckpointError, ConfigError
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit
from imgrec.training.module import Classifier

# One step an epoch, over all images, so that their order decides nothing.
FULL = (
    *(word for word in SMALL if not word.startswith(("batch_size", "trainer.limit", "epochs"))),
    "batch_size=full",
    "augment=none",
    "scheduler=constant",
    "callbacks.ema.decay=0.5",
    "name=r",
)


def load(folder: Path, *words: str) -> RunConfig:
    return config.load("train", [*FULL, f"runs_dir={folder}", *words])


def last(run: RunConfig) -> dict[str, Any]:
    return read_checkpoint(Path(run.runs_dir) / f"r/{run.id}/checkpoints/last.ckpt")


def trained(run: RunConfig) -> dict[str, Any]:
    fit(run, quiet=True)
    return last(run)


# The order of a sum differs. Muon's iterations in bfloat16 make 3e-5 of it in the weights, in float32 2e-7.
@pytest.mark.parametrize(("optim", "atol"), slow_but(("adam", 1e-5), among=[("adam", 1e-5), ("momentum", 1e-5), ("muon", 1e-4)]))
def test_it_ends_where_one_longer_run_does(tmp_path: Path, optim: str, atol: float) -> None:
    """At a constant rate: with the trained weights, their average, and the state of the optimizer."""
    words = (f"optim={optim}", "optim.lr=0.01")
    whole = trained(load(tmp_path, *words, "epochs=4", "id=whole"))
    trained(load(tmp_path, *words, "epochs=2", "id=part"))
    longer = trained(load(tmp_path, *words, "epochs=2", "id=longer", f"continue_from={tmp_path}/r/part"))
    for part in ("state_dict", "current_model_state"):
        torch.testing.assert_close(longer[part], whole[part], rtol=1.3e-6, atol=atol)
    for key, state in whole["optimizer_states"][0]["state"].items():
        torch.testing.assert_close(longer["optimizer_states"][0]["state"][key], state, rtol=1.3e-6, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_continue_it_as_one_does(tmp_path: Path, strategy: str) -> None:
    words = ("optim=adam", "optim.lr=0.01")
    trained(load(tmp_path, *words, "epochs=2", "id=part"))
    words = (*words, f"continue_from={tmp_path}/r/part", "epochs=2")
    alone = trained(load(tmp_path, *words, "id=alone"))
    two = load(tmp_path, *words, "id=two", f"trainer.strategy={strategy}", "trainer.devices=auto")
    assert exit_codes(2, lambda rank: fit(two, quiet=True)) == [0, 0]
    for part in ("state_dict", "current_model_state"):
        torch.testing.assert_close(last(two)[part], alone[part])


@pytest.mark.slow
def test_its_schedule_is_that_of_a_new_run_and_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    words = ("scheduler=cosine", "batch_size=8", "optim=adam", "epochs=3", "augment=light", "trainer.save_every_steps=1")
    trained(load(tmp_path, *words, "id=part"))
    longer = load(tmp_path, *words, "id=longer", f"continue_from={tmp_path}/r/part", "optim.lr=0.002")
    outcome, alone = trained(longer), load(tmp_path, *words, "id=alone", "optim.lr=0.002")
    fit(alone, quiet=True)
    rates = [
        [line.split(",")[2] for line in (tmp_path / f"r/{id}/metrics.csv").read_text().splitlines()] for id in ("longer", "alone")
    ]
    assert rates[0] == rates[1]
    again = load(tmp_path, *words, "id=again", f"continue_from={tmp_path}/r/part", "optim.lr=0.002")

    def work(rank: int) -> None:
        patch_call(5, Classifier, "training_step", kill_this_process)
        fit(again, quiet=True)

    assert exit_codes(1, work) == [-9]
    resumed = trained(again)
    assert_same(
        [resumed[key] for key in ("state_dict", "optimizer_states")], [outcome[key] for key in ("state_dict", "optimizer_states")]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trained(load(folder, "epochs=2", "id=a", "optim=momentum"))
    return folder / "r/a"


@pytest.mark.parametrize("damage", slow_but("momentum small", among=DAMAGES))
def test_a_run_whose_checkpoint_does_not_fit_is_refused(finished: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(finished, tmp_path / "r/a")
    file = tmp_path / "r/a/checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    DAMAGES[damage](checkpoint)
    torch.save(checkpoint, file)
    with pytest.raises(CheckpointError) as error:
        fit(load(tmp_path, "epochs=1", "id=b", "optim=momentum", f"continue_from={tmp_path}/r/a"), quiet=True)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "r/a") in str(error.value)


def test_what_cannot_be_continued(tmp_path: Path) -> None:
    trained(load(tmp_path, "epochs=1", "id=a", "optim=adam"))
    for words, parts in (
        ((f"continue_from={tmp_path}/r/b",), ("is no run directory", "continue_from=RUNS_DIR/NAME/ID")),
        ((f"continue_from={tmp_path}/r/a", "optim=momentum"), ("optim._target_=torch.optim.SGD", "torch.optim.Adam", "values")),
        ((f"continue_from={tmp_path}/r/a", "optim=adam", "model=simple_cnn"), ("model._target_", "values")),
        ((f"continue_from={tmp_path}/r/a", "optim=adam", "data.split_seed=1"), ("data.split_seed=1", 0, "values")),
        ((f"continue_from={tmp_path}/r/a", "optim=adam", "optim.weight_decay=0.1"), ("groups", "optim.weight_decay")),
    ):
        with raises_error(ConfigError, words[0], *parts):
            fit(load(tmp_path, "epochs=1", "id=c", *words), quiet=True)
        assert not (tmp_path / "r/c/checkpoints").exists()
    config_file = tmp_path / "r/a/config.yaml"
    of_extension = {"parent": {"sha256": "", "classes": [2], "frozen": True}, "weights": "runs/old/1"}
    before = config_file.read_text()
    config_file.write_text(yaml.safe_dump(yaml.safe_load(before) | of_extension))
    parts = "imgrec extend", "imgrec extend runs/old/1 data.root=FOLDER", f"imgrec extend {tmp_path}/r/a data.root=FOLDER"
    with raises_error(ConfigError, f"continue_from={tmp_path}/r/a", *parts):
        fit(load(tmp_path, "epochs=1", "id=c", "optim=adam", f"continue_from={tmp_path}/r/a"), quiet=True)
    config_file.write_text(before)
    (tmp_path / "r/a/result.json").unlink()
    with raises_error(ConfigError, f"continue_from={tmp_path}/r/a", "not finished", "its command"):
        fit(load(tmp_path, "epochs=1", "id=c", "optim=adam", f"continue_from={tmp_path}/r/a"), quiet=True)


def test_the_key_of_earlier_versions_says_what_to_type(tmp_path: Path) -> None:
    with raises_error(ConfigError, "'extend=runs/a/1'", "continue_from=runs/a/1", "imgrec extend runs/a/1 data.root=FOLDER"):
        load(tmp_path, "extend=runs/a/1")
