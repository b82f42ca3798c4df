"""logger=csv, wandb and mlflow: the points of TensorBoard's curves, each once also after a kill, and one run in W&B and MLflow."""

import csv
import errno
import json
import os
import resource
import signal
import struct
import sys
import threading
from pathlib import Path

import pytest
from error_parts import raises_error
from processes import exit_codes
from resumed_runs import STEPS_PER_EPOCH, kill_run, load_run, patch_call, read_curves

from imgrec import config
from imgrec.config.instantiate import locate
from imgrec.errors import ConfigError, Stopped
from imgrec.train import fit
from imgrec.training.loggers.csv import ResumableCSVLogger
from imgrec.training.module import Classifier
from imgrec.training.stored_run import read_rows
from imgrec.training.timeline import PARTS
from imgrec.training.trainer import opened_logger

Points = dict[str, list[tuple[int, float]]]


def csv_points(run: Path) -> Points:
    points: Points = {}
    with (run / "csv/metrics.csv").open() as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value:
                    points.setdefault(name, []).append((step, float(value)))
    return points


def mlflow_points(run: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run}/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'imgrec'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "r/a"
    assert found.data.params["optim.lr"] == "0.05"
    return {name: [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, name)] for name in found.data.metrics}


def wandb_points(run: Path) -> Points:
    """From the files that wandb sync would send, in the order of the starts; all of one run."""
    from wandb.proto import wandb_internal_pb2

    points: Points = {}
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    for file in files:
        for data in leveldb_records(file.read_bytes()[7:]):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                assert (record.run.project, record.run.display_name) == ("imgrec", "r/a")
            if record.HasField("history"):
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                for name in row.keys() - {"trainer/global_step"}:
                    if not name.startswith("_"):
                        points.setdefault(name, []).append((row["trainer/global_step"], row[name]))
    assert len({file.name for file in files}) == 1
    return points


def leveldb_records(data: bytes) -> list[bytes]:
    """Records of LevelDB's log format: blocks of 32 KiB, each part of a record with checksum, length and kind."""
    records, parts, at = [], b"", 0
    while at + 7 <= len(data):
        left = 32768 - (at + 7) % 32768  # the file's first block begins with its own header of 7 bytes
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(parts)
            parts = b""
    return records


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is sent from a test."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def load(tmp_path):
    def load(logger: str, folder: str, *words: str) -> config.RunConfig:
        if logger in ("wandb", "mlflow"):
            pytest.importorskip(logger, reason=f'pip install "imgrec[{logger}]"')
        return load_run(tmp_path / folder, f"logger={logger}", *words)

    return load


def train(run: config.RunConfig, *, size: int = 1) -> Path:
    assert exit_codes(size, lambda rank: fit(run, quiet=True)) == [0] * size
    return Path(run.runs_dir) / "r/a"


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> Points:
    run = train(load_run(tmp_path_factory.mktemp("tensorboard")))
    return read_curves(run / "tensorboard")


def assert_has_curves(points: Points, curves: Points) -> None:
    times = {name for name in points if name.startswith("speed/")}
    assert times == {"speed/images_per_second", "speed/epoch_seconds", *(f"speed/{part}_share" for part in PARTS)}
    assert points.keys() - times == curves.keys() >= {"test/accuracy", "optim/update_ratio", "val/best_accuracy"}
    for name, found in curves.items():
        assert points[name] == [pytest.approx(point, rel=1e-6) for point in found], name
    for name in times:
        assert [step for step, _ in points[name]] == [step for step, _ in points["val/loss"]]


@pytest.mark.slow
@pytest.mark.parametrize(("logger", "read"), [("csv", csv_points), pytest.param("mlflow", mlflow_points, marks=pytest.mark.slow)])
def test_of_a_run_that_was_killed_it_has_each_point_once(load, curves, logger, read):
    run = load(logger, "killed", "trainer.save_every_steps=3")
    kill_run(run, 2, Classifier, "training_step")  # before anything was saved
    kill_run(run, 2 * STEPS_PER_EPOCH + 3, Classifier, "training_step")  # after points that the last save does not know
    assert_has_curves(read(train(run)), curves)


