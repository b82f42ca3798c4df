"""imgrec.distributed.watchdog, in processes of its own: it ends them. Their clock is turned by hand."""

import subprocess
import sys

import pytest
from error_parts import assert_refused
from processes import run_command

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
with watchdog.Watchdog(note=note, leave=leave) as watched:
    with watched.save(step=12):
        pass
    {then}
print("out of the block")
"""


def run_watchdog(then: str) -> subprocess.CompletedProcess[str]:
    return run_command(sys.executable, "-c", SCRIPT.format(then=then))


@pytest.mark.parametrize("busy", ["time.sleep(1000)", "while True: pass", "sum(1 for _ in iter(int, 1))"])
def test_no_step_boundary(busy: str) -> None:
    done = run_watchdog(f"ask_to_stop(); now[0] += 0.2\n    {busy}")
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "1 s", "since step 12", "same command")
    line = done.stderr.removeprefix("imgrec: ").partition(". ")[0]
    assert done.stdout == f"in time\nleft: {line}\n{done.stderr.replace('imgrec', 'log', 1)}"


def test_nothing_saved_ever() -> None:
    done = run_watchdog("watched.saved_step = None; ask_to_stop(); turn_clock(0.2)")
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "1 s", "nothing was saved", "same command")


@pytest.mark.parametrize("save", ["watched.saving = True", "watched.save_ended = now[0]"])
def test_a_save_that_began_in_time_may_take_longer(save: str) -> None:
    done = run_watchdog(f"ask_to_stop(); {save}; turn_clock(0); turn_clock(4.9)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in time\nout of the block\n", "")


def test_but_not_for_ever() -> None:
    done = run_watchdog("ask_to_stop(); watched.saving = True; turn_clock(0); turn_clock(5.1)")
    assert done.returncode == 75
    assert_refused(done.stderr, "stopped by SIGTERM", "the save", "5 s", "same command")
