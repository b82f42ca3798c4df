"""The page of a sweep: its figures are those of sweep.json, its charts those of a closed form or of Optuna, and no file is missing that it names."""

import math
import re
from collections.abc import Callable
from contextlib import closing
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from error_parts import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from test_report_browser import opened  # noqa: F401 - a fixture

from imgrec import cli
from imgrec.report.sweep_charts import SweepRun, best_so_far, history_chart, parallel_chart, shown_range
from imgrec.report.sweep_page import write_sweep_page
from imgrec.sweeps import importance
from imgrec.sweeps.arguments import Argument
from imgrec.sweeps.folder import Job, SweepFolder
from imgrec.sweeps.table import print_ranking
from imgrec.terminal import Terminal

SPACE = ("optim.lr=log(1e-4,1e-1)", "augment.mixup=0.0,0.2", "model.depth=int(18,50)")
optuna_installed = pytest.mark.skipif(find_spec("optuna") is None, reason="the extra optuna is not installed")


def swept(path: Path, runs: int, *, monitor: str = "val/accuracy") -> SweepFolder:
    """A search whose accuracy depends on the rate alone; the fourth run failed, and the third last was pruned."""
    draw = Random(1)
    folder = SweepFolder(path, ["--search", "prune=true", "tune", "data=<b>", *SPACE], monitor)
    jobs = []
    for number in range(runs):
        rate = 10 ** draw.uniform(-4, -1)
        words = [f"optim.lr={rate!r}", f"augment.mixup={draw.choice(['0.0', '0.2'])}", f"model.depth={draw.randint(18, 50)}"]
        value = 0.9 - 0.2 * abs(math.log10(rate) + 2)
        status = "pruned" if number == runs - 3 else "finished"
        run = Job(number, ["data=<b>", *words], str(path / str(number)), [], status, value, value / 2, [0.1, 0.9], 61.0)
        if number == 3:
            run.fail(ZeroDivisionError("<i>no"))
        jobs.append(run)
    with closing(folder), folder.updating():
        folder.jobs = jobs
    (path / "0").mkdir()
    (path / "0/report.html").write_text("")
    return folder


