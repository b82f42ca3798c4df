"""What the terminal gets: no control character of a file name, a class name or an error, and no error where it gets nothing."""

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import termios
import unicodedata
from contextlib import redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from processes import LIMIT_S, run_command, wait_until
from rich.table import Table
from rich.text import Text
from small_run import SMALL

from imgrec.cli import main
from imgrec.errors import ConfigError, printable
from imgrec.files import on_progress
from imgrec.terminal import Terminal, duration, in_order, lenient_streams
from imgrec.train import fit

ANY = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\x1b[31mred", "a\nb", "a\rb", "\x07", "\x9b2J", "\u202eab", "ab\udcff"]
)


@settings(max_examples=50)
@given(text=ANY)
def test_what_is_printed_and_logged_has_no_control_characters(tmp_path_factory, text):
    log = tmp_path_factory.getbasetemp() / "terminal.txt"
    log.unlink(missing_ok=True)
    terminal = Terminal(quiet=True, log=log)
    table = Table("name")
    table.add_row(Text(text))
    terminal.say(f"class {text}")
    terminal.say(table)
    terminal.note(text)
    terminal.close()
    written = log.read_text()
    assert all(letter.isprintable() for letter in without_marks(written).replace("\n", ""))
    assert written.startswith("class ")


def without_marks(text):
    return re.sub("\u2068([^\u2068\u2069]*)\u2069", r"\1", text)


@given(
    text=st.text(st.characters(codec="utf-8") | st.sampled_from("\u05d0\u05d1\u0627\u0628 1.,:\u2068\u2069\u202e"), max_size=20)
)
def test_names_from_right_to_left_are_isolated_and_nothing_else_is_changed(text):
    shown = in_order(text)
    assert in_order(shown) == shown
    assert without_marks(shown).isprintable()
    if not {"\u2068", "\u2069"} & set(text):
        assert without_marks(shown) == printable(text)
    outside = re.sub("\u2068[^\u2068\u2069]*\u2069", "", shown)
    turning = {"R", "AL", "LRE", "RLE", "LRO", "RLO", "LRI", "RLI", "FSI"}
    assert turning.isdisjoint(map(unicodedata.bidirectional, outside))


# Commands, which a mark of direction would change.
COPIED = [f"{words} \u05d7\u05ea\u05d5\u05dc/1" for words in ("imgrec predict", "  python -c pass", "  tensorboard --logdir")]


def test_a_table_with_names_from_right_to_left_has_its_columns_below_one_another():
    text = io.StringIO()
    with redirect_stdout(text):
        table = Table("class", "probability", box=None, pad_edge=False)
        for name in ("\u05d7\u05ea\u05d5\u05dc", "dogs"):
            table.add_row(Text(name), "0.93")
        Terminal().say(table)
        for command in COPIED:
            Terminal().say(command)
    _, hebrew, latin, *commands = text.getvalue().splitlines()
    assert hebrew.startswith("\u2068\u05d7\u05ea\u05d5\u05dc\u2069 ")
    assert without_marks(hebrew).replace("\u05d7\u05ea\u05d5\u05dc", "dogs") == latin
    assert commands == COPIED


def test_a_time_is_never_rounded_to_nothing_that_took_a_while():
    seconds = (0.06, 0.45, 9.94, 9.96, 59.6, 75, 4000)
    assert [duration(each) for each in seconds] == ["0.1 s", "0.5 s", "9.9 s", "0:10", "1:00", "1:15", "1:06:40"]


@given(text=ANY)
def test_an_error_is_one_line(text):
    line = str(ConfigError(f"data.root={text}: no"))
    assert line == f"data.root={printable(text)}: no"
    assert line.isprintable()


@given(text=st.text(st.characters(exclude_categories=["C", "Z"])))
def test_other_letters_stay_as_they_are(text):
    assert printable(text) == text


def test_a_row_of_a_table_is_one_line_of_a_file(tmp_path, capsys):
    cells = ["a longer name of a key" * 3, "x" * 90, "many words " * 9]
    table = Table("rank", "key", "folder", box=None)
    table.add_row(*cells)
    terminal = Terminal(log=tmp_path / "log.txt")
    terminal.say(table)
    terminal.close()
    for said in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        heading, row = said.splitlines()
        assert heading.split() == ["rank", "key", "folder"]
        assert row.split() == " ".join(cells).split()
    assert terminal.console.width == 120


