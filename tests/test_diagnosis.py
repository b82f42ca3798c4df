"""Each rule of the diagnosis on curves, and on a training that was made to show it."""

from pathlib import Path

import numpy as np
import pytest
from marks import slow_but
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from imgrec.analysis.diagnosis import Epochs, diagnose, known_classes, label_noise, never_predicted, unlike_validation
from imgrec.train import fit
from imgrec.training.result import Result

GOOD = (2.0, 1.2, 0.8, 0.6, 0.5, 0.42, 0.4, 0.39)


def rules(
    train: tuple[float, ...] = GOOD,
    val: tuple[float, ...] = GOOD,
    accuracy: tuple[float, ...] = (0.6, 0.7, 0.8, 0.85, 0.88, 0.9, 0.91, 0.91),
    images: int = 5000,
) -> dict[str, str]:
    epochs = Epochs(*(np.array(curve) for curve in (train, val, accuracy)))
    return dict(diagnose(epochs, images=images, most_frequent=0.1, lr=0.01, longer="epochs=16 id=1"))


def says(sentence: str, *parts: str) -> None:
    places = [sentence.find(part) for part in parts]
    assert -1 not in places, sentence
    assert places == sorted(places), sentence


def test_a_usual_training_gets_no_finding():
    assert rules(val=tuple(loss + 0.05 for loss in GOOD)) == {}


def test_over_fitted():
    found = rules(train=(2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01), val=(1.8, 1.0, 0.7, 0.75, 0.8, 0.9, 1.0, 1.1))
    assert list(found) == ["over-fitted"]
    says(found["over-fitted"], "epoch 3", "0.7 to 1.1", "0.5 to 0.01", "80.0%", "91.0%", "epochs=3")


@pytest.mark.parametrize("curve", ["train", "val"])
def test_a_rate_too_high(curve):
    jumping = (2.0, 1.2, 1.9, 0.8, 0.6, 1.1, 0.5, 0.6)
    found = rules(**{curve: jumping})
    assert "rate too high" in found
    says(found["rate too high"], "epochs 3, 6", "1.2 to 1.9", "optim.lr=0.003", "imgrec lr_find")


def test_small_losses_may_double():
    assert rules(train=(2.0, 0.5, 0.05, 0.02, 0.04, 0.02, 0.05, 0.04)) == {}


def test_a_rate_too_low():
    falling = tuple(np.linspace(2.3, 2.0, 8))
    found = rules(train=falling, val=tuple(loss + 0.01 for loss in falling), accuracy=tuple(np.linspace(0.12, 0.3, 8)))
    assert list(found) == ["rate too low"]
    says(found["rate too low"], "8 epochs", "2.3 to 2", "30.0%", "optim.lr=0.1", "imgrec lr_find")


def test_a_network_that_was_trained_before_begins_low():
    assert rules(train=(0.30, 0.29, 0.28, 0.27, 0.26, 0.26, 0.26, 0.26), val=(0.3,) * 8) == {}


def test_nothing_learned():
    found = rules(train=(2.3,) * 8, val=(2.3,) * 8, accuracy=(0.1, 0.11, 0.1, 0.1, 0.105, 0.1, 0.1, 0.1), images=200)
    assert list(found) == ["learned nothing"]
    says(
        found["learned nothing"], "11.0% (7.4% to 16.1%) of 200", "not surely above the 10.0%", "optim.lr=0.01", "imgrec lr_find"
    )


def test_a_validation_of_one_class_says_nothing_of_what_was_learned():
    """Always answering it is right."""
    epochs = Epochs(np.array([2.0, 1.0]), np.array([2.0, 1.9]), np.array([0.9, 1.0]))
    assert diagnose(epochs, images=5000, most_frequent=1.0, lr=0.01, longer="") == []


def test_a_loss_that_stays_at_zero_does_not_improve():
    assert rules(train=(1.0, *[0.0] * 7), val=(1.0, *[0.0] * 7), accuracy=(0.9, *[1.0] * 7)) == {}


def test_still_improving():
    found = rules(val=(1.9, 1.1, 0.7, 0.5, 0.45, 0.4, 0.36, 0.33))
    assert list(found) == ["still improving"]
    says(found["still improving"], "0.4 to 0.33", "epoch 6", "Train longer: epochs=16 id=1")


