"""imgrec tune: ready spaces for every option, from the defaults on; killed at any write it ends as the unbroken search does."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from error_parts import assert_refused, raises_error
from marks import slow_but
from small_run import SMALL

import imgrec.sweeps.run
from imgrec import cli
from imgrec.config.load import load_config
from imgrec.config.options import option_names
from imgrec.errors import ConfigError
from imgrec.sweeps import folder as sweep_folder
from imgrec.sweeps import job
from imgrec.sweeps.folder import SweepFolder, read_sweep
from imgrec.sweeps.grid import SweepPlan
from imgrec.sweeps.run import run_sweep
from imgrec.sweeps.spaces import Tuning, plan_tuning
from imgrec.sweeps.table import repeat_command
from imgrec.terminal import Terminal
from imgrec.tune import show_space

OPTIONS = [(group, option) for group in ("optim", "augment", "loss") for option in option_names(group)]
EMPTY = {"none", "mse"}  # where nothing is to be searched
TRIALS, KILLS = 6, 20
optuna_installed = pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")


# The space


def test_every_optimizer_augmentation_and_loss_has_a_space() -> None:
    for group in ("optim", "augment", "loss"):
        assert option_names(f"tune/{group}") == option_names(group)


@pytest.mark.parametrize("size", slow_but(32, among=[32, 224]))
@pytest.mark.parametrize(("group", "option"), slow_but(("augment", "randaug"), among=OPTIONS))
def test_a_space_is_one_that_the_run_takes_and_holds_its_defaults(group: str, option: str, size: int) -> None:
    words = [f"{group}={option}", f"spaces=[{group}]", f"data.image_size={size}"]
    if option in EMPTY:
        with raises_error(ConfigError, f"spaces=[{group}]", "nothing is left to search", "'optim.lr=log(1e-4,1e-1)'"):
            plan_tuning(words, None)
        return
    found = plan_tuning(words, None)
    plain = load_config("train", [f"{group}={option}", f"data.image_size={size}"]).to_dict()[group]
    assert found.keys
    for row in found.keys:
        assert row.key.startswith(f"{group}.")
        assert row.origin == f"{group}={option}"
        assert found.plan.first is not None
        assert (
            load_config("train", [f"{group}={option}", f"{row.key}={found.plan.first[row.key]}"]).to_dict()[group][
                row.key.partition(".")[2]
            ]
            == plain[row.key.partition(".")[2]]
        )


@pytest.fixture(scope="module")
def own() -> Tuning:
    """A space of which one key is fixed, one is replaced by a range without its default, and one is added."""
    words = ["optim=adamw", "optim.weight_decay=0.1", "optim.lr=log(0.01,0.1)", "model.depth=20,32", "loss.label_smoothing=0.1"]
    return plan_tuning([*words, "augment=none", f"trials={TRIALS}"], None)


def test_a_value_fixes_a_key_and_a_range_replaces_or_adds_one(own: Tuning) -> None:
    assert [(row.key, row.default, row.values, row.origin) for row in own.keys] == [
        ("optim.lr", "", "log(0.01,0.1)", "given"),
        ("model.depth", "20", "20,32", "given"),
    ]
    assert own.plan.first == {"model.depth": "20"}
    assert (own.plan.trials, own.plan.prune) == (TRIALS, True)
    assert own.plan.base["optim"]["weight_decay"] == 0.1


@pytest.mark.slow
def test_the_loss_is_not_searched_where_its_value_is_compared() -> None:
    keys = [{row.key for row in plan_tuning([f"monitor={monitor}"], None).keys} for monitor in ("val/accuracy", "val/loss")]
    assert keys[0] - keys[1] == {"loss.label_smoothing"}


@pytest.mark.parametrize(
    ("words", "parts"),
    slow_but(
        (("optim=sgd,adam",), ("optim=sgd,adam", "a space of its own", "optim=sgd")),
        among=[
            (("optim=sgd,adam",), ("optim=sgd,adam", "a space of its own", "optim=sgd")),
            (("experiment=mnist_cnn,cifar10_cnn",), ("experiment=mnist_cnn,cifar10_cnn", "experiment=mnist_cnn")),
            (("spaces=[optm]",), ("spaces=optm", "Did you mean optim?", "augment, loss, optim")),
            (("spaces=[]",), ("spaces=[]", "nothing is left to search", "'optim.lr=log(1e-4,1e-1)'")),
            (("trials=0",), ("trials=0", "1 or more", "30")),
            (("trials=x",), ("trials=x", "expected an integer")),
            (("prune=x",), ("prune=x", "true or false")),
            (("-m",), ("-m", "tune searches anyway", "imgrec train -m --search")),
            (("optim.lr=log(0,1)",), ("optim.lr=log(0,1)", "two numbers above 0")),
            (("optim.lrr=1",), ("'optim.lrr=1'", "Did you mean optim.lr?")),
            (("optim.lr=log(1e-4",), ("optim.lr=log(1e-4", "expected a number", "'optim.lr=log(1e-4,1e-1)'", "uniform and int")),
            (("model.depth=20:32",), ("model.depth=20:32", "expected an integer", "'model.depth=int(1,5)'")),
            (("folds=3",), ("'folds=3'", "no key folds", "imgrec tune --help")),
            (("spaces.0=",), ("'spaces.0='", "no key spaces.0", "imgrec tune --help")),
            (("trails=3",), ("'trails=3'", "Did you mean trials?", "imgrec tune --help")),
            (("prun=false",), ("'prun=false'", "Did you mean prune?", "imgrec tune --help")),
        ],
    ),
)
def test_what_no_search_can_have_is_refused(words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    with raises_error(ConfigError, *parts):
        plan_tuning(words, None)


@pytest.mark.slow
def test_an_option_without_a_space_is_refused_and_gets_one_in_a_folder_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim/mine.yaml").write_text("defaults: [sgd, _self_]\nlr: 0.2\n")
    with raises_error(ConfigError, "optim=mine", "no space", "tune/optim/mine.yaml", "--config-dir FOLDER", "spaces=[...]"):
        plan_tuning(["optim=mine"], str(tmp_path))
    (tmp_path / "tune/optim").mkdir(parents=True)
    (tmp_path / "tune/optim/mine.yaml").write_text("optim.lr: log(0.1,1)\n")
    assert plan_tuning(["optim=mine", "spaces=[optim]"], str(tmp_path)).plan.first == {"optim.lr": 0.2}


@pytest.mark.slow
def test_the_command_shows_its_space_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imgrec.sweeps.run, "find_spec", lambda name: None)
    assert cli.main(["tune", "data=digits"]) == 2
    assert_refused(capsys.readouterr().err, "tune needs Optuna", 'pip install "imgrec[optuna]"')
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "trained"),
    [
        ("trials=20", "20 trials of model=resnet data=digits, 30 epochs each;"),
        ("photos model=vgg time=1h", "30 trials of model=vgg data=imagefolder data.root=photos, time=1h each;"),
    ],
)
def test_it_says_what_it_does_before_it_starts(
    words: str, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    show_space(plan_tuning(words.split(), None), Terminal())
    said = capsys.readouterr().out.splitlines()
    assert said[-3].startswith(trained)
    assert "Ctrl-C" in said[-1]
    if words == "trials=20":  # as the page shows it
        page = (Path(__file__).parents[1] / "docs/tune.md").read_text()
        (shown,) = re.findall(r"^searched key.*?(?=^```)", page, re.MULTILINE | re.DOTALL)
        assert [line.split() for line in said] == [line.split() for line in shown.splitlines()]


# The search


class Killed(BaseException):
    """A process that ends at once."""


class Writes:
    """Counts what is written of a search, and kills it after one of the writes: the folder stays as it was then."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from optuna.storages.journal import JournalFileBackend

        self.folder, self.left = folder, math.inf
        monkeypatch.setattr(JournalFileBackend, "append_logs", self.counted(JournalFileBackend.append_logs))
        monkeypatch.setattr(sweep_folder, "atomic_write", self.counted(sweep_folder.atomic_write))

    def counted(self, write: Callable[..., None]) -> Callable[..., None]:
        def instead(*arguments: Any) -> None:
            write(*arguments)
            self.left -= 1
            if self.left == 0:
                shutil.copytree(self.folder, self.folder.with_name("killed"), symlinks=True)
                raise Killed

        return instead

    def restore(self) -> None:
        """The folder as the kill left it, with Optuna's lock: what is written on the way out of an exception is not there."""
        shutil.rmtree(self.folder)
        self.folder.with_name("killed").rename(self.folder)
        journal = self.folder / "optuna.journal"
        lock = self.folder / "optuna.journal.lock"
        if journal.exists() and not lock.is_symlink():
            lock.symlink_to(journal.absolute())