# Output that cannot be written

TRAIN = (sys.executable, "-m", "imgrec.cli", "train", *SMALL)


@given(
    text=st.text(st.characters(exclude_categories=["C", "Z"])), encoding=st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"])
)
def test_letters_that_the_encoding_lacks_are_escaped(text, encoding):
    written = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(written, encoding=encoding, errors="strict", newline="\n")) as stream:
        terminal = Terminal()
        terminal.say(text)
        table = Table("name", box=None)
        table.add_row(Text("a" + text))
        terminal.say(table)
        with lenient_streams():
            print(text)
        stream.flush()
        assert written.getvalue().split(b"\n")[0] == in_order(text).encode(encoding, "backslashreplace")
        assert written.getvalue().endswith(b"\n" + text.encode(encoding, "backslashreplace") + b"\n")


def dead_pipe():
    """As stdout before `| head` when head has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", buffering=1)


def dead_terminal():
    ours, theirs = os.openpty()
    os.close(ours)
    return open(theirs, "w", buffering=1)


def full_disk():
    return open("/dev/full", "w", buffering=1)


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


DEAD = [dead_pipe, dead_terminal, full_disk, closed]


@pytest.mark.parametrize("dead", slow_but(dead_pipe, among=DEAD))
def test_a_run_whose_output_cannot_be_written_goes_on(dead, small, monkeypatch):
    expected = fit(small("id=a", "logger=csv"), quiet=True)
    stream = dead()
    monkeypatch.setattr("sys.stdout", stream)
    found = fit(small("id=b", "logger=csv"))
    assert (found["last"]["val/loss"], found["test"]) == (expected["last"]["val/loss"], expected["test"])
    with suppress(OSError, ValueError):
        stream.close()


def test_a_log_on_a_full_disk_is_dropped(capsys):
    terminal = Terminal(log=Path("/dev/full"))
    terminal.say("one line")
    terminal.note("another")
    terminal.close()
    assert capsys.readouterr().out == "one line\n"


@pytest.mark.parametrize("words", slow_but("help", among=["help", "models", "train --help", "train lr=3"]))
def test_a_command_into_a_pipe_that_nobody_reads(words):
    with dead_pipe() as dead:
        refused = words == "train lr=3"
        command = [sys.executable, "-m", "imgrec.cli", *words.split()]
        streams = {"stdout": dead, "stderr": dead if refused else subprocess.PIPE}
        done = subprocess.run(command, **streams, check=False, timeout=LIMIT_S)
    assert (done.returncode, done.stderr or b"") == (2 if refused else 0, b"")


PRINT = """
import os, sys
from imgrec.terminal import Terminal, lenient_streams
os.set_blocking(1, False)
with lenient_streams():
    terminal = Terminal()
    for number in range(3000):  # three times what pipe and buffer hold
        terminal.say(f"{number:>70}")
    print("full", file=sys.stderr, flush=True)
    if sys.stdin.readline():
        terminal.say("the last")
"""


@pytest.mark.parametrize("drained", [True, False])
def test_a_pipe_that_is_full_loses_lines_until_it_is_read(drained):
    """Some programs give a pipe that does not block. What is still full at the exit is no failure."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", PRINT], text=True, env=buffered, **pipes) as process:
        assert process.stderr.readline() == "full\n"
        printed = process.stdout.read(60_000) if drained else ""
        process.stdin.write("go on\n" if drained else "")
        process.stdin.close()
        if not drained:
            assert (process.wait(LIMIT_S), process.stderr.read()) == (0, "")
        printed += process.stdout.read()
        assert (process.wait(LIMIT_S), process.stderr.read()) == (0, "")
    assert printed.startswith(f"{0:>70}\n{1:>70}\n")
    assert printed.endswith("the last\n") == drained
    assert f"{2999:>70}" not in printed


PRINTS = """
import sys
from imgrec.terminal import lenient_streams
with lenient_streams(), open("file", "w") as file:
    print(sys.stdout.isatty(), file=sys.stderr)
    print(sys.stderr.isatty())
    file.write(str(file.fileno()))
"""


