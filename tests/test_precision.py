"""trainer.precision=auto: the faster one here, the same after a resume, and stored as what it stood for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import exit_codes
from resumed_runs import assert_same, finish_run, kill_run, load_run, read_outcome

from imgrec import config
from imgrec.config.schema import RunConfig
from imgrec.inference.checkpoint import load_checkpoint, read_checkpoint
from imgrec.inference.predictor import Predictor
from imgrec.train import fit
from imgrec.training import precision
from imgrec.training.precision import cpu_flags, faster_precision
from imgrec.training.step_boundary import StepBoundary

TRAINER = config.load("train", ["trainer.precision=auto"]).trainer


@pytest.mark.parametrize(("flags", "expected"), [({"avx512_bf16", "fma"}, "bf16-mixed"), ({"avx512f"}, "32"), (set(), "32")])
def test_on_a_cpu_it_is_bf16_where_the_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert faster_precision(replace(TRAINER, accelerator="cpu")) == expected


@pytest.mark.parametrize(("card", "expected"), [(True, "bf16-mixed"), (False, "32")])
def test_on_cuda_it_is_bf16_where_the_card_does(monkeypatch: pytest.MonkeyPatch, card: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: card and not including_emulation)
    monkeypatch.setattr(precision, "cpu_flags", set)
    assert faster_precision(replace(TRAINER, accelerator="auto")) == expected


def test_the_flags_of_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert cpu_flags(file) == set()
    file.write_text("processor\t: 0\nflags\t\t: fma avx512_bf16\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: fma avx512_bf16\n")
    assert cpu_flags(file) == {"fma", "avx512_bf16"}


def test_a_run_is_that_of_the_precision_it_stands_for(small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """And its checkpoints say so: they predict in it on any machine."""
    weights = []
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx512_bf16"})
    for name, given in enumerate(("auto", "bf16-mixed", "32")):
        result = fit(small(f"trainer.precision={given}", f"id={name}"), quiet=True)
        assert str(result["device"]).endswith("precision 32" if given == "32" else "precision bf16-mixed")
        checkpoint = load_checkpoint(result.folder)
        assert Predictor(checkpoint).precision == checkpoint.run.trainer.precision == ("32" if given == "32" else "bf16-mixed")
        weights.append(read_checkpoint(result.folder / "checkpoints/best.ckpt")["state_dict"])
    chosen, same, other = weights
    assert all(torch.equal(chosen[key], same[key]) for key in chosen)
    assert not all(torch.equal(chosen[key], other[key]) for key in chosen)


@pytest.mark.slow
def test_a_resumed_run_keeps_it_and_its_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the second start is on a machine where another is faster."""
    words = ("trainer.precision=auto", "trainer.save_every_steps=1")
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx512_bf16"})
    whole = finish_run(load_run(tmp_path / "whole", *words))
    kill_run(load_run(tmp_path / "parts", *words), 6, StepBoundary, "on_before_optimizer_step")
    monkeypatch.setattr(precision, "cpu_flags", set)
    assert exit_codes(1, lambda rank: fit(load_run(tmp_path / "parts", *words), quiet=True)) == [0]
    assert_same(read_outcome(tmp_path / "parts/r/a"), whole)
    assert (tmp_path / "parts/r/a/log.txt").read_text().count("precision bf16-mixed") == 2
