"""report.html and model_card.md in a run directory."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from imgrec.files import atomic_write, begins_with, check_output
from imgrec.html_page import page_start
from imgrec.report.assemble import report_page
from imgrec.report.facts import read_run_facts
from imgrec.report.model_card import model_card

CARD_MARK = "<!-- written by imgrec, as it was: sha256 {} -->\n"  # the last line of a model card, of what is above it


class ReportFiles(NamedTuple):
    """What was written."""

    page: Path
    card: Path | None  # None of a run that is not finished, and where the card there was edited
    kept: Path | None = None  # that card


def write_report(folder: Path, *, overwrite: bool = False) -> ReportFiles:
    """The report of a run directory, and where the run is finished its model card, unless somebody edited that.

    overwrite: also in the place of a file that imgrec did not write. DataError for a folder that is no run directory or holds
    a file that was cut or changed, ConfigError for a report.html of somebody else.
    """
    facts = read_run_facts(folder)
    page, card = folder / "report.html", folder / "model_card.md"
    check_output("runs", page, (".html",), ours=begins_with(page_start("report").encode()), overwrite=overwrite)
    atomic_write(page, report_page(facts))
    if facts.result is None:
        return ReportFiles(page, None)
    if not overwrite and is_edited(card):
        return ReportFiles(page, None, card)
    atomic_write(card, with_mark(model_card(facts)))
    return ReportFiles(page, card)


def with_mark(card: str) -> str:
    """A card with a last line by which `is_edited` knows it."""
    return card + CARD_MARK.format(hashlib.sha256(card.encode()).hexdigest())


def is_edited(card: Path) -> bool:
    """Whether a model card is there that is not as imgrec wrote it."""
    if not card.exists():
        return False
    content = card.read_bytes().decode(errors="replace")
    above = content[: content.rfind("<!--")]
    return with_mark(above) != content