def test_where_every_validation_image_is_right_more_epochs_and_less_fitting_gain_nothing():
    found = rules(val=(1.9, 1.1, 0.7, 0.5, 0.45, 0.4, 0.36, 0.33), accuracy=(0.9, 0.95, 0.99, *[1.0] * 5))
    assert found == {}
    falling, rising = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01), (1.8, 0.5, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15)
    assert rules(train=falling, val=rising, accuracy=(0.9, 0.95, *[1.0] * 6)) == {}
    assert list(rules(train=falling, val=rising)) == ["over-fitted"]


def test_validation_too_small():
    found = rules(val=tuple(loss + 0.05 for loss in GOOD), images=150)
    assert list(found) == ["validation too small"]
    says(found["validation too small"], "91.0% of 150", "last 4 epochs", "monitor=val/loss", "data.val_share")


@pytest.mark.parametrize("count", [0, 1])
def test_one_epoch_is_no_curve(count):
    assert rules(*(curve[:count] for curve in (GOOD, GOOD, (0.1,)))) == {}


def test_classes_that_are_never_predicted():
    confusion = [[8, 2, 0, 0], [1, 9, 0, 0], [3, 2, 0, 0], [0, 0, 0, 0]]
    (found,) = never_predicted(confusion, ["ant", "bee", "cat", "dog"])
    assert found.rule == "never predicted"
    says(found.sentence, "1 of 4", "5 of", "cat", "loss.class_weights=balanced")
    assert never_predicted(np.eye(3, dtype=int), "abc") == []


def test_a_test_unlike_validation():
    (found,) = unlike_validation((0.98, 50), (0.0, 56))
    assert found.rule == "test unlike validation"
    test, val = (binomtest(hits, of).proportion_ci(method="wilson") for hits, of in ((0, 56), (49, 50)))
    shown = [f"({100 * one.low:.1f} to {100 * one.high:.1f})" for one in (test, val)]
    says(found.sentence, f"0.0% {shown[0]} of 56", f"98.0% {shown[1]} of 50", "imgrec check")
    assert unlike_validation((0.98, 50), (0.90, 50)) == [], "the intervals overlap"
    assert unlike_validation((0.0, 56), (0.98, 50)) == [], "a better test needs no advice"


TRUE = np.repeat(np.arange(4), 100)
NUMBERS = np.arange(400) % 100  # of an image in its class
SURE = np.where(NUMBERS % 2, 0.9, 0.6)  # of errors as of right answers


def answers(wrong_in_a_class: int) -> np.ndarray:
    """Of so many images of each class the next class."""
    return np.where(wrong_in_a_class > NUMBERS, (TRUE + 1) % 4, TRUE)


def test_label_noise():
    (found,) = label_noise(TRUE, answers(20), SURE, "look")
    assert found.rule == "label noise"
    says(found.sentence, "40 of 80", "75.0%", "20%", "look")
    unsure = np.where(answers(20) == TRUE, 0.9, 0.6)
    assert label_noise(TRUE, answers(20), unsure, "look") == [], "errors that are unsure"
    assert label_noise(TRUE, answers(2), SURE, "look") == [], "2% of the labels may be chance"
    assert label_noise(TRUE, answers(80), SURE, "look") == [], "most answers are wrong"
    assert label_noise(TRUE, answers(100), SURE, "look") == [], "all answers are wrong"
    assert label_noise(TRUE[:30], answers(2)[:30], np.full(30, 0.9), "look") == [], "two errors"
    weak = np.where(answers(40) == TRUE, 1.0, NUMBERS / 100)
    assert label_noise(TRUE, answers(40), weak, "look") == [], "a weak network"


def test_labels_of_a_class_that_was_not_learned_are_not_accused():
    few = NUMBERS < 25
    true = np.append(TRUE[few], np.full(6, 4))  # a class of six images
    sure = np.append(SURE[few], np.full(6, 0.999))
    for hits in (0, 1):  # the others are surely another class
        answered = np.append(TRUE[few], np.where(np.arange(6) < hits, 4, 0))
        assert label_noise(true, answered, sure, "look") == []
    (found,) = label_noise(true, np.append(answers(5)[few], np.zeros(6, int)), sure, "look")
    says(found.sentence, "8 of 20", "4 classes", "75.0%", "16%")
    taken = np.append(np.where((TRUE == 0) & (NUMBERS < 8), 4, TRUE)[few], np.full(6, 4))  # it takes images of another class
    assert label_noise(true, taken, np.full(106, 0.9), "look") == []


