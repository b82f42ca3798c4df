"""Marks of tests."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings


def slow_but(*fast: Any, among: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, all slow but a few, which `make test` runs."""
    values = {case: case if isinstance(case, tuple) else (case,) for case in among}
    return [pytest.param(*row, marks=() if case in fast else pytest.mark.slow) for case, row in values.items()]


def fewer(examples: int) -> settings:
    """Of a property whose examples take long, so many in `make test`; `make test-all` tries as many as of any other."""
    return settings(max_examples=examples) if settings.get_current_profile_name() == "imgrec" else settings()
