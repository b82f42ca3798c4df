"""What the figures of a training say about it, as rules with numbers: what went wrong, and what to set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imgrec.analysis.intervals import share_interval
from imgrec.analysis.paired import Labels
from imgrec.errors import first_names, plural

Figures = npt.NDArray[np.float64]

AFTER_BEST = 3  # epochs after the lowest validation loss, before it counts as over-fitting
ROSE = 1.1  # factor on the lowest validation loss, of the mean of the last AFTER_BEST epochs
JUMPED = 0.1  # share of the first epoch's training loss by which a loss is above that of the epoch before
JUMPS = 2  # of them show a rate that is too high: one alone may come from a few hard batches
FEW_EPOCHS = 5  # of fewer no rule looks at the shape of a curve
UNLEARNED = 0.7  # share of the first epoch's training loss that is left with a rate too low
LITTLE = 0.5  # the best validation accuracy up to which a rate may be too low
IMPROVED = 0.95  # factor on the validation loss within the last quarter of the epochs
FEW_IMAGES = 5  # a class of fewer may be missed by chance
LEARNED_NOTHING, OVER_FITTED_RULE = "learned nothing", "over-fitted"  # names of rules
NOISY = 0.03  # estimated share of wrong labels, at the low end of its interval
SURE_ERRORS = 0.2  # share of the errors that are as sure as the typical right answer
SURE_BY_CHANCE = 0.1  # that share without wrong labels: the low end of its interval is above
HALF = 0.5  # share of a class's images, or answers, that are right: above, the network knows the class
WIDE = 0.04  # of the interval of the best validation accuracy


class Epochs(NamedTuple):
    """Of each epoch, [E]: mean losses and accuracies. Those of training are of augmented images, while the weights changed."""

    train_loss: Figures
    val_loss: Figures
    val_accuracy: Figures


class Finding(NamedTuple):
    """rule: its name, which stays; sentence: what was seen, and what to set."""

    rule: str
    sentence: str


def diagnose(epochs: Epochs, *, images: int, most_frequent: float, lr: float, longer: str) -> list[Finding]:
    """What the curves say, the gravest first; of a training that learned nothing only that.

    images: of validation; most_frequent: share of them that the most frequent class has; lr: optim.lr; longer: what to type
    to train longer.
    """
    if len(epochs.train_loss) < 2 or not images:
        return []
    if (nothing := _learned_nothing(epochs, images, most_frequent, lr)) is not None:
        return [nothing]
    rate = _rate_too_high(epochs, lr) or _rate_too_low(epochs, lr)
    rules = (rate, _over_fitted(epochs), _still_improving(epochs, longer), _validation_too_small(epochs, images))
    return [finding for finding in rules if finding is not None]


def never_predicted(confusion: npt.ArrayLike, classes: Sequence[str]) -> list[Finding]:
    """A finding of the classes of which there are images, five at least, and which the network answers for none. confusion: int64 [K, K], rows true; classes: K names."""
    matrix = np.asarray(confusion)
    missed = np.flatnonzero((matrix.sum(0) == 0) & (matrix.sum(1) >= FEW_IMAGES))
    if not len(missed):
        return []
    names = first_names([classes[k] for k in missed.tolist()], 3)
    sentence = (
        f"never predicted: {len(missed)} of {len(classes)} classes, with {matrix[missed].sum():,} of the tested images ({names}). "
        "Set loss.class_weights=balanced or sampling=balanced where they are rare, or more epochs."
    )
    return [Finding("never predicted", sentence)]


def leak_suspected(leaked: int, images: int, command: str, *, tested: bool) -> list[Finding]:
    """A finding where `leaked` of the images of validation and test have their picture in train.

    command: says what they are worth in a test, or which they are where the run was not `tested`.
    """
    if not leaked:
        return []
    sentence = (
        f"leak suspected: train has the picture of {leaked:,} of the {images:,} images of validation and test, as imgrec check found, so "
        f"their figures say too much. {'See what that is worth' if tested else 'See which'}: {command}"
    )
    return [Finding("leak suspected", sentence)]


def unlike_validation(validated: tuple[float, int], tested: tuple[float, int]) -> list[Finding]:
    """A finding where the 95% interval of the test accuracy is below that of validation; each: (accuracy, images), of the same weights."""
    intervals = [share_interval(round(accuracy * images), images) for accuracy, images in (tested, validated)]
    if intervals[0][1] >= intervals[1][0]:
        return []
    test, val = (
        f"{accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f}) of {images:,} images"
        for (accuracy, images), (low, high) in zip((tested, validated), intervals, strict=True)
    )
    sentence = (
        f"the test is unlike validation: accuracy {test}, in validation {val}. The test has images of another kind, or those of "
        "validation are nearly in train too: look for copies with imgrec check."
    )
    return [Finding("test unlike validation", sentence)]


def label_noise(true: Labels, predicted: Labels, probability: npt.NDArray[np.floating], command: str) -> list[Finding]:
    """A finding where errors are as sure as right answers; of each tested image [N]: label, answer, and the probability of the answer.

    command: says which labels.

    An error of the network is mostly an unsure one. An error that is none, as the label is wrong, is as sure as a right answer, so
    half of such are above the median of these: twice the errors above it are the wrong labels. A class that was not learned is
    missed as surely, with right labels: only errors from one class to another count of which the network knows both
    (`known_classes`). With 5%, 10%, 20% and 30% of wrong labels planted in the digits it gave 3%, 8 to 11%, 14 to 19% and 13 to
    16% (three seeds each; of many fewer, as then fewer classes are known), and without 0 to 1%.
    """
    right = true == predicted
    by_label = known_classes(true, right)
    asked = by_label[true]
    right, probability, predicted = right[asked], probability[asked], predicted[asked]
    known = known_classes(predicted, right)[predicted]
    if not right.any():
        return []
    wrong, typical = int((~right).sum()), float(np.median(probability[right]))
    sure = int((probability[~right & known] >= typical).sum())
    low, high = (min(2 * end, 1.0) for end in share_interval(sure, len(right)))
    if low < NOISY or sure < SURE_ERRORS * wrong or share_interval(sure, wrong)[0] < SURE_BY_CHANCE:
        return []
    found = min(2 * sure, wrong) / len(right)  # a wrong label is an error
    few = "" if asked.all() else f", of the {plural(int(by_label.sum()), 'class', 'es')} that the network knows,"
    sentence = (
        f"label noise: {sure:,} of {plural(wrong, 'error')} in the test{few} are as sure as the typical right answer ({typical:.1%}), so about "
        f"{found:.0%} ({100 * low:.0f} to {100 * high:.0f}) of the labels are probably wrong. See which: {command}"
    )
    return [Finding("label noise", sentence)]


def known_classes(labels: Labels, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[K]: the classes of whose images surely more than half are right, by the low end of the 95% interval.

    Of each image [N] its class, and whether it is right. Nine are the fewest of which one may be wrong.
    """
    images = np.bincount(labels)
    known: npt.NDArray[np.bool_] = share_interval(np.bincount(labels[right], minlength=len(images)), images)[:, 0] > HALF
    return known


