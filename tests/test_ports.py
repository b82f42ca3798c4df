"""The ports of a run: at which address they are, and what the bytes of other programs do there."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from error_parts import assert_refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import LIMIT_S, run_command, run_ranks, torchrun_variables, wait_until
from torch import distributed

from imgrec.distributed import launcher, ports
from imgrec.distributed.heartbeat import Heartbeat
from imgrec.distributed.launcher import RankProcess
from imgrec.distributed.process_group import connect
from imgrec.distributed.transport import LINE_LIMIT, MOST_UNKNOWN, Transport
from imgrec.distributed.world import World, read_world

Attack = list[bytes]


@contextmanager
def transports(size: int = 3) -> Iterator[tuple[Transport, list[str], list[str], int, bytes]]:
    """Rank 0 that listens, what it notes, and how to reach it."""
    notes: list[str] = []
    with closing(Transport(0, size, notes.append)) as first:
        hosts, port, secret = first.listen()
        yield first, notes, hosts, port, secret


def read_all(transport: Transport) -> list[tuple[int, object]]:
    return [item for _ in range(4) for item in transport.read(0)]


def dropped(other: socket.socket) -> bool:
    """Whether the other end has closed the connection."""
    other.setblocking(False)
    try:
        return other.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@settings(max_examples=30)
@given(st.lists(st.lists(st.binary(max_size=300), max_size=4), max_size=4))
@example([[b"[" * 60_000 + b"\n"]])  # deeper than Python's stack
@example([[b'{"rank": 1, "host": "n2", "pid": 7}\n'], [b'{"rank": 1} {"rank": 1}\n'], [b"0" * 64 + b' {"rank": 1}\n']])
@example([[b"\n" * 1000], [b"GET / HTTP/1.1\r\n\r\n"], [b"7\n"], [b"\xff\xfe\n"], ['{"rank": "é"}\n'.encode()]])
def test_unknown_connections_are_dropped_with_one_line_and_the_ranks_come_through(attacks: list[Attack]) -> None:
    with transports() as (first, notes, hosts, port, secret), ExitStack() as stack:
        others = [stack.enter_context(socket.create_connection((hosts[0], port))) for _ in attacks]
        for other, attack in zip(others, attacks, strict=True):
            for part in attack:
                assert read_all(first) == []
                try:
                    other.sendall(part)
                except ConnectionError:  # it has been dropped
                    break
        assert read_all(first) == []
        with closing(Transport(1, 3, print)) as one, closing(Transport(2, 3, print)) as two:
            for rank in (one, two):
                rank.connect(hosts, port, secret, {"host": f"n{rank.rank}"}, 10)
                rank.send({"doing": "é" * 1000})
            seen: list[tuple[int, object]] = []
            wait_until(lambda: seen.extend(read_all(first)) or len(seen) == 4)
            for rank in (1, 2):
                assert [message for number, message in seen if number == rank] == [
                    {"rank": rank, "host": f"n{rank}"},
                    {"doing": "é" * 1000},
                ]
            assert read_all(first) == []
            assert all(map(dropped, others))
            assert len(notes) == bool(attacks)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((hosts[0], port))
            first.send({"end": "x"})
            assert [list(rank.read(10)) for rank in (one, two)] == [[(0, {"end": "x"})]] * 2


def test_a_line_without_an_end_is_dropped_at_the_limit() -> None:
    with transports() as (first, notes, hosts, port, _), socket.create_connection((hosts[0], port)) as other:
        other.setblocking(False)
        read = 0
        while not notes:
            try:
                while True:
                    other.send(b"x" * LINE_LIMIT)
            except BlockingIOError:
                pass
            read += 1
            assert read_all(first) == []
        assert read <= 2  # of up to 4 times LINE_LIMIT bytes
        assert dropped(other)


def test_idle_connections_are_bounded_and_keep_no_rank_out() -> None:
    with transports(2) as (first, notes, hosts, port, secret), closing(Transport(1, 2, print)) as one, ExitStack() as stack:
        idle = []
        for _ in range(3 * MOST_UNKNOWN):
            idle.append(stack.enter_context(socket.create_connection((hosts[0], port))))
            assert list(first.read(0)) == []
        assert sum(not dropped(other) for other in idle) == MOST_UNKNOWN + 1
        one.connect(hosts, port, secret, {}, 10)
        seen: list[tuple[int, object]] = []
        wait_until(lambda: seen.extend(first.read(0)) or seen)
        assert seen == [(1, {"rank": 1})]
        read_all(first)
        assert all(map(dropped, idle))
        assert len(notes) == 1


def test_a_copy_of_the_line_of_a_rank_is_dropped() -> None:
    with transports(3) as (first, notes, hosts, port, secret), closing(Transport(1, 3, print)) as one:
        with socket.create_server(("127.0.0.1", 0)) as eavesdropper:
            one.connect(["127.0.0.1"], eavesdropper.getsockname()[1], secret, {}, 10)
            with eavesdropper.accept()[0] as overheard:
                line = overheard.recv(1000)
        seen: list[tuple[int, object]] = []
        with socket.create_connection((hosts[0], port)) as real, socket.create_connection((hosts[0], port)) as copy:
            real.sendall(line)
            wait_until(lambda: seen.extend(first.read(0)) or seen)
            copy.sendall(line)
            wait_until(lambda: seen.extend(first.read(0)) or notes)
            assert seen == [(1, {"rank": 1})]
            assert dropped(copy)
            assert not dropped(real)


def listening() -> list[str]:
    """The addresses at which this process listens."""
    sockets = set()
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink():
            sockets.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    addresses = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = [raw[at : at + 4][::-1] for at in range(0, len(raw), 4)]
                addresses.append(socket.inet_ntop(family, b"".join(words)))
    return addresses


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads /proc")
def test_nothing_of_a_run_on_one_machine_listens_where_another_machine_can_reach_it() -> None:
    def work(rank: int) -> list[str]:
        before = listening()
        del os.environ["GLOO_SOCKET_IFNAME"]
        connect(read_world(), timeout_s=LIMIT_S)
        with Heartbeat(rank, 2, LIMIT_S, print):
            distributed.barrier()
            return [address for address in listening() if address not in before]

    first, second = run_ranks(2, work)
    assert set(first + second) == {"127.0.0.1"}
    assert first  # the store


def own_address() -> str:
    """An address of this machine that is not a loopback one; no packet is sent."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        address: str = probe.getsockname()[0]
        return address


