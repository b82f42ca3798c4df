"""What all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from words import SMALL

from imgrec import config

# A busy machine is no fault of the code: pytest's --durations shows what is slow.
settings.register_profile("imgrec", deadline=None)
settings.load_profile("imgrec")


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., config.RunConfig]:
    """small("epochs=2", ...) is the config of a run of a second, in tmp_path/runs."""
    return lambda *words: config.load("train", [*SMALL, f"runs_dir={tmp_path}/runs", *words])