class Rows(HTMLParser):
    """The data-value of the cells of the table of runs, and all links and figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.figures: dict[str, str] = {}
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.inside = found["id"] == "run-table" if tag == "table" and "id" in found else self.inside and tag != "section"
        if tag == "tr" and self.inside:
            self.rows.append([])
        elif tag in ("td", "th") and self.inside and "data-value" in found:
            self.rows[-1].append(found["data-value"])
        if tag == "a":
            self.links.append(found["href"])
        if "data-figure" in found:
            self.figures[found["data-figure"]] = found["data-value"]


@pytest.mark.parametrize("monitor", slow_but("val/accuracy", among=["val/accuracy", "val/loss"]))
def test_the_page_has_what_the_table_has(monitor: str, tmp_path: Path) -> None:
    folder = swept(tmp_path / "sweep_1", 8, monitor=monitor)
    page = write_sweep_page(folder.path).read_text()
    found = Rows(page)
    best = (max if monitor == "val/accuracy" else min)(
        (job for job in folder.jobs if job.status == "finished"), key=lambda job: job.value or 0.0
    )
    assert float(found.figures["best"]) == best.value
    keys = ("optim.lr", "augment.mixup", "model.depth")
    expected = [
        [str(job.number), *(repr(value) for value in (job.value, job.test_accuracy, job.seconds)), *map(job.settings().get, keys)]
        for job in folder.ranked()
    ]
    assert [row for row in found.rows if row] == [["-1" if cell == "None" else cell for cell in row] for row in expected]
    assert [link for link in found.links if not link.startswith("#")] == ["0/report.html"]
    assert {link[1:] for link in found.links if link.startswith("#")} == set(re.findall(r'<h2 id="(\w+)"', page))
    assert "<i>no" not in page
    assert "<b>" not in page
    assert "by skill and by luck" in page
    assert f"imgrec compare {folder.path}/0 {best.folder}" in page


def test_where_no_run_is_better_than_the_defaults_it_says_so_and_names_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept(tmp_path / "sweep_1", 8)
    with closing(folder), folder.updating():
        folder.jobs[0].value = 0.99
    page = write_sweep_page(folder.path).read_text()
    print_ranking(Terminal(), folder, searched=True)
    for said in (page, capsys.readouterr().out):
        assert "None of 7 runs has a better val/accuracy than the first, which has the defaults" in said
        assert "imgrec compare" not in said
    with closing(folder), folder.updating():
        folder.jobs[0].fail(ZeroDivisionError("<i>no"))
    page = write_sweep_page(folder.path).read_text()
    assert "The first run, with the defaults, has no result" in page
    assert "imgrec compare" not in page


def test_report_writes_it_and_keeps_a_file_of_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = swept(tmp_path / "sweep_1", 1).path / "report.html"
    assert cli.main(["report", str(page.parent)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    page.write_text("mine")
    assert cli.main(["report", str(page.parent)]) == 2
    assert_refused(capsys.readouterr().err, f"runs={page}", "overwrite=true")
    assert page.read_text() == "mine"


runs = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12)


@given(runs, st.booleans())
def test_the_best_so_far_is_that_of_the_finished_runs(found: list[tuple[float, bool]], low_is_good: bool) -> None:
    given = [SweepRun(number, {"optim.lr": "0.1"}, value, pruned) for number, (value, pruned) in enumerate(found)]
    finished = [run for run in given if not run.pruned]
    line = dict(best_so_far(given, low_is_good=low_is_good))
    best = accumulate((run.value for run in finished), min if low_is_good else max)
    assert [line[run.number] for run in finished] == list(best)
    assert set(line) == {run.number for run in given if finished and run.number >= finished[0].number}
    if finished:
        low, high = shown_range([run.value for run in finished], low_is_good=low_is_good)
        assert low < high
        assert low <= line[given[-1].number] <= high
        argument = Argument("optim.lr", "", "optim.lr", ["0.01", "1.0"], "log")
        for chart in (
            history_chart(given, "val/loss", low_is_good=low_is_good),
            parallel_chart(given, [argument], "val/loss", low_is_good=low_is_good),
        ):
            assert chart.count("<title>") == len(given)
            assert "nan" not in chart


def test_a_line_crosses_each_axis_at_its_value() -> None:
    arguments = [
        Argument("optim.lr", "", "optim.lr", ["0.01", "1.0"], "log"),
        Argument("seed", "", "seed", ["0", "4"], "int"),
        Argument("model", "", "model", ["vgg", "lenet", "resnet"]),
    ]
    settings = {"optim.lr": "0.1", "seed": "1", "model": "lenet"}
    chart = parallel_chart([SweepRun(0, settings, 0.5, False)], arguments, "val/loss", low_is_good=True)
    (points,) = re.findall(r'points="([^"]*)"', chart)
    heights = [float(point.split(",")[1]) for point in points.split()]
    ends = [float(end) for end in re.search(r'y1="([\d.]+)" y2="([\d.]+)"', chart).groups()]  # type: ignore[union-attr]
    shares = [(ends[0] - height) / (ends[0] - ends[1]) for height in heights]
    assert shares == pytest.approx([0.5, 0.25, 0.5, 0.5], abs=1e-3)


@optuna_installed
def test_importances_are_optunas_and_only_what_matters_is_no_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    monkeypatch.setattr(importance, "SHUFFLES", 19)
    folder = swept(tmp_path / "sweep_1", 24)
    study = optuna.create_study(direction="maximize")
    space = {
        "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "augment.mixup": CategoricalDistribution(["0.0", "0.2"]),
        "model.depth": IntDistribution(18, 50),
    }
    for job in folder.jobs:
        if job.value is not None:
            rate, mixup, depth = (job.settings()[key] for key in space)
            params = {"optim.lr": float(rate), "augment.mixup": mixup, "model.depth": int(depth)}
            study.add_trial(optuna.trial.create_trial(value=job.value, params=params, distributions=space))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=5 / 23)
    found = importance.importances(folder)
    assert {row.key: row.share for row in found} == pytest.approx(
        optuna.importance.get_param_importances(study, evaluator=evaluator)
    )
    assert [row.key for row in found if row.p <= importance.CHANCE] == ["optim.lr"]
    assert found[0].key == "optim.lr"


@pytest.mark.slow
@optuna_installed
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing(opened: Callable[..., object], tmp_path: Path, dark: bool, width: int) -> None:  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page = opened(write_sweep_page(swept(tmp_path / "sweep_1", 24).path), dark=dark, width=width)
    assert Axe().run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # type: ignore[attr-defined]
