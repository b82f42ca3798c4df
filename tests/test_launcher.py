"""Who started a process, what contradicts the config, and how the processes of a host end together."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from error_parts import assert_error, assert_refused, raises_error
from marks import slow_but
from processes import LIMIT_S, exit_codes, finish_command, run_ranks, torchrun_variables, wait_until
from small_run import SMALL
from torch import distributed

from imgrec import cli, train
from imgrec.config.load import load_config
from imgrec.config.schema import RunConfig
from imgrec.data.datasets import Fake
from imgrec.data.image_data import Splits
from imgrec.distributed import launcher, process_group, signals
from imgrec.distributed.command import run_command
from imgrec.distributed.device_checks import check_world, wanted_processes
from imgrec.distributed.ports import check_gloo_interface
from imgrec.distributed.process_group import connect, on_first_rank
from imgrec.distributed.world import World, main_address, read_world
from imgrec.errors import ConfigError, DataError, Died, Stopped
from imgrec.training.run_dir import choose_run_dir
from imgrec.training.trainer import build_trainer

Process = subprocess.Popen[str]

STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS_PER_NODE": "2",
}  # fmt: skip
BATCH = {name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_NNODES")} | {"SLURM_PROCID": "0"}
TORCHRUN = torchrun_variables(5, 6, port=1, nodes=2)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "IMGREC_", "TORCHELASTIC")) or name in (*TORCHRUN, "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(process_group, "_stores", [])  # of an earlier test


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """within(TORCHRUN, NAME="x") sets variables."""
    return lambda *many, **more: [monkeypatch.setenv(key, value) for one in (*many, more) for key, value in one.items()] and None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, World()),
        ({"LOCAL_RANK": "1"}, World()),
        (TORCHRUN, World(5, 6, 2, 3, 2, "torchrun")),
        (TORCHRUN | STEP, World(5, 6, 2, 3, 2, "torchrun")),  # srun torchrun
        (TORCHRUN | {"IMGREC_RUN_DIR": "runs/a/1"}, World(5, 6, 2, 3, 2, "imgrec")),
        (STEP, World(3, 4, 1, 2, 2, "slurm")),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, World(3, 4, 1, 1, 2, "slurm")),
        (STEP | {"SLURM_STEP_ID": "4294967290"}, World()),  # salloc's shell
        (STEP | {"SLURM_PTY_PORT": "1"}, World()),  # srun --pty bash
        (BATCH, World()),
    ],
)  # fmt: skip
def test_the_world_is_that_of_whoever_started_the_process(
    variables: dict[str, str], expected: World, within: Callable[..., None]
) -> None:
    within(variables)
    assert read_world() == expected


@pytest.mark.parametrize(
    ("variables", "words", "parts"),
    [
        ({}, "trainer.num_nodes=2", ["trainer.num_nodes=2", "NODES=2", "launch/torchrun.sh"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "", ["LOCAL_WORLD_SIZE=0", "1 to 1000000", "Unset it"]),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "", ["RANK=one", "integer", "0 or more", "Unset it"]),
        (TORCHRUN | {"RANK": "7", "WORLD_SIZE": "6"}, "", ["RANK=7 WORLD_SIZE=6", "0 to 5", "torchrun"]),
        (TORCHRUN | {"WORLD_SIZE": "9" * 5000}, "", [f"WORLD_SIZE={'9' * 200}", "1 to 1000000", "Unset it"]),
        (TORCHRUN | {"LOCAL_RANK": "abc"}, "", ["LOCAL_RANK=abc", "integer", "Unset it"]),
        (TORCHRUN | {"LOCAL_RANK": "3"}, "", ["LOCAL_RANK=3 LOCAL_WORLD_SIZE=3", "0 to 2", "torchrun"]),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, "", ["WORLD_SIZE=6 LOCAL_WORLD_SIZE=4", "torchrun --nproc-per-node=N"]),
        (STEP | {"SLURM_PROCID": "4"}, "", ["SLURM_PROCID=4 SLURM_STEP_NUM_TASKS=4", "0 to 3", "srun"]),
        (STEP | {"SLURM_LOCALID": "2"}, "", ["SLURM_LOCALID=2", "0 to 1", "srun"]),
        (STEP | {"SLURM_NTASKS": "four"}, "", ["SLURM_NTASKS=four", "integer", "srun"]),
        (STEP | {"SLURM_NTASKS_PER_NODE": "-1"}, "", ["SLURM_NTASKS_PER_NODE=-1", "integer", "srun"]),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x99999999999)"}, "", ["SLURM_STEP_TASKS_PER_NODE=1(x99999999999)", "4(x2),3", "Unset it"]),
        (BATCH | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "2x"}, "", ["SLURM_STEP_TASKS_PER_NODE=2x", "4(x2),3", "Unset it"]),
        (BATCH, "", ["SLURM_NTASKS=4 SLURM_NNODES=2", "srun before python", "#SBATCH --nodes=1 --ntasks=1"]),
        (TORCHRUN, "trainer.devices=4", ["trainer.devices=4", "3 processes", "Leave trainer.devices out", "torchrun --nproc-per-node=4"]),
        (TORCHRUN, "trainer.devices=[0,1]", ["trainer.devices=[0,1]", "3 processes", "torchrun --nproc-per-node=2"]),
        (TORCHRUN, "trainer.num_nodes=3", ["trainer.num_nodes=3", "2 machines", "Leave trainer.num_nodes out", "torchrun --nnodes=3"]),
        (STEP, "trainer.devices=4", ["trainer.devices=4", "2 tasks", "Leave trainer.devices out", "#SBATCH --ntasks-per-node=4"]),
        (STEP, "trainer.num_nodes=1", ["trainer.num_nodes=1", "2 nodes", "Leave trainer.num_nodes out", "#SBATCH --nodes=1"]),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "", ["SLURM_STEP_TASKS_PER_NODE=3,1", "#SBATCH --nodes=2 --ntasks-per-node=2"]),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "", ["SLURM", "2 tasks", "4 GPUs", "CUDA_VISIBLE_DEVICES=0,1,2,3", "#SBATCH", "trainer.devices=2"]),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_line_that_says_what_to_write(
    variables: dict[str, str], words: str, parts: list[str], within: Callable[..., None]
) -> None:
    run = load_config("train", words.split())
    within(variables)
    with raises_error(ConfigError, *parts):
        check_world(run.trainer, read_world())


ADDRESS = ("the name of a host", "MASTER_ADDR")


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        *((TORCHRUN | {"MASTER_PORT": port}, [f"MASTER_PORT={port[:200]}", "1 to 65535"]) for port in ("abc", "", "0", "65536", "²", "9" * 5000)),
        *((TORCHRUN | {"MASTER_ADDR": name}, [f"MASTER_ADDR={name[:200]}", *ADDRESS]) for name in ("", " n1", "x" * 300, "a..b")),
        (STEP | {"SLURM_NODELIST": ""}, ["SLURM_NODELIST=", *ADDRESS]),
        (STEP | {"SLURM_JOB_ID": "abc"}, ["SLURM_JOB_ID=abc", "integer"]),
    ],
)  # fmt: skip
def test_no_address_is_one_line(variables: dict[str, str], parts: list[str], within: Callable[..., None]) -> None:
    within(variables)
    with raises_error(ConfigError, *parts):
        main_address(read_world())


def test_a_host_that_is_not_known_is_one_line(within: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    within(TORCHRUN, RANK="0", LOCAL_RANK="0", MASTER_ADDR="n7")
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    for rank in (0, 5):
        with raises_error(ConfigError, "MASTER_ADDR=n7", f"rank {rank}", "not known", "address"):
            process_group._connect_store(dataclasses.replace(read_world(), rank=rank), 0.01)


def test_a_host_that_is_not_known_yet_is_said_while_it_is_waited_for(
    within: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Names of containers are known once these have started; a mistake should not show at the end of the wait only."""
    within(TORCHRUN, LOCAL_RANK="0", RANK="3", MASTER_ADDR="n7.invalid")
    clock = iter([0.0, 1.0, 2.0, 61.0])
    with pytest.MonkeyPatch.context() as patch, raises_error(ConfigError, "MASTER_ADDR=n7.invalid", "rank 3"):
        patch.setattr(process_group, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: next(clock)))
        process_group._connect_store(read_world(), 60)
    said = capfd.readouterr().err
    assert_refused(said, "MASTER_ADDR=n7.invalid", "not known", "60 s")


