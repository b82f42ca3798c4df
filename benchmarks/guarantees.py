"""What prediction sets and answers with a risk keep, over 200 random splits of labelled images into validation and new ones.

python benchmarks/guarantees.py                      # the digits of scikit-learn
python benchmarks/guarantees.py FOLDER               # Fashion-MNIST, in torchvision's layout in FOLDER
"""

import sys
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from imgrec.analysis.prediction_sets import RiskNotShown, SetRule, fit_sets, risk_threshold, set_scores
from imgrec.analysis.validation_record import ValidationRecord
from imgrec.config.schema import SetMethod

SPLITS = 200
METHODS: tuple[tuple[SetMethod, bool], ...] = (("lac", False), ("aps", False), ("raps", False), ("lac", True))  # and by class


class Pool(NamedTuple):
    """What a logistic regression says of N images that it was not fitted on, and their labels."""

    probabilities: NDArray[np.float64]  # [N, K]
    labels: NDArray[np.int64]


def digits(fitted: int = 300) -> Pool:
    """The others of the 1,797 digits."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    first, others = order[:fitted], order[fitted:]
    model = LogisticRegression(max_iter=1000).fit(images[first] / 16, labels[first])
    return Pool(model.predict_proba(images[others] / 16), labels[others])


def fashion(root: str, fitted: int = 10_000) -> Pool:
    """The 10,000 test images of Fashion-MNIST."""
    from torchvision.datasets import FashionMNIST

    train, test = (FashionMNIST(root, train=part) for part in (True, False))
    images, new = (data.data.numpy().reshape(len(data), -1) / 255 for data in (train, test))
    model = LogisticRegression(max_iter=200, tol=1e-3).fit(images[:fitted], train.targets.numpy()[:fitted])
    return Pool(model.predict_proba(new), test.targets.numpy())


class Sets(NamedTuple):
    """Of one split."""

    labels: NDArray[np.int64]  # of the validation images
    new: NDArray[np.int64]  # labels of the new images [M]
    covered: NDArray[np.bool_]  # whether the set of each has its label [M]
    sizes: NDArray[np.int64]  # [M]


def fitted_sets(
    pool: Pool,
    own: NDArray[np.int64],
    new: NDArray[np.int64],
    method: SetMethod,
    coverage: float,
    rng: Generator,
    *,
    by_class: bool,
) -> Sets:
    """The sets of the images `new`, fitted on the images `own`."""
    record, labels = ValidationRecord.of(pool.probabilities[own], pool.labels[own]), pool.labels[new]
    scores = set_scores(method, record.true_probability, record.before, record.rank, rng.random(len(own)))
    thresholds = fit_sets(scores, record.label, pool.probabilities.shape[1], coverage, by_class=by_class)
    sets = SetRule(method, thresholds).sets(pool.probabilities[new].astype(np.float32), rng.random(len(new)))
    return Sets(pool.labels[own], labels, sets[np.arange(len(new)), labels], sets.sum(axis=1))


def split_sets(
    pool: Pool, method: SetMethod, coverage: float, validation: int, splits: int, *, by_class: bool = False
) -> list[Sets]:
    """Of each random split into `validation` images and all others."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(pool.labels)) for _ in range(splits)]
    return [
        fitted_sets(pool, order[:validation], order[validation:], method, coverage, rng, by_class=by_class) for order in orders
    ]


def split_risks(pool: Pool, risk: float, validation: int, splits: int) -> NDArray[np.float64]:
    """The share of all images that is answered, and of those the share that is wrong, by the threshold of each split [splits, 2]."""
    rng = np.random.default_rng(0)
    probability, wrong = pool.probabilities.max(axis=1), pool.probabilities.argmax(axis=1) != pool.labels
    found = np.zeros((splits, 2))
    for row in found:
        own = rng.permutation(len(wrong))[:validation]
        try:
            answered = probability > risk_threshold(probability[own], wrong[own], risk)
        except RiskNotShown:  # none can be answered, so none is wrong
            continue
        row[:] = answered.mean(), wrong[answered].mean()
    return found


def epoch_coverage(validation: int, coverage: float, splits: int, epochs: int = 40) -> tuple[float, float]:
    """The mean coverage of lac with a network of the digits after epoch 20, and after that with the best validation accuracy."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    first, others = order[:300], order[300:]
    network = MLPClassifier((32,), learning_rate_init=0.01, batch_size=16, random_state=0)
    pools = []
    for _ in range(epochs):
        network.partial_fit(images[first] / 16, labels[first], classes=np.arange(10))
        pools.append(Pool(network.predict_proba(images[others] / 16), labels[others]))
    right = np.stack([pool.probabilities.argmax(axis=1) == pool.labels for pool in pools])
    rng, covered = np.random.default_rng(1), np.zeros((splits, 2))
    for row in covered:
        order = rng.permutation(len(others))
        own, new = order[:validation], order[validation:]
        for place, epoch in enumerate((20, right[:, own].mean(axis=1).argmax())):
            row[place] = fitted_sets(pools[epoch], own, new, "lac", coverage, rng, by_class=False).covered.mean()
    fixed, chosen = covered.mean(axis=0)
    return float(fixed), float(chosen)


def main(root: str | None) -> None:
    """The tables of docs/evaluation.md."""
    pool, validation = (fashion(root), 2000) if root else (digits(), 700)
    accuracy = (pool.probabilities.argmax(axis=1) == pool.labels).mean()
    print(f"{len(pool.labels):,} images, {validation:,} of them for validation, accuracy {accuracy:.2%}\n")
    print("| sets | coverage | mean | least, greatest | worst class | classes in a set | empty |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for coverage in (0.9, 0.95):
        for method, by_class in METHODS:
            found = split_sets(pool, method, coverage, validation, SPLITS, by_class=by_class)
            shares = np.array([each.covered.mean() for each in found])
            new, covered, sizes = (
                np.concatenate([getattr(each, name) for each in found]) for name in ("new", "covered", "sizes")
            )
            worst = min(covered[new == label].mean() for label in range(pool.probabilities.shape[1]))
            print(
                f"| `{method}`{', by class' * by_class} | {coverage:.0%} | {shares.mean():.2%} | {shares.min():.1%}, "
                f"{shares.max():.1%} | {worst:.1%} | {sizes.mean():.2f} | {(sizes == 0).mean():.1%} |"
            )
    print("\n| risk | answered | wrong among them | splits in which the risk holds |\n| --- | --- | --- | --- |")
    for risk in (0.02, 0.05, 0.1):
        answered, wrong = split_risks(pool, risk, validation, SPLITS).T
        print(f"| {risk:.0%} | {answered.mean():.1%} | {wrong.mean():.2%} | {(wrong <= risk).mean():.1%} |")
    if not root:
        for count in (180, 700):
            fixed, chosen = epoch_coverage(count, 0.95, 2 * SPLITS)
            print(f"\n{count} validation images that chose the epoch too: coverage {chosen:.2%}, not {fixed:.2%}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
