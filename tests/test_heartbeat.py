"""imgrec.distributed.heartbeat, with real processes: all scenarios run at once, on three ranks each."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from error_parts import assert_error, assert_refused
from marks import slow_but
from processes import LIMIT_S, join_ranks, start_ranks, wait_until
from torch import distributed

from imgrec.distributed import heartbeat as heartbeat_module
from imgrec.distributed import signals
from imgrec.distributed.diagnosis import RankStatus, find_dead, find_hang, lagging_ranks
from imgrec.distributed.heartbeat import Heartbeat, _is_of_the_network
from imgrec.distributed.transport import signed

RANKS = 3
TIMEOUT_S = 4.0  # more than a rank that runs has to wait for a processor; what is longer is for ever
FOR_EVER_S = 600.0
HOST = socket.gethostname()
Action = Callable[[], Any]


class Rank(NamedTuple):
    """The argument of a scenario on each of its ranks."""

    rank: int
    heartbeat: Heartbeat
    folder: Path  # of the scenario


def steps(this: Rank, at: int | None = None, action: Action = lambda: None, collective: bool = True) -> None:
    """Eight steps; rank `at` acts in step 5, once the ranks that will notice have a report from that step."""
    observers = () if at is None else (1, 2) if at == 0 else (0,)
    if this.rank in observers:
        threading.Thread(target=note_when_reported, args=(this, at), daemon=True).start()
    for step in range(8):
        this.heartbeat.doing = f"waiting for the others before step {step}"
        if collective or step < 5:
            distributed.all_reduce(torch.ones(1))
        elif step == 6:
            time.sleep(FOR_EVER_S)  # what a collective of NCCL does when another process is gone
        this.heartbeat.doing = f"training step {step} of epoch 1"
        if step == 5 and this.rank == at:
            wait_until(lambda: is_reported(this, observers))
            action()


def note_when_reported(this: Rank, at: int) -> None:
    wait_until(lambda: this.heartbeat._statuses[at].doing == "training step 5 of epoch 1")
    (this.folder / f"reported{this.rank}").touch()


def is_reported(this: Rank, observers: tuple[int, ...]) -> bool:
    this.heartbeat.doing = "training step 5 of epoch 1"  # a sign of life
    return all((this.folder / f"reported{observer}").exists() for observer in observers)


def signal_itself(number: signal.Signals) -> Action:
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("no such thing\nand more")


def fail_on_all(this: Rank) -> None:
    heartbeat_module.END_GRACE_S = FOR_EVER_S  # each ends by itself, however long that takes it
    distributed.barrier()
    fail()


def loop() -> None:
    while True:
        sum(range(10_000))


def leave_a_child_behind(this: Rank) -> None:
    """Killed, but its connections stay open."""
    if os.fork() == 0:
        wait_until((this.folder / "over").exists)
        os._exit(0)
    signal_itself(signal.SIGKILL)()


def read_long(this: Rank) -> None:
    this.heartbeat.doing = "reading the data"
    time.sleep(1.5 * TIMEOUT_S)
    steps(this)


def read_longer_on_one(this: Rank) -> None:
    this.heartbeat.doing = "reading the data" if this.rank == 2 else "waiting for the others before step 0"
    if this.rank == 2:
        time.sleep(FOR_EVER_S)
    distributed.all_reduce(torch.ones(1))


def stop_on_one(this: Rank) -> None:
    if this.rank == 1:
        signals.request_stop("SIGTERM")
    wait_until(signals.stop_reason)
    print(signals.stop_reason(), flush=True)
    distributed.barrier()


SCENARIOS: dict[str, Callable[[Rank], None]] = {
    "rank 1 is killed": lambda this: steps(this, 1, signal_itself(signal.SIGKILL)),
    "rank 0 is killed": lambda this: steps(this, 0, signal_itself(signal.SIGKILL)),
    "rank 1 is killed, and collectives do not notice": lambda this: steps(
        this, 1, partial(leave_a_child_behind, this), collective=False
    ),
    "rank 1 is stopped": lambda this: steps(this, 1, signal_itself(signal.SIGSTOP)),
    "rank 0 is stopped": lambda this: steps(this, 0, signal_itself(signal.SIGSTOP)),
    "rank 2 loops": lambda this: steps(this, 2, loop),
    "rank 0 loops": lambda this: steps(this, 0, loop),
    "rank 1 fails": lambda this: steps(this, 1, fail),
    "rank 0 fails": lambda this: steps(this, 0, fail),
    "all fail": fail_on_all,
    "all continue": steps,
    "all read for long": read_long,
    "one reads for long": read_longer_on_one,
    "rank 1 is asked to stop": stop_on_one,
}
FAST = ("rank 1 is killed", "rank 1 is asked to stop")
STOPPED = {"rank 1 is stopped": 1, "rank 0 is stopped": 0}  # never ends


def run_scenario(scenario: Callable[[Rank], None], folder: Path, rank: int) -> None:
    """What imgrec.train does around a training."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest's go elsewhere
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    with Heartbeat(rank, RANKS, TIMEOUT_S, (folder / "log").write_text) as heartbeat:
        distributed.barrier()
        scenario(Rank(rank, heartbeat, folder))


