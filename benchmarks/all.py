"""All benchmarks that have a peer, in one run: benchmarks/results.json, and their table and plot for the docs.

usage: python benchmarks/all.py [root=DIR] [rounds=5] [parts=input,packed,...]

parts: measured anew, of the others the figures stay. root: a folder of photographs; without, one is made of the two that scikit-learn brings.
"""

import importlib
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from photographs import make_photographs
from turns import Result

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
# Modules with `results`; whether they read photographs.
PARTS = {"input": True, "packed": True, "overhead": False, "start": False, "time_shares": False}
COSTS = ("step_overhead", "start_", "time_shares")  # whose figure is a cost: less is better


def write_table(rows: Sequence[Result], path: Path) -> None:
    """A page of two tables: what is faster, and what something costs."""
    parts = ["# Benchmarks\n", "`make bench` writes this page; `benchmarks/NOTES.md` says what was tried.\n"]
    parts += ["Processor time, in rounds that take turns with the peer's, each side in a process of its own. On:\n"]
    parts += [textwrap.fill(f"- {name}", 115, subsequent_indent="  ") for name in sorted({row["machine"] for row in rows})]
    for title, column, chosen in (
        ("Input", "times as fast", [row for row in rows if not is_cost(row)]),
        (
            "Steps and starts",
            "its time over the peer's; `_ms`: milliseconds, `_s`: seconds",
            [row for row in rows if is_cost(row)],
        ),
    ):
        parts += [f"\n## {title}\n", f"| what | peer | {column} | rounds |", "| --- | --- | --- | --- |"]
        parts += ["| `{name}` | {peer} | {ratio:.4g} | {runs} |".format_map(row) for row in chosen]
        parts += ["\n![The first table as bars](benchmarks.png)"] * (title == "Input")
    path.write_text("\n".join(parts) + "\n")


def is_cost(row: Result) -> bool:
    return row["name"].startswith(COSTS)


def draw(rows: Sequence[Result], path: Path) -> None:
    """The ratios as bars; a line at 1, where the peer is as fast."""
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row["name"] for row in rows], [row["ratio"] for row in rows], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the peer (processor's time)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    given = {"rounds": "5", "parts": ",".join(PARTS), **dict(word.split("=", 1) for word in sys.argv[1:])}
    rounds, rows = int(given["rounds"]), []
    with tempfile.TemporaryDirectory() as folder:
        if "root" not in given:
            make_photographs(Path(folder, "photographs"))
        root = given.get("root", str(Path(folder, "photographs")))
        for name in given["parts"].split(","):
            began = time.monotonic()
            part = importlib.import_module(name)
            found = part.results(root, rounds=rounds) if PARTS[name] else part.results(rounds=rounds)
            rows += found
            for row in found:
                print("{name:<32}{ratio:7.2f} times {peer}".format_map(row))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    file = FOLDER / "results.json"
    measured = {row["name"] for row in rows}
    before = json.loads(file.read_text()) if file.is_file() else []
    rows = [row for row in before if row["name"] not in measured] + rows
    file.write_text(json.dumps(rows, indent=1) + "\n")
    write_table(rows, DOCS / "benchmarks.md")
    draw([row for row in rows if not is_cost(row)], DOCS / "benchmarks.png")


if __name__ == "__main__":
    main()
