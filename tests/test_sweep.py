"""Sweeps: ranked as the figures in result.json are, gone on with after an interruption, bad values refused before any job."""

import csv
import importlib
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from small_run import SMALL

import imgrec
from imgrec import cli, config
from imgrec.distributed import signals
from imgrec.errors import ConfigError, Stopped
from imgrec.sweeps.folder import SweepFolder, choose_sweep_folder
from imgrec.sweeps.grid import check_sweep, grid_jobs, optuna_settings, sweep_name

INTERRUPTED, STOPPED, OUR_FAULT = 0.25, 0.5, 0.125  # rates at which `trained` does not
Sweep = Callable[..., int]
# Swept keys come after these.
WORDS = [word for word in SMALL if word.partition("=")[0] not in ("optim.lr", "data.image_size")]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """sweep("optim.lr=1,2") runs the command in tmp_path and gives its exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main(["train", "-m", *WORDS, *words])


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
            raise Stopped("stopped by SIGTERM at step 3; saved. Start the same command again to go on.")
        if lr == OUR_FAULT:
            raise ZeroDivisionError("no\nsecond line")
        if lr > 1:
            raise ConfigError(f"optim.lr={lr:g} is too high. Set optim.lr=1.")
        accuracy = 1 / (1 + math.log10(lr / 0.01) ** 2)
        found = {"best": {"val/accuracy": accuracy}, "test": {"accuracy": accuracy / 2}, "train_seconds": 61.0}
        assert run.id is not None
        folder = Path(run.runs_dir) / run.name / run.id
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(importlib.import_module("imgrec.train"), "fit", instead)
    return seen


def rows(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def result(row: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(row["folder"]) / "result.json").read_text())
    return found


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
    # the second job is the run of its words alone
    words = ["optim.lr=0.001", "data.image_size=16", "epochs=2", "monitor=val/loss"]
    alone = imgrec.fit(config.load("train", [*WORDS, *words, "runs_dir=alone"]), quiet=True)
    (job,) = [result(row) for row in found if row["optim.lr"] == "0.001"]
    assert job["last"]["train/loss"] == alone["last"]["train/loss"]
    assert job["test"] == alone["test"]
    # and its command that of a single run
    words = shlex.split(job["command"])
    assert "-m" not in words[1:]
    again = config.load("train", [word for word in words if "=" in word])
    assert (again.runs_dir, again.name, again.id, again.optim["lr"]) == ("runs/fake_lenet", "sweep_1", "1", 0.001)


def test_the_table_shows_what_the_files_hold(sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("optim.lr=0.1,0.01", "seed=1", "optim.lr=1,0.01") == 0  # the later word counts
    assert trained == [1.0, 0.01]
    said = capsys.readouterr().out
    assert (
        said
        == """2 jobs in runs/fake_lenet/sweep_1, ranked by their best val/accuracy
job 1/2  optim.lr=1  log in runs/fake_lenet/sweep_1/0/log.txt
  best val/accuracy 20.00%, test accuracy 10.00%, 1:01 of training
job 2/2  optim.lr=0.01  log in runs/fake_lenet/sweep_1/1/log.txt
  best val/accuracy 100.00%, test accuracy 50.00%, 1:01 of training

rank  optim.lr  best val/accuracy  test accuracy  time  folder
   1  0.01                100.00%         50.00%  1:01  sweep_1/1
   2  1                    20.00%         10.00%  1:01  sweep_1/0
