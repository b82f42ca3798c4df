"""The projection of benchmarks/scaling.py against closed forms and against a simulation of its buckets."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from error_parts import assert_error
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from projection import Links, Work, all_reduce, bends, efficiency, not_hidden, project, ring, tree
from scaling import main

LINKS = Links(per_node=8, inside=450e9, between=50e9, hop_inside=2e-6, hop_between=5e-6, hop_host=2e-5)
WORK = Work(
    fixed=0.01, image=0.0004, backward=0.6, gradients=1e8, bucket=25e6, max_device_batch=256, images=1_281_167, val_images=50_000, val_batch=256,
    val_fixed=0.003, val_image=0.0001, held=0.5, saves=2, order=0.25,
)  # fmt: skip
GPUS = st.sampled_from([2**k for k in range(11)])


def free(links: Links = LINKS, **kept: float) -> Links:
    """Links that cost nothing, but for what is kept."""
    return replace(links, **{"inside": math.inf, "between": math.inf, "hop_inside": 0, "hop_between": 0, "hop_host": 0, **kept})


def test_one_gpu_communicates_nothing_and_is_all_efficient() -> None:
    row = project(1, 100, WORK, LINKS)
    assert (row.communication, row.exposed, row.flags, row.latency) == (0, 0, 0, 0)
    assert row.step == WORK.fixed + 100 * WORK.image
    assert efficiency(row, row) == 1
    assert row.rate == pytest.approx(100 / 0.05)
    # 12,812 steps and the order before them; 196 batches of 256 of 50,000 validation images
    assert row.epoch == pytest.approx(12_812 * 0.05 + 196 * (0.003 + 256 * 0.0001) + 2 * 0.5 + 0.25)


@given(GPUS)
def test_free_links_scale_perfectly_with_the_batch(gpus: int) -> None:
    row = project(gpus, 100, WORK, free())
    assert efficiency(row, project(1, 100, WORK, LINKS)) == pytest.approx(1)
    assert row.step == project(1, 100, WORK, LINKS).step


@given(GPUS)
def test_a_batch_that_is_shared_out_over_free_links_is_amdahl_s_law(gpus: int) -> None:
    total = 1024
    one, row = project(1, total, replace(WORK, max_device_batch=total), free()), project(gpus, total // gpus, WORK, free())
    serial = WORK.fixed / (WORK.fixed + total * WORK.image)
    if total // gpus <= WORK.max_device_batch:
        assert one.step / row.step == pytest.approx(1 / (serial + (1 - serial) / gpus))


@given(GPUS, st.floats(1e3, 1e10), st.floats(1e8, 1e12))
def test_with_links_all_alike_two_levels_move_what_one_ring_does(gpus: int, size: float, speed: float) -> None:
    found = all_reduce(gpus, size, free(inside=speed, between=speed))
    assert found == pytest.approx(2 * (gpus - 1) / gpus * size / speed)


def test_a_node_is_a_ring_and_many_nodes_are_a_tree() -> None:
    assert all_reduce(8, 1e8, LINKS) == ring(8, 1e8, 450e9, 2e-6) == pytest.approx(2 * 7 / 8 * 1e8 / 450e9 + 14 * 2e-6)
    assert tree(128, 1e6, 50e9, 5e-6) == pytest.approx(2 * 1e6 / 50e9 + 14 * 5e-6)
    assert all_reduce(1024, 8e6, LINKS) == pytest.approx(ring(8, 8e6, 450e9, 2e-6) + 2 * 1e6 / 50e9 + 14 * 5e-6)
    assert all_reduce(16, 1e8, LINKS) == pytest.approx(ring(8, 1e8, 450e9, 2e-6) + ring(2, 1e8 / 8, 50e9, 5e-6))
    assert ring(1, 1e8, 1e9, 1) == tree(1, 1e8, 1e9, 1) == 0


@given(st.integers(1, 60), st.floats(0, 10), st.floats(0, 10))
def test_what_backward_does_not_hide_is_what_a_simulation_of_the_buckets_leaves(
    buckets: int, communication: float, backward: float
) -> None:
    free_at = 0.0
    for bucket in range(1, buckets + 1):
        free_at = max(free_at, backward * bucket / buckets) + communication / buckets
    assert not_hidden(communication, backward, buckets) == pytest.approx(free_at - backward, abs=1e-9)


@given(GPUS, st.integers(1, 2000), st.floats(1e4, 1e10))
def test_no_projection_is_faster_than_its_compute(gpus: int, batch: int, gradients: float) -> None:
    work = replace(WORK, gradients=gradients)
    one, row = project(1, batch, work, LINKS), project(gpus, batch, work, LINKS)
    assert row.step >= row.compute == one.compute
    assert 0 <= row.latency <= row.communication
    assert row.exposed <= row.communication
    assert efficiency(row, one) <= 1
    assert project(2 * gpus, batch, work, LINKS).step >= row.step


@given(GPUS, st.integers(1, 2000), st.floats(0, 1e-3))
def test_the_flags_are_reduced_beside_the_step(gpus: int, batch: int, hop: float) -> None:
    row, hidden = project(gpus, batch, WORK, free(hop_host=hop)), project(gpus, batch, WORK, free())
    assert row.step == pytest.approx(max(hidden.step, 2 * (gpus - 1) * hop))


def test_accumulation_pays_the_fixed_cost_of_each_part() -> None:
    assert project(1, 1000, WORK, LINKS).compute == pytest.approx(4 * WORK.fixed + 1000 * WORK.image)


def test_bends_are_named_where_they_begin() -> None:
    smooth = [project(n, 100, WORK, free()) for n in (1, 8, 64, 512)]
    assert [line.partition(":")[0] for line in bends(smooth)] == ["from 64 GPUs on what lies between epochs shows"]
    slow = [project(n, 100, replace(WORK, held=0, val_images=0, order=0), free(hop_host=1e-4)) for n in (1, 2, 16, 1024)]
    assert bends(slow) == [
        "from 1,024 GPUs on the flags' reduction takes longer than a step: 204.6 ms over 2,046 hops, 154.6 ms of it waited for",
    ]
    few = [project(n, 1024 // n, WORK, free()) for n in (8, 64, 1024)]
    assert bends(few)[0] == "from 64 GPUs on a GPU has too few images: of 16.4 ms for 16, 10.0 ms would pass for none"


def test_where_more_gpus_take_longer_is_said() -> None:
    rows = [project(n, 1024 // n, WORK, free(hop_host=1e-3)) for n in (1, 16, 128)]
    fastest = max(rows, key=lambda row: row.rate)
    assert fastest.gpus == 16
    assert bends(rows)[-1] == f"fastest with 16 GPUs, {fastest.rate:,.0f} images/s: more of them take longer"


def test_the_command_projects_a_stated_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "curve.png"
    main(["batch_size=64", "--step-ms", "42", "--fixed-ms", "10", "--hop-host-us", "0", "--plot", str(plot)])
    said = capsys.readouterr().out
    assert "10.0 ms + 0.500 ms an image" in said  # (42 - 10) / 64
    rows = [line.split() for line in said.splitlines() if line.split()[:1] == ["8"]]
    # 8 images on each of 8 are 10 + 4 ms; 64 on each 42 ms. 1 MB of gradients takes a bucket of 7 turns there and back on the ring.
    left = 2 * 7 / 8 * 269_434 * 4 / 450e9 + 14 * 2e-6
    rates = [64 / (0.014 + left), 512 / (0.042 + left)]
    assert [row[7] for row in rows] == [f"{rate:,.0f}" for rate in rates]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--step-ms 10 --fixed-ms 12", ("--fixed-ms 12", "--step-ms 10", "below")),
        ("--step-ms 10 batch_size=full", ("batch_size=full", "batch_size=64")),
        ("--step-ms 10 optim.lr=fast", ("optim.lr=fast", "number")),
    ],
)
def test_bad_input_is_a_sentence(words: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert_error(str(ended.value), "benchmarks/scaling.py", *parts)
