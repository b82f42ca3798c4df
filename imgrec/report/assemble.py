"""The report of a run: which sections it has, in which order."""

from imgrec.html_page import Section, render
from imgrec.report.explained import explained_sections
from imgrec.report.extended import extended_sections
from imgrec.report.facts import Facts
from imgrec.report.figures import class_section, reliability_section, result_section
from imgrec.report.pictures import image_sections
from imgrec.report.questions import question_sections
from imgrec.report.run_sections import (
    config_section,
    curves_section,
    data_section,
    environment_section,
    repeat_section,
    time_section,
)
from imgrec.report.shown_images import shown_images


def report_page(facts: Facts) -> str:
    """The content of report.html."""
    return render("report", f"{facts.name}: report", report_sections(facts))


def report_sections(facts: Facts) -> list[Section]:
    """The sections in their order."""
    images = None if facts.confusion is None else shown_images(facts, facts.confusion)
    return [
        result_section(facts),
        *extended_sections(facts, images),
        *question_sections(facts),
        curves_section(facts),
        *image_sections(facts, images),
        *explained_sections(facts),
        class_section(facts),
        reliability_section(facts),
        data_section(facts),
        time_section(facts),
        config_section(facts),
        environment_section(facts),
        repeat_section(facts),
    ]
