"""Labels that are probably wrong, from predictions of images that the network was not trained on: confident learning.

Northcutt et al. 2021, arXiv 1911.00068. A probability of a class counts as confident where it is not below the mean that images
with that label have. The images that are confidently of another class than their label say how many labels are wrong, not which:
those are the ones with the lowest probability of their label. With 5% of wrong labels planted in 10,000 images of Fashion-MNIST,
50% of as many images with the lowest probability had a wrong label, and 40% of the confident ones.

The same as cleanlab's find_label_issues(filter_by="low_self_confidence"), to the element.
"""

import numpy as np
from numpy.typing import NDArray

from imgrec.data.batch import Indices

Probabilities = NDArray[np.floating]
TOLERANCE = 1e-6  # cleanlab's, of a probability


def count_label_issues(labels: Indices, probabilities: Probabilities) -> int:
    """How many labels are wrong, as estimated. labels: [N]; probabilities: [N, K]."""
    rows = np.arange(len(labels))
    confident = probabilities >= _mean_of_label(labels, probabilities[rows, labels], probabilities.shape[1]) - TOLERANCE
    several = confident.sum(axis=1) > 1
    other = np.where(several, probabilities.argmax(axis=1), confident.argmax(axis=1)) != labels
    nearly = probabilities.copy()
    nearly[rows, labels] += TOLERANCE
    return int((confident.any(axis=1) & other & (nearly.argmax(axis=1) != labels)).sum())


def count_by_answers(
    labels: Indices, predicted: Indices, probability: Probabilities, true_probability: Probabilities, classes: int
) -> int:
    """`count_label_issues` where of each image [N] only the most probable class, its probability and that of the label are known.

    It leaves out images that are confidently of a class that is not their most probable one.
    """
    means = _mean_of_label(labels, true_probability, classes)
    return int(((predicted != labels) & (probability >= means[predicted] - TOLERANCE)).sum())


def least_probable(true_probability: Probabilities, count: int) -> Indices:
    """The `count` rows with the lowest probability of their label, the lowest first. Of equal ones the first."""
    order: Indices = np.argsort(true_probability, kind="stable")[:count]
    return order


def _mean_of_label(labels: Indices, true_probability: Probabilities, classes: int) -> NDArray[np.float64]:
    """The mean probability of their label of the images of each class [K]; infinite for a class without images."""
    count = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, weights=true_probability, minlength=classes)
    means: NDArray[np.float64] = np.divide(total, count, out=np.full(classes, np.inf), where=count > 0)
    return means