class Outcome(NamedTuple):
    codes: list[int | None]
    out: list[str]
    err: list[str]
    log: str


@pytest.fixture(scope="module")
def outcome_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """All scenarios at once, or the fast ones where no slow test was chosen."""
    chosen = [item for item in request.session.items if item.path == request.path]
    names = SCENARIOS if any(item.get_closest_marker("slow") for item in chosen) else FAST
    folders = {name: tmp_path_factory.mktemp("heartbeat") for name in names}
    codes = {}
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(start_ranks(RANKS, partial(run_scenario, SCENARIOS[name], folders[name]))) for name in names
        }
        for name, ranks in started.items():
            join_ranks([process for rank, process in enumerate(ranks) if rank != STOPPED.get(name)])
            codes[name] = [process.exitcode for process in ranks]
            (folders[name] / "over").touch()

    def find(name: str) -> Outcome:
        texts = [[(folders[name] / f"{stream}{rank}").read_text() for rank in range(RANKS)] for stream in ("out", "err")]
        log = folders[name] / "log"
        return Outcome(codes[name], *texts, log.read_text() if log.exists() else "")

    return find


AGAIN = ("same command", "last checkpoint")


def line_of(err: str) -> str:
    """The one line of imgrec on a rank's stderr, where gloo may write too."""
    (line,) = [line for line in err.splitlines(keepends=True) if line.startswith("imgrec: ")]
    return line


@pytest.mark.parametrize(
    "name", slow_but("rank 1 is killed", among=["rank 1 is killed", "rank 1 is killed, and collectives do not notice"])
)
def test_killed(outcome_of: Callable[[str], Outcome], name: str) -> None:
    outcome = outcome_of(name)
    assert outcome.codes == [1, -signal.SIGKILL, 1], outcome
    assert_refused(line_of(outcome.err[0]), "rank 1", HOST, "pid", "died", "step 5 of epoch 1", *AGAIN)
    assert outcome.log in outcome.err[0]
    assert outcome.log.startswith("rank 1 on ")
    assert outcome.err[2] == ""