def test_a_port_that_is_taken_is_one_line(within: Callable[..., None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        within(TORCHRUN, RANK="0", LOCAL_RANK="0", MASTER_PORT=str(port))
        with raises_error(ConfigError, "rank 0", f"127.0.0.1:{port}", "in use", "MASTER_PORT"):
            process_group._connect_store(read_world(), 30)


@pytest.mark.slow
def test_a_rank_that_reaches_another_server_ends_with_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        def work(rank: int) -> None:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            process_group.ANSWER_S = 0.2  # type: ignore[misc]
            connect(World(rank=1, size=2, started_by="torchrun"), timeout_s=1)

        assert exit_codes(1, work) == [2]
    assert_refused(capfd.readouterr().err, "rank 1", f"127.0.0.1:{port}", "1 s", "trainer.timeout_s=2")


def test_a_network_interface_that_is_not_there_is_one_line(within: Callable[..., None]) -> None:
    within({"GLOO_SOCKET_IFNAME": "lo,nope0"})
    with raises_error(ConfigError, "GLOO_SOCKET_IFNAME=lo,nope0", "nope0", "lo", "Unset GLOO_SOCKET_IFNAME"):
        check_gloo_interface(World(0, 2, 0, 2))


def test_gloo_that_cannot_connect_is_one_line(within: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **more: object) -> None:
        raise RuntimeError("[enforce fail at device.cc:84] rv != -1\nframe #0")

    within(TORCHRUN)
    monkeypatch.setattr(process_group, "_connect_store", lambda world, timeout_s: None)
    monkeypatch.setattr(distributed, "init_process_group", fail)
    with raises_error(Died, "lost the connection to another rank", "rv != -1", "same command", "GLOO_SOCKET_IFNAME"):
        connect(read_world(), timeout_s=30)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ["trainer=ddp"]),
        (TORCHRUN, []),
        (TORCHRUN, ["trainer.devices=3", "trainer.num_nodes=2"]),
        (STEP, ["trainer.devices=2"]),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ["trainer.accelerator=cpu"]),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1"}, []),
        (BATCH | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, ["trainer.devices=4"]),
    ],
)
def test_what_fits_passes(variables: dict[str, str], words: list[str], within: Callable[..., None]) -> None:
    run = load_config("train", words)
    within(variables)
    check_world(run.trainer, read_world())