@pytest.mark.slow
def test_wandb_has_each_point_of_a_run_that_was_stopped_once(load, curves):
    run = load("wandb", "stopped")

    def stopped(rank: int) -> None:
        patch_call(2 * STEPS_PER_EPOCH + 3, Classifier, "training_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            fit(run, quiet=True)

    assert exit_codes(1, stopped) == [0]
    assert_has_curves(wandb_points(train(run)), curves)


@pytest.mark.slow
def test_the_first_of_several_ranks_logs(load):
    run = load("csv", "two", "trainer.devices=2", "trainer.strategy=ddp", "model.norm=none", "batch_size=8")
    folder = train(run, size=2)
    assert len(csv_points(folder)["val/loss"]) == len((folder / "metrics.csv").read_text().splitlines()) - 1


def test_a_killed_line_is_left_out(tmp_path):
    for text, rows in {
        "": [],
        "a,step\n0.5,1\n,2\n": [{"a": "0.5", "step": "1"}, {"step": "2"}],
        "a,step\n0.5,1\n0.25,1": [{"a": "0.5", "step": "1"}],
    }.items():
        (tmp_path / "metrics.csv").write_text(text)
        assert read_rows(tmp_path / "metrics.csv") == rows
    assert read_rows(tmp_path / "none.csv") == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_the_csv_file_stays_in_the_run_directory(tmp_path, name):
    with raises_error(ConfigError, f"logger.name={name}", "without a slash"):
        ResumableCSVLogger(save_dir=str(tmp_path), name=name)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"imgrec.training.loggers.{package}", raising=False)
    target = config.load("train", [f"logger={package}"]).logger["_target_"]
    with raises_error(ConfigError, f"_target_={target}", package, f'pip install "imgrec[{package}]"'):
        locate(target)


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_line(load):
    run = load("mlflow", "away", "logger.tracking_uri=http://localhost:1")

    def refused(rank: int) -> None:
        os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
        with raises_error(ConfigError, "logger=mlflow", "http://localhost:1", "logger.tracking_uri", "logger=none"):
            fit(run, quiet=True)

    assert exit_codes(1, refused) == [0]


@pytest.mark.slow  # wandb takes a second to import
def test_wandb_without_a_key_is_one_line(load, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    run = load("wandb", "away", "logger.offline=false")

    def refused(rank: int) -> None:
        os.environ |= {"HOME": run.runs_dir, "NETRC": f"{run.runs_dir}/none", "WANDB_BASE_URL": "http://localhost:1"}
        with raises_error(ConfigError, "logger=wandb", "wandb login", "logger.offline=true"):
            fit(run, quiet=True)

    assert exit_codes(1, refused) == [0]


def test_event_files_that_cannot_be_written_are_one_error(tmp_path, monkeypatch):
    """It is raised where the next point is logged, with a name; the thread that met it does not print it too."""
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    node, before = load_run(tmp_path).logger | {"flush_secs": 0.01}, set(threading.enumerate())
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def log_points() -> None:
        with opened_logger(node, tmp_path, rank=0) as logger:
            logger.log_metrics({"x": 1.0}, 0)
            logger.experiment.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # as on a full disk
            logger.log_metrics({"x": 1.0}, 1)
            for thread in set(threading.enumerate()) - before:
                thread.join()
            logger.log_metrics({"x": 1.0}, 2)

    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            log_points()
        assert caught.value.filename == str(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert not printed


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_errors_of_others_while_a_logger_is_open_stay_as_they_are(tmp_path, kind):
    """A full disk elsewhere is not blamed on the logger's folder, and a ValueError about a file stays one."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raised = full if kind is OSError else ValueError("a value of ours")
    with pytest.raises(kind) as caught, opened_logger(load_run(tmp_path).logger, tmp_path, rank=0):
        raise raised from (None if raised is full else full)
    assert caught.value is raised
    assert full.filename is None


def test_errors_of_other_threads_are_printed(tmp_path, monkeypatch):
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    with opened_logger(load_run(tmp_path).logger, tmp_path, rank=0):
        thread = threading.Thread(target=divmod, args=(1, 0))
        thread.start()
        thread.join()
    assert [failed.exc_type for failed in printed] == [ZeroDivisionError]
