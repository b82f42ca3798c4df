"""Sweeps: ranked as the figures in result.json are, resumed after an interruption, bad values refused before any job."""

import csv
import importlib
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from error_parts import assert_error, assert_refused, raises_error
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from processes import wait_until
from small_run import SMALL

import imgrec
from imgrec import cli, config
from imgrec.config.compose import compose_config
from imgrec.distributed import signals
from imgrec.errors import ConfigError, DataError, Stopped
from imgrec.sweeps.arguments import Argument, parse_interval
from imgrec.sweeps.folder import Job, SweepFolder, choose_sweep_folder, open_sweep_folder
from imgrec.sweeps.grid import plan_sweep, sweep_name
from imgrec.sweeps.search import Search

INTERRUPTED, STOPPED, OUR_FAULT = 0.25, 0.5, 0.125  # rates at which `trained` does not
Sweep = Callable[..., int]
# Swept keys come after these.
OVERRIDES = [override for override in SMALL if override.partition("=")[0] not in ("optim.lr", "data.image_size")]
SEARCH = ("--search", "optim.lr=log(0.0001,0.1)", "optim.momentum=0.0,0.9")
optuna_installed = pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """sweep("optim.lr=1,2") runs the command in tmp_path and gives its exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cli.main(["train", "-m", *OVERRIDES, *arguments])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of training, notes the rate and writes a result whose accuracy is highest at optim.lr=0.01. Refuses rates above 1."""
    seen: list[float] = []

    def instead(run: config.RunConfig, *, quiet: bool, command: Sequence[str]) -> dict[str, Any]:
        lr = run.optim["lr"]
        seen.append(lr)
        if lr == INTERRUPTED and seen.count(lr) == 1:
            raise KeyboardInterrupt
        if lr == STOPPED and seen.count(lr) == 1:
            raise Stopped("stopped by SIGTERM at step 3; saved. Start the same command again to resume.")
        if lr == OUR_FAULT:
            raise ZeroDivisionError("no\nsecond line")
        if lr > 1:
            raise ConfigError(f"optim.lr={lr:g} is too high. Set optim.lr=1.")
        return write_result(run, 1 / (1 + math.log10(lr / 0.01) ** 2))

    monkeypatch.setattr(importlib.import_module("imgrec.train"), "fit", instead)
    return seen


