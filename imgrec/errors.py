"""Errors for the user: one line with the key and the value, what is allowed and what to type. The exit codes of the commands."""

import errno
import re
from collections.abc import Sequence
from difflib import get_close_matches
from enum import IntEnum

# What an OSError says where the disk, not imgrec, is at fault: full, over quota, not ours, read-only; or the path: no folder or a folder, too long, a loop of links.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of torch's allocator on the CPU; of oneDNN, which names no reason; of cuDNN and cuBLAS; of ONNX Runtime; of Python's threads; of
# the loader of libraries; of Linux.
NO_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Failed to allocate memory",
    "can't start new thread",
    "failed to map segment from shared object",
    "Cannot allocate memory",
)
UNWRITABLE = (
    *NO_ROOM, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)  # files, of this process and of this machine
MORE_FILES = "Type ulimit -n 4096 and start the same command again"


LONGEST_WORD, LONGEST_LINE = 500, 3000  # letters of an error; a file's name has 255 at most


# Letters that are written from right to left, and their marks; a name of such words.
_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
_RTL_NAME = re.compile(f"[{_RTL}]+(?:[ ./_'-]?[{_RTL}]+)*")
_ISOLATED = re.compile(f"\u2068({_RTL_NAME.pattern})\u2069")


class ExitCode(IntEnum):
    """How a command ended, for the shell and for SLURM."""

    OK = 0
    FAILED = 1  # an error of ours, or a process that died
    REFUSED = 2  # bad input: what the user can change
    FAULTS = 3  # `check` found some in the data
    STOPPED = 75  # saved, and resumed by the same command; EX_TEMPFAIL of sysexits.h
    INTERRUPTED = 130  # after a second Ctrl-C


class ImgrecError(Exception):
    """Base of the errors that the user can fix: the command line shows the message, which is one line, without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(ImgrecError):
    """A key, a value or a combination of them that cannot be run."""


class DataError(ImgrecError):
    """A folder, a file or a label that cannot be used."""


class SourceError(DataError):
    """What data is read from does not answer, or where it is cached there is no room: no image is at fault, and none is skipped."""


class OutOfMemory(ImgrecError):
    """Images of a training that were too many at once for the memory of a device. The next start takes half of them at once."""


class NotFiniteError(ImgrecError):
    """The loss of a training became NaN or infinite."""


class CheckpointError(ImgrecError):
    """A checkpoint that cannot be loaded."""


class Stopped(Exception):
    """A run that was stopped after a save and can be resumed; raised on all its ranks after the same step. Exit code 75."""


class Died(Exception):
    """A process of the run was killed or failed, which ended the others. Exit code 1."""


class DamagedError(CheckpointError):
    """A checkpoint that is cut short, or whose checksums do not match."""


def unreadable(path: object, error: OSError, fix: str = "") -> DataError:
    """The error for a file that cannot be opened or read. It is no fault of the file that too many others are open."""
    if error.errno in TOO_MANY_OPEN:
        return SourceError(f"{path} cannot be read: {error.strerror}. {MORE_FILES}.")
    return DataError(f"{path} cannot be read: {error.strerror}.{fix and ' '}{fix}")


def printable(text: str) -> str:
    """A text in one line that any terminal can print: bytes that are no UTF-8, and control characters, become '?'."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def isolated(text: str) -> str:
    """A text from left to right in which a name from right to left turns no figure beside it, nor another name.

    It stands between first strong isolate and pop directional isolate, which have no width (Unicode UAX #9).
    """
    return text if text.isascii() else _RTL_NAME.sub("\u2068\\g<0>\u2069", text)


def without_isolates(text: str) -> str:
    """The text that `isolated` was given."""
    return _ISOLATED.sub(r"\1", text)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text without its full stop, to be quoted in a sentence; its type where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def lacks_memory(error: BaseException) -> bool:
    """Whether the memory was too small, also by the text of an exception of a library that has none of its own for it."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def plural(count: int, noun: str, ending: str = "s") -> str:
    """'1 job', '2,000 jobs', plural(2, "process", "es") -> '2 processes'."""
    return f"{count:,} {noun}{ending if count != 1 else ''}"


def first_names(names: Sequence[object], most: int) -> str:
    """'a, b, c', or 'a, b, c, ...' where there are more than `most`."""
    return ", ".join(map(shorten, names[:most])) + (", ..." if len(names) > most else "")


def shorten(value: object, most: int = 100) -> str:
    """A user's text as it is quoted in a sentence: the beginning and the end of one that is longer."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def shorten_words(line: str) -> str:
    """An error that quotes what was typed: a word, or a text in quotes, that is longer than any name, and then a long line, is shortened."""
    longer = f"{{{LONGEST_WORD + 1},}}"
    return shorten(re.sub(rf"(?<!\w)'[^']{longer}'(?!\w)|\S{longer}", lambda word: shorten(word[0]), line), LONGEST_LINE)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most like `name`, if any is; capitals, '-' and '_' are no difference."""
    plain = {_plain(one): one for one in reversed(known)}
    near = get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.casefold())


def did_you_mean(name: object, known: Sequence[object]) -> str:
    """' Did you mean lr?' or nothing: the nearest known name, as a sentence that follows another."""
    near = nearest(str(name), list(map(str, known)))
    return f" Did you mean {near}?" if near else ""
