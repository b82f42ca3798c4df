"""What a report reads of result.json and check.json, so that one that was edited, or cut, is refused in one line."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgrec.config.annotations import check_type, format_value, is_number
from imgrec.config.ranges import NOT_NEGATIVE, Range
from imgrec.errors import ConfigError, shorten
from imgrec.inference.metrics_table import TOTALS


class ValueKind(NamedTuple):
    """A type as an annotation, and the range of the numbers of it."""

    hint: Any
    range: Range | None = None


SHARE, SIGNED = Range(0, 1), Range(-1, 1)
_GROUP, _COUNT = ValueKind(dict | None), ValueKind(int, NOT_NEGATIVE)
_FIGURES = {"matthews_correlation": SIGNED} | dict.fromkeys(("log_loss", "brier", "loss"))  # the others are shares
# By dotted path, * for each value of a group or a list; each below what it is in. A key that is missing is null.
CHECK_KINDS = {
    "faults": _COUNT,
    "findings": ValueKind(list[dict[str, Any]]),
    "findings.*.count": _COUNT,
    "findings.*.examples": ValueKind(list[str] | None),
}
RESULT_KINDS = {
    "train_seconds": ValueKind(float, NOT_NEGATIVE),
    "best.epoch": ValueKind(float, NOT_NEGATIVE),
    "command": ValueKind(str | list[str] | None),
    "parameters": ValueKind(int | None, NOT_NEGATIVE),
    "flops": ValueKind(float | None, NOT_NEGATIVE),
    "versions": _GROUP,
    "left_out": ValueKind(list[str] | None),
    "images": _GROUP,
    "images.*": ValueKind(dict),
    "images.*.*": _COUNT,
    "time_shares": _GROUP,
    "time_shares.*": ValueKind(float, SHARE),
    "data_faults": ValueKind(list[dict[str, Any]] | None),
    "data_faults.*.kind": ValueKind(str),
    "data_faults.*.number": _COUNT,
    "data_faults.*.what": ValueKind(str),
    "data_faults.*.of_classes": ValueKind(bool),
    "diagnosis": ValueKind(list[dict[str, Any]] | None),
    "diagnosis.*.rule": ValueKind(str | None),
    "diagnosis.*.sentence": ValueKind(str | None),
    "calibration": _GROUP,
    "calibration.temperature": ValueKind(float | None, Range(0, open_low=True)),
    "calibration.reason": ValueKind(str | None),
    "calibration.test": _GROUP,
    "calibration.test.before": ValueKind(dict),
    "calibration.test.before.equal_width": ValueKind(dict),
    "calibration.test.before.equal_width.calibration_error": ValueKind(float | None, SHARE),
    "soup": _GROUP,
    "soup.monitor": ValueKind(str),
    "soup.ingredients": ValueKind(list[dict[str, Any]]),
    "soup.ingredients.*.run": ValueKind(str),
    "soup.ingredients.*.alone": ValueKind(float),
    "soup.ingredients.*.mean": ValueKind(float | None),
    "soup.ingredients.*.kept": ValueKind(bool),
    "extended": _GROUP,
    "extended.parent": ValueKind(str),
    "extended.new_classes": ValueKind(list[str]),
    "extended.fewest": _GROUP,
    "extended.fewest.class": ValueKind(str),
    **{f"extended.fewest.{split}": _COUNT for split in ("val", "test")},
    "extended.old": _GROUP,
    "extended.old.images": _COUNT,
    "extended.old.changed": _COUNT,
    **{f"extended.old.{key}": ValueKind(float, SHARE) for key in ("before", "after")},
    **{f"extended.old.{key}_interval": ValueKind(tuple[float, float], SHARE) for key in ("before", "after")},
    "extended.old.difference": ValueKind(tuple[float, float, float], SIGNED),
    "extended.old.moves": ValueKind(list[dict[str, Any]]),
    "extended.old.moves.*.from": ValueKind(str),
    "extended.old.moves.*.to": ValueKind(str),
    "extended.old.moves.*.images": _COUNT,
    "extended.old.shown": ValueKind(list[dict[str, Any]] | None),
    "extended.old.shown.*.row": _COUNT,
    "extended.old.shown.*.before": ValueKind(str),
    "extended.new": _GROUP,
    "extended.new.images": _COUNT,
    "extended.new.accuracy": ValueKind(float, SHARE),
    "extended.new.accuracy_interval": ValueKind(tuple[float, float], SHARE),
    "test.count": ValueKind(int, Range(1)),
    "test.accuracy": ValueKind(float, SHARE),
    "test.per_class.*.support": _COUNT,
    "test.per_class.*.recall": ValueKind(float, SHARE),
    "test.per_class.*.recall_interval": ValueKind(tuple[float, float], SHARE),
    "test.per_class.*.precision": ValueKind(float, SHARE),
    "test.per_class.*.f1": ValueKind(float, SHARE),
    "test.per_class.*.auroc": ValueKind(float | None, SHARE),
    "test.per_class.*.average_precision": ValueKind(float | None, SHARE),
    **{f"test.{key}": ValueKind(float | None, SHARE) for key in ("macro_precision", "macro_recall")},
    **{f"test.{key}": ValueKind(float | None, _FIGURES.get(key, SHARE)) for key, _, _ in TOTALS},
    **{f"test.{key}": ValueKind(tuple[float, float] | None, SHARE) for _, _, key in TOTALS if key is not None},
}  # fmt: skip


def check_kinds(content: Mapping[str, Any], kinds: Mapping[str, ValueKind]) -> None:
    """ConfigError for the first value that is not of its kind."""
    for path, kind in kinds.items():
        for place, value in _values("", content, path.split(".")):
            check_type(place, value, kind.hint)
            for number in value if isinstance(value, list) else [value]:
                if kind.range is not None and is_number(number) and not kind.range.holds(number):
                    raise ConfigError(f"{place}={shorten(format_value(value))}: expected {_range_text(kind.range)}.")


def _range_text(allowed: Range) -> str:
    return str(allowed) if allowed.high < inf or allowed.low > -inf else "a finite number"


def _values(place: str, value: Any, path: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What is at a path with where it is; nothing where what it should be in is missing."""
    if not path:
        yield place, value
        return
    key, *below = path
    inner: dict[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = dict(value) if key == "*" else {key: value.get(key)}
    elif isinstance(value, list) and key == "*":
        inner = dict(enumerate(value))
    for name, each in inner.items():
        yield from _values(f"{place}.{name}".lstrip("."), each, below)


def confusion_of(test: Mapping[str, Any]) -> NDArray[np.int64]:
    """The confusion matrix [K, K] of a test, a row for each true class. ConfigError where the counts of the test are not its sums."""
    try:  # not by check_type, which takes 5 s for 1,000 classes
        confusion = np.asarray(test.get("confusion"))
    except ValueError as error:  # rows of unequal length
        raise ConfigError("test.confusion is no table: its rows are of unequal length.") from error
    classes = len(test["per_class"])
    if confusion.shape != (classes, classes) or confusion.dtype.kind != "i" or (confusion < 0).any():
        raise ConfigError(f"test.confusion is no table of counts of {classes} classes.")
    right = test["accuracy"] * test["count"]
    if test["count"] != confusion.sum() or abs(right - confusion.trace()) > 0.5:
        raise ConfigError(f"test.accuracy={test['accuracy']} of test.count={test['count']} images is not that of test.confusion.")
    if [row["support"] for row in test["per_class"]] != confusion.sum(axis=1).tolist():
        raise ConfigError("test.per_class.*.support are not the images of test.confusion.")
    return confusion
