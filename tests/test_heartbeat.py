"""imgrec.distributed.heartbeat, with real processes: `python tests/test_heartbeat.py FOLDER` plays all scenes at once after importing torch once."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import distributed

from imgrec.distributed import signals
from imgrec.distributed.diagnosis import RankStatus, find_dead, find_hang, lagging_ranks
from imgrec.distributed.heartbeat import Heartbeat, _is_of_the_network

RANKS = 3
TIMEOUT_S = 2.0
FEW_S = 20.0  # on top of it: the machine may be busy with other things
HOST = socket.gethostname()


def steps(rank: int, heartbeat: Heartbeat, at_five: Callable[[], Any], collective: bool = True, count: int = 8) -> None:
    for step in range(count):
        heartbeat.doing = f"waiting for the others before step {step}"
        if collective or step < 5:
            distributed.all_reduce(torch.ones(1))
        elif step == 6:
            time.sleep(600)  # what a collective of NCCL does when another process is gone
        heartbeat.doing = f"training step {step} of epoch 1"
        if step == 5:
            time.sleep(1.2)  # so that the others have heard of step 5
            at_five()
        time.sleep(0.02)


def on(rank: int, at: int, do: Callable[[], Any]) -> Callable[[], Any]:
    return do if rank == at else lambda: None


def me(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("no such thing\nand more")


def loop() -> None:
    while True:
        sum(range(10_000))


def leave_a_child_behind() -> None:
    if os.fork() == 0:
        time.sleep(15)
        os._exit(0)
    me(signal.SIGKILL)()


def read_long(rank: int, heartbeat: Heartbeat) -> None:
    heartbeat.doing = "reading the data"
    time.sleep(2 * TIMEOUT_S)
    steps(rank, heartbeat, lambda: None)


def read_longer_on_one(rank: int, heartbeat: Heartbeat) -> None:
    heartbeat.doing = "reading the data" if rank == 2 else "waiting for the others before step 0"
    if rank == 2:
        time.sleep(600)
    distributed.all_reduce(torch.ones(1))


def be_asked(rank: int, heartbeat: Heartbeat) -> None:
    if rank == 1:
        signals.request_stop("SIGTERM")
    until = time.monotonic() + FEW_S
    while signals.stop_reason() is None and time.monotonic() < until:
        time.sleep(0.05)
    print(signals.stop_reason(), flush=True)
    distributed.barrier()


SCENES: dict[str, Callable[[int, Heartbeat], None]] = {
    "rank 1 is killed": lambda rank, beat: steps(rank, beat, on(rank, 1, me(signal.SIGKILL))),
    "rank 0 is killed": lambda rank, beat: steps(rank, beat, on(rank, 0, me(signal.SIGKILL))),
    "rank 1 is killed, and collectives do not notice": lambda rank, beat: steps(
        rank, beat, on(rank, 1, leave_a_child_behind), collective=False
    ),
    "rank 1 is stopped": lambda rank, beat: steps(rank, beat, on(rank, 1, me(signal.SIGSTOP))),
    "rank 0 is stopped": lambda rank, beat: steps(rank, beat, on(rank, 0, me(signal.SIGSTOP))),
    "rank 2 loops": lambda rank, beat: steps(rank, beat, on(rank, 2, loop)),
    "rank 0 loops": lambda rank, beat: steps(rank, beat, on(rank, 0, loop)),
    "rank 1 fails": lambda rank, beat: steps(rank, beat, on(rank, 1, fail)),
    "rank 0 fails": lambda rank, beat: steps(rank, beat, on(rank, 0, fail)),
    "all fail": lambda rank, beat: steps(rank, beat, fail),
    "all go on": lambda rank, beat: steps(rank, beat, lambda: None),
    "all read for long": read_long,
    "one reads for long": read_longer_on_one,
    "rank 1 is asked to stop": be_asked,
}


def play(scene: Callable[[int, Heartbeat], None], rank: int, port: int, folder: Path) -> int:
    """What imgrec.train does around a training."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY), stream)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    try:
        with Heartbeat(rank, RANKS, TIMEOUT_S, (folder / "log").write_text) as heartbeat:
            distributed.barrier()
            (folder / f"began{rank}").touch()
            scene(rank, heartbeat)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main(folder: Path) -> None:
    children = {}
    for number, (name, scene) in enumerate(SCENES.items()):
        (folder / str(number)).mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank in range(RANKS):
            child = os.fork()
            if child == 0:
                os._exit(play(scene, rank, port, folder / str(number)))
            children[child] = (name, number, rank)
    codes: dict[str, dict[int, int | None]] = {name: {} for name in SCENES}
    seconds = dict.fromkeys(SCENES, 0.0)
    until = time.monotonic() + 4 * FEW_S
    while children and time.monotonic() < until:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            stopped = {key for key in children if Path(f"/proc/{key}/stat").read_text().rpartition(")")[2].split()[0] == "T"}
            if stopped == children.keys():
                break
            time.sleep(0.05)
            continue
        name, number, rank = children.pop(child)
        codes[name][rank] = os.waitstatus_to_exitcode(status)
        began = folder / str(number) / f"began{rank}"
        seconds[name] = max(seconds[name], time.time() - began.stat().st_mtime if began.exists() else 0.0)
    for child, (name, _, rank) in children.items():  # stopped ones, and what should not be
        codes[name][rank] = None
        os.kill(child, signal.SIGKILL)
    (folder / "played.json").write_text(json.dumps([codes, seconds]))


