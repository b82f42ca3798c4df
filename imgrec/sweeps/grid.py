"""What the command line of a sweep says, checked before the first job and without torch or Optuna."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from imgrec.config.annotations import whole_number
from imgrec.config.batch_checks import check_same_batch
from imgrec.config.checks import all_keys, conform
from imgrec.config.compose import compose_config, hydra_tree, read_overrides
from imgrec.config.options import group_names, option_names
from imgrec.config.overrides import FLAGS, SEARCH, Override
from imgrec.config.schema import Node, run_types
from imgrec.config.values import decimal_comma, is_decimal_comma, parse_value
from imgrec.errors import ConfigError
from imgrec.sweeps.arguments import INTERVALS, MOST_JOBS, TRIALS, Argument, ranges_named, read_arguments, too_many_jobs

# A sweep has one of each: where it is kept, and by what its jobs are ranked.
SINGLE = ("name", "id", "runs_dir", "resume", "monitor")
# Keys of the sweep itself; all others are those of a run.
JOB, PRUNE = "job", "prune"  # and TRIALS


@dataclass(frozen=True)
class SweepPlan:
    """The command line of a sweep, and the config of its first job."""

    arguments: list[Argument]
    base: Node
    job: str | None = None  # what follows job=
    trials: int | None = None  # of a search; None: a grid
    prune: bool = False  # end trials of a search that are worse than the median
    first: Mapping[str, Any] | None = None  # of `imgrec tune`: values of swept keys in the first trial; others are drawn

    @property
    def name(self) -> str:
        """The name that all jobs share: that of the first, with all values of the swept groups in it."""
        return sweep_name(self.base["name"], {argument.key: argument.values for argument in self.arguments})

    def grid(self) -> list[list[str]]:
        """The overrides of each job of a grid, the last key changing first, as in Hydra's basic sweeper."""
        return [list(job) for job in itertools.product(*([a.override(value) for value in a.values] for a in self.arguments))]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of the trial with these values of the swept keys."""
        return [argument.override(values.get(argument.key, argument.values[0])) for argument in self.arguments]


def is_sweep(argv: Sequence[str]) -> bool:
    """Is this the command line of a sweep, not of a run?"""
    return not set(FLAGS).isdisjoint(argv)


def plan_sweep(argv: Sequence[str], config_dir: str | None) -> SweepPlan:
    """The plan of `imgrec train ARGV`; ConfigError for a key, an option or a value that no job can have.

    Each value is checked beside the first ones of the other keys: a combination that is not possible fails as a job of its own.
    """
    search = SEARCH in argv
    if hydra := next((text for text in argv if re.match(r"[+~]*hydra[./].*=", text)), None):
        raise ConfigError(
            f"{hydra}: sweeps take no key of Hydra's. To search, type "
            f"imgrec train -m {SEARCH} 'optim.lr={INTERVALS['log']}' trials=30; without {SEARCH} every combination is run."
        )
    # Of two overrides of a key the later one counts, as in a run.
    by_key = {override.key: override for override in read_overrides("train", argv, config_dir)}
    job, trials, prune = (by_key.pop(key).text if key in by_key else None for key in (JOB, TRIALS, PRUNE))
    _check_own_keys(search, job, trials, prune)
    arguments, types = read_arguments(by_key.values(), search, config_dir)
    for argument in arguments:
        if argument.is_swept and argument.key in SINGLE:
            value = argument.values[0]
            raise ConfigError(f"{argument.text}: a sweep has one {argument.key} for all its jobs. Set {argument.key}={value}.")
    if not any(argument.is_swept for argument in arguments):
        example = f"'optim.lr={INTERVALS['log']}'" if search else "optim.lr=0.1,0.01, or leave -m out"
        raise ConfigError(f"{SEARCH if search else '-m'}: no key has several values. Type for example {example}.")
    if not search and (jobs := math.prod(len(argument.values) for argument in arguments)) > MOST_JOBS:
        raise too_many_jobs(f"-m: {jobs:,} combinations")
    with ranges_named(arguments, types) if search else nullcontext():
        base = _check_values(arguments, types, config_dir)
    listed = [value for argument in arguments if argument.key == "batch_size" for value in argument.values]
    check_same_batch([base["batch_size"], *listed], "the jobs of a sweep")
    return SweepPlan(
        arguments,
        base,
        job=None if job is None else _value(job),
        trials=None if trials is None else whole_number(_value(trials)),
        prune=prune == f"{PRUNE}=true",
    )


def _value(text: str) -> str:
    return text.partition("=")[2]


def _check_own_keys(search: bool, job: str | None, trials: str | None, prune: str | None) -> None:
    """ConfigError for a key of the sweep itself that does not fit."""
    if search and job is not None:
        raise ConfigError(f"{job}: the values of a trial depend on the results before it. Leave {JOB} or {SEARCH} out.")
    if not search and (own := trials or prune) is not None:
        raise ConfigError(f"{own}: a grid runs every combination to its end. Leave {own.partition('=')[0]} out, or add {SEARCH}.")
    if search and not (trials is not None and whole_number(_value(trials))):
        raise ConfigError(f"{trials or SEARCH}: expected {TRIALS}=NUMBER, 1 or more. Type for example {TRIALS}=30.")
    if prune is not None and _value(prune) not in ("true", "false"):
        raise ConfigError(f"{prune}: expected true or false. Type {PRUNE}=true to end trials that are worse than the median.")


def _check_values(arguments: Sequence[Argument], types: Mapping[str, Any], config_dir: str | None) -> Node:
    """The config of the first job; ConfigError for a value of another that its key does not take."""
    try:
        return _checked_base(arguments, types, config_dir)
    except ConfigError as error:
        for argument in arguments:
            value = _value(argument.text)
            if str(error).startswith(f"{argument.key}=") and is_decimal_comma(value, types.get(argument.key)):
                raise decimal_comma(argument.key, value) from error
        raise


def _checked_base(arguments: Sequence[Argument], types: Mapping[str, Any], config_dir: str | None) -> Node:
    def beside(argument: Argument | None, value: str) -> list[str]:
        """The overrides of the first job, but for the value of one argument."""
        return [
            other.text if not other.is_swept else f"{other.prefix}={value if other is argument else other.values[0]}"
            for other in arguments
        ]

    first = beside(None, "")
    base, groups = compose_config("train", first, config_dir), group_names(config_dir)
    chosen = [text for text in first if text.lstrip("+~").partition("=")[0] in groups]
    for argument in arguments:
        key, values = argument.key, argument.values[1:]
        if key not in groups:
            shipped = hydra_tree("train", chosen, config_dir)[0] if values else {}
            known = dict(all_keys(shipped))
            for value in values if key in known else ():  # others are passed to a library unchecked
                parsed = parse_value("train", Override(f"{key}={value}", "", key, value), types.get(key, Any))
                conform(parsed, known[key], key, types=run_types(shipped))
            continue
        # Keys set beside an option must be in it.
        every = key == "experiment" or config_dir or any(other.key.startswith(f"{key}.") for other in arguments)
        for value in values:
            if every or value not in option_names(key, config_dir):
                compose_config("train", beside(argument, value), config_dir)
    return base


def sweep_name(name: str, swept: Mapping[str, Sequence[str]]) -> str:
    """The run name of all jobs from that of the first: digits_resnet -> digits_resnet+vgg where model=resnet,vgg; 'a+5' stands for six."""

    def label(key: str) -> str:
        values = swept[key]
        return "+".join(values) if len(values) <= 3 else f"{values[0]}+{len(values) - 1}"

    if "experiment" in swept and name == swept["experiment"][0]:
        return label("experiment")
    if "data" in swept and name.startswith(f"{swept['data'][0]}_"):
        name = label("data") + name.removeprefix(swept["data"][0])
    if "model" in swept and name.endswith(f"_{swept['model'][0]}"):
        name = name.removesuffix(swept["model"][0]) + label("model")
    return name