@pytest.mark.parametrize("closed", slow_but("<&- >&- 2>&-", among=["<&- >&- 2>&-", "<&-", ">&-", "2>&-"]))
def test_a_process_that_is_started_without_streams(closed, tmp_path):
    """It has streams all the same, and no file gets the number of one, at which C libraries print."""
    done = run_command("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PRINTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "file").read_text()) > 2


IGNORED = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")  # as nohup does, which writes to another file besides


@pytest.mark.slow
@pytest.mark.parametrize(("before", "devices", "code"), [((), 1, 75), ((), 2, 75), (IGNORED, 1, 0), (IGNORED, 2, 0)])
def test_a_terminal_that_closes(before, devices, code, tmp_path):
    """The kernel sends SIGHUP to its processes, and writing to it is an error from then on."""
    ours, theirs = os.openpty()
    words = ["epochs=40", f"runs_dir={tmp_path}", "id=a", "trainer.strategy=ddp", f"trainer.devices={devices}"]
    with subprocess.Popen(
        [*before, *TRAIN, *words],
        cwd=tmp_path,  # nohup writes nohup.out there
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=own_terminal,  # noqa: PLW1509  # without threads here
    ) as process:
        os.close(theirs)
        run_dir = tmp_path / "fake_lenet" / "a"
        wait_until((run_dir / "metrics.csv").exists, process.poll)
        os.close(ours)
        assert process.wait(LIMIT_S) == code
    assert (run_dir / "result.json").exists() == (code == 0)
    log = (run_dir / "log.txt").read_text()
    assert ("stopped by SIGHUP" in log) == (code == 75), log
    assert "Traceback" not in log
    if code == 75:
        assert run_command(*TRAIN, *words).returncode == 0


def own_terminal() -> None:
    """In a session of its own: stdin is its terminal, and SIGHUP is not ignored, also where the tests were started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_class_names_that_the_terminal_cannot_show(tmp_path, monkeypatch):
    for name, value in (("\u6c34", 40), ("\u706b", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.full((8, 8, 3), value + number, np.uint8)).save(tmp_path / "data" / name / f"{name}{number}.png")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    words = ["data=imagefolder", f"data.root={tmp_path}/data", "data.image_size=16", "model=lenet", "epochs=1", "batch_size=2"]
    where = [f"runs_dir={tmp_path}", "id=a", "num_workers=0", "trainer.accelerator=cpu", "logger=none"]
    assert main(["train", *words, *where]) == 0
    assert main(["evaluate", f"{tmp_path}/imagefolder_lenet/a", "num_workers=0", "plot=none"]) == 0
    assert rb"\u6c34" in written.getvalue()
    assert rb"\u706b" in written.getvalue()


def test_each_pass_over_images_has_a_bar_with_its_count(monkeypatch):
    terminal = Terminal()
    bar = terminal.bar()
    monkeypatch.setattr(terminal, "bar", lambda: bar)
    shown = []
    with terminal.progress_shown():
        report = on_progress.get()
        for what, count, of in (
            ("listing", 3, None),
            ("reading", 2, 5),
            ("listing", 4, None),
            ("reading", 3, 5),
            ("reading", 1, 9),
        ):
            report(what, count, of)
            shown.append([task.description for task in bar.tasks if task.visible])
    rows = [(task.description, task.completed, task.total) for task in bar.tasks]
    assert rows == [("listing", 7, None), ("reading", 5, 5), ("reading", 1, 9)]
    assert shown == [["listing"], ["reading"], ["listing", "reading"], ["listing", "reading"], ["reading", "reading"]]
    assert on_progress.get() is not report


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("broken", [True, False])
def test_the_last_screen_fits_80_columns(monkeypatch, tmp_path, broken):
    """A terminal has whole figures in each line, a log the line as it is."""
    parts = ["test accuracy 99.17% (97.6 to 99.7), top-5 100.00%,", "macro F1 99.17% (97.6 to 99.7), loss 0.0250 on 360 images"]
    line = " ".join([*parts, "(best epoch 26 by val/accuracy)"])
    monkeypatch.setenv("COLUMNS", "80")
    with redirect_stdout(Screen() if broken else io.StringIO()) as screen:
        terminal = Terminal(log=tmp_path / "log.txt")
        terminal.say(line, wrap=True)
        terminal.close()
    said = screen.getvalue().splitlines()
    assert said == [parts[0], f"  {parts[1]}", "  (best epoch 26 by val/accuracy)"] if broken else [line]
    assert (tmp_path / "log.txt").read_text() == f"{line}\n"