class Played(NamedTuple):
    codes: list[int | None]
    seconds: float
    out: list[str]
    err: list[str]
    log: str


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Played]:
    folder = tmp_path_factory.mktemp("heartbeat")
    words = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True) as playing:
        try:
            assert playing.wait(timeout=150) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):  # all have ended; else one was left behind by a rank, or hangs
                os.killpg(playing.pid, signal.SIGKILL)
    codes, seconds = json.loads((folder / "played.json").read_text())

    def find(name: str) -> Played:
        place = folder / str(list(SCENES).index(name))
        texts = [[(place / f"{stream}{rank}").read_text() for rank in range(RANKS)] for stream in ("out", "err")]
        log = (place / "log").read_text() if (place / "log").exists() else ""
        return Played([codes[name][str(rank)] for rank in range(RANKS)], seconds[name], *texts, log)

    return find


AGAIN = "Start the same command again to go on from the last checkpoint."


def test_killed(played: Callable[[str], Played]) -> None:
    for name in ("rank 1 is killed", "rank 1 is killed, and collectives do not notice"):
        scene = played(name)
        assert scene.codes == [1, -signal.SIGKILL, 1], scene
        assert f"imgrec: rank 1 on {HOST} (pid " in scene.err[0], scene
        assert f") died while training step 5 of epoch 1. {AGAIN}\n" in scene.err[0]
        assert scene.log in scene.err[0]
        assert scene.log.startswith("rank 1 on ")
        assert scene.err[2] == ""
        assert scene.seconds < TIMEOUT_S + FEW_S


def test_killed_first(played: Callable[[str], Played]) -> None:
    scene = played("rank 0 is killed")
    assert scene.codes == [-signal.SIGKILL, 1, 1], scene
    for err in scene.err[1:]:
        assert f"imgrec: rank 0 on {HOST} (pid " in err
        assert f") died while training step 5 of epoch 1. {AGAIN}\n" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped(played: Callable[[str], Played], rank: int) -> None:
    scene = played(f"rank {rank} is stopped")
    speaker = 1 - rank
    assert scene.codes[rank] is None, scene
    assert scene.codes[speaker] == scene.codes[2] == 1
    assert f"imgrec: rank {rank} on {HOST} (pid " in scene.err[speaker]
    assert ") has given no sign for 2 s; it was training step 5 of epoch 1. " in scene.err[speaker]
    assert scene.seconds < TIMEOUT_S + FEW_S


@pytest.mark.parametrize("rank", [0, 2])
def test_loops(played: Callable[[str], Played], rank: int) -> None:
    scene = played(f"rank {rank} loops")
    assert scene.codes == [1, 1, 1], scene
    assert scene.err[0].startswith(f"imgrec: nothing has moved for 2 s: rank {rank} on {HOST} (pid ")
    others = ", ".join(str(other) for other in range(RANKS) if other != rank)
    assert ") is training step 5 of epoch 1 (at " in scene.err[0]
    assert f" in loop); ranks {others} are waiting for the others before step 6. " in scene.err[0]
    assert scene.err[0].endswith("If it was only slow, set trainer.timeout_s=4.\n")
    assert scene.seconds < TIMEOUT_S + FEW_S


@pytest.mark.parametrize("rank", [0, 1])
def test_fails(played: Callable[[str], Played], rank: int) -> None:
    scene = played(f"rank {rank} fails")
    assert scene.codes == [1, 1, 1], scene
    assert "ValueError: no such thing\nand more" in scene.err[rank]
    assert "imgrec: " not in scene.err[rank]
    line = ") failed: ValueError: no such thing. Fix that, then start the same command again to go on.\n"
    speaker = 1 - rank
    assert scene.err[speaker].startswith(f"imgrec: rank {rank} on {HOST} (pid ")
    assert scene.err[speaker].endswith(line)


