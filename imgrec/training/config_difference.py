"""The keys in which the configs of runs differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgrec.config.annotations import format_value
from imgrec.config.schema import LATER_KEYS, Node, RunConfig, leaves
from imgrec.errors import ConfigError

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


def check_same_network(first: Node, other: Node, names: tuple[str, str]) -> None:
    """ConfigError, which names the first difference, unless two configs have the same network and the same data.

    names: of the runs. How many classes there are may be written or found: it is not compared.
    """
    free = (*RESUMABLE_KEYS, *MOVABLE, "model.num_classes", "data.num_classes")
    for group, what in (("model", "another network"), ("data", "other data")):
        both = (dict(leaves({group: config.get(group)})) for config in (first, other))
        difference = first_difference(*({key: each[key] for key in each if key not in free} for each in both))
        if difference is not None:
            raise ConfigError(f"runs={names[1]}: {what}, {difference} in {names[0]}. Name runs with those of {names[0]}.")


def first_difference(one: Node, other: Node) -> str | None:
    """'model.depth=32, 20' of the first key in which they differ: the value of the other, then of the one."""
    for key in [*one, *(key for key in other if key not in one)]:
        if (ours := one.get(key, "none")) != (theirs := other.get(key, "none")):
            return f"{key}={format_value(theirs)}, {format_value(ours)}"
    return None
