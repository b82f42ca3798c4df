"""All benchmarks that have a peer, in one run: benchmarks/results.json, and their page and plot for the docs.

usage: python benchmarks/all.py [root=DIR] [rounds=5] [parts=input,packed,...]

parts: measured anew, of the others the figures stay, as do those against a peer that is not installed. root: a folder of photographs;
without, one is made of the two that scikit-learn brings. The sides of a part take turns, the parts follow one another.
"""

import importlib
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from turns import Result

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
IMAGEFOLDER = "torchvision ImageFolder with PIL"


class Part(NamedTuple):
    """A module with `results(root, rounds=...)`, or `results(rounds=...)` where it reads no photographs."""

    photographs: bool
    rounds: int = 1  # of its short ones in a round of the others


PARTS = {
    "input": Part(photographs=True),
    "packed": Part(photographs=True),
    "remote": Part(photographs=True),
    "in_memory": Part(photographs=False),
    "million": Part(photographs=False),
    "start": Part(photographs=False),
    "overhead": Part(photographs=False, rounds=6),
    "time_shares": Part(photographs=False),
}

# What the names of results.json measure, in the order of the page.
FASTER = {
    "jpeg_folder": "JPEG files to batches of uint8, as they go to the device, in one process. Goal: 2.5 times ImageFolder.",
    "jpeg_folder_float": "The same to flipped, normalised floats, as a training on the CPU has them. Goal: 2.2.",
    "cached_folder": "The same files from the second epoch on, with `data.cache=ram`.",
    "jpeg_folder_two_workers": "`jpeg_folder` with two workers. Goal: 2.5.",
    "jpeg_folder_float_two_workers": "`jpeg_folder_float` with two workers.",
    "cached_folder_two_workers": "`cached_folder` with two workers.",
    "packed_keep": "Shards of `imgrec pack format=keep`: the files as they are.",
    "packed_jpeg": "Shards of `format=jpeg`: the shorter side 256, quality 90. Others read the same JPEG images, packed by them. Goal: 6.",
    "packed_raw": "Shards of `format=raw`: the shorter side 256, not compressed. Goal: 16.",
    "packed_jpeg_two_workers": "`packed_jpeg` with two workers, as ImageFolder has then.",
    "packed_raw_two_workers": "`packed_raw` with two workers, as ImageFolder has then.",
    "remote_shards_cold": "`packed_keep` from a server 50 ms away, nothing kept yet, one worker: images/s by the clock over those from a folder. Goal: 0.9.",
    "remote_shards_warm": "The same once the local cache holds the shards. Goal: 0.9.",
    "in_memory": "A set in memory, 32x32 pixels, `augment=basic`, to normalised floats. Goal: 24.",
    "in_memory_uint8": "The same to uint8, as it goes to the device. Goal: 33.",
    "million_files_open": "A folder of a million files, listed before, opened for training.",
}
COSTS = {
    "million_files_open_s": "Seconds for that. Goal: 0.2.",
    "million_files_mib_per_worker": "MiB that a worker needs for itself after 50,000 images of it. Goal: 15.",
    "start_import_ms": "Milliseconds of `import imgrec`, beyond Python's own start. Goal: 50.",
    "start_help_s": "Seconds of `imgrec train --help`. Goal: 1.",
    "start_error_s": "Seconds of a start that ends with a config error. Goal: 1.",
    "start_first_step": "Time to the first step over that of the imports alone. Goal: 1.3.",
    "step_overhead": "Time of a step of `experiment=mnist_cnn` over that of a loop with the same network. Goal: 1.02, where both keep memory.",
    "time_shares": "Time of a step that is measured (where the time goes) over one that is not. Goal: 1.01.",
}


def merged(before: Sequence[Result], measured: Sequence[Result]) -> list[Result]:
    """In the order of the page; a figure stays until it is measured anew."""
    rows = {(row["name"], row["peer"]): row for row in [*before, *measured]}
    order = [*FASTER, *COSTS]
    return sorted((row for row in rows.values() if row["name"] in order), key=lambda row: order.index(row["name"]))


def page(rows: Sequence[Result]) -> str:
    """Two tables, of what is faster and of what something costs, each after a sentence on each of its names."""
    machines = sorted({row["machine"] for row in rows})
    parts = [
        "# Benchmarks",
        "`make bench` measures all of this and writes this page. What was tried: `benchmarks/NOTES.md`.",
        wrapped(
            "Compared is the processor time of both sides, which do the same work in rounds that take turns, each side in a process of "
            "its own; a figure is the median over the rounds. Photographs are cropped at random, resized to 224 and flipped, in batches "
            "of 64. ImageFolder hands over normalised floats, as in torchvision's references, all others uint8. webdataset, litdata and "
            "FFCV read what they packed before, FFCV images that it encoded anew. tf.data decodes only the crop, by a faster DCT than the "
            "others, and resizes without antialiasing: it makes another picture. Each round reads the same files, so imgrec decodes them down to "
            "the crop, as from the second epoch of a training on."
        ),
        "\n".join(wrapped(f"- {name}", "  ") for name in machines),
        "## Input\n\n![Speed of the loaders](benchmarks.png)",
        *tables(
            rows,
            FASTER,
            {"times as fast": "{ratio:.3g}", "dB to PIL's picture": "{decibel}", "bytes an image": "{bytes_per_image:,}"},
        ),
        "## Steps and starts",
        *tables(rows, COSTS, {"figure": "{ratio:.4g}"}),
    ]
    return "\n\n".join(parts) + "\n"


