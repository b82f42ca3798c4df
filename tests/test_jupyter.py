"""A training in a notebook: a real kernel prints each line once, `quiet=True` prints nothing, and log.txt has the lines."""

from pathlib import Path

import nbformat
import pytest
import rich.console
from nbclient import NotebookClient
from processes import LIMIT_S
from rich.table import Table

from imgrec.terminal import Terminal

DIGITS = (
    "data='digits', model='simple_cnn', epochs=1, logger='none', "
    "trainer={'accelerator': 'cpu', 'devices': 1, 'limit_train_batches': 2, 'limit_val_batches': 1}"
)


def run_cells(folder: Path, *cells: str) -> list[list[nbformat.NotebookNode]]:
    """The outputs of each cell, run in one kernel in the folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def test_what_rich_does_in_a_notebook_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # ipykernel sets it
    for quiet in (False, True):
        terminal = Terminal(quiet=quiet, log=tmp_path / "log.txt")
        table = Table.grid()
        table.add_row("b", "c")
        terminal.say("a", style="bold green")
        terminal.say(table)
        with terminal.bar() as bar:
            bar.add_task("d", total=1, note="")
        terminal.close()
        assert capsys.readouterr().out.splitlines() == ([] if quiet else ["a", "bc"])
    assert (tmp_path / "log.txt").read_text().splitlines() == ["a", "bc"] * 2


@pytest.mark.slow
def test_a_notebook_shows_each_line_once_and_the_log_has_them(tmp_path: Path) -> None:
    imported, spoken, quiet, shown = run_cells(
        tmp_path,
        "import imgrec",
        f"result = imgrec.fit({DIGITS})",
        f"quiet = imgrec.fit({DIGITS}, id='2', quiet=True)",
        "result",
    )
    assert (imported, quiet) == ([], [])
    assert {output.output_type for output in spoken} == {"stream"}
    lines = "".join(output.text for output in spoken).splitlines()
    log = (tmp_path / "runs/digits_simple_cnn/1/log.txt").read_text().splitlines()
    assert lines == log
    assert sum("test accuracy" in line for line in lines) == 1
    assert sum(line.startswith("    1/1") for line in lines) == 1
    assert (tmp_path / "runs/digits_simple_cnn/2/log.txt").read_text().splitlines()[
        -1
    ] == "  imgrec serve runs/digits_simple_cnn/2"
    assert "imgrec.Result" in shown[0].data["text/plain"]
