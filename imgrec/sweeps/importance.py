"""Which keys of a sweep its results depend on."""

import math
import warnings
from typing import NamedTuple

from imgrec.config.schema import monitor_mode
from imgrec.sweeps.arguments import Argument, parse_interval
from imgrec.sweeps.folder import HAVE_RESULT, SweepFolder
from imgrec.sweeps.search import distribution

LEAST_RUNS = 10  # of fewer nothing can be said
LEAST_BEST = 5  # runs that are called good: Optuna advises at least so many
SHUFFLES = 99  # 0.01 s each for seven keys
CHANCE = 0.05  # a p up to which a key is called important


class Importance(NamedTuple):
    """How far good runs have other values of a key than all runs."""

    key: str
    share: float  # of the sum over all keys
    p: float  # share of shuffled results in which some key has as much, so of all keys together


def searched(folder: SweepFolder) -> list[Argument]:
    """The keys whose values differ between jobs: intervals as they were typed, of others the values that jobs have."""
    intervals = {found.key: found for text in folder.arguments if (found := parse_interval(text)) is not None}
    keys = []
    for key in folder.varying():
        values = list(dict.fromkeys(job.settings().get(key, "") for job in folder.jobs))
        keys.append(intervals.get(key) or Argument(key, f"{key}={','.join(values)}", key, sorted(values, key=_order)))
    return keys


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


def importances(folder: SweepFolder) -> list[Importance]:
    """The keys, the most important first; none of fewer than LEAST_RUNS runs with a result. A pruned run counts with the best that it reached.

    PED-ANOVA (Watanabe, Bansal and Hutter 2023) in Optuna, which needs no scikit-learn: the Pearson divergence of the density of good runs'
    values from that of all runs. Good are the best tenth, but five runs at least. p is that of the largest divergence of any key under
    shuffled results (Westfall and Young), so that one of many keys does not look important by chance.
    """
    import numpy as np
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import FrozenTrial, create_trial

    jobs = [job for job in folder.jobs if job.status in HAVE_RESULT and job.value is not None and math.isfinite(job.value)]
    arguments = searched(folder)
    if len(jobs) < LEAST_RUNS or not arguments:
        return []
    space = {argument.key: distribution(argument) for argument in arguments}
    sign = 1 if monitor_mode(folder.monitor) == "min" else -1
    losses = np.array([sign * (job.value or 0.0) for job in jobs])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for job in jobs:
        params = {argument.key: _value(argument, job.settings().get(argument.key, "")) for argument in arguments}
        study.add_trial(create_trial(value=0.0, params=params, distributions=space))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(LEAST_BEST / len(jobs), 0.5)))

    def divergences(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> dict[str, float]:
        def target(trial: FrozenTrial) -> float:
            return float(values[trial.number])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that low values are taken for good, as they are here, and that few are of a value
            return evaluator.evaluate(study, target=target)

    found = divergences(losses)
    draw = np.random.default_rng(0)
    largest = [max(divergences(draw.permutation(losses)).values()) for _ in range(SHUFFLES)]
    total = sum(found.values()) or 1.0
    return [
        Importance(key, value / total, (1 + sum(other >= value for other in largest)) / (1 + SHUFFLES))
        for key, value in sorted(found.items(), key=lambda row: -row[1])
    ]


def _value(argument: Argument, text: str) -> str | int | float:
    return text if argument.kind == "list" else int(text) if argument.kind == "int" else float(text)