@pytest.mark.parametrize(("world", "host", "everywhere"), [
    (World(0, 2, 0, 2), "127.0.0.1", False),
    (World(0, 2, 0, 2), "localhost", False),
    (World(0, 2, 0, 1, 2), "own", False),
    (World(0, 2, 0, 1, 2), "127.0.1.1", True),
    (World(0, 2, 0, 1, 2), "192.0.2.1", True),  # of a router in front of this machine
])  # fmt: skip
def test_rank_0_listens_at_the_address_that_the_others_use(world: World, host: str, everywhere: bool) -> None:
    host = own_address() if host == "own" else host
    with ports.open_port(host, 0, world) as listener:
        address, port = listener.getsockname()[:2]
        assert address == (
            "::" if everywhere and socket.has_dualstack_ipv6() else "0.0.0.0" if everywhere else socket.gethostbyname(host)
        )
        if host != "192.0.2.1":
            socket.create_connection((host, port)).close()


@pytest.mark.slow
@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_10\r\n", bytes(9), b""])
def test_another_server_at_the_port_of_rank_0_is_one_line(banner: bytes) -> None:
    """torch reads what it says as an answer, and prints C++ frames."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            while True:
                try:
                    with server.accept()[0] as other:
                        other.sendall(banner)
                        other.recv(100)
                except ConnectionError:
                    continue
                except OSError:  # the end of the test
                    return

        threading.Thread(target=answer, daemon=True).start()
        variables = torchrun_variables(1, 2, port=port, nodes=2) | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
        words = ["train", "data=digits", "trainer.accelerator=cpu", "trainer.timeout_s=1"]
        done = run_command(sys.executable, "-m", "imgrec.cli", *words, env=os.environ | variables)
        server.shutdown(socket.SHUT_RDWR)
    assert done.returncode == 2
    assert_refused(done.stderr, "rank 1", f"127.0.0.1:{port}", "MASTER_PORT", "trainer.timeout_s=2")


def bind(port: int) -> None:
    with socket.socket() as another:
        another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        another.bind(("127.0.0.1", port))


def test_nobody_else_can_take_the_port_of_a_run_while_its_ranks_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: list[RankProcess] = []

    def start(command: list[str], *, env: dict[str, str], pass_fds: list[int]) -> None:
        with pytest.raises(OSError, match="in use"):
            bind(int(env["MASTER_PORT"]))
        if env["RANK"] == "0":
            with socket.socket(fileno=os.dup(pass_fds[1])) as given:
                assert given.getsockname() == (env["MASTER_ADDR"], int(env["MASTER_PORT"]))
                assert env["IMGREC_SOCKET"] == str(pass_fds[1])

    monkeypatch.setattr("subprocess.Popen", start)
    launcher._start(["python", str(tmp_path / "task.json")], ranks, 2, tmp_path, 0)
    assert [one.rank for one in ranks] == [0, 1]


def test_rank_0_listens_with_the_socket_that_the_launcher_has_bound() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]

        def work(rank: int) -> str:
            os.environ |= {"MASTER_PORT": str(port), "IMGREC_SOCKET": str(bound.fileno())}
            connect(read_world(), timeout_s=LIMIT_S)
            with pytest.raises(OSError, match="in use"):
                bind(port)
            return os.environ.get("IMGREC_SOCKET", "taken")

        assert run_ranks(2, work) == ["taken", str(bound.fileno())]