def test_all_fail_by_their_own_words(played: Callable[[str], Played]) -> None:
    scene = played("all fail")
    assert scene.codes == [1, 1, 1], scene
    assert all("ValueError: no such thing" in err and "imgrec: " not in err for err in scene.err)


@pytest.mark.parametrize("name", ["all go on", "all read for long"])
def test_nothing_wrong(played: Callable[[str], Played], name: str) -> None:
    scene = played(name)
    assert (scene.codes, scene.err, scene.log) == ([0, 0, 0], ["", "", ""], ""), scene


def test_reads_while_others_wait(played: Callable[[str], Played]) -> None:
    scene = played("one reads for long")
    assert scene.codes == [1, 1, 1], scene
    assert scene.err[0].startswith(f"imgrec: nothing has moved for 2 s: rank 2 on {HOST} (pid ")
    assert " is reading the data (at " in scene.err[0]
    assert "; ranks 0, 1 are waiting for the others before step 0. " in scene.err[0]


def test_stop_reaches_all(played: Callable[[str], Played]) -> None:
    scene = played("rank 1 is asked to stop")
    assert scene.out == ["SIGTERM on rank 1\n", "SIGTERM\n", "SIGTERM on rank 1\n"], scene
    assert scene.codes == [0, 0, 0]


def peer(rank: int, doing: str = "training step 5", at: str = "", **more: Any) -> RankStatus:
    return RankStatus(rank, heard=100.0, moved=0.0, host="n1", pid=10 + rank, doing=doing, at=at, **more)


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
    peers = [
        peer(rank, text.removesuffix(" (collective)"), inside if "collective" in text else "") for rank, text in enumerate(doing)
    ]
    assert [found.rank for found in lagging_ranks(peers)] == behind
    assert find_hang(peers, 99.0, 100.0) is None
    line = find_hang(peers, 100.0, 100.0)
    assert line is not None
    assert line.startswith("nothing has moved for 100 s: rank ")
    peers[0].moved = 0.1
    assert find_hang(peers, 100.0, 100.0) is None


def test_what_is_no_hang() -> None:
    inside = "torch/distributed/distributed_c10d.py:3001 in barrier"
    alone = [peer(0, "reading the data"), peer(1, "starting"), peer(2, "compiling the network for step 1")]
    assert find_hang(alone, 1e6, 100.0) is None
    assert find_hang([*alone, peer(3, WAITS)], 1e6, 100.0) is not None
    assert find_hang([*alone, peer(3, "starting", inside)], 1e6, 100.0) is not None
    assert find_hang([*alone, peer(3, WAITS, left="finished")], 1e6, 100.0) is None


def test_many_at_once() -> None:
    peers = [peer(rank, cut=50.0 if 2 <= rank < 10 else None) for rank in range(16)]
    assert find_dead(peers, 50.1, 100.0) is None  # there may be more
    assert find_dead(peers, 51.0, 100.0) == (
        "rank 2 on n1 (pid 12) died while training step 5; rank 3 on n1 (pid 13) died while training step 5; "
        f"rank 4 on n1 (pid 14) died while training step 5; and 5 other ranks. {AGAIN}"
    )
    assert find_dead([peer(0, cut=50.0, left="finished"), peer(1)], 60.0, 100.0) is None
    assert find_dead([peer(0, left="finished"), peer(1, left="stopped")], 1e6, 100.0) is None


def test_strangers_are_sent_away() -> None:
    heartbeat = Heartbeat(0, 2, 10.0, print)
    _, port, token = heartbeat._connections.listen()
    heartbeat._statuses = {rank: RankStatus(rank, 0.0, 0.0) for rank in (0, 1)}
    heartbeat._thread.start()
    for words in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"rank": 1, "token": "guessed"}\n',
        b"[]\n",
        b"7\n",
        b"\xff\xfe\n",
        b'{"rank": 1}\n',
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as stranger:
            stranger.sendall(words)
            assert stranger.recv(100) == b"", words
    assert heartbeat._connections.lines == {}
    with socket.create_connection(("127.0.0.1", port), timeout=20) as rank:
        rank.sendall(
            json.dumps({"rank": 1, "token": token, "host": "n2", "pid": 7}).encode()
            + b'\n{"left": "finished", "failed": false}\n'
        )
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
