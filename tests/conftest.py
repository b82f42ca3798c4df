"""What all tests share."""

import errno
import fcntl
import functools
import gc
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from drawings import draw_pixels, drawn_as_for_users
from hydra._internal import defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hypothesis import settings
from marks import slow_but
from small_run import SMALL

from imgrec import config
from imgrec.config.options import conf_dir

# Nothing is collected until all is imported, which takes a second less, and then seldom: a young collection after 20,000 objects.
gc.disable()

# A busy machine is no fault of the code: pytest's --durations shows what is slow.
settings.register_profile("imgrec", deadline=None, max_examples=20)
settings.register_profile("all", deadline=None)  # make test-all
settings.load_profile("imgrec")

# What a test writes need not outlive a power failure: a run of two steps waits 55 ms and more for the disk, beside 140 ms of work.
os.fsync = lambda file: None


def parse_once(scheme: str, path: str) -> None:
    """Let Hydra parse a file below this path once in a process, not for every config that it composes."""
    source = SourcesRegistry.instance().resolve(scheme)
    parse, parsed = source.load_config, {}

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        if self.path != path:  # a folder of the test's own, whose files change
            return parse(self, config_path)
        if config_path not in parsed:
            parsed[config_path] = pickle.dumps(parse(self, config_path))
        result: ConfigResult = pickle.loads(parsed[config_path])  # Hydra changes it
        return result

    source.load_config = load_config  # type: ignore[method-assign]


def map_no_choices() -> None:
    """Hydra maps all choices for each yaml, for a ${} in its list of defaults, which hardly any has."""
    map_choices = defaults_list._create_interpolation_map
    defaults_list._create_interpolation_map = lambda overrides, entries, self_added: (
        map_choices(overrides, entries, self_added)
        if any(not entry.is_self() and entry.is_interpolation() for entry in entries)
        else None
    )


# A config of new options takes 53 instead of 110 ms, and a fifth of the suite composes configs.
Plugins.instance()  # fills the registry
parse_once("file", str(conf_dir().resolve()))
parse_once("pkg", "hydra.conf")
map_no_choices()


# timm imports wandb for this, where it is installed: half of its time, 0.7 s.
summary = ModuleType("timm.utils.summary")
summary.update_summary = summary.get_outdir = summary.trim_summary = None  # type: ignore[attr-defined]
sys.modules[summary.__name__] = summary


def pytest_collection_finish() -> None:
    """What was imported is not looked at by each garbage collection, which took 7% of the time, nor copied by it in each fork.
    Each Trainer looks through what is installed for callbacks, which takes 10 ms and finds the same.
    """
    draw_pixels()
    if registry := sys.modules.get("lightning_fabric.utilities.registry"):
        registry.entry_points = functools.cache(registry.entry_points)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture
def drawn() -> Iterator[None]:
    """Commands draw as they do for a user, which takes most of the time of small ones."""
    with drawn_as_for_users():
        yield


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


@pytest.fixture(params=slow_but("ENOLCK", among=["ENOLCK", "ENOSYS", "EOPNOTSUPP"]))
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks: Lustre mounted without flock, NFS without its lock service."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number := getattr(errno, request.param), os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, by playwright; the test is skipped where one is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'imgrec[browser]'")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
