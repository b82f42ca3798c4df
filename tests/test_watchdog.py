"""imgrec.distributed.watchdog, in processes of its own: it ends them. Their clock is turned by hand."""

import subprocess
import sys

import pytest
from error_parts import assert_refused
from marks import slow_but
from processes import run_command

from imgrec.distributed import watchdog
from imgrec.train import fit

SCRIPT = """
import os, signal, time
from types import SimpleNamespace
from imgrec.distributed import signals, watchdog

now, passes, stop_reason = [0.0], [], signals.stop_reason
watchdog.time = signals.time = SimpleNamespace(monotonic=lambda: now[0])
signals.stop_reason = lambda: (passes.append(1), stop_reason())[1]


def print_now(line):
    print(line, flush=True)


def turn_clock(seconds):
    '''Lets the watchdog look at it: of two more times that it begins to, one is over.'''
    now[0] += seconds
    seen = len(passes)
    while len(passes) < seen + 2:
        time.sleep(0.001)


def ask_to_stop():
    turn_clock(0)
    os.kill(os.getpid(), signal.SIGTERM)
    turn_clock(0.9)
    print_now("in time")


signals.install_handlers()
watchdog.GRACE_S, watchdog.SAVING_S = 1, 5
note, leave = (lambda line: print_now("log: " + line)), (lambda line: print_now("left: " + line))
with watchdog.Watchdog(grace_s={grace}, note=note, leave=leave) as watched:
    with watched.save(step=12):
        pass
    {then}
print("out of the block")
"""


def run_watchdog(then: str, grace: object = "'auto'") -> subprocess.CompletedProcess[str]:
    return run_command(sys.executable, "-c", SCRIPT.format(then=then, grace=grace))


@pytest.mark.parametrize(
    "busy", slow_but("while True: pass", among=["time.sleep(1000)", "while True: pass", "sum(1 for _ in iter(int, 1))"])
)
def test_no_step_boundary(busy: str) -> None:
    done = run_watchdog(f"ask_to_stop(); now[0] += 0.2\n    {busy}")
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "1 s", "since step 12", "same command")
    line = done.stderr.removeprefix("imgrec: ").partition(". ")[0]
    assert done.stdout == f"in time\nleft: {line}\n{done.stderr.replace('imgrec', 'log', 1)}"


def boundaries(*seconds: float) -> str:
    """Steps of these lengths."""
    passed = [f"now[0] += {length}; watched.pass_boundary()" for length in seconds]
    return "; ".join(["watched.pass_boundary()", *passed])


@pytest.mark.parametrize(
    ("seconds", "grace"), slow_but(((4.0, 0.1, 0.3), 12), among=[((), 1), ((0.1, 0.2), 1), ((4.0, 0.1, 0.3), 12), ((0.5,), 1.5)])
)
def test_long_steps_are_waited_for(seconds: tuple[float, ...], grace: float) -> None:
    """Three times the longest so far, GRACE_S (1 here) at least."""
    asked = f"{boundaries(*seconds)}; ask_to_stop(); turn_clock({grace} - 1); print_now('waits')"
    done = run_watchdog(f"{asked}; turn_clock(0.2)")
    assert (done.returncode, done.stdout.split("\n")[:2]) == (75, ["in time", "waits"])
    assert_refused(done.stderr, "stopped by SIGTERM", f"{grace:g} s (trainer.grace_s)", "since step 12")
    saved = run_watchdog(f"{asked}; watched.saving = True; turn_clock(0.2); turn_clock(1)")
    assert (saved.returncode, saved.stdout, saved.stderr) == (0, "in time\nwaits\nout of the block\n", "")


def test_the_key_decides_whatever_was_measured() -> None:
    done = run_watchdog(f"{boundaries(4.0)}; ask_to_stop(); turn_clock(0.2)", grace=1.0)
    assert (done.returncode, done.stdout.split("\n")[0]) == (75, "in time")
    done = run_watchdog("ask_to_stop(); turn_clock(6.0)", grace=7)
    assert (done.returncode, done.stdout) == (0, "in time\nout of the block\n")


def test_a_run_passes_a_boundary_before_each_step_and_each_batch_of_an_evaluation(small, monkeypatch) -> None:
    passed = []
    monkeypatch.setattr(watchdog.Watchdog, "pass_boundary", lambda *watchdog: passed.append(watchdog))
    fit(small(), quiet=True)  # two steps, a batch of validation, one of the test
    assert len(passed) == 4


def test_nothing_saved_ever() -> None:
    done = run_watchdog("watched.saved_step = None; ask_to_stop(); turn_clock(0.2)")
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "1 s", "nothing was saved", "same command")


def test_a_disk_without_room_for_a_temporary_folder() -> None:
    done = run_watchdog(
        "signals.get_temp_dir = lambda: os.mkdir('/dev/full/none'); ask_to_stop(); now[0] += 0.2; time.sleep(1000)"
    )
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "1 s", "since step 12", "same command")


@pytest.mark.parametrize("save", ["watched.saving = True", "watched.save_ended = now[0]"])
def test_a_save_that_began_in_time_may_take_longer(save: str) -> None:
    done = run_watchdog(f"ask_to_stop(); {save}; turn_clock(0); turn_clock(4.9)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in time\nout of the block\n", "")


def test_but_not_for_ever() -> None:
    done = run_watchdog("ask_to_stop(); watched.saving = True; turn_clock(0); turn_clock(5.1)")
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "the save", "5 s", "same command")