def _learned_nothing(epochs: Epochs, images: int, most_frequent: float, lr: float) -> Finding | None:
    best = float(epochs.val_accuracy.max())
    low, high = share_interval(round(best * images), images)
    if low > most_frequent or most_frequent == 1:  # of a single class nothing can be told
        return None
    return Finding(
        LEARNED_NOTHING,
        f"learned nothing that shows: the best validation accuracy, {best:.1%} ({low:.1%} to {high:.1%}) of {plural(images, 'image')}, "
        f"is not surely above the {most_frequent:.1%} of always answering the most frequent class. "
        f"Find another rate than optim.lr={lr:g} with imgrec lr_find, or look at the labels.",
    )


def _rate_too_high(epochs: Epochs, lr: float) -> Finding | None:
    for name, loss in (("training", epochs.train_loss), ("validation", epochs.val_loss)):
        rises = np.diff(loss)
        jumps = np.flatnonzero(rises > JUMPED * epochs.train_loss[0]) + 1
        if len(jumps) >= JUMPS:
            at = first_names([str(epoch + 1) for epoch in jumps], 5)
            worst = int(rises.argmax())
            return Finding(
                "rate too high",
                f"the rate is probably too high: the {name} loss jumped up in epochs {at}, once from {loss[worst]:.3g} to "
                f"{loss[worst + 1]:.3g}. Set optim.lr={lr / 3:.1g}, or find one with imgrec lr_find.",
            )
    return None


