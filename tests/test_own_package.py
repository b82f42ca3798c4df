"""examples/own_package: a network, a data set, a loss and a callback from outside imgrec, through every command."""

import csv
import importlib.util
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml
from error_parts import assert_refused, raises_error
from processes import exit_codes
from resumed_runs import assert_same, kill_this_process, patch_call, read_outcome
from test_every_config import CHOICES

from imgrec import cli
from imgrec.config.help import documented
from imgrec.config.instantiate import locate
from imgrec.config.schema import target_nodes
from imgrec.errors import ConfigError
from imgrec.training.module import Classifier

EXAMPLE = Path(__file__).parents[1] / "examples/own_package"
SMALL = (
    "experiment=shapes",
    "epochs=3",
    "data.train_samples=90",
    "data.test_samples=30",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.save_every_steps=2",
    "callbacks.pictures=null",
)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(1, "train", ...) runs `imgrec train ...` as so many ranks in an empty folder and returns the exit codes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("IMGREC_ALLOW", "own_package")
    return lambda size, *words: exit_codes(size, lambda rank: cli.main([*words]))


def train(*words):
    return ("train", "--config-dir", str(EXAMPLE / "conf"), *SMALL, *words)


@pytest.mark.slow
def test_a_killed_run_of_the_package_resumes_bit_for_bit(command, tmp_path):
    assert command(1, *train("id=whole")) == [0]

    def killed(rank):
        patch_call(6, Classifier, "training_step", kill_this_process)
        cli.main([*train("id=killed")])

    assert exit_codes(1, killed) == [-signal.SIGKILL]
    assert (tmp_path / "runs/shapes/killed/checkpoints/last.ckpt").exists()
    assert command(1, *train("id=killed")) == [0]
    whole = read_outcome(tmp_path / "runs/shapes/whole")
    assert len(whole["curves"]["train/gradient_norm"]) == 3
    assert_same(read_outcome(tmp_path / "runs/shapes/killed"), whole)


