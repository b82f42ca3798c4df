"""python -m imgrec.models [key=value ...]: the networks that `model=` can choose, with their sizes."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from imgrec.config.annotations import whole_number
from imgrec.config.overrides import read_words
from imgrec.config.values import literal_text
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, ExitCode, did_you_mean
from imgrec.files import atomic_write, check_output, first_bytes
from imgrec.models.catalog import MOST_MEASURED, SIZES, SOURCES, CatalogQuery, Network, candidates, measure_network

USAGE = """imgrec models [key=value ...] lists the networks that model= can choose.
  source=imgrec      imgrec, torchvision, timm or all
  filter=*           pattern of their names, such as resnet* or *vit*
  image_size=        pixels; default: 32 for networks for small images, else 224 or timm's own
  num_classes=       default: 10 for networks for small images, else 1000
  sizes=auto         parameters and operations; auto: of up to 100 networks, as each takes half a second; true; false
  out=               .json or .csv file for the list
  overwrite=false    replace a file of this name that imgrec did not write"""


CHOICES = {"source": SOURCES, "sizes": SIZES, "overwrite": ("true", "false")}


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Measure the networks that the arguments select, and print or write the list."""
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return ExitCode.OK
    query = parse_query(argv)
    rows = list(candidates(query))
    if not rows:
        raise ConfigError(
            f"filter={query.filter} matches no network of source={query.source}. Set source=all, or filter=*resnet*."
        )
    measured = query.sizes == "true" or (query.sizes == "auto" and len(rows) <= MOST_MEASURED)
    if measured:
        for number, candidate in enumerate(rows):
            if sys.stderr.isatty():
                print(f"\r{number} of {len(rows)} networks", end="\r", file=sys.stderr)
            rows[number] = measure_network(candidate)
    print_networks(rows, CAPTION if measured else f"{len(rows):,} networks; with their sizes: filter=PATTERN, or sizes=true.")
    if query.out:
        write_networks(rows, Path(query.out))
    return ExitCode.OK


def parse_query(argv: Sequence[str]) -> CatalogQuery:
    """The overrides as a query; ConfigError for anything else. Imports no torch."""
    known: dict[str, Any] = {field.name: field.default for field in fields(CatalogQuery)}
    values: dict[str, Any] = {}
    for override in read_words("models", argv, lambda: known):
        key, value = override.key, override.value
        if key not in known or override.mark:
            raise ConfigError(f"{override.text}: unknown key.{did_you_mean(key, list(known))} The keys are {', '.join(known)}.")
        if key in ("image_size", "num_classes"):
            least = 1 if key == "image_size" else 2
            number = whole_number(value)
            if number is None or number < least:
                raise ConfigError(f"{override.text}: expected an integer of {least} or more. The default is the network's own.")
            values[key] = number
        elif key in CHOICES:
            if value not in CHOICES[key]:
                *others, last = CHOICES[key]
                raise ConfigError(f"{key}={value}: expected {', '.join(others)} or {last}.{did_you_mean(value, CHOICES[key])}")
            values[key] = value == "true" if key == "overwrite" else value
        else:
            values[key] = literal_text(os.path.expanduser(value))
    query = CatalogQuery(**values)
    if query.out is not None:
        if Path(query.out).suffix not in (".json", ".csv"):
            raise ConfigError(f"out={query.out}: expected a .json or .csv file. Set out=models.json.")
        if not Path(query.out).absolute().parent.is_dir():
            raise ConfigError(
                f"out={query.out}: the folder {Path(query.out).parent} does not exist. Create it, or set out=models.json."
            )
        check_output("out", Path(query.out), (".json", ".csv"), ours=_written_by_us, overwrite=query.overwrite)
    return query


def _written_by_us(path: Path) -> bool:
    start = {".csv": ",".join(FILE_KEYS), ".json": f'[\n {{\n  "{FILE_KEYS[0]}": '}[path.suffix]
    return first_bytes(path).startswith(start.encode())


FILE_KEYS = ("source", "name", "select", "parameters", "flops", "image_size", "num_classes", "note")
HEADERS = ("network", "parameters / M", "GFLOPs", "pixels", "classes", "type")
CAPTION = "GFLOPs: 10^9 operations for one RGB image, a multiply-add counted as two (twice the MACs in many papers)."


def print_networks(rows: Sequence[Network], caption: str) -> None:
    """A rich table on a terminal, else aligned plain lines."""
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

        table = Table(caption=caption, caption_justify="left")
        for i, header in enumerate(HEADERS):
            table.add_column(header, justify="right" if 0 < i < 5 else "left", overflow="fold")
        for line in cells:
            table.add_row(*line)
        Console().print(table, markup=False)
        return
    widths = [max(len(line[i]) for line in [HEADERS, *cells]) for i in range(5)]
    for line in [HEADERS, *cells]:
        print("  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 5)), line[5]]))
    print(caption)


def write_networks(rows: Sequence[Network], path: Path) -> None:
    """The list as JSON or CSV, one record a network; `flops` counts a multiply-add as two."""
    records = [{key: getattr(row, key) for key in FILE_KEYS} for row in rows]
    text = io.StringIO(newline="")
    if path.suffix == ".json":
        text.write(json.dumps(records, indent=1) + "\n")
    else:
        table = csv.DictWriter(text, fieldnames=FILE_KEYS)
        table.writeheader()
        table.writerows(records)
    atomic_write(path, text.getvalue())


if __name__ == "__main__":
    sys.exit(run_command("models", main, sys.argv[1:]))
