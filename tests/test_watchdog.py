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
watchdog.min = lambda *seconds: 0.01  # it looks at the clock so often, not ten times in GRACE_S
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


def boundaries(*steps: tuple[str, float], then: str = "t") -> str:
    """Steps of these kinds and lengths, and the start of one more."""
    passed = [f"watched.pass_boundary({kind!r}); now[0] += {length}" for kind, length in steps]
    return "; ".join([*passed, f"watched.pass_boundary({then!r})"])


# Training steps and batches of an evaluation, the first of which compile.
T, V = (("t", 30.0), ("t", 0.1), ("t", 0.3)), (("v", 20.0), ("v", 0.2))


@pytest.mark.parametrize(
    ("steps", "then", "grace"),
    slow_but(
        ((("t", 30.0), ("t", 4.0), ("t", 0.1)), "t", 12),
        (T, "v", 90),
        among=[
            ((), "t", 1),
            ((("t", 0.1), ("t", 0.2)), "t", 1),
            ((("t", 30.0), ("t", 4.0), ("t", 0.1)), "t", 12),
            ((("t", 30.0),), "t", 90),  # optim=gd: each epoch has one step
            (T, "t", 1),
            (T, "v", 90),
            ((*T, *V), "t", 1),
            ((*T, *V), "v", 1),
            ((*T, *V), "another shape", 90),
            ((*T, ("v", 20.0), ("t", 0.1)), "v", 60),
        ],
    ),
)
def test_long_steps_are_waited_for(steps: tuple[tuple[str, float], ...], then: str, grace: float) -> None:
    """Three times the longest of this kind but the first, which compiles; a kind that is new may take as long as any so far."""
    asked = f"{boundaries(*steps, then=then)}; ask_to_stop(); turn_clock({grace} - 1); print_now('waits')"
    done = run_watchdog(f"{asked}; turn_clock(0.2)")
    assert (done.returncode, done.stdout.split("\n")[:2]) == (75, ["in time", "waits"])
    assert_refused(done.stderr, "stopped by SIGTERM", f"{grace:g} s (trainer.grace_s)", "since step 12")
    saved = run_watchdog(f"{asked}; watched.saving = True; turn_clock(0.2); turn_clock(1)")
    assert (saved.returncode, saved.stdout, saved.stderr) == (0, "in time\nwaits\nout of the block\n", "")


def test_a_step_of_another_kind_does_not_shorten_the_grace_of_a_request() -> None:
    """Several ranks stop after up to two steps: the second may be a short one of training after a long batch of validation."""
    steps = (*T, ("v", 20.0), ("v", 20.0))
    stopped = f"{boundaries(*steps, then='v')}; ask_to_stop(); turn_clock(20); watched.pass_boundary('t'); turn_clock(30)"
    done = run_watchdog(stopped)
    assert (done.returncode, done.stdout) == (0, "in time\nout of the block\n")


def test_the_key_decides_whatever_was_measured() -> None:
    done = run_watchdog(f"{boundaries(('t', 4.0))}; ask_to_stop(); turn_clock(0.2)", grace=1.0)
    assert (done.returncode, done.stdout.split("\n")[0]) == (75, "in time")
    done = run_watchdog("ask_to_stop(); turn_clock(6.0)", grace=7)
    assert (done.returncode, done.stdout) == (0, "in time\nout of the block\n")


def test_a_run_passes_a_boundary_before_each_step_and_each_batch_of_an_evaluation(small, monkeypatch) -> None:
    """Of a kind are those that a compiled network runs without being compiled again: of one shape, with gradients or without."""
    passed = []
    monkeypatch.setattr(watchdog.Watchdog, "pass_boundary", lambda watchdog, kind: passed.append(kind))
    fit(small("trainer.limit_train_batches=1.0", "data.train_samples=12", "batch_size=5"), quiet=True)
    assert passed == [(True, (5, 3, 16, 16)), (True, (4, 3, 16, 16)), (False, (3, 3, 16, 16)), (False, (6, 3, 16, 16))]


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
