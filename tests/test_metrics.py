"""Figures against scikit-learn's and torchmetrics', and tallies in parts against one tally of the whole."""

import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import run_ranks
from rich.console import Console
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from imgrec.analysis.scores import ProbabilityScores
from imgrec.inference import recall_bars
from imgrec.inference.confusion_matrix import confusion_table
from imgrec.inference.metrics import ConfusionTally, Report, make_report, worst_classes
from imgrec.inference.metrics_table import report_tables
from imgrec.terminal import Terminal


def drawn(samples: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """scores [B, K] without ties, labels [B] that may leave classes out, losses [B]"""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(1000, generator=generator)[:classes].float() for _ in range(samples)])
    labels = torch.randint(classes, (samples,), generator=generator)
    return scores, labels, torch.rand(samples, generator=generator)


def tallied(scores: Tensor, labels: Tensor, losses: Tensor, batch: int) -> ConfusionTally:
    tally = ConfusionTally(num_classes=scores.shape[1])
    for part in zip(scores.split(batch), labels.split(batch), losses.split(batch), strict=True):
        tally.update(*part)
    return tally


def names(classes: int) -> list[str]:
    return [f"class {index}" for index in range(classes)]


@given(samples=st.integers(1, 40), classes=st.integers(2, 9), batch=st.integers(1, 15), seed=st.integers(0, 2**31))
def test_a_report_is_scikit_learn_s(samples: int, classes: int, batch: int, seed: int) -> None:
    scores, labels, losses = drawn(samples, classes, seed)
    found = tallied(scores, labels, losses, batch).report(names(classes))
    predicted = scores.argmax(dim=1)
    every = list(range(classes))

    assert found.count == samples
    assert found.loss == pytest.approx(losses.double().mean().item(), rel=1e-12)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted), rel=1e-12)
    assert found.confusion == confusion_matrix(labels, predicted, labels=every).tolist()
    assert found.confusion == multiclass_confusion_matrix(predicted, labels, classes).tolist()
    micro = multiclass_accuracy(scores, labels, classes, average="micro").item()
    assert found.accuracy == pytest.approx(micro, rel=1e-6)
    if classes > 5:
        assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=every), rel=1e-12)
    else:
        assert found.top5 is None

    columns = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[key] for row in found.per_class] == pytest.approx(column.tolist(), rel=1e-12)
    present = labels.unique().tolist()
    macro = precision_recall_fscore_support(labels, predicted, labels=present, average="macro", zero_division=0)
    assert (found.macro_precision, found.macro_recall, found.macro_f1) == pytest.approx(macro[:3], rel=1e-12)
    assert found.absent_classes == [f"class {index}" for index in every if index not in present]


def test_two_processes_count_each_sample_once() -> None:
    def report(rank: int) -> dict[str, Any]:
        piece = slice(0, 3) if rank == 0 else slice(3, 5)  # five samples do not divide by two
        scores, labels, losses = drawn(5, 7, seed=3)
        return tallied(scores[piece], labels[piece], losses[piece], batch=2).report(names(7)).to_dict()

    whole = tallied(*drawn(5, 7, seed=3), batch=5).report(names(7)).to_dict()
    for found in run_ranks(2, report, group=True):
        assert found.pop("loss") == pytest.approx(whole["loss"], rel=1e-12)
        assert found == {key: value for key, value in whole.items() if key != "loss"}


def test_probabilities_of_any_float() -> None:
    scores, labels, losses = drawn(20, 7, seed=1)
    tally = tallied(scores.bfloat16().requires_grad_(), labels, losses.requires_grad_(), batch=20)  # bfloat16 makes ties
    assert tally.report(names(7)).count == 20
    assert not tally.compute().loss_sum.requires_grad


def test_small_losses_are_not_lost_in_a_long_sum() -> None:
    tally = ConfusionTally(num_classes=2)
    scores, labels = torch.eye(2), torch.tensor([0, 1])
    tally.update(scores, labels, torch.tensor([2.0**24, 0.0]))
    for _ in range(10):
        tally.update(scores, labels, torch.tensor([1.0, 0.0]))  # in float32, 2**24 + 1 is 2**24
    if tally.compute().loss_sum.dtype == torch.float64:  # all but Apple's MPS
        assert tally.compute().loss_sum.item() == 2**24 + 10


