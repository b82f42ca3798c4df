"""trainer.threads: few for small networks and on a busy machine, the same after a resume, and torch's own after a run."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from error_parts import assert_refused
from processes import exit_codes, wait_until
from resumed_runs import assert_same, finish_run, kill_run, load_run, read_outcome

from imgrec import cli, config
from imgrec.config.schema import RunConfig
from imgrec.distributed.world import World
from imgrec.train import fit
from imgrec.training import threads
from imgrec.training.step_boundary import StepBoundary

TRAINER = replace(config.load("train", []).trainer, accelerator="cpu")


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch):
    """A machine of eight cores on which nothing else runs; torch's threads are those of before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads, "running_tasks", lambda *, own: 0)
    yield
    torch.set_num_threads(before)


def chosen(operations: float, *, ranks: int = 1, saved: int | None = None, **change: object) -> int:
    world = World(size=ranks, local_size=ranks)
    with threads.chosen_threads(replace(TRAINER, **change), world, step_operations=operations, saved=saved):
        found = torch.get_num_threads()
    assert torch.get_num_threads() == 8
    return found


@pytest.mark.parametrize(("operations", "expected"), [(0, 1), (3.9e9, 1), (4e9, 2), (11e9, 5), (16e9, 8), (1e15, 8)])
def test_a_thread_for_each_two_billion_operations_of_a_step(operations: float, expected: int) -> None:
    assert chosen(operations) == expected


@pytest.mark.parametrize(
    ("running", "ranks", "expected"), [(0, 1, 8), (3, 1, 5), (8, 1, 1), (99, 1, 1), (0, 4, 2), (4, 4, 1), (0, 16, 1)]
)
def test_the_cores_that_nothing_uses_are_shared_by_the_ranks(
    monkeypatch: pytest.MonkeyPatch, running: int, ranks: int, expected: int
) -> None:
    monkeypatch.setattr(threads, "running_tasks", lambda *, own: running)
    assert chosen(1e15, ranks=ranks) == expected
    assert chosen(1e15, ranks=ranks, deterministic=True) == max(1, 8 // ranks)
    assert chosen(1e15, ranks=ranks, threads=3) == chosen(0, threads=3) == chosen(1e15, saved=3) == 3


def test_what_runs_on_the_machine_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    busy = multiprocessing.get_context("fork").Process(target=lambda: [None for _ in iter(int, 1)], daemon=True)
    busy.start()
    try:
        wait_until(lambda: threads.running_tasks(own=1) >= 1)
    finally:
        busy.kill()
        busy.join()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_number_and_its_bits(tmp_path: Path) -> None:
    """Though the machine is busy at the second start: sums over another number of threads are rounded differently."""

    def train(rank: int) -> None:
        threads.running_tasks = lambda *, own: 99
        fit(load_run(tmp_path / "parts", "trainer.save_every_steps=1"), quiet=True)

    words = ("trainer.threads=2", "trainer.save_every_steps=1")
    whole = finish_run(load_run(tmp_path / "whole", *words))
    kill_run(load_run(tmp_path / "parts", *words), 6, StepBoundary, "on_before_optimizer_step")
    assert exit_codes(1, train) == [0]
    assert_same(read_outcome(tmp_path / "parts/r/a"), whole)
    assert (tmp_path / "parts/r/a/log.txt").read_text().count("cpu with 2 threads") == 2


def test_the_start_screen_says_it_and_0_is_refused(small: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]) -> None:
    run = small("trainer.threads=3", "id=a")
    result = fit(run, quiet=True)
    assert result["device"] == "cpu with 3 threads, precision 32"
    assert torch.get_num_threads() == 8
    assert cli.main(["train", "trainer.threads=0"]) == 2
    assert_refused(capsys.readouterr().err, "trainer.threads=0", "1 or more", "auto")
