"""What a test compares of an error: what was given, what is allowed, what to type. The words between them may change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def assert_error(line: str, *parts: object) -> None:
    """`line` is one line; it begins with the first part and has the others in this order, each as whole words."""
    __tracebackhide__ = True
    pattern = ".*".join(map(_whole, map(str, parts)))
    assert re.fullmatch(f"{pattern}.*", line), f"{line!r} lacks one of {parts}, or has them in another order"


@contextmanager
def raises_error(kind: type[Exception], *parts: object) -> Iterator[None]:
    """The block raises this error."""
    with pytest.raises(kind) as caught:
        yield
    assert_error(str(caught.value), *parts)


def assert_refused(stderr: str, *parts: object) -> None:
    """A command printed this error and nothing else."""
    assert stderr.startswith("imgrec: "), stderr
    assert stderr.endswith("\n"), stderr
    assert_error(stderr[len("imgrec: ") : -1], *parts)


def _whole(part: str) -> str:
    """optim.lr is neither in optim.lrr nor in finetune.optim.lr, and 2 not in 2.5."""
    before = r"(?<![\w.])" if re.match(r"\w", part) else ""
    after = r"(?!\w|\.\w)" if re.search(r"\w$", part) else ""
    return before + re.escape(part) + after
