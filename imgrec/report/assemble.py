"""The report of a run: which sections it has, in which order."""

from imgrec.report.facts import Facts
from imgrec.report.page import Section, render, text
from imgrec.report.pictures import image_sections


def report_page(facts: Facts) -> str:
    """The content of report.html."""
    return render(f"{facts.name}: report", report_sections(facts))


def report_sections(facts: Facts) -> list[Section]:
    """The sections in their order."""
    return [_result(facts), *image_sections(facts)]


def _result(facts: Facts) -> Section:
    said = f"{facts.name} is not finished" if facts.result is None else facts.result["summary"]
    return Section("result", "Result", f"<p>{text(said)}.</p>")
