"""python -m imgrec.models [key=value ...]: what `model=` can select, and how large it is."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from imgrec.errors import ConfigError, ImgrecError, did_you_mean
from imgrec.models.catalog import SOURCES, CatalogQuery, NetworkRow, candidates, measure_network

USAGE = """python -m imgrec.models [key=value ...] lists the networks that model= can select.
  source=imgrec      imgrec, torchvision, timm or all
  filter=*           a pattern over their names, such as resnet* or *vit*
  image_size=        pixels; left out: 32 for networks for small images, else 224 or timm's own
  num_classes=       left out: 10 for networks for small images, 1000 for the others
  out=               a .json or .csv file to write the list to"""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    try:
        query = parse_query(argv)
        rows = []
        for candidate in candidates(query):
            rows.append(measure_network(candidate, query))
            if sys.stderr.isatty():
                print(f"\r{len(rows)} networks", end="\r", file=sys.stderr)
        if not rows:
            raise ConfigError(f"filter={query.filter} fits none of source={query.source}. Set source=all, or filter=*resnet*.")
        print_networks(rows)
        if query.out:
            write_networks(rows, Path(query.out))
    except ImgrecError as error:
        if os.environ.get("IMGREC_DEBUG") == "1":
            raise
        print(f"imgrec: {error}", file=sys.stderr)
        return 2
    return 0


def parse_query(argv: Sequence[str]) -> CatalogQuery:
    """key=value words as a Query; ConfigError for anything else. Does not import torch."""
    known = [field.name for field in fields(CatalogQuery)]
    given: dict[str, Any] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"{word}: there is no key {key}.{did_you_mean(key, known)} Known here: {', '.join(known)}.")
        if key in ("image_size", "num_classes"):
            least = 1 if key == "image_size" else 2
            if not value.isdecimal() or int(value) < least:
                raise ConfigError(f"{word}: {key} takes a whole number of {least} or more. The default is the network's own.")
            given[key] = int(value)
        else:
            given[key] = value
    query = CatalogQuery(**given)
    if query.source not in SOURCES:
        raise ConfigError(
            f"source={query.source}: there is no such source.{did_you_mean(query.source, SOURCES)} "
            f"There are: {', '.join(SOURCES)}."
        )
    if query.out is not None:
        if Path(query.out).suffix not in (".json", ".csv"):
            raise ConfigError(f"out={query.out}: the list is written as .json or .csv. Set out=models.json.")
        if not Path(query.out).absolute().parent.is_dir():
            raise ConfigError(f"out={query.out}: there is no folder {Path(query.out).parent}. Make it, or set out=models.json.")
    return query


HEADERS = ("network", "parameters / M", "GFLOPs", "pixels", "classes", "type")
CAPTION = "GFLOPs: 10^9 operations for one RGB image, a multiply-add counted as two (twice the MACs that papers often give)."


def print_networks(rows: Sequence[NetworkRow]) -> None:
    """A rich table on a terminal; aligned plain lines off it."""
    cells = [
        (
            row.name,
            "-" if row.parameters is None else f"{row.parameters / 1e6:.3f}",
            "-" if row.flops is None else f"{row.flops / 1e9:.3f}",
            str(row.image_size),
            str(row.num_classes),
            row.note or row.select,
        )
        for row in rows
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(caption=CAPTION, caption_justify="left")
        for i, header in enumerate(HEADERS):
            table.add_column(header, justify="right" if 0 < i < 5 else "left", overflow="fold")
        for line in cells:
            table.add_row(*line)
        Console().print(table, markup=False)
        return
    widths = [max(len(line[i]) for line in [HEADERS, *cells]) for i in range(5)]
    for line in [HEADERS, *cells]:
        numbers = [line[i].rjust(widths[i]) for i in range(1, 5)]
        print("  ".join([line[0].ljust(widths[0]), *numbers, line[5]]))
    print(CAPTION)


def write_networks(rows: Sequence[NetworkRow], path: Path) -> None:
    """The list as JSON or CSV, one record a network; `flops` counts a multiply-add as two."""
    records = [asdict(row) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(records, file, indent=1)
            file.write("\n")
        else:
            table = csv.DictWriter(file, fieldnames=list(records[0]))
            table.writeheader()
            table.writerows(records)


if __name__ == "__main__":
    sys.exit(main())
