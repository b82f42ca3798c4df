"""What a check found, on the terminal. Imports no torch."""

from collections.abc import Sequence
from typing import Protocol

from imgrec.analysis.image_faults import FaultKind
from imgrec.terminal import Terminal

SHOWN_EXAMPLES = 5  # of a kind


class Listed(Protocol):
    """What the terminal shows of a kind."""

    @property
    def kind(self) -> FaultKind: ...
    @property
    def count(self) -> int: ...
    @property
    def sentences(self) -> list[str]: ...  # of the first


def print_findings(findings: Sequence[Listed], terminal: Terminal) -> None:
    """Faults, then hints, each with its count, what to do, and the first of them."""
    for title, is_fault in (("faults", True), ("hints", False)):
        shown = [finding for finding in findings if finding.kind.is_fault == is_fault]
        terminal.say()
        terminal.say(title if shown else f"no {title}", "bold")
        for finding in shown:
            print_finding(finding, terminal, SHOWN_EXAMPLES)


def print_finding(finding: Listed, terminal: Terminal, most: int) -> None:
    """`most`: examples."""
    kind, shown = finding.kind, finding.sentences[:most]
    left = finding.count - len(shown)
    terminal.say(f"  {finding.count:>7,} {kind.name}: {kind.what}", "red" if kind.is_fault else "yellow")
    terminal.say(f"{'':10}{kind.advice}")
    for line in shown + [f"and {left:,} more"] * bool(left):
        terminal.say(f"{'':12}{line}", "dim")