results in runs/fake_lenet/sweep_1/sweep.csv
next:
  python -m imgrec.evaluate ckpt=runs/fake_lenet/sweep_1/1
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
def test_an_interrupted_sweep_goes_on_where_it_ended(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    words = list(sys.argv)
    assert sweep(f"optim.lr=0.1,{INTERRUPTED}") == 130
    assert sys.argv == words
    assert not GlobalHydra.instance().is_initialized()
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_1")] == ["finished", "started"]
    capsys.readouterr()
    for again, expected in enumerate(([0.1, INTERRUPTED, INTERRUPTED],) * 2, 1):
        assert sweep(f"optim.lr=0.1,{INTERRUPTED}") == 0
        assert trained == expected
        assert capsys.readouterr().out.count("(finished before)") == again
    assert [row["optim.lr"] for row in rows("runs/fake_lenet/sweep_1")] == ["0.1", str(INTERRUPTED)]


def test_a_stopped_job_stops_the_sweep_and_the_same_command_goes_on(
    sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"optim.lr=2,{STOPPED},0.1"
    assert sweep(words) == 75
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_1")] == ["failed", "stopped"]
    said = capsys.readouterr()
    assert said.out.endswith(
        "stopped by SIGTERM at step 3; saved. Start the same command again to go on. 3 of 3 jobs are not finished.\n"
    )
    assert said.err == ""
    assert sweep(words) == 2  # the first job fails again
    assert trained == [2.0, STOPPED, 2.0, STOPPED, 0.1]
    assert [row["optim.lr"] for row in rows("runs/fake_lenet/sweep_1")] == ["0.1", str(STOPPED), "2"]


def test_a_signal_between_two_jobs_stops_the_sweep(
    sweep: Sweep, trained: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signals, "stop_reason", lambda: "SIGUSR1" if trained else None)
    assert sweep("optim.lr=0.1,0.2") == 75
    assert trained == [0.1]
    assert (
        "stopped by SIGUSR1 between two jobs. Start the same command again to go on. 1 of 2 jobs are not"
        in capsys.readouterr().out
    )


def test_jobs_one_by_one_are_those_of_the_sweep(
    sweep: Sweep, trained: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optim.lr=2,0.1,0.01", "seed=range(0,2)", "optim.fused=false"]
    assert sweep(*words, "job=count") == 0
    assert capsys.readouterr().out == "6\n"
    for job in ("6", "last"):
        assert sweep(*words, f"job={job}") == 2
        assert f"job={job}: job takes a number from 0 to 5, count or none. Set job=5" in capsys.readouterr().err
    assert not Path("runs").exists()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    assert sweep(*words, "job=4") == 0
    assert sweep(*words, "job=1") == 2
    assert trained == [0.01, 2.0]
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    status = ["finished", "waiting", "failed", "waiting", "waiting", "waiting"]
    assert [row["status"] for row in rows("runs/fake_lenet/sweep_77")] == status
    capsys.readouterr()
    assert sweep(*words, "job=none") == 0
    assert "     1  0.01      0               100.00%         50.00%  1:01  sweep_77/4\n" in capsys.readouterr().out
    assert sweep(*words) == 2  # all that is missing, in the same folder: the same words are the same jobs
    assert trained[2:] == [2.0, 2.0, 0.1, 0.1, 0.01]
    assert sorted(int(row["job"]) for row in rows("runs/fake_lenet/sweep_77")) == list(range(6))


def test_the_grid_is_in_hydras_order() -> None:
    words = ["seed=1,2", "epochs=3", "model=glob(l*)", "optim.lr=choice(0.1,0.2)"]
    sweeps = check_sweep(words, None, intervals=False)[1]
    assert grid_jobs(words, sweeps) == [
        [f"seed={seed}", "epochs=3", "model=lenet", f"optim.lr={lr}"] for seed in (1, 2) for lr in (0.1, 0.2)
    ]


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
    ("words", "sentence"),
    [
        (["optim.lr=0.1,fast"], "optim.lr=fast: lr takes a number, not a word."),
        (["optim.lr=0.1,-1"], "optim.lr=-1.0: lr must be more than 0."),
        (["seed=1,abc"], "seed=abc: seed takes a whole number, not a word."),
        (["model=lenet,lenett"], "model=lenett: there is no such model. Did you mean lenet?"),
        (["opti.lr=0.1,1"], "there is no key opti.lr. Did you mean optim.lr?"),
        (["model=simple_cnn,vgg", "model.dense=3"], "'model.dense=3': there is no key model.dense."),
        (["monitor=val/loss,val/accuracy"], "monitor=val/loss,val/accuracy: a sweep has one monitor for all its jobs. Set monitor=val/loss."),
        (["name=a,b"], "name=a,b: a sweep has one name for all its jobs. Set name=a."),
        (["optim.lr=interval(0.1,1)"], "optim.lr=interval(0.1,1): an interval has no end of values. List some, optim.lr=0.1,0.01, or let Optuna"),
        (["model=glob(zz*)"], "model=glob(zz*): that is not a single value."),
        (["seed=1,2", "hydra.sweeper.max_batches=3"], "Could not override 'hydra.sweeper.max_batches'. Type hydra/sweeper=basic or optuna, with hydra.sweeper."),
        (["seed=1,2", "hydra/sweeper=optna"], "Could not find 'hydra/sweeper/optna'. Type hydra/sweeper=basic or optuna."),
    ],
)  # fmt: skip
def test_bad_values_are_refused_before_any_job(
    words: list[str], sentence: str, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_values_of_every_kind_of_sweep() -> None:
    words = ["optim.lr=choice(0.1,0.2)", "seed=range(0,3)", "model=glob(l*)", "optim.betas=[0.9,0.99],[0.8,0.9]", "epochs=3"]
    base, sweeps = check_sweep(words, None, intervals=False)
    assert {key: values for key, values in sweeps.items() if key != "optim.betas"} == {
        "optim.lr": ["0.1", "0.2"],
        "seed": ["0", "1", "2"],
        "model": ["lenet"],
    }
    assert len(sweeps["optim.betas"]) == 2
    assert (base["seed"], base["epochs"], base["optim"]["lr"]) == (0, 3, 0.1)
    assert check_sweep(["optim.lr=tag(log,interval(0.001,0.1))"], None, intervals=True)[1] == {"optim.lr": ["0.001", "0.1"]}


def test_names_of_sweeps() -> None:
    assert sweep_name("digits_resnet", {"optim.lr": ["1", "2"]}) == "digits_resnet"
    assert sweep_name("digits_resnet", {"model": ["resnet", "vgg"]}) == "digits_resnet+vgg"
    assert sweep_name("fashion_mnist_resnet", {"data": ["fashion_mnist", "mnist"]}) == "fashion_mnist+mnist_resnet"
    assert sweep_name("digits_a", {"model": ["a", "b", "c", "d"]}) == "digits_a+3"
    assert sweep_name("mine", {"model": ["resnet", "vgg"]}) == "mine"
    assert sweep_name("mnist_cnn", {"experiment": ["mnist_cnn", "cifar10_cnn"]}) == "mnist_cnn+cifar10_cnn"


def test_the_folder_of_a_sweep_is_that_of_its_words(tmp_path: Path) -> None:
    def ask(*words: str, id: str | None = None, resume: bool = True) -> SweepFolder:
        return choose_sweep_folder(runs_dir=str(tmp_path), name="n", id=id, resume=resume, words=words, monitor="val/loss")

    first = ask("seed=1,2", "num_workers=0", "hydra.sweeper.n_trials=3")
    assert first.path == tmp_path / "n" / "sweep_1"
    with first:
        first.job(["seed=1", "num_workers=0"])
        first.save()
        with pytest.raises(ConfigError, match="is in use by another process"):
            ask("seed=1,2").__enter__()
    assert ask("num_workers=2", "seed=1,2", "hydra.sweeper.n_trials=5").jobs == first.jobs
    assert ask("seed=1,2", resume=False).path.name == "sweep_2"
    assert ask("seed=1,3").path.name == "sweep_2"
    assert ask("seed=1,2", "num_workers=0,2").path.name == "sweep_2"  # swept, so it matters
    assert ask("seed=1,3", id="mine").path == tmp_path / "n" / "mine"
    with pytest.raises(ConfigError, match=r"holds another sweep: seed=1,2\. Set another id"):
        ask("seed=1,3", id="sweep_1")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")
def test_optuna_maximizes_the_monitor_and_goes_on(sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hydra/sweeper=optuna", "optim.lr=tag(log,interval(0.0001,0.1))"]
    assert sweep(*words, "hydra.sweeper.n_trials=2") == 0
    said = capsys.readouterr()
    assert "Optuna's objective is a job's best val/accuracy, to maximize; sampler seed 0\n" in said.out
    assert said.err == ""
    assert sweep(*words, "hydra.sweeper.n_trials=3") == 0
    assert capsys.readouterr().out.count("(finished before)") == 2

    # the same rates as Optuna alone
    import optuna  # now that the sweep has, as its age makes it warn

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    alone = [trial.suggest_float("optim.lr", 0.0001, 0.1, log=True) for trial in (study.ask() for _ in range(3))]
    assert trained == alone
    found = rows("runs/fake_lenet/sweep_1")
    assert [float(row["optim.lr"]) for row in found] == sorted(alone, key=lambda lr: abs(math.log10(lr / 0.01)))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")
def test_optuna_where_every_job_fails(sweep: Sweep, trained: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optim.lr=2,3") == 2
    assert {row["status"] for row in rows("runs/fake_lenet/sweep_1")} == {"failed"}
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")
def test_settings_of_optuna_follow_the_run() -> None:
    assert set(optuna_settings([], monitor="val/loss", seed=7)) == {
        "hydra.sweeper.direction=minimize", "hydra.sweeper.n_jobs=1", "hydra.sweeper.max_failure_rate=1.0", "hydra.sweeper.sampler.seed=7",
    }  # fmt: skip
    assert "hydra.sweeper.direction=maximize" in optuna_settings([], monitor="val/macro_f1", seed=0)
    assert not any("seed" in word for word in optuna_settings(["hydra/sweeper/sampler=grid"], monitor="val/loss", seed=0))
    with pytest.raises(ConfigError) as caught:
        optuna_settings(["hydra.sweeper.direction=minimize"], monitor="val/accuracy", seed=0)
    assert str(caught.value) == (
        "hydra.sweeper.direction=minimize, but the objective is monitor=val/accuracy. Leave it out, or set hydra.sweeper.direction=maximize."
    )


@pytest.mark.slow
def test_jobs_on_two_devices_are_those_on_one(sweep: Sweep) -> None:
    """Each job starts its processes from its own config, and nothing of it is left for the next one."""
    words = ["data.image_size=12", "trainer.limit_test_batches=1.0", "data.test_samples=7"]
    assert sweep("optim.lr=0.1,0.001", *words, "trainer.devices=2", "name=two") == 0
    assert sweep("optim.lr=0.1,0.001", *words, "trainer.devices=1", "name=one") == 0
    two, one = rows("runs/two/sweep_1"), rows("runs/one/sweep_1")
    assert [row["job"] for row in two] == [row["job"] for row in one]
    for mine, other in zip(map(result, two), map(result, one), strict=True):
        assert mine["device"].startswith("2 x cpu")
        assert mine["test"]["count"] == 7
        assert mine["test"]["confusion"] == other["test"]["confusion"]
        assert mine["last"]["train/loss"] == pytest.approx(other["last"]["train/loss"], rel=1e-5)
        assert "-m" not in shlex.split(mine["command"])[1:]