def write_result(run: config.RunConfig, accuracy: float, curve: Sequence[float] = ()) -> dict[str, Any]:
    """What a training leaves that had this accuracy, and those of `curve` after each epoch."""
    best, last = {"val/accuracy": accuracy}, {"epoch": len(curve)}
    test = {"accuracy": accuracy / 2, "accuracy_interval": [accuracy / 2 - 0.05, accuracy / 2 + 0.05]}
    result = {"best": best, "last": last, "test": test, "train_seconds": 61.0, "summary": f"{accuracy:.2%}"}
    assert run.id is not None
    folder = Path(run.runs_dir) / run.name / run.id
    (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    lines = ["epoch,val/accuracy", *(f"{epoch},{value!r}" for epoch, value in enumerate(curve, 1))]
    (folder / "metrics.csv").write_text("\n".join([*lines, ""]))
    return result


def rows(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def result(row: dict[str, str]) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((Path(row["folder"]) / "result.json").read_text())
    return stored


def test_jobs_are_single_runs_ranked_as_their_results_are(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "tmp")
    assert sweep("optim.lr=0.1,0.001", "data.image_size=16", "epochs=2", "monitor=val/loss") == 0
    found = rows("runs/fake_lenet/sweep_1")
    losses = [result(row)["best"]["val/loss"] for row in found]
    assert losses == sorted(losses)
    assert [float(row["val/loss"]) for row in found] == losses
    assert [float(row["test_accuracy"]) for row in found] == [result(row)["test"]["accuracy"] for row in found]
    assert {row["folder"]: row["optim.lr"] for row in found} == {
        f"runs/fake_lenet/sweep_1/{job}": lr for job, lr in enumerate(("0.1", "0.001"))
    }
    # nothing of Hydra's is left
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "tmp"]
    assert not list(Path("tmp").glob("imgrec*"))
    assert not [*Path().rglob(".hydra"), *Path().rglob("multirun.yaml"), *Path().rglob("*.unfinished")]
    # the second job is the run of its overrides alone
    overrides = ["optim.lr=0.001", "data.image_size=16", "epochs=2", "monitor=val/loss"]
    alone = imgrec.fit(config.load("train", [*OVERRIDES, *overrides, "runs_dir=alone"]), quiet=True)
    (job,) = [result(row) for row in found if row["optim.lr"] == "0.001"]
    assert job["last"]["train/loss"] == alone["last"]["train/loss"]
    assert job["test"] == alone["test"]
    # and its command that of a single run
    command = shlex.split(job["command"])
    assert "-m" not in command[1:]
    again = config.load("train", [override for override in command if "=" in override])
    assert (again.runs_dir, again.name, again.id, again.optim["lr"]) == ("runs/fake_lenet", "sweep_1", "1", 0.001)


@pytest.mark.slow
def test_the_table_shows_what_the_files_hold(sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optim.lr=0.1,0.01", "seed=1", "optim.lr=1,0.01") == 0  # the later one counts
    assert trained == [1.0, 0.01]
    said = capsys.readouterr().out
    assert (
        said
        == """2 jobs in runs/fake_lenet/sweep_1, ranked by their best val/accuracy
job 1/2  optim.lr=1  log in runs/fake_lenet/sweep_1/0/log.txt
  best val/accuracy 20.00%, test accuracy 10.00% (5.0 to 15.0), 1:01 of training
  1 other job: 1:01 of training, if each takes as long
job 2/2  optim.lr=0.01  log in runs/fake_lenet/sweep_1/1/log.txt
  best val/accuracy 100.00%, test accuracy 50.00% (45.0 to 55.0), 1:01 of training

rank  optim.lr  best val/accuracy  test accuracy  time  folder
   1  0.01                100.00%         50.00%  1:01  sweep_1/1
   2  1                    20.00%         10.00%  1:01  sweep_1/0
results in runs/fake_lenet/sweep_1/sweep.csv
next:
  imgrec evaluate runs/fake_lenet/sweep_1/1
  tensorboard --logdir runs/fake_lenet/sweep_1
"""
    )
    assert [list(row.values()) for row in rows("runs/fake_lenet/sweep_1")] == [
        ["1", "1", "finished", "0.01", "1.0", "0.5", "61.0", "runs/fake_lenet/sweep_1/1", ""],
        ["2", "0", "finished", "1", "0.2", "0.1", "61.0", "runs/fake_lenet/sweep_1/0", ""],
    ]
    kept = json.loads(Path("runs/fake_lenet/sweep_1/sweep.json").read_text())
    assert [job["number"] for job in kept["jobs"]] == [1, 0]


@pytest.mark.slow
def test_a_sweep_that_is_moved_is_finished_where_it_is(sweep: Sweep, trained: list[float], tmp_path: Path) -> None:
    assert sweep("optim.lr=0.1,0.25,0.01") == 130
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert sweep("optim.lr=0.1,0.25,0.01", "runs_dir=moved") == 0
    assert trained == [0.1, INTERRUPTED, INTERRUPTED, 0.01]
    assert {row["folder"] for row in rows("moved/fake_lenet/sweep_1")} == {f"moved/fake_lenet/sweep_1/{job}" for job in range(3)}
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_interrupted_sweep_is_resumed_where_it_ended(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = list(sys.argv)
    assert sweep(f"optim.lr=0.1,{INTERRUPTED}") == 130
    assert sys.argv == argv
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_1")] == ["finished", "started"]
    capsys.readouterr()
    for again, expected in enumerate(([0.1, INTERRUPTED, INTERRUPTED],) * 2, 1):
        assert sweep(f"optim.lr=0.1,{INTERRUPTED}") == 0
        assert trained == expected
        assert capsys.readouterr().out.count("(finished before)") == again
    assert [row["optim.lr"] for row in rows("runs/fake_lenet/sweep_1")] == ["0.1", str(INTERRUPTED)]


@pytest.mark.slow
def test_a_stopped_job_stops_the_sweep_and_the_same_command_resumes_it(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lrs = f"optim.lr=2,{STOPPED},0.1"
    assert sweep(lrs) == 75
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_1")] == ["failed", "stopped"]
    said = capsys.readouterr()
    assert_error(said.out.splitlines()[-1], "stopped by SIGTERM", "step 3", "same command", "3 of 3 jobs")
    assert said.err == ""
    assert sweep(lrs) == 2  # the first job fails again
    assert trained == [2.0, STOPPED, 2.0, STOPPED, 0.1]
    assert [row["optim.lr"] for row in rows("runs/fake_lenet/sweep_1")] == ["0.1", str(STOPPED), "2"]


def test_a_signal_between_two_jobs_stops_the_sweep(
    sweep: Sweep, trained: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("imgrec.train")
    fit = module.fit

    def signalled_at_its_end(*arguments: Any, **options: Any) -> dict[str, Any]:
        with signals.request_cleared():  # as the real one
            result: dict[str, Any] = fit(*arguments, **options)
            signals.request_stop("SIGUSR1")
            return result

    monkeypatch.setattr(module, "fit", signalled_at_its_end)
    assert sweep("optim.lr=0.1,0.2") == 75
    assert signals.stop_reason() is None  # the next command of this process is not stopped
    assert trained == [0.1]
    assert_error(
        capsys.readouterr().out.splitlines()[-1], "stopped by SIGUSR1", "between two jobs", "same command", "1 of 2 jobs"
    )


@pytest.mark.slow
def test_jobs_one_by_one_are_those_of_the_sweep(
    sweep: Sweep, trained: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["optim.lr=2,0.1,0.01", "seed=range(0,2)", "optim.fused=false"]
    assert sweep(*grid, "job=count") == 0
    assert capsys.readouterr().out == "6\n"
    for job in ("6", "last"):
        assert sweep(*grid, f"job={job}") == 2
        assert_refused(capsys.readouterr().err, f"job={job}", "0 to 5", "count or none", "job=5")
    assert not Path("runs").exists()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    assert sweep(*grid, "job=4") == 0
    assert sweep(*grid, "job=1") == 2
    assert trained == [0.01, 2.0]
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    status = ["finished", "waiting", "failed", "waiting", "waiting", "waiting"]
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_77")] == status
    capsys.readouterr()
    assert sweep(*grid, "job=none") == 0
    assert "     1  0.01      0               100.00%         50.00%  1:01  sweep_77/4\n" in capsys.readouterr().out
    assert sweep(*grid) == 2  # all that is missing, in the same folder: the same arguments are the same jobs
    assert trained[2:] == [2.0, 2.0, 0.1, 0.1, 0.01]
    assert sorted(int(row["job"]) for row in rows("runs/fake_lenet/sweep_77")) == list(range(6))


def test_the_grid_is_in_hydras_order() -> None:
    arguments = [
        "seed=1,2",
        "epochs=3",
        "optim.lr=choice(0.1,0.2)",
        "model=lenet,vgg",
        "optim.betas=[0.9,0.99],[0.8,0.9]",
        "optim=adam",
    ]
    reference = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(arguments), max_batch_size=None)
    assert plan_sweep(arguments, None).grid() == [list(job) for batch in reference for job in batch]


@pytest.mark.slow
def test_a_failed_job_is_listed_and_stops_no_other(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("optim.lr=2,0.1") == 2
    found = rows("runs/fake_lenet/sweep_1")
    assert [(row["status"], row["optim.lr"], row["rank"]) for row in found] == [("finished", "0.1", "1"), ("failed", "2", "")]
    assert found[1]["error"] == "optim.lr=2 is too high. Set optim.lr=1."
    said = capsys.readouterr()
    assert said.out.count(f"failed: {found[1]['error']}\n") == 2
    assert said.err == ""


@pytest.mark.slow
def test_our_own_fault_ends_with_one_and_its_traceback(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(f"optim.lr={OUR_FAULT},0.1") == 1
    assert [row["error"] for row in rows("runs/fake_lenet/sweep_1")] == ["", "ZeroDivisionError: no"]
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize(
    ("arguments", "value", "suggestion"),
    [
        (["optim.lr=0.1,fast"], "optim.lr=fast: ", "a number"),
        (["optim.lr=0.1,-1"], "optim.lr=-1.0: ", "more than 0"),
        (["trainer.max_minutes=5,abc"], "trainer.max_minutes=abc: ", "a number or null"),
        (["seed=1"], "-m: no key has several values.", "or leave -m out."),
        (["seed=range(0,400000)"], "seed=range(0,400000): more than 10,000 values", "--search"),
        (["seed=shuffle(range(0,1000000000000))"], "seed=shuffle(range(0,1000000000000)): more than", "--search"),
        (["seed=range(0,101)", "epochs=range(1,101)"], "-m: 10,100 combinations", "--search"),
        (["seed=range(0,3),range(5,6)"], "seed=range(0,3),range(5,6): ", "seed=range(0,10,2)"),
        (["seed=range(0,3,0)"], "seed=range(0,3,0): ", "seed=range(0,10,2)"),
        (["seed=range(0,nan)"], "seed=range(0,nan): ", "seed=range(0,10,2)"),
        (["seed=1,2", f"job={'9' * 5000}"], "job=9", "Set job=1"),
        ([f"seed=1,{'9' * 5000}"], "seed=9", "expected an integer"),
        (["--search", "seed=1,2", f"trials={'9' * 5000}"], "trials=9", "trials=30"),
        (["seed=1,abc"], "seed=abc: ", "integer"),
        (["model=lenet,lenett"], "model=lenett: ", "Did you mean lenet?"),
        (["opti.lr=0.1,1"], "opti.lr", "Did you mean optim.lr?"),
        (["model=simple_cnn,vgg", "model.dense=3"], "'model.dense=3': ", "there is no key model.dense."),
        (["monitor=val/loss,val/accuracy"], "monitor=val/loss,val/accuracy: ", "Set monitor=val/loss."),
        (["name=a,b"], "name=a,b: ", "Set name=a."),
        (["seed=1,2", "batch_size=auto"], "batch_size=auto: ", "Set batch_size=64"),
        (["batch_size=32,auto"], "batch_size=auto: ", "Set batch_size=64"),
        (["model=glob(zz*)"], "model=glob(zz*): ", "Type model=A,B."),
        (["seed=1,2", "hydra/sweeper=optuna"], "hydra/sweeper=optuna: ", "type imgrec train -m --search 'optim.lr=log(1e-4,1e-1)' trials=30"),
        (["seed=1,2", "hydra.sweeper.n_trials=3"], "hydra.sweeper.n_trials=3: ", "type imgrec train -m --search "),
        (["optim.lr=log(0.1,1)"], "optim.lr=log(0.1,1): ", "--search 'optim.lr=log(0.1,1)' trials=30"),
        (["optim.lr=interval(0.1,1)"], "optim.lr=interval(0.1,1): ", "Type 'optim.lr=uniform(0.1,1)', or log(0.1,1)."),
        (["seed=1,2", "trials=3"], "trials=3: ", "add --search"),
        (["seed=1,2", "prune=true"], "prune=true: ", "add --search"),
        (["--search", "seed=1,2", "trials=3", "prune=median"], "prune=median: ", "Type prune=true"),
        (["--search", "seed=1,2"], "--search: expected trials=NUMBER", "trials=30."),
        (["--search", "seed=1,2", "trials=0"], "trials=0: expected trials=NUMBER, 1 or more", "trials=30."),
        (["--search", "seed=1,2", "trials=3", "job=1"], "job=1: ", "Leave job or --search out."),
        (["--search", "seed=1", "trials=3"], "--search: ", "'optim.lr=log(1e-4,1e-1)'"),
        (["--search", "opti.lr=log(0.1,1)", "trials=3"], "opti.lr", "Did you mean optim.lr?"),
        (["--search", "optim.lr=log(0,1)", "trials=3"], "optim.lr=log(0,1): expected two numbers above 0", "'optim.lr=log(1e-4,1e-1)'"),
        (["--search", "optim.lr=uniform(1,0.1)", "trials=3"], "optim.lr=uniform(1,0.1): ", "the lower one first"),
        (["--search", "seed=int(0,1.5)", "trials=3"], "seed=int(0,1.5): expected two integers", "'seed=int(1,5)'"),
        (["--search", "optim.momentum=uniform(0.5,1)", "trials=3"], "optim.momentum=1.0: ", "less than 1"),
        (["--search", "seed=uniform(0,5)", "trials=3"], "seed=0.0: ", "integer"),
        (["--search", "model=lenet,lenett", "optim.lr=log(0.1,1)", "trials=3"], "model=lenett: ", "Did you mean lenet?"),
        (["--search", "optim.lr=tag(log,interval(0.1,1))", "trials=3"], "optim.lr=tag(log,interval(0.1,1)): ", "Type 'optim.lr=uniform(LOW,HIGH)', or log(LOW,HIGH)."),
    ],
)  # fmt: skip
def test_bad_values_are_refused_before_any_job(
    arguments: list[str], value: str, suggestion: str, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*arguments) == 2
    error = capsys.readouterr().err
    assert value in error
    assert suggestion in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_values_of_every_kind_of_sweep() -> None:
    plan = plan_sweep(
        ["optim.lr=choice(0.1,0.2)", "seed=range(0,3)", "model=glob(l*)", "optim.betas=[0.9,0.99],[0.8,0.9]", "epochs=3"], None
    )
    values = {argument.key: argument.values for argument in plan.arguments}
    assert len(values.pop("optim.betas")) == 2
    assert values == {"optim.lr": ["0.1", "0.2"], "seed": ["0", "1", "2"], "model": ["lenet"], "epochs": ["3"]}
    assert (plan.base["seed"], plan.base["epochs"], plan.base["optim"]["lr"]) == (0, 3, 0.1)


@pytest.mark.parametrize("override", ["logger.tags.a=-1,text", "+logger.tags.a.b=1,[2]", "logger.tags={a: 1},{b: 2}"])
def test_keys_that_are_passed_on_unchecked_have_any_values(override: str) -> None:
    jobs = plan_sweep(["logger=mlflow", override], None).grid()
    tags = [compose_config("train", job)["logger"]["tags"] for job in jobs]
    assert tags in ([{"a": -1}, {"a": "text"}], [{"a": {"b": 1}}, {"a": {"b": [2]}}], [{"a": 1}, {"b": 2}])


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.sampled_from(["uniform", "log", "int"]), numbers, numbers, st.sampled_from(["", " ", "  "]))
def test_an_interval_is_read_as_it_is_written(kind: str, one: float, other: float, blank: str) -> None:
    ends = [int(one), int(other)] if kind == "int" else [one, other]
    text = f"optim.lr={kind}({blank}{ends[0]!r}{blank},{blank}{ends[1]!r}{blank})"
    if ends[0] < ends[1] and (kind != "log" or ends[0] > 0):
        assert parse_interval(text) == Argument("optim.lr", text, "optim.lr", list(map(str, ends)), kind)  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigError, match="expected two"):
            parse_interval(text)


@given(st.sampled_from(["uniform", "log", "int", "interval"]), st.text(alphabet="0123456789.,-+eE_ infa()", max_size=12))
def test_no_interval_ends_in_another_error(kind: str, ends: str) -> None:
    try:
        interval = parse_interval(f"optim.lr={kind}({ends})")
    except ConfigError:
        return
    assert interval is not None
    assert [float(end) for end in ends.split(",")] == [float(end) for end in interval.values]


@given(st.sampled_from(["0.1", "[0.9,0.99]", "choice(1,2)", "1,2", "range(1,4)", "glob(l*)", "logs(1,2)", "'log(1,2)'"]))
def test_other_values_are_no_interval(value: str) -> None:
    assert parse_interval(f"optim.lr={value}") is None


def test_names_of_sweeps() -> None:
    assert sweep_name("digits_resnet", {"optim.lr": ["1", "2"]}) == "digits_resnet"
    assert sweep_name("digits_resnet", {"model": ["resnet", "vgg"]}) == "digits_resnet+vgg"
    assert sweep_name("fashion_mnist_resnet", {"data": ["fashion_mnist", "mnist"]}) == "fashion_mnist+mnist_resnet"
    assert sweep_name("digits_a", {"model": ["a", "b", "c", "d"]}) == "digits_a+3"
    assert sweep_name("mine", {"model": ["resnet", "vgg"]}) == "mine"
    assert sweep_name("mnist_cnn", {"experiment": ["mnist_cnn", "cifar10_cnn"]}) == "mnist_cnn+cifar10_cnn"


def test_the_folder_of_a_sweep_is_that_of_its_arguments(tmp_path: Path) -> None:
    def choose(*arguments: str, id: str | None = None) -> SweepFolder:
        return choose_sweep_folder(plan_sweep([f"runs_dir={tmp_path}", "name=n", "monitor=val/loss", *arguments], None), id)

    search = ("--search", "seed=1,2", "num_workers=0")
    first = open_sweep_folder(plan_sweep([f"runs_dir={tmp_path}", "name=n", "monitor=val/loss", *search, "trials=3"], None), None)
    assert first.path == tmp_path / "n" / "sweep_1"
    with closing(first), first.updating():
        first.append(["seed=1", "num_workers=0"])
    assert choose("num_workers=2", "--search", "seed=1,2", "trials=5").jobs == first.jobs
    assert choose(*search, "trials=3", "resume=false").path.name == "sweep_2"
    assert choose("seed=1,2", "num_workers=0").path.name == "sweep_2"  # a grid
    assert choose("--search", "seed=1,3", "trials=3").path.name == "sweep_2"
    assert choose("--search", "seed=1,2", "num_workers=0,2", "trials=3").path.name == "sweep_2"  # swept, so it matters
    assert choose("seed=1,3", id="mine").path == tmp_path / "n" / "mine"
    with pytest.raises(ConfigError, match=r"another sweep.*--search .*seed=1,2\..*another id"):
        choose("seed=1,3", id="sweep_1")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"arguments": 5, "monitor": "val/loss", "jobs": []}']
    + [f'{{"arguments": [], "monitor": "val/loss", "jobs": {jobs}}}' for jobs in ("5", "[5]", "[{}]", '[{"number": "x"}]')],
)
def test_a_table_that_is_cut_or_changed_is_one_line(content: str, tmp_path: Path) -> None:
    plan = plan_sweep([f"runs_dir={tmp_path}", "name=n", "seed=1,2"], None)
    file = tmp_path / "n/sweep_1/sweep.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    for id in (None, "sweep_1"):
        with raises_error(DataError, file, f"Remove {file.parent}", "another id", "resume=false"):
            choose_sweep_folder(plan, id)
    file.unlink()
    file.mkdir()
    with raises_error(DataError, file, "Is a directory"):
        choose_sweep_folder(plan, None)


def in_new_process(code: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment)


def test_the_command_line_is_checked_without_torch_and_optuna() -> None:
    code = (
        "import sys, imgrec.sweeps.run as run; plan = run.plan_sweep(sys.argv[1:], None)\n"
        "print(plan.trials, sorted({'torch', 'optuna', 'pytorch_lightning'} & sys.modules.keys()))"
    )
    assert in_new_process(code, *SEARCH, "optim=sgd", "trials=3").communicate()[0] == "3 []\n"


WORKER = """
import json, sys, time
from pathlib import Path
from imgrec.sweeps.run import sweep
from test_sweep import write_result

mine, other, *arguments = sys.argv[1:]

def fit(run, *, quiet, command):
    Path(mine).open("a").write(f"{run.id}\\n")
    end = time.monotonic() + 600
    while not Path(other).exists() and time.monotonic() < end:  # until the other has a job too
        time.sleep(0.01)
    return write_result(run, run.optim["lr"])

sys.exit(sweep(arguments, None, fit))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((*SEARCH, "trials=6"), marks=[optuna_installed, pytest.mark.slow]),
        pytest.param(("optim.lr=0.1,0.2,0.3", "seed=1,2"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_share_the_jobs(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workers = [in_new_process(WORKER, *names, *OVERRIDES, *arguments) for names in (("a", "b"), ("b", "a"))]
    said = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    jobs = [Path(name).read_text().split() for name in ("a", "b")]
    assert all(jobs)
    assert sorted(jobs[0] + jobs[1]) == ["0", "1", "2", "3", "4", "5"]
    found = rows("runs/fake_lenet/sweep_1")
    assert {row["status"] for row in found} == {"finished"}
    assert [row["val/accuracy"] for row in found] == sorted((row["optim.lr"] for row in found), reverse=True)
    assert len({(row["optim.lr"], row.get("seed")) for row in found}) == 6


@pytest.mark.slow
def test_a_job_whose_process_was_killed_is_resumed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    killed = in_new_process(WORKER, "a", "b", *OVERRIDES, "optim.lr=0.1,0.2")
    wait_until(Path("a").exists)
    killed.kill()
    killed.communicate()
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_1")] == ["started"]
    worker = in_new_process(WORKER, "b", "a", *OVERRIDES, "optim.lr=0.1,0.2")
    assert worker.communicate()[0].endswith("sweep_1\n")
    assert (worker.returncode, Path("b").read_text().split()) == (0, ["0", "1"])


@pytest.mark.slow
@optuna_installed
def test_a_search_maximizes_the_monitor_and_is_resumed(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*SEARCH, "trials=2") == 0
    said = capsys.readouterr()
    assert "val/accuracy, to maximize; sampler seed 0\n" in said.out
    assert said.err == ""
    assert sweep(*SEARCH, "trials=3") == 0
    assert capsys.readouterr().out.count("(finished before)") == 2
    assert len(trained) == 3
    found = rows("runs/fake_lenet/sweep_1")
    assert [float(row["optim.lr"]) for row in found] == sorted(trained, key=lambda lr: abs(math.log10(lr / 0.01)))

    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("runs/fake_lenet/sweep_1/optuna.journal"))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert [trial.params["optim.lr"] for trial in study.trials] == trained
    assert [trial.value for trial in study.trials] == [1 / (1 + math.log10(lr / 0.01) ** 2) for lr in trained]


@optuna_installed
@pytest.mark.slow
def test_a_search_where_every_job_fails_tries_them_again(sweep: Sweep, trained: list[float]) -> None:
    for _ in range(2):
        assert sweep("--search", "optim.lr=uniform(2,3)", "trials=2") == 2
    assert trained[:2] == trained[2:]
    assert {row["status"] for row in rows("runs/fake_lenet/sweep_1")} == {"failed"}


@pytest.mark.slow
@optuna_installed
def test_a_repeated_proposal_is_not_trained_again(sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--search", "optim.lr=0.1,0.01", "trials=4") == 0
    assert sorted(trained) == [0.01, 0.1]
    assert capsys.readouterr().out.count("(finished before)") == 2
    assert len({row["folder"] for row in rows("runs/fake_lenet/sweep_1")}) == 2


@pytest.mark.slow
def test_jobs_are_in_the_folder_of_the_sweep_whatever_its_name(sweep: Sweep, trained: list[float]) -> None:
    for number, (runs_dir, typed) in enumerate([("a\\b", "a\\b"), ("it's\\", "it's\\"), ("x y,z", "'x y,z'")]):
        assert sweep("optim.lr=0.1,0.01", f"runs_dir={typed}") == 0
        assert Path(runs_dir, "fake_lenet/sweep_1/1/result.json").exists()
        assert len(trained) == 2 * (number + 1)


@pytest.mark.slow
@optuna_installed
def test_a_search_of_one_trial_is_one_job(sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*SEARCH, "optim=sgd", "trials=1") == 0
    assert capsys.readouterr().out.startswith("1 job in runs/fake_lenet/sweep_1, ")


TRIALS = 16  # of which the first ten are drawn at random


def objective(job: Job) -> None:
    job.finish(
        {"best": {"val/accuracy": -abs(math.log10(float(job.settings()["optim.lr"])) + 2)}, "test": None, "train_seconds": 1},
        "val/accuracy",
    )


def proposals(path: Path, *, stop: int | None = None, torn: bool = False) -> list[list[str]]:
    """The overrides of all trials of a search that is interrupted while trial `stop` runs."""
    plan = plan_sweep([*SEARCH, "model.depth=int(20,56)", "optim=sgd", f"trials={TRIALS}"], None)
    with closing(SweepFolder(path, [], "val/accuracy")) as folder:
        with folder.updating():
            search = Search(plan, path)
        for number in range(TRIALS):
            with folder.updating():
                job = folder.append(search.overrides(number))
                if number == stop:
                    if torn:
                        with (path / "optuna.journal").open("a") as journal:
                            journal.write('{"op_code":6,"wor')
                    search = Search(plan, path)
                    assert search.overrides(number) == job.overrides
                objective(job)
                search.tell(job)
    return [job.overrides for job in folder.jobs]


@pytest.mark.slow
@optuna_installed
def test_a_search_stopped_at_any_trial_proposes_what_the_unbroken_one_does(tmp_path: Path) -> None:
    unbroken = proposals(tmp_path / "unbroken")
    assert len({tuple(job) for job in unbroken}) == TRIALS
    for stop in range(TRIALS):
        assert proposals(tmp_path / f"{stop}", stop=stop, torn=stop % 2 == 1) == unbroken


@optuna_installed
def test_each_trial_is_what_optuna_proposes_from_its_own_seed(tmp_path: Path) -> None:
    import numpy as np
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = {
        "optim.lr": FloatDistribution(0.0001, 0.1, log=True),
        "optim.momentum": CategoricalDistribution(["0.0", "0.9"]),
        "model.depth": IntDistribution(20, 56),
    }
    study = optuna.create_study(direction="maximize")
    for number, overrides in enumerate(proposals(tmp_path)):
        seed = np.random.SeedSequence([0, number]).generate_state(1)[0]
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        trial = study.ask(space)
        assert overrides == [*(f"{key}={value}" for key, value in trial.params.items()), "optim=sgd"]
        study.tell(trial, -abs(math.log10(trial.params["optim.lr"]) + 2))


def pruned_search(path: Path, monitor: str, curves: Sequence[Sequence[float]]) -> tuple[list[int], list[list[float]]]:
    """The epochs that each trial of a search is trained for, and its thresholds, where trial k would have the figures curves[k]."""
    plan = plan_sweep([*SEARCH, "optim=sgd", f"monitor={monitor}", f"trials={len(curves)}", "prune=true"], None)
    best = max if monitor == "val/accuracy" else min
    lengths = []
    with closing(SweepFolder(path, [], monitor)) as folder:
        for number, curve in enumerate(curves):
            with folder.updating():
                search = Search(plan, path)
                job = folder.append(search.overrides(number), search.thresholds())
                epoch = next(
                    (
                        epoch
                        for epoch, threshold in enumerate(job.thresholds, 1)
                        if best(curve[:epoch]) != threshold and best(*curve[:epoch], threshold) == threshold
                    ),
                    len(curve),
                )
                lengths.append(epoch)
                Path(job.folder).mkdir()
                rows = [f"{number},{value!r}\n" for number, value in enumerate(curve[:epoch], 1)]
                Path(job.folder, "metrics.csv").write_text(f"epoch,{monitor}\n{''.join(rows)}")
                result = {"best": {monitor: best(curve[:epoch])}, "last": {"epoch": epoch}, "test": None, "train_seconds": 1}
                job.finish(result, monitor)
                assert job.status == ("finished" if epoch == len(curve) else "pruned")
                search.tell(job)
    return lengths, [job.thresholds for job in folder.jobs]


@optuna_installed
@pytest.mark.parametrize("monitor", slow_but("val/loss", among=["val/accuracy", "val/loss"]))
def test_trials_are_pruned_as_by_optunas_median_pruner(monitor: str, tmp_path: Path) -> None:
    import optuna

    random = Random(0)
    epochs = 6
    steps = [[random.random() / epochs for _ in range(epochs)] for _ in range(24)]
    sign = 1 if monitor == "val/accuracy" else -1
    curves = [[0.5 + sign * sum(gains[: epoch + 1]) / 2 for epoch in range(epochs)] for gains in steps]
    lengths, _ = pruned_search(tmp_path, monitor, curves)
    direction = "maximize" if monitor == "val/accuracy" else "minimize"
    study = optuna.create_study(direction=direction, pruner=optuna.pruners.MedianPruner(n_startup_trials=5))
    for curve, length in zip(curves, lengths, strict=True):
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
            if epoch < epochs and trial.should_prune():  # after the last epoch there is nothing to save
                break
        assert length == epoch
        study.tell(trial, state=optuna.trial.TrialState.PRUNED) if epoch < epochs else study.tell(trial, max(curve))
    assert lengths[:5] == [epochs] * 5
    assert min(lengths) == 1
    assert len(set(lengths)) > 2
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal")))
    stored = optuna.load_study(study_name="sweep", storage=storage).trials
    assert [trial.state for trial in stored] == [trial.state for trial in study.trials]
    assert [trial.intermediate_values for trial in stored] == [trial.intermediate_values for trial in study.trials]


@optuna_installed
def test_thresholds_are_the_medians_of_the_trials_that_ran_to_their_end(tmp_path: Path) -> None:
    lengths, thresholds = pruned_search(
        tmp_path, "val/accuracy", [[0.2], [0.4, 0.1], [0.6, 0.3], [0.1, 0.5, 0.8], [0.5, 0.9, 0.7], [0.3, 0.9, 0.9]]
    )
    assert lengths == [1, 2, 2, 3, 3, 1]
    assert thresholds == [[], [], [], [], [], [0.4, 0.4]]


@pytest.mark.slow
@optuna_installed
def test_a_pruned_search_is_resumed_with_the_same_thresholds(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracies that grow with the rate, the same share of them each epoch; the sixth job is stopped once."""
    thresholds: dict[str, list[list[float]]] = {}

    def instead(run: config.RunConfig, *, quiet: bool, command: Sequence[str]) -> dict[str, Any]:
        seen = thresholds.setdefault(str(run.id), [])
        seen.append(run.trainer.pruning_thresholds)
        if run.id == "5" and len(seen) == 1:
            raise Stopped("stopped by SIGTERM at step 3; saved. Start the same command again to resume.")
        curve = [run.optim["lr"] * epoch for epoch in range(1, run.epochs + 1)]
        met = [value >= threshold for value, threshold in zip(curve, seen[-1], strict=False)]
        curve = curve[: met.index(False) + 1] if False in met else curve
        return write_result(run, curve[-1], curve)

    monkeypatch.setattr(importlib.import_module("imgrec.train"), "fit", instead)
    search = ("--search", "optim.lr=uniform(0.01,0.1)", "epochs=3", "trials=8", "prune=true")
    assert sweep(*search) == 75
    assert sweep(*search) == 0
    rates = {row["job"]: float(row["optim.lr"]) for row in rows("runs/fake_lenet/sweep_1")}
    median = statistics.median(rates[str(job)] for job in range(5))
    assert all(thresholds[str(job)] == [[]] for job in range(5))
    assert thresholds["5"] == [[pytest.approx(median), pytest.approx(2 * median)]] * 2
    pruned = {row["job"] for row in rows("runs/fake_lenet/sweep_1") if row["status"] == "pruned"}
    assert pruned == {str(job) for job in range(5, 8) if rates[str(job)] < thresholds[str(job)][0][0]}
    assert pruned  # with seed 0
    assert all(row["rank"] == "" for row in rows("runs/fake_lenet/sweep_1") if row["job"] in pruned)
    assert "  pruned: best val/accuracy " in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_on_two_devices_are_those_on_one(sweep: Sweep) -> None:
    """Each job starts its processes from its own config, and nothing of it is left for the next one."""
    fixed = ["data.image_size=12", "trainer.limit_test_batches=1.0", "data.test_samples=7"]
    assert sweep("optim.lr=0.1,0.001", *fixed, "trainer.devices=2", "name=two") == 0
    assert sweep("optim.lr=0.1,0.001", *fixed, "trainer.devices=1", "name=one") == 0
    two, one = rows("runs/two/sweep_1"), rows("runs/one/sweep_1")
    assert [row["job"] for row in two] == [row["job"] for row in one]
    for mine, other in zip(map(result, two), map(result, one), strict=True):
        assert mine["device"].startswith("2 x cpu")
        assert mine["test"]["count"] == 7
        assert mine["test"]["confusion"] == other["test"]["confusion"]
        assert mine["last"]["train/loss"] == pytest.approx(other["last"]["train/loss"], rel=1e-5)
        assert "-m" not in shlex.split(mine["command"])[1:]
