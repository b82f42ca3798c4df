"""What imgrec says to its user: one line with what was given, what was found and what to type; the process ends with exit code 2."""

from collections.abc import Sequence
from difflib import get_close_matches

FAILED, REFUSED = (
    1,
    2,
)  # exit codes: a fault of ours or a process that died; what the user can mend. Those of a stop: imgrec.distributed.signals


class ImgrecError(Exception):
    """Base of the errors that are the user's to mend: the command line shows the message without a traceback."""


class ConfigError(ImgrecError):
    """A key, a value or a combination of them that cannot be run."""


class DataError(ImgrecError):
    """A folder, a file or a label that cannot be used."""


class CheckpointError(ImgrecError):
    """A checkpoint that cannot be loaded."""


class Stopped(Exception):
    """A run that was asked to stop, saved and can go on; raised on all its processes after the same step. Exit code 75."""


class Died(Exception):
    """A process of the run was killed or failed, which ended the others. Exit code 1."""


class DamagedError(CheckpointError):
    """A checkpoint that is cut short, or whose checksums do not match."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text without its full stop, to be quoted in a sentence; its type where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """' Did you mean lr?' or nothing: the nearest known word, in a sentence that can follow another."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
