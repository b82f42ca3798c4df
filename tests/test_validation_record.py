"""What prediction sets need of the validation images, against a plain sort, and its place in a checkpoint."""

import numpy as np
import pytest
import torch
from error_parts import assert_error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from untrained_run import save_untrained_run

from imgrec.analysis.validation_record import ValidationRecord
from imgrec.errors import CheckpointError
from imgrec.inference.calibration import Calibration
from imgrec.inference.checkpoint import load_checkpoint, weights_hash

# Quarters: sums of them are exact, and many are equal.
QUARTERS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.sampled_from([0, 0.25, 0.5])
)


@given(probabilities=QUARTERS, data=st.data())
def test_the_label_is_ranked_as_a_stable_sort_ranks_it(probabilities, data):
    images, classes = probabilities.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images)))
    record = ValidationRecord.of(probabilities, labels)
    for row, label in enumerate(labels):
        order = np.argsort(-probabilities[row], kind="stable").tolist()
        rank = order.index(label)
        assert record.rank[row] == rank
        assert record.before[row] == probabilities[row][order[:rank]].sum()
        assert record.predicted[row] == order[0]
        assert record.probability[row] == probabilities[row][order[0]]
        assert record.true_probability[row] == probabilities[row][label]
        assert record.label[row] == label


def calibration(images: int = 40) -> Calibration:
    rng = np.random.default_rng(0)
    record = ValidationRecord.of(rng.dirichlet(np.ones(10), images).astype(np.float32), rng.integers(0, 10, images))
    return Calibration(temperature=1.43, log_loss_before=0.9, log_loss_after=0.8, images=images, validation=record)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Of a checkpoint with a temperature."""
    run = save_untrained_run(tmp_path_factory.mktemp("calibrated"))
    content = load_checkpoint(run).content
    content["imgrec"]["calibration"] = calibration().pack()
    return content


def test_it_is_read_from_a_checkpoint_as_it_was_and_leaves_the_weights_hash(content, tmp_path):
    assert load_checkpoint(save_untrained_run(tmp_path / "run")).calibration is None
    torch.save(content, tmp_path / "new.ckpt")
    stored = load_checkpoint(tmp_path / "new.ckpt")
    assert stored.calibration is not None
    assert stored.calibration.temperature == 1.43
    for name, array in calibration().validation.to_arrays().items():
        read = stored.calibration.validation.to_arrays()[name]
        assert (read.dtype, read.tolist()) == (array.dtype, array.tolist())
    assert weights_hash(stored.content) == weights_hash(load_checkpoint(tmp_path / "run").content)


DAMAGES = {
    "a list": lambda c: [c],
    "no temperature": lambda c: {key: value for key, value in c.items() if key != "temperature"},
    "another key": lambda c: c | {"own": [1]},
    "temperature text": lambda c: c | {"temperature": "1.43"},
    "temperature 0": lambda c: c | {"temperature": 0},
    "temperature negative": lambda c: c | {"temperature": -1.0},
    "temperature tiny": lambda c: c | {"temperature": 1e-300},
    "temperature nan": lambda c: c | {"temperature": float("nan")},
    "temperature infinite": lambda c: c | {"temperature": float("inf")},
    "temperature too large for a float": lambda c: c | {"temperature": 10**400},
    "log loss nan": lambda c: c | {"log_loss_after": float("nan")},
    "other images": lambda c: c | {"images": 39},
    "images negative": lambda c: c | {"images": -1},
    "record null": lambda c: c | {"validation": None},
    "record by number": lambda c: c | {"validation": {1: torch.zeros(40)}},
    "record empty": lambda c: c | {"validation": {}},
}  # fmt: skip
ARRAYS = {
    "a list": lambda rank: rank.tolist(),
    "int64": lambda rank: rank.long(),
    "bfloat16": lambda rank: rank.bfloat16(),
    "two dimensions": lambda rank: rank[None],
    "sparse": lambda rank: rank.to_sparse(),
    "meta": lambda rank: rank.to("meta"),
    "large": lambda rank: torch.zeros((), dtype=torch.int32).expand(10**11),
    "class 10 of 10": lambda rank: rank + 10,
    "negative": lambda rank: -1 - rank,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_figures_are_refused_in_one_line(content, tmp_path, damage):
    refused(content, DAMAGES[damage](content["imgrec"]["calibration"]), tmp_path / "odd.ckpt")


@pytest.mark.parametrize("damage", ARRAYS)
def test_damaged_arrays_are_refused_in_one_line(content, tmp_path, damage):
    stored = content["imgrec"]["calibration"]
    changed = stored["validation"] | {"rank": ARRAYS[damage](stored["validation"]["rank"])}
    refused(content, stored | {"validation": changed}, tmp_path / "odd.ckpt")


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
def test_a_probability_outside_0_to_1_is_refused(content, tmp_path, value):
    stored = content["imgrec"]["calibration"]
    changed = stored["validation"] | {"before": torch.full((40,), value)}
    refused(content, stored | {"validation": changed}, tmp_path / "odd.ckpt")


def refused(content, stored, file) -> None:
    torch.save(content | {"imgrec": content["imgrec"] | {"calibration": stored}}, file)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(file)
    assert "\n" not in str(error.value)
    assert "calibration" in str(error.value) or "larger than the file" in str(error.value)
    assert_error(str(error.value), file, "Name a checkpoint that imgrec wrote")