def tables(rows: Sequence[Result], said: Mapping[str, str], columns: Mapping[str, str]) -> tuple[str, str]:
    chosen = [row for row in rows if row["name"] in said]
    header = ["imgrec", "compared with", *columns, "rounds"]
    lines = [header, ["---"] * len(header)]
    for row in chosen:
        cells = [form.format_map(row) if form[1:].partition(":")[0].rstrip("}") in row else "" for form in columns.values()]
        lines.append([f"`{row['name']}`", row["peer"], *cells, str(row["runs"])])
    sentences = [
        wrapped(f"- `{name}`: {sentence}", "  ") for name, sentence in said.items() if any(row["name"] == name for row in chosen)
    ]
    return "\n".join(sentences), "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(sentences: str, indent: str = "") -> str:
    return textwrap.fill(sentences, 115, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def speeds(rows: Sequence[Result], ours: Mapping[str, str]) -> dict[str, float]:
    """How many times as fast as ImageFolder: imgrec, as `ours` calls its names, and each peer that one of them was compared with."""
    found = {"ImageFolder with PIL": 1.0}
    base = {row["name"]: row["ratio"] for row in rows if row["peer"] == IMAGEFOLDER and row["name"] in ours}
    for row in rows:
        if row["name"] in base:
            mine = row["peer"] == IMAGEFOLDER
            found[ours[row["name"]] if mine else row["peer"]] = base[row["name"]] if mine else base[row["name"]] / row["ratio"]
    return dict(sorted(found.items(), key=lambda item: item[1]))


def draw(rows: Sequence[Result], path: Path) -> None:
    """The loaders as bars, of JPEG files and of packed ones."""
    from matplotlib.figure import Figure  # not above: each side imports this module

    panels = {
        "JPEG files, in one process": {"jpeg_folder": "imgrec", "jpeg_folder_float": "imgrec, to floats"},
        "Packed: the shorter side 256, JPEG of quality 90": {"packed_jpeg": "imgrec", "packed_raw": "imgrec, uncompressed"},
    }
    drawn = {title: speeds(rows, ours) for title, ours in panels.items()}
    figure = Figure(figsize=(8, 1.4 + 0.3 * sum(map(len, drawn.values()))), layout="constrained")
    parts = figure.subplots(len(drawn), height_ratios=[len(bars) + 1 for bars in drawn.values()])
    for axes, (title, bars) in zip(parts, drawn.items(), strict=True):
        colors = ["#1f5fa8" if name.startswith("imgrec") else "#b5bcc6" for name in bars]
        drawn_bars = axes.barh(list(bars), list(bars.values()), color=colors, height=0.7)
        axes.bar_label(drawn_bars, fmt="%.1f", padding=3)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.08)
    parts[-1].set_xlabel("times as fast as torchvision's ImageFolder with PIL on the JPEG files (processor time)")
    figure.savefig(path, dpi=120)


def measure(parts: Sequence[str], root: str | None, rounds: int) -> list[Result]:
    from photographs import make_photographs

    rows: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        if root is None and any(PARTS[name].photographs for name in parts):
            make_photographs(Path(folder, "photographs"))
        for name in parts:
            began, part = time.monotonic(), PARTS[name]
            read = [root or str(Path(folder, "photographs"))] * part.photographs
            found = importlib.import_module(name).results(*read, rounds=rounds * part.rounds)
            rows += found
            for row in found:
                print("{name:<32}{ratio:8.2f}  {peer}".format_map(row))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


def main(argv: Sequence[str] = sys.argv[1:], *, results: Path = FOLDER / "results.json", docs: Path = DOCS) -> None:
    given = {"root": None, "rounds": "5", "parts": ",".join(PARTS), **dict(word.split("=", 1) for word in argv)}
    root, rounds, parts = given.pop("root"), given.pop("rounds"), str(given.pop("parts")).split(",")
    if given or not set(parts) <= PARTS.keys():
        raise SystemExit(f"{__doc__}\nparts: {', '.join(PARTS)}")
    measured = measure(parts, root, int(str(rounds)))
    rows = merged(json.loads(results.read_text()) if results.is_file() else [], measured)
    results.write_text(json.dumps(rows, indent=1) + "\n")
    (docs / "benchmarks.md").write_text(page(rows))
    draw(rows, docs / "benchmarks.png")


if __name__ == "__main__":
    main()
