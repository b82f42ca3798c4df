"""What a sweep's command line says, checked before the first job and without torch."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imgrec.config.checks import conform_value
from imgrec.config.compose import compose_config, hydra_tree
from imgrec.config.options import group_names, option_names
from imgrec.config.schema import Node
from imgrec.errors import ConfigError

Sweeps = dict[str, list[str]]  # swept key: its values as they are typed

# A sweep has one of each: where it is kept, and by what its jobs are ranked.
SINGLE = ("name", "id", "runs_dir", "resume", "monitor")


def check_sweep(words: Sequence[str], config_dir: str | None, *, intervals: bool) -> tuple[Node, Sweeps]:
    """The tree of the first job, and the values of each swept key; ConfigError for a key, choice or value that no job can have.

    `intervals`: does the sweeper take interval(low, high)? The two ends stand for it. Each value is checked beside the first ones of the
    other keys: a combination that cannot be is told by its own job.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    search = [Path(config_dir).resolve()] if config_dir else []
    sweeps: Sweeps = {}
    first: list[str] = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            compose_config("train", [word], config_dir)  # raises: it says what is wrong with the word
            raise
        if not override.is_sweep_override():
            first.append(word)
            continue
        key = override.key_or_group
        if override.is_interval_sweep() and not intervals:
            raise ConfigError(
                f"{word}: an interval has no end of values. List some, {key}=0.1,0.01, or let Optuna choose: hydra/sweeper=optuna."
            )
        sweeps[key] = _values(override, config_dir, search)
        if key in SINGLE:
            raise ConfigError(f"{word}: a sweep has one {key} for all its jobs. Set {key}={sweeps[key][0]}.")
        first.append(f"{override.get_key_element()}={sweeps[key][0]}")
    base = compose_config("train", first, config_dir)
    chosen = [word for word in first if word.partition("=")[0] in group_names(search)]
    for key, values in sweeps.items():
        if key not in group_names(search):
            like = _at(hydra_tree("train", chosen, search)[0], key)
            for value in values[1:]:
                conform_value(parser.parse_override(f"{key}={value}").value(), like, key)
        elif key == "experiment" or config_dir or any(word.lstrip("+").startswith(f"{key}.") for word in words):
            for option in values[1:]:  # keys set beside it must be in every option
                compose_config(
                    "train", [f"{key}={option}" if word.partition("=")[0] == key else word for word in first], config_dir
                )
    return base, sweeps


def grid_jobs(words: Sequence[str], sweeps: Sweeps) -> list[list[str]]:
    """The words of each job, in the order in which Hydra's basic sweeper runs them: the last key changes first."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = []
    for override in OverridesParser.create().parse_overrides(list(words)):
        swept = override.is_sweep_override()
        values = sweeps[override.key_or_group] if swept else [override.get_value_element_as_str()]
        choices.append([f"{override.get_key_element()}={value}" for value in values])
    return [list(job) for job in itertools.product(*choices)]


def _values(override: Any, config_dir: str | None, search: Sequence[Path]) -> list[str]:
    from hydra.core.override_parser.types import Glob, IntervalSweep

    value, key = override.value(), override.key_or_group
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    found = (
        value.filter(option_names(key, search))
        if isinstance(value, Glob)
        else [str(one) for one in override.sweep_string_iterator()]
    )
    if not found:
        raise ConfigError(f"{override.input_line}: that is not a single value. List some, {key}=A,B.")
    for option in found:
        if key in group_names(search) and option not in option_names(key, search):
            compose_config("train", [f"{key}={option}"], config_dir)  # raises: it says what there is
    return found


def _at(node: Node, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


def sweep_name(name: str, sweeps: Mapping[str, Sequence[str]]) -> str:
    """The run name of all jobs from that of the first: digits_resnet -> digits_resnet+vgg where model=resnet,vgg; 'a+5' stands for six."""

    def label(key: str) -> str:
        values = sweeps[key]
        return "+".join(values) if len(values) <= 3 else f"{values[0]}+{len(values) - 1}"

    if "experiment" in sweeps and name == sweeps["experiment"][0]:
        return label("experiment")
    if "data" in sweeps and name.startswith(f"{sweeps['data'][0]}_"):
        name = label("data") + name.removeprefix(sweeps["data"][0])
    if "model" in sweeps and name.endswith(f"_{sweeps['model'][0]}"):
        name = name.removesuffix(sweeps["model"][0]) + label("model")
    return name


def optuna_settings(words: Sequence[str], *, monitor: str, seed: int) -> list[str]:
    """Hydra's words for the Optuna sweeper, with what follows from the run: the direction, seeded sampling, one job at a time.

    The same seed and results give the same proposals, so a sweep started again meets its finished jobs.
    """
    from importlib.metadata import version
    from importlib.util import find_spec

    if find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        raise ConfigError(
            'hydra/sweeper=optuna needs hydra-optuna-sweeper, which is not installed. Type: pip install "imgrec[optuna]"'
        )
    given = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in words}
    stored = given.get("hydra.sweeper.storage", "null") != "null"
    if stored and int(version("sqlalchemy").partition(".")[0]) >= 2:
        raise ConfigError(
            f"hydra.sweeper.storage={given['hydra.sweeper.storage']} needs an older SQLAlchemy for Optuna 2.10, found {version('sqlalchemy')}. "
            'Leave it out, as the same command goes on without, or type: pip install "sqlalchemy<2" "alembic<1.20"'
        )
    direction = "minimize" if monitor.endswith("loss") else "maximize"
    if given.get("hydra.sweeper.direction", direction) != direction:
        raise ConfigError(
            f"hydra.sweeper.direction={given['hydra.sweeper.direction']}, but the objective is monitor={monitor}. "
            f"Leave it out, or set hydra.sweeper.direction={direction}."
        )
    found = {"hydra.sweeper.direction": direction, "hydra.sweeper.n_jobs": "1", "hydra.sweeper.max_failure_rate": "1.0"}
    # A stored study is to be gone on with, not proposed again.
    if given.get("hydra/sweeper/sampler", "tpe") != "grid" and not stored:
        found["hydra.sweeper.sampler.seed"] = str(seed)
    return [*words, *(f"{key}={value}" for key, value in found.items() if key not in given)]