@pytest.mark.slow
def test_killed_first(outcome_of: Callable[[str], Outcome]) -> None:
    outcome = outcome_of("rank 0 is killed")
    assert outcome.codes == [-signal.SIGKILL, 1, 1], outcome
    for err in outcome.err[1:]:
        assert_refused(line_of(err), "rank 0", HOST, "pid", "died", "step 5 of epoch 1", *AGAIN)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_stopped(outcome_of: Callable[[str], Outcome], rank: int) -> None:
    outcome = outcome_of(f"rank {rank} is stopped")
    printing = 1 - rank
    assert outcome.codes[rank] is None, outcome
    assert outcome.codes[printing] == outcome.codes[2] == 1
    assert_refused(line_of(outcome.err[printing]), f"rank {rank}", HOST, "pid", "4 s", "step 5 of epoch 1", *AGAIN)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_loops(outcome_of: Callable[[str], Outcome], rank: int) -> None:
    outcome = outcome_of(f"rank {rank} loops")
    assert outcome.codes == [1, 1, 1], outcome
    others = ", ".join(str(other) for other in range(RANKS) if other != rank)
    slow = (f"rank {rank}", HOST, "pid", "step 5 of epoch 1", "in loop")
    assert_refused(outcome.err[0], "nothing has moved for 4 s", *slow, f"ranks {others}", "step 6", "trainer.timeout_s=8")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_fails(outcome_of: Callable[[str], Outcome], rank: int) -> None:
    outcome = outcome_of(f"rank {rank} fails")
    assert outcome.codes == [1, 1, 1], outcome
    assert "ValueError: no such thing\nand more" in outcome.err[rank]
    assert "imgrec: " not in outcome.err[rank]
    assert_refused(outcome.err[1 - rank], f"rank {rank}", HOST, "pid", "ValueError: no such thing", "Fix that", "same command")


@pytest.mark.slow
def test_all_fail_with_their_own_traceback(outcome_of: Callable[[str], Outcome]) -> None:
    outcome = outcome_of("all fail")
    assert outcome.codes == [1, 1, 1], outcome
    assert all("ValueError: no such thing" in err and "imgrec: " not in err for err in outcome.err)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all continue", "all read for long"])
def test_nothing_wrong(outcome_of: Callable[[str], Outcome], name: str) -> None:
    outcome = outcome_of(name)
    assert (outcome.codes, outcome.err, outcome.log) == ([0, 0, 0], ["", "", ""], ""), outcome


@pytest.mark.slow
def test_reads_while_others_wait(outcome_of: Callable[[str], Outcome]) -> None:
    outcome = outcome_of("one reads for long")
    assert outcome.codes == [1, 1, 1], outcome
    reads = ("rank 2", HOST, "pid", "reading the data")
    assert_refused(outcome.err[0], "nothing has moved for 4 s", *reads, "ranks 0, 1", "step 0")


def test_stop_reaches_all(outcome_of: Callable[[str], Outcome]) -> None:
    outcome = outcome_of("rank 1 is asked to stop")
    assert outcome.out == ["SIGTERM on rank 1\n", "SIGTERM\n", "SIGTERM on rank 1\n"], outcome
    assert outcome.codes == [0, 0, 0]


def status(rank: int, doing: str = "training step 5", at: str = "", **more: Any) -> RankStatus:
    return RankStatus(rank, last_message_at=100.0, progress_at=0.0, host="n1", pid=10 + rank, doing=doing, at=at, **more)


WAITS = "waiting for the others before step 6"


@pytest.mark.parametrize(
    ("doing", "behind"),
    [
        ([WAITS, "training step 5", WAITS], [1]),
        ([WAITS, "training step 5", "training step 5"], [1, 2]),
        (["waiting for data of step 7", "training step 6", "waiting for data of step 6"], [1, 2]),
        (["waiting for the others before step 12", "waiting for the others before step 9", WAITS], [2]),
        (["validating batch 4 of epoch 3", WAITS, WAITS], [0]),
        (["training step 5 (collective)", "training step 5", "training step 5 (collective)"], [1]),
        (["training step 5 (collective)", WAITS, "training step 5 (collective)"], [0, 2]),
    ],
)
def test_who_is_behind(doing: list[str], behind: list[int]) -> None:
    inside = "torch/autograd/graph.py:829 in _engine_run_backward"
    statuses = [
        status(rank, text.removesuffix(" (collective)"), inside if "collective" in text else "")
        for rank, text in enumerate(doing)
    ]
    assert [lagging.rank for lagging in lagging_ranks(statuses)] == behind
    assert find_hang(statuses, 99.0, 100.0) is None
    line = find_hang(statuses, 100.0, 100.0)
    assert line is not None
    assert_error(line, "nothing has moved for 100 s", "rank")
    statuses[0].progress_at = 0.1
    assert find_hang(statuses, 100.0, 100.0) is None


