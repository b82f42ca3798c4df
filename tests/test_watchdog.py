"""imgrec.distributed.watchdog, in processes of its own: it ends them."""

import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, signal, sys, time
from types import SimpleNamespace as Place
from imgrec.distributed import signals
from imgrec.distributed.watchdog import Watchdog

signals.install_handlers()
told = lambda line: print(line, flush=True)
with Watchdog(note=lambda line: told("log: " + line), leave=lambda line: told("left: " + line), grace_s=0.6, saving_s=1.5) as watchdog:
    saves = watchdog.saves = Place(saving=False, saved=Place(step=12))
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    {then}
print("went on")
"""
AGAIN = "Start the same command again to go on.\n"


def play(then: str) -> tuple[int, str, str, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(then=then)], check=False, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - began


@pytest.mark.parametrize("busy", ["time.sleep(100)", "while True: pass", "sum(1 for _ in iter(int, 1))"])
def test_no_step_boundary(busy: str) -> None:
    code, out, err, seconds = play(busy)
    line = "stopped by SIGTERM; no step boundary came within 0.6 s: nothing was saved since step 12"
    assert (code, err) == (75, f"imgrec: {line}. {AGAIN}")
    assert out == f"left: {line}\nlog: {line}. {AGAIN}"
    assert seconds < 30


def test_nothing_saved_ever() -> None:
    code, _, err, _ = play(
        "saves.saved = None; signals.clear_request(); time.sleep(0.3); signals.request_stop('SIGUSR1'); time.sleep(100)"
    )
    assert (code, err) == (
        75,
        f"imgrec: stopped by SIGUSR1; no step boundary came within 0.6 s: nothing was saved. {AGAIN}",
    )


def test_a_save_may_take_longer() -> None:
    assert play("saves.saving = True; time.sleep(1.2)")[:3] == (0, "went on\n", "")
    assert play("saves.saved = Place(step=13); time.sleep(1.2)")[:3] == (0, "went on\n", "")


def test_but_not_for_ever() -> None:
    code, _, err, _ = play("saves.saving = True; time.sleep(100)")
    assert (code, err) == (75, f"imgrec: stopped by SIGTERM; the save that began then did not end within 1.5 s. {AGAIN}")
