"""The mean of the weights of runs, of which each is added where that helps on validation: a greedy soup.

Wortsman 2022, "Model soups" (arXiv 2203.05482), algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from imgrec.config.schema import Monitor, monitor_mode
from imgrec.data.split_record import find_changes, other_classes
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import Checkpoint
from imgrec.training.config_difference import check_same_network, first_difference

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class WeightMean:
    """The mean of the weights of `count` networks: their sums in float64, from which a float32 mean is rounded once."""

    first: Weights
    sums: Weights
    count: int = 1

    @classmethod
    def of(cls, state: Weights) -> "WeightMean":
        return cls(state, {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()})

    def including(self, state: Weights) -> "WeightMean":
        """The mean of one more network."""
        return WeightMean(self.first, {name: part + state[name].double() for name, part in self.sums.items()}, self.count + 1)

    def state(self) -> Weights:
        """The mean, each tensor in its own type. Whole numbers, such as indices and counts, are those of the first network."""
        means = {name: (part / self.count).to(self.first[name].dtype) for name, part in self.sums.items()}
        return self.first | means


class Validated(NamedTuple):
    """Weights with their figures of validation: {"val/accuracy": ...}."""

    figures: dict[str, float]
    state: Weights


class Ingredient(NamedTuple):
    """A run in the order in which they were tried, its score alone and that of the mean with it: None of the first."""

    row: int  # in the order in which they were given
    alone: float
    mean: float | None
    kept: bool


class Soup(NamedTuple):
    """ingredients: the best first; validated: of the mean of those that were kept; None where that is the first alone."""

    ingredients: list[Ingredient]
    validated: Validated | None


def greedy_soup(
    alone: Sequence[float], weights: Callable[[int], Weights], validate: Callable[[Weights], Validated], monitor: Monitor
) -> Soup:
    """Each run after the best is added to the mean if the `monitor` of the mean is then as good or better.

    alone: of each run; of equal ones the first is the better one. weights: of a run; validate: a mean of several.
    """
    sign = -1 if monitor_mode(monitor) == "min" else 1
    first, *others = sorted(range(len(alone)), key=lambda row: -sign * alone[row])
    mean, best, validated = WeightMean.of(weights(first)), alone[first], None
    tried = [Ingredient(first, best, None, True)]
    for row in others:
        candidate = mean.including(weights(row))
        found = validate(candidate.state())
        score = found.figures[monitor]
        kept = sign * score >= sign * best  # NaN is not
        if kept:
            mean, best, validated = candidate, score, found
        tried.append(Ingredient(row, alone[row], score, kept))
    return Soup(tried, validated)


def check_alike(first: Checkpoint, other: Checkpoint, names: tuple[str, str]) -> None:
    """ConfigError, which names the first difference, unless both are the same network for the same classes and images.

    Their splits must be the same too: else one was trained on images that the other is validated with.
    """
    check_same_network(first.run.to_dict(), other.run.to_dict(), names)
    given = f"runs={names[1]}"
    with_those = f"Name runs with those of {names[0]}."
    if classes := other_classes(first.classes, other.classes):
        raise ConfigError(f"{given}: it has {classes}, {names[0]}. {with_those}")
    sizes = ({key: list(tensor.shape) for key, tensor in each.content["state_dict"].items()} for each in (first, other))
    if (difference := first_difference(*sizes)) is not None:
        raise ConfigError(f"{given}: another network, {difference} in {names[0]}. {with_those}")
    steps = ({f"data.{key}": value for key, value in each.preprocessing.items()} for each in (first, other))
    if (difference := first_difference(*steps)) is not None:
        raise ConfigError(f"{given}: other preprocessing, {difference} in {names[0]}. {with_those}")
    ours, theirs = first.record(), other.record()
    if ours is not None and theirs is not None and (changes := find_changes(ours, theirs)).counts:
        raise ConfigError(f"{given}: it was trained on other images than {names[0]}: {changes}. {with_those}")