def _rate_too_low(epochs: Epochs, lr: float) -> Finding | None:
    loss, accuracy = epochs.train_loss, float(epochs.val_accuracy.max())
    if len(loss) < FEW_EPOCHS or loss[-1] < UNLEARNED * loss[0] or accuracy > LITTLE:
        return None
    return Finding(
        "rate too low",
        f"the rate is probably too low: in {len(loss)} epochs the training loss fell from {loss[0]:.3g} to {loss[-1]:.3g} only, and the best "
        f"validation accuracy is {accuracy:.1%}. Set optim.lr={10 * lr:g}, or find one with imgrec lr_find.",
    )


def _over_fitted(epochs: Epochs) -> Finding | None:
    best = int(epochs.val_loss.argmin())
    train, val, accuracy = epochs.train_loss, epochs.val_loss, epochs.val_accuracy
    if len(val) - 1 - best < AFTER_BEST or val[-AFTER_BEST:].mean() < ROSE * val[best] or train[-1] >= train[best]:
        return None
    if accuracy[-1] == 1:  # a small loss that rises costs no answer
        return None
    return Finding(
        OVER_FITTED_RULE,
        f"over-fitted since epoch {best + 1}: the validation loss rose from {val[best]:.3g} to {val[-1]:.3g} while the training loss fell "
        f"from {train[best]:.3g} to {train[-1]:.3g}; validation accuracy {accuracy[best]:.1%}, then {accuracy[-1]:.1%}. "
        f"Set a stronger augment, such as augment=randaug, more optim.weight_decay, or epochs={best + 1}.",
    )


def _still_improving(epochs: Epochs, longer: str) -> Finding | None:
    # A schedule that ends low lowers the loss at its end, whatever is still to gain: a network that over-fits gains nothing.
    count, val = len(epochs.val_loss), epochs.val_loss
    start = count - 1 - max(1, count // 4)
    if (
        count < 2
        or val[-1] >= val[start]
        or not val[-1] <= min(IMPROVED * val[start], val.min())
        or val[-1] > epochs.train_loss[-1]
        or epochs.val_accuracy[-1] == 1  # more epochs cannot show that they help
    ):
        return None
    return Finding(
        "still improving",
        f"still improving at the end: the validation loss fell from {val[start]:.3g} to {val[-1]:.3g} since epoch {start + 1}, and is not "
        f"above the training loss. Train longer: {longer}",
    )


def _validation_too_small(epochs: Epochs, images: int) -> Finding | None:
    accuracy = epochs.val_accuracy
    best = float(accuracy.max())
    low, high = share_interval(round(best * images), images)
    later = accuracy[len(accuracy) // 2 :]
    within = int((later >= low).sum())
    if len(accuracy) < FEW_EPOCHS or high - low <= WIDE or within < len(later):
        return None
    return Finding(
        "validation too small",
        f"validation is too small to tell epochs apart: {best:.1%} of {images:,} images is {low:.1%} to {high:.1%}, and each of the last "
        f"{within} epochs lies within. Set monitor=val/loss, or take more validation images (data.val_share).",
    )
