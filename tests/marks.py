"""Marks of tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(*fast: Any, among: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, all slow but a few, which `make test` runs."""
    values = {case: case if isinstance(case, tuple) else (case,) for case in among}
    return [pytest.param(*row, marks=() if case in fast else pytest.mark.slow) for case, row in values.items()]