def fake_fit(run: Any, *, quiet: bool, command: list[str]) -> dict[str, Any]:
    """A training whose accuracy is highest at a rate of 0.03, and which pruning ends after its first epoch."""
    lr = float(run.settings["optim.lr"])
    curve = [0.9 - abs(math.log10(lr / 0.03)) * share for share in (0.5, 0.4, 0.3)]
    thresholds = json.loads(run.settings.get("trainer.pruning_thresholds", "[]"))
    curve = curve[:1] if thresholds and curve[0] < thresholds[0] else curve
    folder = Path(run.settings["runs_dir"], run.settings["name"], run.settings["id"])
    folder.mkdir(exist_ok=True)
    rows = [f"{epoch},{value!r}\n" for epoch, value in enumerate(curve, 1)]
    (folder / "metrics.csv").write_text("".join(["epoch,val/accuracy\n", *rows]))
    test = {"accuracy": curve[-1], "accuracy_interval": [curve[-1] - 0.05, curve[-1] + 0.05]}
    result = {"best": {"val/accuracy": max(curve)}, "last": {"epoch": len(curve)}, "test": test, "train_seconds": 1.0}
    result |= {"command": shlex.join(command), "summary": f"{curve[-1]:.2%}"}
    (folder / "result.json").write_text(json.dumps(result))
    return result


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are not composed: `fake_fit` gets their words."""
    monkeypatch.setattr(
        job,
        "load_config",
        lambda command, words, config_dir: SimpleNamespace(settings=dict(word.split("=", 1) for word in words)),
    )


def searched(plan: SweepPlan, path: Path) -> SweepFolder:
    plan.base["runs_dir"] = str(path)
    assert run_sweep(plan, None, fake_fit) == 0
    return read_sweep(path / plan.name / "sweep_1")


@pytest.mark.parametrize("kills", slow_but(1, among=(1, KILLS)))
@optuna_installed
def test_killed_many_times_it_proposes_the_same_and_ends_with_the_same_best(
    kills: int, own: Tuning, composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna.storages.journal._file as journal

    unbroken = searched(own.plan, tmp_path / "unbroken")
    assert unbroken.jobs[0].settings()["model.depth"] == "20"
    assert {each.status for each in unbroken.jobs} == {"finished"}
    monkeypatch.setattr(journal.time, "sleep", lambda seconds: pytest.fail("it waits for the lock of the killed process"))
    writes = Writes(tmp_path / "killed" / own.plan.name / "sweep_1", monkeypatch)
    own.plan.base["runs_dir"] = str(tmp_path / "killed")
    for kill in range(kills):
        file = writes.folder / "sweep.json"
        done = file.read_text().count('"finished"') if file.exists() else 0
        writes.left = 2 + done + 1 + kill % 7  # what is written before the first unfinished job, and then each of the next seven
        with pytest.raises(Killed):
            run_sweep(own.plan, None, fake_fit)
        writes.restore()
    writes.left = math.inf
    killed = searched(own.plan, tmp_path / "killed")
    assert [each.overrides for each in killed.jobs] == [each.overrides for each in unbroken.jobs]
    assert [each.value for each in killed.jobs] == [each.value for each in unbroken.jobs]
    best, same = unbroken.best(), killed.best()
    assert best is not None
    assert same is not None
    assert best.number == same.number
    assert best.value == max(each.value or 0.0 for each in unbroken.jobs)
    said = capsys.readouterr().out
    assert f"best: {best.folder}, " in said
    assert "by skill and by luck" in said
    assert f"  {repeat_command(best)}\n" in said


KILLED = """
import os, signal, sys
from imgrec import cli
from optuna.storages.journal import JournalFileBackend

