"""All benchmarks that have a peer, in one run: benchmarks/results.json, and their table and plot for the docs.

usage: python benchmarks/all.py [root=DIR] [rounds=5] [parts=input,packed,...]

root: a folder of photographs; without, one is made of the two that scikit-learn brings.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from photographs import make_photographs
from turns import Result

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
PARTS = {"input": True, "packed": True}  # modules with `results`; whether they read photographs


def write_table(rows: Sequence[Result], path: Path) -> None:
    lines = ["| what | compared with | times as fast | rounds |", "| --- | --- | --- | --- |"]
    lines += ["| `{name}` | {peer} | {ratio} | {runs} |".format_map(row) for row in rows]
    machines = sorted({row["machine"] for row in rows})
    path.write_text("\n".join(["# Benchmarks", "", "`make bench`, on " + "; ".join(machines) + ".", "", *lines, ""]))


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
    (FOLDER / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_table(rows, DOCS / "benchmarks.md")
    draw(rows, DOCS / "benchmarks.png")


if __name__ == "__main__":
    main()
