"""The pages that people read: links lead somewhere, commands compose, names exist, lines and paragraphs are short."""

import pkgutil
import re
import shlex
from itertools import groupby
from pathlib import Path

import pytest

from imgrec import slurm
from imgrec.config.compose import compose_config
from imgrec.config.options import group_names, option_names
from imgrec.errors import ConfigError
from imgrec.sweeps.folds import folds_override
from imgrec.sweeps.grid import plan_sweep
from imgrec.sweeps.spaces import plan_tuning

ROOT = Path(__file__).parent.parent
FRONT_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/own_package/README.md"]
PAGES = [*FRONT_PAGES, *sorted((ROOT / "docs").glob("*.md"))]
# The examples of CONTRIBUTING add these to imgrec; tests/test_contributing.py runs them.
ADDED = {
    "imgrec.data.letters.Letters",
    "imgrec.models.losses.MAE",
    "imgrec.models.wide.Wide",
    "imgrec.training.scheduler.square_root",
}


def prose(page: Path) -> list[str]:
    """The page's lines without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()


def commands(page: Path) -> list[tuple[str, str]]:
    """(what the page's code blocks type after `imgrec` or `python -m imgrec.`, the error that they show below it or "")."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    typed = re.compile(r"^(?:\$ )?(?:imgrec |python -m imgrec\.)(.*)\n(?:imgrec: (.*)\n)?", flags=re.MULTILINE)
    return [found for block in blocks for found in typed.findall(block.replace("\\\n", " "))]


def from_root(page: Path) -> str:
    return str(page.relative_to(ROOT))


TYPED = [(from_root(page), *command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=from_root)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", "\n".join(prose(page)))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=from_root)
def test_names_of_the_package_can_be_imported(page: Path) -> None:
    for name in set(re.findall(r"\bimgrec(?:\.\w+)+", page.read_text())) - ADDED:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=from_root)
def test_lines_of_prose_stay_under_120_characters(page: Path) -> None:
    assert [line for line in prose(page) if len(line) >= 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", FRONT_PAGES, ids=from_root)
def test_paragraphs_stay_under_five_lines(page: Path) -> None:
    start = re.compile(r"- |\||#")  # a list item, a row of a table and a heading are paragraphs of their own
    lines = [f"\n{line}" if start.match(line) else line for line in prose(page)]
    paragraphs = [list(part) for filled, part in groupby("\n".join(lines).splitlines(), bool) if filled]
    assert [part for part in paragraphs if len(part) > 4] == []


def test_the_table_of_config_groups_has_every_option() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/configuration.md").read_text(), flags=re.MULTILINE)
    listed = {group: sorted(re.findall(r"`(\w+)`", options)) for group, options in rows if group in group_names()}
    assert listed.pop("experiment") == []  # recipes.md has them
    assert listed == {group: option_names(group) for group in group_names() if group != "experiment"}


@pytest.mark.parametrize(("page", "command", "error"), TYPED)
def test_commands_are_accepted(page: str, command: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()  # the reader's
    name, *arguments = shlex.split(command, comments=True)
    if "--config-dir" in arguments or name == "models":
        pytest.skip("it names the reader's own files, or composes nothing")
    if error:
        with pytest.raises(ConfigError, match=f"^{re.escape(error)}$"):
            check(name, arguments)
    else:
        check(name, arguments)


def check(name: str, arguments: list[str]) -> None:
    """What the command does before it reads data or a checkpoint."""
    if name == "slurm":
        slurm.main(["dry_run=true", *arguments])
    elif name == "tune":
        plan_tuning(arguments, None)
    elif "-m" in arguments:
        plan_sweep([argument for argument in arguments if argument != "-m"], None)
    else:
        compose_config(name, [argument for argument in arguments if argument != folds_override(arguments)])