def small() -> Report:
    confusion = np.array([[3, 1, 0, 0], [0, 0, 2, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    return make_report(confusion, top5_hits=10, loss=0.25, classes=["cat", "dog", "[red]", "bird"])


def test_worst_leaves_absent_classes_out() -> None:
    assert [row["name"] for row in worst_classes(small(), 2)] == ["dog", "[red]"]  # F1 0, 8/10, 6/7
    assert [row["name"] for row in worst_classes(small(), 9)] == ["dog", "[red]", "cat"]


def test_a_report_is_plain_json() -> None:
    found = small().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["absent_classes"] == ["bird"]
    assert found["macro_recall"] == pytest.approx((3 / 4 + 0 + 1) / 3)


def test_the_table_off_a_terminal_is_plain() -> None:
    file = io.StringIO()
    scores = ProbabilityScores(0.5, 0.375, np.array([0.75, 0.25, 0.5, np.nan]), np.array([0.75, 0.5, 0.25, np.nan]))
    Console(file=file, width=80).print(report_tables(small().with_scores(scores), most=20, rules=False))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "class       precision  recall (95% interval)        f1  images",
        "cat            1.0000  0.7500 (0.194 to 0.994)  0.8571       4",
        "dog            0.0000  0.0000 (0.000 to 0.842)  0.0000       2",
        "[red]          0.6667  1.0000 (0.398 to 1.000)  0.8000       4",
        "bird           0.0000  0.0000                   0.0000       0",
        "macro mean     0.5556  0.5833 (0.374 to 0.766)  0.5524      10",
        "",
        "all 10 images                     95% interval",
        "accuracy                  0.7000  0.3475 to 0.9333",
        "balanced accuracy         0.5833  0.3739 to 0.7665",
        "macro F1                  0.5524  0.3283 to 0.7570",
        "Matthews correlation      0.5443",
        "AUROC, macro              0.5000",
        "average precision, macro  0.5000",
        "log loss                  0.5000",
        "Brier score               0.3750",
        "loss                      0.2500",
        "without images, so not in the macro mean: 1 of 4 classes (bird)",
    ]
    assert file.getvalue().isascii()
    assert "\x1b" not in file.getvalue()


def test_beside_a_long_class_name_a_figure_and_its_interval_stay_in_a_line() -> None:
    file = io.StringIO()
    found = make_report([[30, 9], [4, 7]], top5_hits=0, loss=0.0, classes=["a long name " * 6, "\u71d5\u5c71" * 30])
    Console(file=file, width=80, force_terminal=True).print(report_tables(found, most=20, rules=True))
    assert len(re.findall(r"\d\.\d{4} \(\d\.\d{3} to \d\.\d{3}\)", file.getvalue())) == 3  # of two classes and their mean
    assert "\u2026" not in file.getvalue()


def test_a_class_name_stands_in_the_tables_as_it_is_and_in_one_line() -> None:
    found = make_report([[1, 1], [0, 2]], top5_hits=4, loss=0.1, classes=["[red]cat", "d\no\x1bg"])
    terminal, file = Terminal(), io.StringIO()
    terminal.console = Console(file=file, width=100)
    for table in (report_tables(found, most=20, rules=False), confusion_table(found, width=100, most=20)):
        terminal.say(table)
    assert file.getvalue().count("\n[red]cat ") == 2
    assert file.getvalue().count("\nd?o?g ") == 2


def test_the_bars_number_a_class_without_letters_as_the_confusion_matrix_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    labels = recall_bars.class_labels
    monkeypatch.setattr(recall_bars, "class_labels", lambda *given, **sizes: asked.append(given) or labels(*given, **sizes))
    recall_bars.draw_recall_bars(small(), title="")
    assert asked == [(["cat", "dog", "[red]", "bird"], [1, 0, 2])]  # the weakest first; a bird is in no image


def test_without_the_probability_of_each_class_the_log_loss_alone_is_added() -> None:
    found = small().with_scores(ProbabilityScores(0.5, None, None, None))
    assert found == replace(small(), log_loss=0.5)


def test_many_classes_show_the_worst() -> None:
    file = io.StringIO()
    confusion = np.diag(np.arange(1, 31))
    confusion[7, 8] = 50
    found = make_report(confusion, top5_hits=int(confusion.sum()), loss=0.0, classes=names(30))
    Console(file=file, width=100).print(report_tables(found, most=3, rules=False))
    assert "worst 3 of 30 classes" in file.getvalue()
    assert file.getvalue().splitlines()[1].startswith("class 7 ")
    assert "class 29" not in file.getvalue()
