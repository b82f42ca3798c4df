"""`make tensorboard`, and what its tabs show in a browser."""

import importlib.util
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawings import drawn_as_for_users
from PIL import Image
from tensorboard_page import CHROMIUM, GROUPS, OPENER, TABS, opened_page, served, show_tab

from imgrec import config
from imgrec.train import fit


@pytest.fixture(scope="module", autouse=True)
def drawn_pictures() -> Iterator[None]:
    with drawn_as_for_users():
        yield


SMALL = (
    *(
        "data=digits",
        "model=simple_cnn",
        "augment=none",
        "epochs=3",
        "trainer.limit_train_batches=5",
        "trainer.log_every_steps=1",
    ),
    *("trainer.accelerator=cpu", "trainer.devices=1", "num_workers=0", "name=r"),
    *("callbacks.pictures.every_epochs=1", "callbacks.histograms.every_epochs=1"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for rate in (0.003, 0.0005):  # the first is the default
        fit(config.load("train", [*SMALL, f"runs_dir={folder}", f"optim.lr={rate}"]), quiet=True)
    return folder


def load_opener() -> Any:
    loader = SourceFileLoader("open_tensorboard", str(OPENER))
    spec = importlib.util.spec_from_loader("open_tensorboard", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_a_folder_without_runs_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        load_opener().main(str(tmp_path))
    assert refused.value.code == f"{tmp_path}: there are no runs with logger=tensorboard. Type make train."


@pytest.mark.parametrize("screen", [True, False])
def test_a_browser_is_opened_where_there_is_a_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], screen: bool
) -> None:
    module, opened = load_opener(), []
    asked: list[list[str]] = []
    server = SimpleNamespace(configure=lambda argv: asked.append(list(argv)), launch=lambda: "http://localhost:6006/")

    def interrupted(event: threading.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace(program=SimpleNamespace(TensorBoard=lambda: server)))
    monkeypatch.setattr(module.webbrowser, "open", opened.append)
    monkeypatch.setattr(module.threading.Event, "wait", interrupted)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    (tmp_path / "events.out.tfevents.1").touch()
    module.main(str(tmp_path))
    assert asked == [["tensorboard", "--logdir", str(tmp_path)]]
    assert capsys.readouterr().out.startswith("http://localhost:6006/ ")
    assert opened == (["http://localhost:6006/"] if screen else [])


@pytest.fixture(scope="module")
def faults() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(faults: list[str]) -> Any:
    pytest.importorskip("playwright", reason="playwright is not installed: pip install 'imgrec[browser]'")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with opened_page(faults) as page:
        yield page


@pytest.fixture(scope="module")
def url(runs: Path) -> Any:
    with served(runs) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("tab", TABS)
def test_each_tab_shows_what_a_run_logs(url: str, page: Any, faults: list[str], tmp_path: Path, tab: str) -> None:
    show_tab(page, url, tab)
    if tab in ("timeseries", "scalars"):  # nothing above the groups, such as a lone `epoch`
        at = [page.get_by_text(group, exact=True).first.bounding_box()["y"] for group in GROUPS]
        assert at == sorted(at)
        assert [name for name in ("epoch", "hp_metric") if page.get_by_text(name, exact=True).count()] == []
    page.screenshot(path=tmp_path / "tab.png")
    with Image.open(tmp_path / "tab.png") as picture:
        content = np.asarray(picture.convert("L"))[80:, 420:]  # without the bar above and the settings at the left
    assert content.std() > 8, "the picture is blank"
    assert faults == []
