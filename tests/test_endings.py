"""What SIGTERM, SIGHUP and Ctrl-C do to a command that has nothing to save."""

import os
import signal
from contextlib import suppress

import pytest
from error_parts import assert_refused
from processes import exit_codes

from imgrec.distributed import signals
from imgrec.distributed.command import run_command
from imgrec.files import atomic_write


@pytest.fixture
def hangup_ends():
    """Under nohup SIGHUP is ignored, and a command leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_ends")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_a_command_with_one_line_and_a_code_after_it_has_tidied_up(name, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    number = signal.Signals[name]
    before = [signal.getsignal(each) for each in signals.ENDING_SIGNALS]

    def command(overrides: list[str], config_dir: str | None) -> int:
        # As Lightning and torch's exporter do: one exits with a code of its own, the other takes any error for its own.
        with pytest.raises(signals.Ended), suppress(Exception):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        return 0

    def write(overrides: list[str], config_dir: str | None) -> int:
        monkeypatch.setattr(os, "fsync", lambda descriptor: command([], None))
        atomic_write(tmp_path / "file", "text")
        return 0

    assert run_command("verify", write, []) == code
    assert_refused(
        capsys.readouterr().err, "interrupted" if name == "SIGINT" else f"stopped by {name}", "Start the same command again"
    )
    assert not os.listdir(tmp_path)
    assert [signal.getsignal(each) for each in signals.ENDING_SIGNALS] == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        ImportError("a.so: failed to map segment from shared object"),
    ],
)
def test_too_little_memory_is_one_line(error, capsys):
    def command(overrides: list[str], config_dir: str | None) -> int:
        raise error

    assert run_command("verify", command, []) == 2
    assert_refused(capsys.readouterr().err, "there is not enough memory", "ulimit -a")


def test_a_signal_that_is_ignored_stays_so_and_a_training_takes_it_for_itself(capsys):
    seen = []

    def command(overrides: list[str], config_dir: str | None) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        with signals.handlers_installed():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(signals.stop_reason())
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run_command("verify", command, []) == 143
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == ["SIGTERM"]


def test_a_fork_of_a_command_is_killed_as_ever():
    def command(overrides: list[str], config_dir: str | None) -> int:
        (code,) = exit_codes(1, lambda rank: os.kill(os.getpid(), signal.SIGTERM))
        return 128 - code

    assert run_command("verify", command, []) == 143
