"""What a check found, in the JSON and on the page."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from imgrec.analysis.image_faults import STATE_KINDS, FaultKind
from imgrec.config.schema import Split
from imgrec.data.folder import ImageFiles
from imgrec.errors import printable
from imgrec.scan.check_page import Example, check_page, thumbnail
from imgrec.scan.data_faults import DataFinding
from imgrec.scan.file_scan import Scan, image_at
from imgrec.scan.terminal_output import SHOWN_EXAMPLES, Listed

MOST_LISTED = 100_000  # names of a kind in the JSON


def findings_content(
    root: str, sizes: Mapping[Split, int], scan: Scan | None, findings: Sequence[DataFinding], also: Sequence[dict[str, Any]]
) -> dict[str, object]:
    """What the JSON has. scan: what the findings have rows of; None without findings. also: kinds that have entries of their own."""
    return {
        "imgrec": "check",
        "root": root,
        "images": dict(sizes),
        "faults": sum(finding.count for finding in findings if finding.kind.is_fault),
        "findings": [*([] if scan is None else (_entry(finding, scan) for finding in findings)), *also],
    }


def _entry(finding: DataFinding, scan: Scan) -> dict[str, Any]:
    names = map(os.fsdecode, scan.names[finding.rows[:MOST_LISTED]].tolist())
    return kind_entry(finding, examples=finding.sentences, images=list(names))


def kind_entry(found: Listed, *, examples: list[str], images: list[str]) -> dict[str, Any]:
    """What the JSON has of each kind."""
    return {
        "kind": found.kind.name,
        "is_fault": found.kind.is_fault,
        "count": found.count,
        "what": found.kind.what,
        "advice": found.kind.advice,
        "examples": examples,
        "images": images,
    }


def findings_page(
    root: str,
    summary: str,
    splits: Mapping[Split, ImageFiles],
    findings: Sequence[DataFinding],
    also: Sequence[tuple[FaultKind, int, list[Example]]],
) -> str:
    """The page. splits: those that were scanned, in this order, none where the labels alone were looked at; also: sections that have their examples."""

    def example(finding: DataFinding, number: int) -> Example:
        rows = [*finding.rows[number : number + 1].tolist(), *finding.partners[number : number + 1]]
        if finding.kind in STATE_KINDS.values():  # they cannot be decoded, and may be long
            rows = []
        pictures = [thumbnail(*image_at(splits.values(), row)) for row in rows if row is not None]
        return Example(finding.sentences[number], pictures)

    sections = [
        (finding.kind, finding.count, [example(finding, k) for k in range(len(finding.sentences[:SHOWN_EXAMPLES]))])
        for finding in findings
    ]
    return check_page(f"Check of {printable(root)}", summary, [*sections, *also], labels_alone=not splits)