@pytest.mark.parametrize(
    ("world", "devices", "expected"),
    [
        (World(), "auto", ("auto", 1)),
        (World(), 1, (1, 1)),
        (World(size=1, started_by="torchrun"), 1, (1, 1)),
        (World(size=1, started_by="torchrun"), [3], ([3], 1)),
        (World(1, 6, 1, 3, 2, "torchrun"), "auto", (3, 2)),
        (World(1, 2, 1, 2, 1, "imgrec"), [0, 3], ([0, 3], 1)),
    ],
)
def test_lightning_gets_the_devices_of_this_node(
    world: World, devices: Any, expected: tuple[Any, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    def trainer(**arguments: Any) -> None:
        raise Seen(arguments["devices"], arguments["num_nodes"])

    monkeypatch.setattr("pytorch_lightning.Trainer", trainer)
    config = dataclasses.replace(load_config("train", []).trainer, devices=devices)
    plan = SimpleNamespace(accumulate=1)
    with pytest.raises(Seen) as caught:
        build_trainer(config, plan, world, callbacks=(), logger=False)
    assert caught.value.args == expected


@pytest.mark.parametrize("killed", slow_but(1, among=[1, 0]))
@pytest.mark.parametrize("where", slow_but("join_run_dir", among=["join_run_dir", "Heartbeat"]))
def test_a_rank_that_dies_before_the_heartbeat_is_one_line(
    where: str, killed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process_group, "ERROR_GRACE_S", 0.3)

    def work(rank: int) -> int:
        if rank == killed:
            train.__dict__[where] = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        words = [word for word in SMALL if not word.startswith("trainer.devices")]
        return cli.main(["train", *words, f"runs_dir={tmp_path}"])

    assert exit_codes(2, work) == [-signal.SIGKILL if rank == killed else 1 for rank in (0, 1)]
    other = ("rank 1", os.uname().nodename) if killed == 0 else ()
    # Torch's warning of its store is left out where torch is imported after the rank knows that it is one: not in a fork.
    (line,) = [line for line in capfd.readouterr().err.splitlines(keepends=True) if line.startswith("imgrec: ")]
    assert_refused(line, "lost the connection to another rank", "same command", *other)


def test_one_process_a_device() -> None:
    asked = {"devices=2": 2, "devices=[0,3,5]": 3, "devices=1": 1, "accelerator=cpu": 1}
    assert {word: wanted_processes(load_config("train", [f"trainer.{word}"]).trainer) for word in asked} == asked


def test_processes_agree_on_what_the_first_one_finds() -> None:
    def work(rank: int) -> list[Any]:
        connect(read_world(), timeout_s=LIMIT_S)
        found = on_first_rank(lambda: f"of {rank}")
        try:
            on_first_rank(lambda: load_config("train", [f"seed={'x' * (rank + 1)}"]))
        except ConfigError as error:
            return [found, str(error)]
        return []

    (first, said), *others = run_ranks(3, work)
    assert first == "of 0"
    assert_error(said, "seed=x", "integer", 0)
    assert others == [[first, said]] * 2


def test_who_did_not_come_is_named(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        if rank == 2:
            return ""

        def sleep(seconds: float) -> None:
            (tmp_path / f"waits{rank}").touch()
            time.sleep(seconds)

        def monotonic() -> float:  # the minute is over once both wait for the third
            return 61.0 if (tmp_path / "waits0").exists() and (tmp_path / "waits1").exists() else 0.0

        process_group.time = SimpleNamespace(sleep=sleep, monotonic=monotonic)  # type: ignore[assignment]
        with pytest.raises(ConfigError) as caught:
            connect(read_world(), timeout_s=60)
        (tmp_path / f"ends{rank}").touch()
        wait_until((tmp_path / "ends1").exists)  # the first process keeps the store
        return str(caught.value)

    said = run_ranks(3, work)
    for rank in (0, 1):
        missing = ("127.0.0.1", "60 s", "missing", "rank 2", f"rank {rank}")
        assert_error(said[rank], "2 of 3 ranks", *missing, "trainer.timeout_s=120")


@pytest.mark.slow
def test_nobody_at_the_address() -> None:
    def work(rank: int) -> str:
        with pytest.raises(ConfigError) as caught:
            connect(World(rank=1, size=2, started_by="torchrun"), timeout_s=1)
        return str(caught.value)

    (said,) = run_ranks(1, lambda rank: [os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="9"), work(rank)][1])
    assert_error(said, "rank 1", "127.0.0.1:9", "1 s", "trainer.timeout_s=2")


@pytest.mark.parametrize(("rank", "speaks"), [(1, True), (2, False), (3, True), (4, False), (5, False)])
def test_one_rank_of_each_machine_says_that_the_first_does_not_answer(
    rank: int, speaks: bool, within: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two machines with three ranks each."""
    within(TORCHRUN, RANK=str(rank), LOCAL_RANK=str(rank % 3), MASTER_PORT="9")

    def command(words: list[str], config_dir: str | None) -> int:
        connect(read_world(), timeout_s=0.01)
        return 0

    assert run_command("train", command, []) == 2
    said = capfd.readouterr().err
    if speaks:
        assert_refused(said, f"rank {rank}", "127.0.0.1:9", "trainer.timeout_s=0.02")
    else:
        assert said == ""


@pytest.mark.parametrize("who", [{0, 1}, *(pytest.param(who, marks=pytest.mark.slow) for who in ({0}, {1}))], ids=str)
def test_a_signal_to_any_rank_ends_the_waiting_for_the_others(who: set[int]) -> None:
    def work(rank: int) -> str:
        if rank == 2:
            return ""
        if rank in who:
            if rank:  # the store is there: the first rank can be told
                process_group._wait_for("127.0.0.1", int(os.environ["MASTER_PORT"]), time.monotonic() + LIMIT_S)
            signals.request_stop("SIGTERM")
        with pytest.raises(Stopped) as caught:
            connect(read_world(), timeout_s=60)
        return str(caught.value)

    said = run_ranks(3, work)
    assert said[1:] == [said[0], ""]
    assert_error(said[0], "stopped by SIGTERM", "connected", "same command")


@pytest.mark.parametrize("who", slow_but(((2,),), among=[((0, 1, 2),), ((2,),), ((0,),)]))
def test_bad_input_of_processes_that_torchrun_started_is_one_line(
    who: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    splits = Fake.splits

    def refuse(data: Fake) -> Splits:
        if len(who) == 3:
            distributed.barrier()  # so that they fail at the same time
        if read_world().rank in who:
            raise DataError("pictures cannot be read. Name others.")
        return splits.func(data)

    monkeypatch.setattr(Fake, "splits", property(refuse))
    if len(who) == 1:  # nobody else has anything to say
        monkeypatch.setattr(process_group, "ERROR_GRACE_S", 0.3)
    words = [word for word in SMALL if not word.startswith(("trainer.devices", "batch_size"))]
    assert exit_codes(3, lambda rank: cli.main(["train", *words, "batch_size=6", f"runs_dir={tmp_path}"])) == [2, 2, 2]
    name = "" if 0 in who else f" (rank {who[0]} on {os.uname().nodename})"
    assert capfd.readouterr().err == f"imgrec: pictures cannot be read. Name others{name}.\n"


# The children of a run, with a stand-in for the training: what the run's name says

STANDIN = """\
#!{python}
import gc, json, os, signal, sys, time
from pathlib import Path
sys.path[:0] = {path}
from imgrec.distributed import launcher, signals
from imgrec.config.schema import run_config
from imgrec.errors import DataError, Stopped

def train(run, *, quiet, command):
    rank, folder = int(os.environ["RANK"]), Path(os.environ["IMGREC_RUN_DIR"])
    (folder / f"pid_{{rank}}").write_text(str(os.getpid()))
    if run.name == "well":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS")
        (folder / f"seen_{{rank}}.json").write_text(json.dumps([[os.environ[name] for name in names], run.to_dict(), sys.argv, os.getcwd(), gc.get_threshold()[2]]))
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(dict(command=command, summary="", best=None, last={{}}, test=None, train_seconds=0.0)))
    elif run.name == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif run.name == "alike" or (run.name == "refused" and rank == 1):
        raise DataError("pictures cannot be read. Name others.")
    elif run.name == "full" and rank == 0:
        raise OSError(28, "No space left on device", "runs/x")
    elif run.name == "fault" and rank == 1:
        {{}}["our"]
    elif run.name == "early":
        while rank == 0 and not signals.stop_reason():
            time.sleep(0.01)
        raise Stopped("stopped by SIGTERM before all ranks had connected.")
    else:
        while not signals.stop_reason():
            time.sleep(0.01)
        second = []  # the SIGTERM after the signal that stops the run, see test_a_signal_stops_all_once
        signal.signal(signal.SIGTERM, lambda number, frame: second.append(number))
        (folder / f"asked_{{rank}}").touch()
        while not second:
            time.sleep(0.01)
        raise Stopped("stopped by " + signals.stop_reason() + " at step 3; saved.")

launcher.run_rank(sys.argv[4:], lambda task: train(run_config(task["run"]), quiet=task["quiet"], command=task["command"]))
"""


@pytest.fixture
def start_run(tmp_path: Path, start_command: Callable[..., Process]) -> Callable[[str], Process]:
    """start_run("killed") starts the command for a run of that name on two devices, whose children are stand-ins."""
    standin = tmp_path / "standin"
    standin.write_text(STANDIN.format(python=sys.executable, path=sys.path))
    standin.chmod(0o755)
    words = [word for word in SMALL if not word.startswith("trainer.devices")]

    def start(name: str) -> Process:
        # DEATH_GRACE_S is short, as the stand-ins have no heartbeat that ends them sooner. Where all are refused alike, that decides and not a time.
        code = f"""
import sys
from imgrec import cli
from imgrec.distributed import launcher

launcher.DEATH_GRACE_S = 1
launcher.REFUSED_GRACE_S = {LIMIT_S if name == "alike" else 0.5}
sys.argv[0], sys.executable = "imgrec", {str(standin)!r}
code = cli.main()
assert "torch" not in sys.modules
sys.exit(code)
"""
        own = [f"name={name}", "id=1", f"runs_dir={tmp_path}", "trainer.devices=2"]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return start_command(sys.executable, "-c", code, "train", *words, *own, start_new_session=True, env=environment)

    return start


def end(process: Process) -> tuple[int, str]:
    done = finish_command(process)
    assert done.stdout == ""
    return done.returncode, done.stderr


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def blocked(pid: int) -> set[int]:
    """The signals that have arrived at a process and wait until it no longer blocks them."""
    mask = int(re.search(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1], 16)
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def test_children_get_torchruns_variables_and_the_config_from_a_file(start_run: Callable[[str], Process], tmp_path: Path) -> None:
    process = start_run("well")
    assert end(process) == (0, "")
    folder = tmp_path / "well" / "1"
    words = list(process.args[3:])
    for rank in (0, 1):
        seen, run, argv, place, collections = json.loads((folder / f"seen_{rank}.json").read_text())
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 2)))
        assert seen == [str(rank), str(rank), "2", "2", "0", "127.0.0.1", "imgrec", threads]
        assert run == load_config("train", words[1:]).to_dict()
        assert argv[1:4] == ["-m", "imgrec.train", "--rank"]
        assert not set(argv) & set(words)
        assert place == os.getcwd()
        assert collections == 100  # its imports are looked through by no garbage collection, as those of a command
    assert json.loads((folder / "result.json").read_text())["command"] == ["imgrec", *words]


def test_a_killed_child_ends_the_run_with_a_line(
    start_run: Callable[[str], Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = end(start_run("killed"))
    pids = [int((tmp_path / "killed" / "1" / f"pid_{rank}").read_text()) for rank in (0, 1)]
    assert code == 1
    assert_refused(said, "rank 1", os.uname().nodename, f"pid {pids[1]}", "killed by SIGKILL", "same command", "last checkpoint")
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param("alike", ["pictures cannot be read. Name others."], marks=pytest.mark.slow),
        ("refused", ["pictures cannot be read. Name others (rank 1)."]),
        pytest.param("full", ["runs/x", "No space left on device", "same command"], marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, parts: list[str], start_run: Callable[[str], Process], tmp_path: Path
) -> None:
    code, said = end(start_run(name))
    assert code == 2
    assert_refused(said, *parts)
    assert not (tmp_path / name / "1" / "config.yaml").exists()


@pytest.mark.slow
def test_a_rank_that_is_stopped_alone_stops_the_others(start_run: Callable[[str], Process]) -> None:
    assert end(start_run("early")) == (75, "imgrec: stopped by SIGTERM before all ranks had connected.\n")


@pytest.mark.slow
def test_a_fault_of_ours_shows_its_traceback_once(start_run: Callable[[str], Process]) -> None:
    code, said = end(start_run("fault"))
    assert code == 1
    assert said.count("Traceback") == 1
    assert_refused(said.splitlines(keepends=True)[-1], "rank 1", "KeyError: 'our'", "same command")


@pytest.mark.parametrize(
    ("number", "whole_group"),
    slow_but(
        (signal.SIGTERM, False),
        among=[
            (signal.SIGTERM, False),
            (signal.SIGUSR1, True),
            (signal.SIGUSR2, False),
            (signal.SIGINT, False),
            (signal.SIGINT, True),
        ],
    ),
)
def test_a_signal_stops_all_once(
    number: signal.Signals, whole_group: bool, start_run: Callable[[str], Process], tmp_path: Path
) -> None:
    """`whole_group`: as a terminal's Ctrl-C and SLURM send it, to the ranks first, as two at once may be merged into one.

    The SIGTERM is forwarded after it. A rank that waits for that one has all that was sent before: two SIGINT would end it.
    """
    process = start_run("waits")
    folder = tmp_path / "waits" / "1"
    wait_until(lambda: all((folder / f"pid_{rank}").exists() for rank in (0, 1)))
    for rank in (0, 1) if whole_group else ():
        pid, asked = int((folder / f"pid_{rank}").read_text()), folder / f"asked_{rank}"
        os.kill(pid, number)
        wait_until(lambda pid=pid, asked=asked: asked.exists() or number in blocked(pid))
    process.send_signal(number)
    wait_until(lambda: all((folder / f"asked_{rank}").exists() for rank in (0, 1)))
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, f"imgrec: stopped by {number.name} at step 3; saved.\n")


@pytest.mark.slow
def test_the_second_ctrl_c_ends_all_at_once(start_run: Callable[[str], Process], tmp_path: Path) -> None:
    process = start_run("waits")
    folder = tmp_path / "waits" / "1"
    wait_until(lambda: all((folder / f"pid_{rank}").exists() for rank in (0, 1)))
    os.killpg(process.pid, signal.SIGINT)
    wait_until(lambda: all((folder / f"asked_{rank}").exists() for rank in (0, 1)))
    os.killpg(process.pid, signal.SIGINT)
    code, said = end(process)
    assert code == 130
    assert_refused(said, "interrupted", "same command")


def test_children_do_not_outlive_a_killed_parent_and_free_the_folder(
    start_run: Callable[[str], Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Callable[..., RunConfig]
) -> None:
    process = start_run("waits")
    folder = tmp_path / "waits" / "1"
    wait_until(lambda: all((path := folder / f"pid_{rank}").exists() and path.read_text() for rank in (0, 1)))
    run = small("name=waits", "id=1", f"runs_dir={tmp_path}", "trainer.devices=2")
    second = choose_run_dir(run)
    with pytest.raises(ConfigError, match="in use"), second.opened(run):
        pass
    process.kill()
    pids = [int((folder / f"pid_{rank}").read_text()) for rank in (0, 1)]
    wait_until(lambda: not any(map(alive, pids)))
    with second.opened(run):
        process.communicate()
    (left,) = tmp_path.glob("imgrec_*")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with launcher.launch_folder() as present:
        assert left.exists()  # it may be of a launcher that has not locked it yet
    os.utime(left, (0, 0))
    with launcher.launch_folder() as present:
        os.utime(present, (0, 0))
        with launcher.launch_folder():
            assert present.exists()
    assert list(tmp_path.glob("imgrec_*")) == []


def test_without_locks_no_folder_is_taken_for_one_that_was_left(without_locks: None) -> None:
    with launcher.launch_folder() as present:
        os.utime(present, (0, 0))
        with launcher.launch_folder():
            assert present.is_dir()


@pytest.mark.slow
def test_a_run_on_two_devices_is_one_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole way once, with torch."""
    words = [*SMALL, f"runs_dir={tmp_path}", "name=n", "id=1", "trainer=ddp", "trainer.devices=2"]
    assert cli.main(["train", *words]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert "device   2 x cpu" in said.out
    assert said.out.count("test accuracy") == 1
    assert json.loads((tmp_path / "n" / "1" / "result.json").read_text())["status"] == "finished"
    assert cli.main(["train", *words]) == 0
    assert "is finished: " in capfd.readouterr().out


@pytest.mark.parametrize("devices", ["0", "[]"])
def test_no_device_is_refused(devices: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "data=digits", f"trainer.devices={devices}"]) == 2
    assert_refused(capsys.readouterr().err, f"trainer.devices={devices}", "trainer.devices=auto")
