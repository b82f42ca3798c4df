"""`make bench`: its parts, the shape of results.json, and the page that is made of it."""

import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from marks import slow_but
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
all_parts = importlib.import_module("all")
peers = importlib.import_module("peers")
turns = importlib.import_module("turns")

REQUIRED = {"name": str, "peer": str, "ratio": float, "runs": int, "machine": str}
OPTIONAL = {"decibel": float, "bytes_per_image": int, "images_per_second": int, "first_batch_s": float}
ROWS = json.loads((BENCHMARKS / "results.json").read_text())


def row(name: str, peer: str, ratio: float) -> "turns.Result":
    return turns.Result(name=name, peer=peer, ratio=ratio, runs=5, machine="a machine")


def assert_shape(rows: list["turns.Result"]) -> None:
    for found in rows:
        assert found.keys() >= REQUIRED.keys()
        assert {key: type(value) for key, value in found.items()}.items() <= {**REQUIRED, **OPTIONAL}.items()
        assert found["ratio"] > 0
        assert found["name"] in {*all_parts.FASTER, *all_parts.COSTS}


@pytest.mark.parametrize("name", slow_but("turns", "peers", among=sorted(file.stem for file in BENCHMARKS.glob("*.py"))))
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_results_have_their_shape_and_each_figure_stands_once() -> None:
    assert_shape(ROWS)
    assert len({(found["name"], found["peer"]) for found in ROWS}) == len(ROWS)
    assert {found["runs"] for found in ROWS} <= set(range(5, 100))


def test_the_page_is_made_of_the_results() -> None:
    assert (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text() == all_parts.page(ROWS)


def test_a_figure_stays_until_it_is_measured_anew() -> None:
    before = [row("packed_raw", "A", 1.0), row("jpeg_folder", "A", 2.0), row("jpeg_folder", "B", 3.0), row("no longer", "A", 4.0)]
    found = all_parts.merged(before, [row("jpeg_folder", "A", 5.0)])
    assert [(one["name"], one["peer"], one["ratio"]) for one in found] == [
        ("jpeg_folder", "A", 5.0),
        ("jpeg_folder", "B", 3.0),
        ("packed_raw", "A", 1.0),
    ]


def test_a_peer_is_drawn_as_fast_as_both_of_its_figures_say() -> None:
    rows = [
        row("jpeg_folder", all_parts.IMAGEFOLDER, 3.0),
        row("jpeg_folder", "B", 1.5),
        row("packed_raw", all_parts.IMAGEFOLDER, 16.0),
    ]
    assert all_parts.speeds(rows, {"jpeg_folder": "imgrec"}) == {"ImageFolder with PIL": 1.0, "B": 2.0, "imgrec": 3.0}


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    assert turns.ratio({"slow": [2.0, 30.0, 4.0], "quick": [1.0, 10.0, 1.0]}, "slow", "quick") == 3.0


def test_of_a_peer_within_a_package_its_own_part_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "packages", lambda: [str(tmp_path)])
    (tmp_path / "nvidia/cublas").mkdir(parents=True)  # as torch's packages have it
    assert peers.installed(peers.Work([], [], 224, 0), ["DALI on the CPU"]) == {}
    (tmp_path / "nvidia/dali").mkdir()
    assert [*peers.installed(peers.Work([], [], 224, 0), ["DALI on the CPU"])] == ["DALI on the CPU"]


def test_a_peer_that_is_not_installed_is_left_out_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peers.PEERS, "a peer", ("no_such_package", print))
    assert peers.installed(peers.Work([], [], 224, 0), ["a peer"]) == {}
    assert len(capsys.readouterr().out.splitlines()) == 1


def work(seconds: float, *, turns: Iterator[None]) -> None:
    import time

    for _ in turns:
        began = time.process_time()
        while time.process_time() - began < seconds:
            pass


def fail(*, turns: Iterator[None]) -> None:
    raise SystemExit


@pytest.mark.slow
def test_sides_take_turns_and_their_own_time_is_counted() -> None:
    seconds = turns.processor_seconds({"more": partial(work, 0.2), "less": partial(work, 0.1)}, rounds=3)
    assert turns.ratio(seconds, "more", "less") == pytest.approx(2, rel=0.2)


@pytest.mark.slow
def test_a_side_that_fails_ends_the_others() -> None:
    with pytest.raises((EOFError, ConnectionResetError)):
        turns.processor_seconds({"works": partial(work, 0.0), "fails": fail}, rounds=1)


@pytest.mark.slow
def test_a_short_run_writes_figures_of_each_part_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PEERS", str(tmp_path))
    monkeypatch.setattr(peers, "VENV", tmp_path)
    for number in range(130):
        file = tmp_path / "photographs" / f"class_{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 60), 30 + number % 50).convert("RGB").save(file)
    results = tmp_path / "results.json"
    results.write_text(json.dumps([row("step_overhead", "a loop", 1.01)]))
    words = ["parts=input,packed,in_memory,start", "rounds=1", f"root={tmp_path / 'photographs'}"]
    all_parts.main(words, results=results, docs=tmp_path)
    rows = json.loads(results.read_text())
    assert_shape(rows)
    assert {found["name"] for found in rows} == {
        name for name in (*all_parts.FASTER, *all_parts.COSTS) if not name.startswith(("million", "time_shares", "remote"))
    }
    assert (tmp_path / "benchmarks.md").read_text() == all_parts.page(rows)
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000


def test_arguments_that_are_unknown_are_refused() -> None:
    for words in (["parts=inputs"], ["rotations=3"]):
        with pytest.raises(SystemExit, match="usage: python benchmarks/all"):
            all_parts.main(words)