def test_what_is_no_hang() -> None:
    inside = "torch/distributed/distributed_c10d.py:3001 in barrier"
    alone = [status(0, "reading the data"), status(1, "starting"), status(2, "compiling the network for step 1")]
    assert find_hang(alone, 1e6, 100.0) is None
    assert find_hang([*alone, status(3, WAITS)], 1e6, 100.0) is not None
    assert find_hang([*alone, status(3, "starting", inside)], 1e6, 100.0) is not None
    assert find_hang([*alone, status(3, WAITS, left="finished")], 1e6, 100.0) is None


def test_many_at_once() -> None:
    statuses = [status(rank, disconnected_at=50.0 if 2 <= rank < 10 else None) for rank in range(16)]
    assert find_dead(statuses, 50.1, 100.0) is None  # there may be more
    named = [part for rank in (2, 3, 4) for part in (f"rank {rank}", "n1", f"pid {10 + rank}", "died", "step 5")]
    assert_error(find_dead(statuses, 51.0, 100.0) or "", *named, "5 other ranks", *AGAIN)
    early = find_dead([RankStatus(0, 49.0, 49.0, disconnected_at=50.0), status(1)], 51.0, 100.0) or ""
    assert early.startswith("rank 0 died while starting"), early  # before it said its host and pid
    assert find_dead([status(0, disconnected_at=50.0, left="finished"), status(1)], 60.0, 100.0) is None
    assert find_dead([status(0, left="finished"), status(1, left="stopped")], 1e6, 100.0) is None


def test_other_connections_do_not_reach_the_status_of_a_rank(tmp_path: Path) -> None:
    heartbeat = Heartbeat(0, 2, 10.0, (tmp_path / "log").write_text)
    _, port, secret = heartbeat._connections.listen()
    heartbeat._statuses = {rank: RankStatus(rank, 0.0, 0.0) for rank in (0, 1)}
    heartbeat._thread.start()
    for line in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "left": "finished"}\n', b"[" * 100_000 + b"\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as unknown, suppress(ConnectionError):
            unknown.sendall(line)
            assert unknown.recv(100) == b"", line
    assert heartbeat._connections.lines == {}
    assert "127.0.0.1" in (tmp_path / "log").read_text()
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as rank:
        first = signed(json.dumps({"rank": 1, "host": "n2", "pid": 7}).encode(), secret)
        rank.sendall(first + b'\n{"left": "finished", "failed": false}\n')
        assert b'"doing": "starting"' in rank.recv(1000)
    assert heartbeat._statuses[1].left == "finished"
    heartbeat.close()


@pytest.mark.parametrize(
    ("error", "of_the_network"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1234"), True),
        (RuntimeError("Timed out waiting 3000ms for recv operation to complete"), True),
        (distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1234, remote process exited"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (ValueError("no such peer"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x5 and 6x7)"), False),
    ],
)
def test_which_errors_come_from_another_rank(error: Exception, of_the_network: bool) -> None:
    assert _is_of_the_network(error) == of_the_network
    outer = KeyError("outer")
    outer.__cause__ = error
    assert _is_of_the_network(outer) == of_the_network


def test_alone_it_does_nothing() -> None:
    with Heartbeat(0, 1, 1.0, print) as heartbeat:
        heartbeat.doing = "training step 1"
        assert heartbeat.explain(RuntimeError("Connection closed by peer")) is None
