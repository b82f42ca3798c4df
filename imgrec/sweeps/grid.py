"""What the command line of a sweep says, checked before the first job and without torch or Optuna."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from imgrec.config.checks import all_keys, conform
from imgrec.config.compose import compose_config, hydra_tree
from imgrec.config.options import group_names, option_names
from imgrec.config.schema import Node, run_types
from imgrec.errors import ConfigError

MULTIRUN, SEARCH = ("-m", "--multirun"), "--search"
# A sweep has one of each: where it is kept, and by what its jobs are ranked.
SINGLE = ("name", "id", "runs_dir", "resume", "monitor")
# Keys of the sweep itself; all others are those of a run.
JOB, TRIALS, PRUNE = "job", "trials", "prune"
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


@dataclass(frozen=True)
class SweepPlan:
    """The command line of a sweep, and the config of its first job."""

    arguments: list[Argument]
    base: Node
    job: str | None = None  # what follows job=
    trials: int | None = None  # of a search; None: a grid
    prune: bool = False  # end trials of a search that are worse than the median

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
    return not {*MULTIRUN, SEARCH}.isdisjoint(argv)


def plan_sweep(argv: Sequence[str], config_dir: str | None) -> SweepPlan:
    """The plan of `imgrec train ARGV`; ConfigError for a key, an option or a value that no job can have.

    Each value is checked beside the first ones of the other keys: a combination that is not possible fails as a job of its own.
    """
    search = SEARCH in argv
    # Of two overrides of a key the later one counts, as in a run.
    by_key = {_key(text): text for text in argv if text not in (*MULTIRUN, SEARCH)}
    if hydra := next((text for key, text in by_key.items() if key.startswith("hydra")), None):
        raise ConfigError(
            f"{hydra}: sweeps take no key of Hydra's. To search, type "
            f"imgrec train -m {SEARCH} 'optim.lr={INTERVALS['log']}' trials=30; without {SEARCH} every combination is run."
        )
    job, trials, prune = (by_key.pop(key, None) for key in (JOB, TRIALS, PRUNE))
    _check_own_keys(search, job, trials, prune)
    arguments = [_parse(text, search, config_dir) for text in by_key.values()]
    for argument in arguments:
        if argument.is_swept and argument.key in SINGLE:
            value = argument.values[0]
            raise ConfigError(f"{argument.text}: a sweep has one {argument.key} for all its jobs. Set {argument.key}={value}.")
    if not any(argument.is_swept for argument in arguments):
        example = f"'optim.lr={INTERVALS['log']}'" if search else "optim.lr=0.1,0.01, or leave -m out"
        raise ConfigError(f"{SEARCH if search else '-m'}: no key has several values. Type for example {example}.")
    base = _check_values(arguments, config_dir)
    return SweepPlan(
        arguments,
        base,
        job=None if job is None else _value(job),
        trials=None if trials is None else int(_value(trials)),
        prune=prune == f"{PRUNE}=true",
    )


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]


def _value(text: str) -> str:
    return text.partition("=")[2]


def _check_own_keys(search: bool, job: str | None, trials: str | None, prune: str | None) -> None:
    """ConfigError for a key of the sweep itself that does not fit."""
    if search and job is not None:
        raise ConfigError(f"{job}: the values of a trial depend on the results before it. Leave {JOB} or {SEARCH} out.")
    if not search and (own := trials or prune) is not None:
        raise ConfigError(f"{own}: a grid runs every combination to its end. Leave {_key(own)} out, or add {SEARCH}.")
    if search and not (trials is not None and _value(trials).isdecimal() and int(_value(trials))):
        raise ConfigError(f"{trials or SEARCH}: expected {TRIALS}=NUMBER, 1 or more. Type for example {TRIALS}=30.")
    if prune is not None and _value(prune) not in ("true", "false"):
        raise ConfigError(f"{prune}: expected true or false. Type {PRUNE}=true to end trials that are worse than the median.")


def _parse(text: str, search: bool, config_dir: str | None) -> Argument:
    if (interval := parse_interval(text)) is not None:
        if not search:
            raise ConfigError(
                f"{text}: an interval has no list of values. List some, {interval.key}=0.1,0.01, or search: "
                f"{SEARCH} '{text}' {TRIALS}=30."
            )
        return interval
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        compose_config("train", [text], config_dir)  # raises: it says what is wrong with it
        raise
    key, prefix = override.key_or_group, override.get_key_element()
    if not override.is_sweep_override():
        return Argument(key, text, prefix, [override.get_value_element_as_str()])
    values = _listed_values(override, config_dir)
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


def _listed_values(override: Any, config_dir: str | None) -> list[str]:
    """The values of KEY=A,B, choice, range or glob, in their order."""
    from hydra.core.override_parser.types import Glob, IntervalSweep

    value, key = override.value(), override.key_or_group
    if isinstance(value, IntervalSweep):  # tag(log,interval(a,b)), as for Hydra's plugins
        raise ConfigError(f"{override.input_line}: there is no interval. Type '{key}=uniform(LOW,HIGH)', or log(LOW,HIGH).")
    is_glob = isinstance(value, Glob)
    values = value.filter(option_names(key, config_dir)) if is_glob else list(map(str, override.sweep_string_iterator()))
    if not values:
        raise ConfigError(f"{override.input_line}: expected one value or more, found none. Type {key}=A,B.")
    return values


def _check_values(arguments: Sequence[Argument], config_dir: str | None) -> Node:
    """The config of the first job; ConfigError for a value of another that its key does not take."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def beside(argument: Argument | None, value: str) -> list[str]:
        """The overrides of the first job, but for the value of one argument."""
        return [
            other.text if not other.is_swept else f"{other.prefix}={value if other is argument else other.values[0]}"
            for other in arguments
        ]

    first = beside(None, "")
    base, groups = compose_config("train", first, config_dir), group_names(config_dir)
    chosen = [text for text in first if _key(text) in groups]
    for argument in arguments:
        key, values = argument.key, argument.values[1:]
        if key not in groups:
            shipped = hydra_tree("train", chosen, config_dir)[0] if values else {}
            known = dict(all_keys(shipped))
            for value in values if key in known else ():  # others are passed to a library unchecked
                parsed = OverridesParser.create().parse_override(f"{key}={value}").value()
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
