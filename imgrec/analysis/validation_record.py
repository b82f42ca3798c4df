"""What a network says of the validation images, as far as prediction sets and answers with a promised error need it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ValidationRecord(NamedTuple):
    """A number for each of N images in each array: 24 bytes an image for any number of classes.

    The classes of an image are ranked by their probability, the highest first, of equal ones the first in the class list.
    """

    label: NDArray[np.int32]
    predicted: NDArray[np.int32]  # the class of rank 0
    probability: NDArray[np.float32]  # of the predicted class
    true_probability: NDArray[np.float32]  # of the label
    before: NDArray[np.float32]  # sum of the probabilities of the classes ranked before the label; 0.0 where it is predicted
    rank: NDArray[np.int32]  # of the label: how many classes are ranked before it

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> "ValidationRecord":
        """probabilities: float [N, K]; labels: int [N]."""
        own = np.take_along_axis(probabilities, labels[:, None], axis=1)
        first = np.arange(probabilities.shape[1]) < labels[:, None]
        ahead = (probabilities > own) | ((probabilities == own) & first)
        return cls(
            label=labels.astype(np.int32),
            predicted=probabilities.argmax(axis=1).astype(np.int32),
            probability=probabilities.max(axis=1).astype(np.float32),
            true_probability=own[:, 0].astype(np.float32),
            before=probabilities.sum(axis=1, where=ahead, dtype=np.float64).astype(np.float32),
            rank=ahead.sum(axis=1).astype(np.int32),
        )

    def to_arrays(self) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
        """The arrays by their names, as `from_arrays` takes them."""
        return self._asdict()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, images: int, classes: int) -> "ValidationRecord":
        """ValueError, which names what is wrong, unless they are what `to_arrays` gives for so many images and classes."""
        if set(arrays) != set(cls._fields):
            raise ValueError(f"it holds {', '.join(sorted(map(str, arrays)))}; expected {', '.join(cls._fields)}")
        for name in cls._fields:
            _check_array(name, arrays[name], images, classes)
        return cls(**arrays)


MOST_BEFORE = 1 + 1e-5  # a sum of float32 probabilities may be that far above 1


def _check_array(name: str, values: NDArray[Any], images: int, classes: int) -> None:
    whole = name in ("label", "predicted", "rank")
    kind, most = (np.int32, classes - 1) if whole else (np.float32, MOST_BEFORE if name == "before" else 1)
    if values.dtype != kind or values.shape != (images,):
        raise ValueError(f"{name} is {values.dtype} {list(values.shape)}; expected {np.dtype(kind)} [{images}]")
    if not ((values >= 0) & (values <= most)).all():  # not for nan either
        raise ValueError(f"{name} has a value outside 0 to {most:g}")
