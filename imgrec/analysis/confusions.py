"""A confusion matrix as people can read it: similar classes beside each other, and which images stand for a cell."""

import numpy as np
from numpy.typing import NDArray

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float32]
_MOST_TO_ARRANGE = 200  # classes up to which the branches are turned to their neighbours: 2.7 s for 1,000


def cluster_order(matrix: _Integers) -> _Integers:
    """The classes, those that are taken for one another side by side; those in no confusion last, in their order.

    matrix: counts [K, K], a row for each true class. Hierarchical clustering (average linkage) by the share of its images
    that each of two classes loses to the other. 0.05 s for 1,000 classes.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage  # 0.2 s
    from scipy.spatial.distance import squareform

    errors = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(errors, 0)
    confused = np.flatnonzero(errors.sum(axis=0) + errors.sum(axis=1))
    rest = np.setdiff1d(np.arange(len(matrix)), confused)
    if len(confused) < 3:
        return np.concatenate([confused, rest])
    shares = (errors / np.maximum(np.asarray(matrix).sum(axis=1, keepdims=True), 1))[np.ix_(confused, confused)]
    near = shares + shares.T
    distances = squareform(1 - near / near.max(), checks=False)
    tree = linkage(distances, "average", optimal_ordering=len(confused) <= _MOST_TO_ARRANGE)
    return np.concatenate([confused[leaves_list(tree)], rest])


def largest_confusions(matrix: _Integers, most: int) -> _Integers:
    """[M, 3]: true class, predicted class and images of up to `most` cells off the diagonal, the largest first."""
    errors = np.array(matrix)
    np.fill_diagonal(errors, 0)
    true, predicted = errors.nonzero()
    counts = errors[true, predicted]
    order = np.argsort(-counts, kind="stable")[:most]
    return np.stack([true[order], predicted[order], counts[order]], axis=1).astype(np.int64)


def most_certain_errors(true: _Integers, predicted: _Integers, probability: _Floats, true_probability: _Floats) -> _Integers:
    """Rows that are wrong: the most probable first, of equal ones the one whose own class is the least probable.

    All [N]: classes, the probability of the predicted class, that of the true one.
    """
    wrong = np.flatnonzero(predicted != true)
    return wrong[np.lexsort((true_probability[wrong], -probability[wrong]))]


def first_of_each_cell(true: _Integers, predicted: _Integers, order: _Integers, most: int) -> _Integers:
    """Of rows in an order, up to `most` of each cell of the confusion matrix: the first of all cells, then the second, and so on."""
    cells = true[order] * (1 + max(true.max(initial=0), predicted.max(initial=0))) + predicted[order]
    by_cell = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[by_cell], cells[by_cell])
    place = np.empty(len(order), dtype=np.int64)  # of a row among those of its cell
    place[by_cell] = np.arange(len(order)) - starts
    kept = np.flatnonzero(place < most)
    return order[kept[np.argsort(place[kept], kind="stable")]]
