"""Runs on packed shards, in a folder and on a faulty server: resumed, on two ranks, and each image once."""

from pathlib import Path

import numpy as np
import pytest
from range_server import RangeServer, served
from resumed_runs import assert_same, finish_run, kill_run
from shard_runs import logged_samples, logging, packed_photos, shards_run, train_images
from test_pack import RUN

import imgrec
from imgrec import config
from imgrec.training.step_boundary import StepBoundary

SHORT = ("epochs=2", "callbacks.early_stopping.patience=1", "data.window_shards=2")
KILLED = (6, StepBoundary, "on_before_optimizer_step")  # in the second epoch


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return packed_photos(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def server(packed):
    with served(packed, faults=0.5) as (_, server):
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def unbroken(packed, tmp_path_factory) -> dict:
    """From the folder, with a window of two of its shards."""
    return finish_run(shards_run(tmp_path_factory.mktemp("unbroken"), packed, *SHORT))


@pytest.mark.slow  # test_resume.py resumes, test_window.py has the order, test_pack.py a run of shards, test_remote.py the faults
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_a_server_that_was_killed_equals_an_unbroken_one_from_the_folder(tmp_path, server, unbroken, workers):
    words = (*SHORT, f"num_workers={workers}", "trainer.save_every_steps=1")
    kill_run(shards_run(tmp_path, server.url, *words), *KILLED)
    assert_same(finish_run(shards_run(tmp_path, server.url, *words)), unbroken)
    assert server.failed


@pytest.mark.slow
@pytest.mark.parametrize("window", ["null", "2"])
def test_a_killed_run_from_a_folder_resumes_bit_for_bit(tmp_path, packed, window):
    whole = finish_run(shards_run(tmp_path / "whole", packed, f"data.window_shards={window}"))
    run = shards_run(tmp_path / "parts", packed, f"data.window_shards={window}", "trainer.save_every_steps=1", "num_workers=2")
    kill_run(run, *KILLED)
    assert_same(finish_run(run), whole)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "server"])
def test_two_ranks_have_the_global_batches_of_one_and_each_image_once(tmp_path, packed, server: RangeServer, source):
    root = packed if source == "folder" else server.url
    found = []
    for size in (1, 2):
        words = ("data.window_shards=2", "trainer.devices=auto", "num_workers=1")
        with logging(tmp_path / f"log{size}"):
            finish_run(shards_run(tmp_path / str(size), root, *words), size=size)
        found.append(logged_samples(tmp_path / f"log{size}", ranks=size))
    assert found[0] == found[1]
    assert len(found[0]) == 3
    for epoch in found[0].values():
        assert sorted(np.concatenate(list(epoch.values()))) == list(range(train_images(packed)))


@pytest.mark.slow
def test_two_killed_ranks_resume_bit_for_bit(tmp_path, packed):
    words = ("trainer.devices=auto", "num_workers=1", "trainer.save_every_steps=1")
    whole = finish_run(shards_run(tmp_path / "whole", packed, *words), size=2)
    kill_run(shards_run(tmp_path / "parts", packed, *words), *KILLED, size=2)
    assert_same(finish_run(shards_run(tmp_path / "parts", packed, *words), size=2), whole)


def test_an_evaluation_reads_a_server_as_the_test_of_the_run_did(tmp_path, server):
    run = config.load("train", [*RUN, "data=shards", f"data.root={server.url}", "epochs=1", f"runs_dir={tmp_path}"])
    result = imgrec.fit(run, quiet=True)
    assert imgrec.load(result.folder).evaluate(num_workers=0).to_dict() == result["test"]
