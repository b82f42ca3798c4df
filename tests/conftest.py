"""What all tests share."""

import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from small_run import SMALL

from imgrec import config

# A busy machine is no fault of the code: pytest's --durations shows what is slow.
settings.register_profile("imgrec", deadline=None, max_examples=30)
settings.register_profile("all", deadline=None)  # make test-all
settings.load_profile("imgrec")


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Loader workers and ranks that a test, or what it calls, does not end."""
    yield
    for process in (left := multiprocessing.active_children()):
        process.kill()
        process.join()  # the next test begins without it
    assert left == []


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., config.RunConfig]:
    """small("epochs=2", ...) is the config of a run of a second, in tmp_path/runs."""
    return lambda *words: config.load("train", [*SMALL, f"runs_dir={tmp_path}/runs", *words])


@pytest.fixture
def start_command() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start_command(WORD, ..., env=...) starts a process with its output in pipes; it is killed when the test ends."""
    with ExitStack() as stack:

        def start(*words: object, **options: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
            stack.push(process)  # waits, after the kill
            stack.callback(process.kill)
            return process

        yield start
