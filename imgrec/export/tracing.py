"""torch's exporters without what they print: an error is one line for the user, not the graph of the network."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from imgrec.errors import first_line, shorten


@contextmanager
def tracing_silenced() -> Iterator[None]:
    """No warning, log record or print in the block, of this thread or another; for a network that cannot be traced torch prints all its operations."""
    with records_silenced(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def records_silenced() -> Iterator[None]:
    """No log record in the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def tracing_reason(error: BaseException) -> str:
    """Why a network cannot be traced, in a few words: the first sentence of what stopped it."""
    return shorten(first_line(error.__cause__ or error).partition(". ")[0].strip(), 150)
