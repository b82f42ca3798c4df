"""The keys in which the configs of runs differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgrec.config.annotations import format_value
from imgrec.config.schema import LATER_KEYS, Node, RunConfig, leaves

# Keys that may differ when a run is resumed: they say where and how fast it is computed, not what.
RESUMABLE_KEYS = (
    "id",
    "runs_dir",
    "resume",
    "callbacks.pictures.images",
    "callbacks.pictures.every_epochs",
    "callbacks.histograms.every_epochs",
    "data.changed",
    "data.check",
    "data.cache",
    "data.cache_gb",
    "data.decoder",  # all give the same pixels
    "data.on_bad_image",  # with refuse, nothing has been skipped so far
    "data.on_bad_image_eval",
    "num_workers",
    "profile",
    "report",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.timeout_s",
    "trainer.grace_s",
    "trainer.threads",
    "trainer.log_every_steps",
    "trainer.max_minutes",
    "trainer.save_every_steps",
    "trainer.save_every_minutes",
)
MOVABLE = ("data.root", "data.download")  # keys of the same data elsewhere


def differing_keys(run: RunConfig, stored: Node) -> dict[str, tuple[Any, Any]]:
    """Keys in which a run differs from a stored config, with both values (the run's, the stored one)."""
    return {key: (new, old) for key, (new, old) in differing_values([run.to_dict(), stored]).items()}


def differing_values(configs: Sequence[Node]) -> dict[str, list[Any]]:
    """Keys in which configs differ, with the value of each, None where it has no such key; without RESUMABLE_KEYS."""
    every = [dict(leaves(LATER_KEYS | config)) for config in configs]
    keys = dict.fromkeys(key for each in every for key in each if key not in RESUMABLE_KEYS)
    values = {key: [each.get(key) for each in every] for key in keys}
    return {key: row for key, row in values.items() if any(_without_slashes(value) != _without_slashes(row[0]) for value in row)}


def _without_slashes(value: Any) -> Any:
    """A path in the one form of those that mean the same: `set/` and `./set` become `set`."""
    return str(Path(value)) if isinstance(value, str) and "/" in value else value


def listed_differences(differ: dict[str, tuple[Any, Any]]) -> str:
    """The first of the keys that differ, with both values."""
    shown = [f"{key}={format_value(new)} here, {format_value(old)} there" for key, (new, old) in sorted(differ.items())]
    return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more keys" if len(shown) > 3 else "")