@pytest.mark.parametrize(("images", "wrong"), [(6, 0), (8, 1), (9, 1), (39, 12), (40, 12)])
def test_a_class_is_known_where_surely_more_than_half_is_right(images, wrong):
    method = "exact" if images < 40 else "wilson"
    (known,) = known_classes(np.zeros(images, int), np.arange(images) >= wrong)
    assert known == (binomtest(images - wrong, images).proportion_ci(method=method).low > 0.5)


def noisy_digits(folder: Path) -> str:
    """A third of the images in the folder of a class by chance: to know them is to have learned them by heart."""
    digits, chance = load_digits(), np.random.default_rng(0)
    for row in range(400):
        label = digits.target[row] if chance.random() > 1 / 3 else chance.integers(10)
        (place := folder / f"{label}").mkdir(exist_ok=True, parents=True)
        Image.fromarray((digits.images[row] * 15.9).astype(np.uint8)).save(place / f"{row}.png")
    return str(folder)


def mislabelled_digits(folder: Path) -> str:
    """A fifth of all images in the folder of another class."""
    digits, chance = load_digits(), np.random.default_rng(0)
    for row, label in enumerate(digits.target.tolist()):
        other = (label + chance.integers(1, 10)) % 10 if chance.random() < 0.2 else label
        (place := folder / f"{other}").mkdir(exist_ok=True, parents=True)
        Image.fromarray((digits.images[row] * 15.9).astype(np.uint8)).save(place / f"{row}.png")
    return str(folder)


def relabelled_test(folder: Path) -> str:
    """Digits in three splits; in the test each has the name of the next digit."""
    digits = load_digits()
    for row in range(600):
        split = ("train", "train", "val", "test")[row % 4]
        place = folder / split / f"{(digits.target[row] + (split == 'test')) % 10}"
        place.mkdir(exist_ok=True, parents=True)
        Image.fromarray((digits.images[row] * 15.9).astype(np.uint8)).save(place / f"{row}.png")
    return str(folder)


FOLDERS = {"over-fitted": noisy_digits, "test unlike validation": relabelled_test, "label noise": mislabelled_digits}
TRAININGS = {
    "test unlike validation": "augment=none optim=adam epochs=4",
    "label noise": "optim=adam epochs=10",
    "over-fitted": "augment=none optim=adam optim.lr=0.01 epochs=30 data.val_share=0.3 data.test_share=0.1",
    "rate too high": "optim=sgd optim.lr=0.3 scheduler=constant epochs=8",
    "rate too low": "optim=sgd optim.lr=0.0005 epochs=8",
    "learned nothing": "optim=sgd optim.lr=1e-7 scheduler=constant epochs=2 trainer.limit_train_batches=2",
    "still improving": "optim=adam optim.lr=0.0003 epochs=3",
    "validation too small": "optim=adam epochs=15 data.val_share=0.05",
    "never predicted": "optim=adam epochs=2 loss.class_weights=none sampling=weighted class_weights={3:1e-6}",
}


@pytest.mark.parametrize("rule", slow_but("learned nothing", among=TRAININGS))
def test_a_training_shows_it(rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=simple_cnn", f"runs_dir={tmp_path}", "logger=none", "trainer.accelerator=cpu", *TRAININGS[rule].split()]
    if rule in FOLDERS:
        words += [
            "data=imagefolder",
            f"data.root={FOLDERS[rule](tmp_path / 'digits')}",
            "data.image_size=8",
            "data.channels=1",
            "data.mean=[0.3]",
            "data.std=[0.4]",
        ]
    result: Result = fit(words)
    found = {finding["rule"]: finding["sentence"] for finding in result["diagnosis"]}
    assert rule in found
    assert " ".join(found[rule].split()) in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_digits_have_no_label_noise(tmp_path: Path) -> None:
    words = ["model=simple_cnn", f"runs_dir={tmp_path}", "logger=none", "trainer.accelerator=cpu", "optim=adam", "seed=1"]
    for epochs in (1, 3, 10):
        found = [finding["rule"] for finding in fit([*words, f"epochs={epochs}"])["diagnosis"]]
        assert "label noise" not in found, epochs
