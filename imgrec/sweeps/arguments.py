"""The words of a sweep's command line: the values that a key has in its jobs, listed or from an interval."""

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, cast, get_args

from imgrec.config.checks import all_keys, check_options, key_type
from imgrec.config.compose import reference_tree
from imgrec.config.options import group_names, option_names
from imgrec.config.overrides import SEARCH, Override
from imgrec.config.schema import run_types
from imgrec.config.values import hydra_value, is_text, split_texts
from imgrec.errors import ConfigError

TRIALS = "trials"
MOST_JOBS = 10_000  # each of them writes the whole table; a job array of SLURM has 1,001 tasks by default
INTERVAL = re.compile(r"(uniform|log|int|interval)\((.*)\)")
# An interval of each kind, for messages.
INTERVALS = {"uniform": "uniform(0.1,0.9)", "log": "log(1e-4,1e-1)", "int": "int(1,5)"}


@dataclass(frozen=True)
class Argument:
    """An override of the command line with its values in the jobs: one of the listed, or from one end of an interval to the other.

    From an interval any number (uniform), any with each decade equally often (log), or any integer (int).
    """

    key: str
    text: str  # as it was typed
    prefix: str  # what stands before "="
    values: list[str]  # of an interval its two ends
    kind: Literal["list", "uniform", "log", "int"] = "list"

    @property
    def is_swept(self) -> bool:
        return len(self.values) > 1

    def override(self, value: Any) -> str:
        return f"{self.prefix}={value}"


def read_arguments(
    overrides: Collection[Override], search: bool, config_dir: str | None
) -> tuple[list[Argument], dict[str, Any]]:
    """The overrides with their values in the jobs, and the annotation of each key beside the first option of each group."""
    types = _key_types(overrides, config_dir)
    return [_parse(override, search, types.get(override.key, Any), config_dir) for override in overrides], types


def _key_types(overrides: Collection[Override], config_dir: str | None) -> dict[str, Any]:
    """Annotation of each key beside the first option of each group."""
    reference = reference_tree("train", first_options(overrides, config_dir), config_dir)[0]
    types = run_types(reference)
    return {key: key_type(key, value, types) for key, value in all_keys(reference)}


def first_options(overrides: Collection[Override], config_dir: str | None) -> list[Override]:
    """The overrides of config groups, each with its first value; ConfigError for one that is no option."""
    groups = group_names(config_dir)
    first = [
        replace(override, value=_listed_values(override, Any, config_dir)[0]) for override in overrides if override.key in groups
    ]
    check_options("train", first, config_dir)
    return first


def _parse(override: Override, search: bool, hint: Any, config_dir: str | None) -> Argument:
    key, text, prefix = override.key, override.text, override.mark + override.key
    if not is_text(hint) and (interval := parse_interval(text)) is not None:
        if not search:
            raise ConfigError(
                f"{text}: an interval has no list of values. List some, {interval.key}=0.1,0.01, or search: "
                f"{SEARCH} '{text}' {TRIALS}=30."
            )
        return interval
    values = _listed_values(override, hint, config_dir)
    return Argument(key, text if len(values) > 1 else f"{prefix}={values[0]}", prefix, values)


def parse_interval(text: str) -> Argument | None:
    """KEY=uniform(LOW,HIGH), log or int; None for any other value; ConfigError for ends that make no interval."""
    key, _, value = text.partition("=")
    if (match := INTERVAL.fullmatch(value.strip())) is None:
        return None
    kind, ends = match.groups()
    if kind == "interval":
        raise ConfigError(f"{text}: there is no interval. Type '{key}=uniform({ends})', or log({ends}).")
    try:
        low, high = (int(end) if kind == "int" else float(end) for end in ends.split(","))
    except ValueError:
        low = high = math.nan
    if not (low < high < math.inf and low > (0 if kind == "log" else -math.inf)):
        numbers = {"uniform": "two numbers", "log": "two numbers above 0", "int": "two integers"}[kind]
        raise ConfigError(f"{text}: expected {numbers}, the lower one first. Type for example '{key}={INTERVALS[kind]}'.")
    return Argument(key, text, key, [str(low), str(high)], cast(Literal["uniform", "log", "int"], kind))


@contextmanager
def ranges_named(arguments: Sequence[Argument], types: Mapping[str, Any]) -> Iterator[None]:
    """An error of a search about a value that is no number says how a range is typed, too."""
    try:
        yield
    except ConfigError as error:
        for key in (argument.key for argument in arguments):
            numbers = {int, float} & {types.get(key), *get_args(types.get(key))}
            if numbers and str(error).startswith(f"{key}=") and ": expected " in str(error):
                form = INTERVALS["log" if float in numbers else "int"]
                raise ConfigError(f"{error} For a range type '{key}={form}'; the kinds are log, uniform and int.") from error
        raise


def _listed_values(override: Override, hint: Any, config_dir: str | None) -> list[str]:
    """The values of KEY=A,B, choice, range or glob, in their order; one value, also a path that has a comma in it, is the only one."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep, Sweep
    from hydra.errors import HydraException

    key, text = override.key, override.value
    if is_text(hint) and os.path.lexists(os.path.expanduser(text)):
        return [text]
    parsed = hydra_value(text)
    if parsed is None or not parsed.is_sweep_override():
        # No list of Hydra's, such as 1,999... with more digits than it reads: each value is checked alone.
        return split_texts(text) if parsed is None and (is_text(hint) or not set(text) & set("[{(")) else [text]
    value = parsed.value()
    if isinstance(value, IntervalSweep):  # tag(log,interval(a,b)), as for Hydra's plugins
        raise ConfigError(f"{override.text}: there is no interval. Type '{key}=uniform(LOW,HIGH)', or log(LOW,HIGH).")
    if isinstance(value, Glob):
        values = value.filter(option_names(key, config_dir))
    else:
        try:
            if isinstance(value, ChoiceSweep) and any(isinstance(part, Sweep) for part in value.list):
                raise ValueError("a range in a list")
            # Counted before they are listed, as shuffle(range(...)) lists all of them.
            numbers = value.range() if isinstance(value, RangeSweep) else ()
            too_many = sum(1 for _ in islice(numbers, MOST_JOBS + 1)) > MOST_JOBS
            values = [] if too_many else list(parsed.sweep_string_iterator())
        except (HydraException, ValueError, ArithmeticError) as error:
            raise ConfigError(
                f"{override.text}: expected values, or one range with a step other than 0. Type {key}=A,B or {key}=range(0,10,2)."
            ) from error
        if too_many:
            raise too_many_jobs(f"{override.text}: more than {MOST_JOBS:,} values")
    if not values:
        raise ConfigError(f"{override.text}: expected one value or more, found none. Type {key}=A,B.")
    return values


def too_many_jobs(found: str) -> ConfigError:
    """The error about a sweep of more than MOST_JOBS."""
    return ConfigError(
        f"{found}; a sweep has at most {MOST_JOBS:,} jobs. List fewer, or search: "
        f"{SEARCH} 'optim.lr={INTERVALS['log']}' {TRIALS}=100."
    )