def test_a_run_of_the_package_is_evaluated_and_predicts(command, tmp_path):
    """Neither command is told where the yaml lies: the checkpoint says what to call."""
    assert command(1, *train("id=1", "epochs=1")) == [0]
    run = tmp_path / "runs/shapes/1"
    assert command(1, "evaluate", f"ckpt={run}", "plot=none") == [0]
    figures = json.loads((run / "evaluate_test.json").read_text())["figures"]
    assert figures == json.loads((run / "result.json").read_text())["test"]

    def draw(rank):
        from own_package import shapes

        shapes.main(tmp_path / "new", count=2)

    assert exit_codes(1, draw) == [0]
    assert command(1, "predict", f"ckpt={run}", "files=new") == [0]
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"new/{name}/{k}.png" for name in ("disc", "square", "triangle") for k in (0, 1)]
    assert command(1, "evaluate", f"ckpt={run}", "folder=new", "plot=none") == [0]
    right = sum(row["class"] == Path(row["path"]).parts[1] for row in rows)
    assert json.loads((run / "evaluate_new.json").read_text())["figures"]["accuracy"] == pytest.approx(right / 6)


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The working folder holds own_package and other modules, and is not on Python's path."""
    for name in ("own_package", "bystander", "helpers"):
        shutil.copytree(EXAMPLE / "own_package", tmp_path / name)
    (tmp_path / "own_package/needs_helpers.py").write_text("import helpers\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder not in ("", str(EXAMPLE), str(tmp_path))])
    monkeypatch.setattr("sys.meta_path", [*sys.meta_path])
    monkeypatch.setattr("sys.modules", {key: value for key, value in sys.modules.items() if not key.startswith("own_package")})
    monkeypatch.setenv("IMGREC_ALLOW", "own_package")
    return lambda *words: exit_codes(1, lambda rank: cli.main([*words]))


def test_the_working_folder_is_looked_at_for_the_allowed_packages(beside, tmp_path):
    cli.main(["--version"])  # in this process, as a script would
    assert importlib.util.find_spec("own_package").origin == str(tmp_path / "own_package/__init__.py")
    assert importlib.util.find_spec("bystander") is None
    with raises_error(ConfigError, "_target_=own_package.needs_helpers.x", "helpers", "export IMGREC_ALLOW=own_package,helpers"):
        locate("own_package.needs_helpers.x")
    with raises_error(ConfigError, "_target_=bystander.shapes.Shapes", "export IMGREC_ALLOW=bystander"):
        locate("bystander.shapes.Shapes")
    assert "bystander" not in sys.modules
    assert locate("own_package.shapes.Shapes").__module__ == "own_package.shapes"


def test_an_installed_package_comes_before_one_in_the_working_folder(beside, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    cli.main(["--version"])
    assert importlib.util.find_spec("own_package").origin == str(EXAMPLE / "own_package/__init__.py")


@pytest.mark.slow
def test_the_script_trains_a_package_of_the_working_folder(beside, tmp_path):
    assert beside(*train("id=1", "epochs=1")) == [0]
    assert beside("evaluate", str(tmp_path / "runs/shapes/1")) == [0]


@pytest.mark.slow
def test_a_torch_dataset_of_the_package_trains_and_is_evaluated(command, tmp_path):
    words = (
        "data=rings",
        "data.train.count=60",
        "data.test.count=20",
        "model=separable",
        "epochs=1",
        "batch_size=16",
        "num_workers=0",
    )
    here = ("logger=none", "augment=none", "trainer.accelerator=cpu", "trainer.devices=1", "id=1")
    assert command(1, "train", "--config-dir", str(EXAMPLE / "conf"), *words, *here) == [0]
    run = tmp_path / "runs/rings_separable/1"
    assert command(1, "evaluate", str(run)) == [0]
    figures = json.loads((run / "evaluate_test.json").read_text())["figures"]
    assert figures == json.loads((run / "result.json").read_text())["test"]
    assert [row["name"] for row in figures["per_class"]] == ["right", "top", "left", "bottom"]


@pytest.mark.slow
def test_two_processes_train_the_package_too(command, tmp_path):
    assert command(2, *train("id=1", "epochs=1", "trainer.devices=2")) == [0, 0]
    assert json.loads((tmp_path / "runs/shapes/1/result.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allow", "path", "words", "parts"),
    [
        ("", EXAMPLE, train(), ("_target_=own_package.shapes.Shapes", "imgrec, torch", "export IMGREC_ALLOW=own_package")),
        ("own_package", ".", train(), ("_target_=own_package.shapes.Shapes", "own_package", "export PYTHONPATH=FOLDER")),
        ("own_package", EXAMPLE, train("loss.q=2"), ("loss.q=2.0", "more than 0", "at most 1", "loss.q=0.7")),
        pytest.param(
            "own_package",
            EXAMPLE,
            train("callbacks.gradient_norm.every_step=1"),
            ("'callbacks.gradient_norm.every_step=1'", "callbacks.gradient_norm.every_steps", "every_steps"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "own_package", EXAMPLE, train("loss.p=2"), ("'loss.p=2'", "q, class_weights, l1, l2"), marks=pytest.mark.slow
        ),
        pytest.param("own_package", EXAMPLE, train("model.widths=8"), ("model.widths=8", "list"), marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_with_the_package_is_one_line(command, monkeypatch, capfd, allow, path, words, parts):
    monkeypatch.setenv("IMGREC_ALLOW", allow)
    if path != EXAMPLE:
        monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder != str(EXAMPLE)])
    assert command(1, *words) == [2]
    assert_refused(capfd.readouterr().err, *parts)


@pytest.mark.parametrize("file", sorted((EXAMPLE / "conf").rglob("*.yaml")), ids=lambda file: file.stem)
def test_its_yaml_has_the_form_of_ours(file):
    assert file.parent.name in (*CHOICES, "experiment")
    if file.parent.name != "experiment":
        assert [path for path, _ in target_nodes({file.parent.name: yaml.safe_load(file.read_text())})]
        assert all(comment or value.startswith("${") for _, value, comment in documented(file.read_text()))


def test_the_readme_names_every_file_and_only_those():
    named = set(re.findall(r"`((?:own_package|conf)/\S+\.(?:py|yaml))`", (EXAMPLE / "README.md").read_text()))
    files = [file for file in EXAMPLE.rglob("*") if file.suffix in (".py", ".yaml") and file.name != "__init__.py"]
    assert named == {str(file.relative_to(EXAMPLE)) for file in files}
