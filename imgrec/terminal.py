"""The terminal and the log file: the same lines go to both, with colour and a live bar on a terminal only."""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from imgrec.errors import isolated, printable, without_isolates
from imgrec.files import on_progress

LOG_WIDTH = 120  # characters of what is fitted to a width, such as a matrix; a file has none of its own
_WIDEST = 100_000  # characters of a row of a table in a file
_COMMAND = re.compile(r"\b(imgrec|python|tensorboard) ")


class _Output:
    """A text stream that raises nothing: letters that its encoding lacks are escaped, what cannot be written is dropped.

    A pipe that does not block, and is full, may have room for the next line; after another error all is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, BlockingIOError):  # ValueError: it was closed
            pass
        except OSError:  # a terminal or a pipe that was closed, a full disk
            self._drop_all()

    def _drop_all(self) -> None:
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            if self._stream.fileno() in (1, 2):  # else Python fails to flush it at its exit, with exit code 120
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def end(self) -> None:
        """Flush it before Python does at its exit, which would fail for what a full pipe still holds."""
        try:
            self._stream.flush()
        except ValueError:
            pass
        except OSError:
            self._drop_all()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lenient_output(stream: TextIO | None) -> TextIO | None:
    """The stream, without its errors: no line for a user is worth the end of a run. None where Python has none."""
    return None if stream is None else cast("TextIO", _Output(stream))


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Nothing that is printed in the block, or flushed at the exit of Python after it, raises an error.

    A process that was started without streams has them in the block.
    """
    _open_missing_streams()
    streams = (sys.stdout or os.fdopen(1, "w", closefd=False), sys.stderr or os.fdopen(2, "w", closefd=False))
    outputs = [lenient_output(stream) for stream in streams]
    try:
        with redirect_stdout(outputs[0]), redirect_stderr(outputs[1]):
            yield
    finally:
        for output in outputs:
            if isinstance(output, _Output):
                output.end()


def _open_missing_streams() -> None:
    """/dev/null where stdin, stdout or stderr is closed: the next file would get their number, and with it what C libraries print."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)


def in_order(text: str) -> str:
    """A line that any terminal can print, in which names are `isolated`; but for a line with a command, which is copied."""
    if text.isascii() and text.isprintable():
        return text
    plain = printable(without_isolates(text))  # a table is drawn twice where there is no terminal
    return plain if _COMMAND.search(plain) else isolated(plain)


class PlainConsole(Console):
    """A console whose texts cannot move the cursor or change colours: class and file names hold what anybody has written."""

    def __init__(self, **options: Any) -> None:
        # In a notebook rich shows each text as a HTML display, also that of a quiet console or of a file.
        super().__init__(force_jupyter=False, **options)

    @property
    def is_terminal(self) -> bool:
        """Whether its file is one. rich also asks FORCE_COLOR, which notebooks and CI set where nothing can draw a bar."""
        return not self.file.closed and self.file.isatty()

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            lines = segment.text.split("\n")
            yield segment if segment.control else segment._replace(text="\n".join(map(in_order, lines)))


class Terminal:
    """The terminal output of a command; silent on every rank but 0."""

    def __init__(self, *, quiet: bool = False, log: Path | None = None) -> None:
        """log: a file that every line is appended to as well."""
        output = lenient_output(sys.stdout)
        self.console = PlainConsole(file=output, quiet=quiet, highlight=False)
        if not self.console.is_terminal:
            self.console = PlainConsole(file=output, quiet=quiet, highlight=False, width=LOG_WIDTH, no_color=True)
        self.log: Console | None = None
        if log is not None:
            file = lenient_output(log.open("a", buffering=1, encoding="utf-8"))
            self.log = PlainConsole(file=file, width=LOG_WIDTH, no_color=True, highlight=False)

    def say(self, what: Any = "", style: str | None = None, *, wrap: bool = False) -> None:
        """Print a line or a rich table. wrap: break a line after commas where the terminal is narrower; others the terminal breaks itself."""
        for console in (self.console, self.log):
            if console is None:
                continue
            if isinstance(what, str) or console.is_terminal:
                text = _broken(what, console.width) if wrap and console.is_terminal else what
                console.print(text, style=style, soft_wrap=isinstance(what, str), markup=False)
            else:
                console.print(_table_text(what, console, style), soft_wrap=True, markup=False)

    def note(self, line: str) -> None:
        """A line for the log file alone."""
        if self.log is not None:
            self.log.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        if self.log is not None:
            with suppress(OSError):  # of a full disk
                self.log.file.close()
            self.log = None

    def bar(self) -> Progress:
        """A live bar that vanishes when it is done; nothing at all off a terminal."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    @contextmanager
    def progress_shown(self) -> Iterator[None]:
        """A bar for each pass over images in the block (`on_progress`). One of unknown length goes when the next begins."""
        tasks: dict[tuple[str, int | None], TaskID] = {}

        def report(what: str, count: int, of: int | None) -> None:
            if (what, of) not in tasks:
                for (_, total), task in tasks.items():
                    if total is None:
                        bar.update(task, visible=False)
                tasks[what, of] = bar.add_task(what, total=of, note="")
            bar.update(tasks[what, of], advance=count, visible=True)

        with self.bar() as bar:
            token = on_progress.set(report)
            try:
                yield
            finally:
                on_progress.reset(token)


def _table_text(table: Any, console: Console, style: str | None) -> str:
    """A table as a file has it: as wide as its cells are, without the spaces that end its rows on a terminal."""
    width, console.width = console.width, _WIDEST
    try:
        with console.capture() as drawn:
            console.print(table, style=style, markup=False)
    finally:
        console.width = width
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def _broken(line: str, width: int) -> str:
    """Lines of at most `width` characters where there are enough commas, and brackets around words, to break it at."""
    bound = re.sub(r"(?<!,) (?!\([a-z])", "\0", line)
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = textwrap.wrap(bound, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def percent(share: float) -> str:
    """0.9861 -> '98.61%'."""
    return f"{100 * share:.2f}%"


def percents(interval: Iterable[float]) -> str:
    """[0.9718, 0.9957] -> '(97.2 to 99.6)'."""
    low, high = interval
    return f"({100 * low:.1f} to {100 * high:.1f})"


def duration(seconds: float) -> str:
    """0.46 -> '0.5 s', 75 -> '1:15', 4000 -> '1:06:40'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