left = int(sys.argv[1])

def counted(write):
    def instead(*arguments, **named):
        global left
        write(*arguments, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return instead

os.replace = counted(os.replace)
JournalFileBackend.append_logs = counted(JournalFileBackend.append_logs)
sys.exit(cli.main(["tune", *sys.argv[2:]]))
"""


@pytest.mark.slow
@optuna_installed
def test_trainings_killed_twenty_times_end_as_the_unbroken_search(tmp_path: Path) -> None:
    """SIGKILL after one of the renames of files (tables, configs, checkpoints, results) or lines of the journal."""
    words = [word for word in SMALL if not word.startswith("optim.lr")]
    words += ["spaces=[optim]", "trials=8", "epochs=2", "monitor=val/loss"]

    def start(runs: str, writes: int) -> int:
        command = [sys.executable, "-c", KILLED, str(writes), *words, f"runs_dir={tmp_path / runs}"]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False).returncode

    assert start("unbroken", -1) == 0
    for kill in range(KILLS):
        assert start("killed", 6 + kill % 8) == -signal.SIGKILL, kill
    assert start("killed", -1) == 0
    unbroken, killed = (read_sweep(tmp_path / runs / "fake_lenet/sweep_1") for runs in ("unbroken", "killed"))
    seen = [
        [({**run.settings(), "runs_dir": ""}, run.status, run.value, run.test_accuracy) for run in sweep.jobs]
        for sweep in (unbroken, killed)
    ]
    assert seen[0] == seen[1]
    assert [run.number for run in unbroken.ranked()] == [run.number for run in killed.ranked()]
    assert len({run.value for run in unbroken.jobs}) > 1


@pytest.mark.slow
@optuna_installed
def test_the_command_of_the_page_searches_and_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/tune.md types it, on fewer epochs; then the command that it prints."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs/tune.md").read_text()
    typed = re.search(r"^imgrec (tune .*)$", page, re.MULTILINE)
    assert typed is not None
    small = [
        "model=lenet",
        "data.image_size=12",
        "epochs=1",
        "trials=2",
        "logger=none",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
    ]
    assert cli.main([*shlex.split(typed[1]), *small]) == 0
    said = capsys.readouterr().out
    table = re.search(r"^```\n(searched key.*?)^20 trials", page, re.MULTILINE | re.DOTALL)
    assert table is not None
    for row in table[1].splitlines():
        assert row.split() in [line.split() for line in said.splitlines()]
    folder = read_sweep(Path("runs/digits_lenet/sweep_1"))
    assert (folder.path / "report.html").exists()
    plain = load_config("train", ["data=digits", *small[:2]])
    first = load_config("train", folder.jobs[0].overrides)
    assert (first.optim, first.augment, first.loss) == (plain.optim, plain.augment, plain.loss)
    best = folder.best()
    assert best is not None
    repeated = shlex.split(next(line for line in said.splitlines() if "train -m seed=" in line))
    again = load_config("train", [word for word in repeated[3:] if not word.startswith("seed=")])
    assert again.to_dict() == load_config("train", best.overrides).to_dict()


@pytest.mark.slow
@optuna_installed
def test_a_search_whose_defaults_are_refused_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "model=lenet", "data=digits"]) == 2
    said = capsys.readouterr()
    assert_refused(said.err, "model lenet", "8x8", "data.image_size=12")
    assert "job 2/" not in said.out


@pytest.mark.slow
@optuna_installed
def test_a_search_goes_on_after_trials_whose_loss_is_not_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of them too, with a rate that was drawn, as the range does not hold the default."""
    monkeypatch.chdir(tmp_path)
    words = [
        "data=digits",
        "model=simple_cnn",
        "model.widths=[8]",
        "epochs=1",
        "trainer.limit_train_batches=5",
        "report=false",
        "logger=none",
    ]
    assert cli.main(["tune", *words, "spaces=[]", "optim.lr=1e20,1e25", "trials=2"]) == 2
    said = capsys.readouterr().out
    assert "job 2/2" in said
    assert said.count("  failed: the loss is nan") == 2
    assert "next:" not in said  # there is no run to do anything with
