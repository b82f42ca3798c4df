"""TensorBoard's tabs as Chromium renders them, for tests and for the pictures of the docs: python tests/tensorboard_page.py RUNS docs/tensorboard"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from processes import LIMIT_S

OPENER = Path(__file__).parent.parent / "launch/open_tensorboard"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GROUPS = ("optim", "speed", "test", "train", "val")
# What each tab shows of a run with pictures and histograms; groups in their order on the page.
TABS = {
    "timeseries": (*GROUPS, "weights"),
    "scalars": GROUPS,
    "custom_scalars": ("train and validation", "loss", "accuracy", "loss by step", "speed", "where the time goes"),
    "images": ("test", "test/confusion_matrix", "test/recall", "test/reliability", "test/worst_errors", "train", "val"),
    "histograms": ("weights", "weights_gradient"),
    "hparams": ("optim.lr", "test/accuracy"),
}


@contextmanager
def served(runs: Path, **environment: str) -> Iterator[str]:
    """The URL of a TensorBoard of these runs, as `make tensorboard` starts it."""
    without_screen = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, str(OPENER), str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_screen | environment) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.match(r"http://\S+", line)
            assert found, line
            yield found[0]
        finally:
            server.terminate()


@contextmanager
def opened_page(faults: list[str]) -> Iterator[Any]:
    """A page of a headless Chromium; `faults` gets what goes wrong in it: errors of scripts, and requests that fail."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(1000 * LIMIT_S)
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("response", lambda answer: faults.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
            yield page
        finally:
            browser.close()


def show_tab(page: Any, url: str, tab: str) -> None:
    """Open a tab and wait until all that TABS lists is there and its requests are answered."""
    page.goto(f"{url}#{tab}")
    page.reload()
    for text in TABS[tab]:
        page.get_by_text(text, exact=True).first.wait_for(state="attached")
    if tab == "timeseries":
        page.get_by_role("button", name="Close side pane").click()
    page.wait_for_load_state("networkidle")


def main(runs: str, folder: str) -> None:
    """A WebP of each tab, and of Chromium's complaints an error."""
    faults: list[str] = []
    Path(folder).mkdir(exist_ok=True)
    with served(Path(runs)) as url, opened_page(faults) as page:
        for tab in TABS:
            show_tab(page, url, tab)
            file = Path(folder) / f"{tab}.png"
            page.screenshot(path=file)
            with Image.open(file) as picture:
                picture.save(file.with_suffix(".webp"), quality=80)
            file.unlink()
    assert not faults, faults


if __name__ == "__main__":
    main(*sys.argv[1:])
