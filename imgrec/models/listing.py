"""python -m imgrec.models [key=value ...]: what `model=` can select, and how large it is."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgrec.config import Node, by_size, conf_dir, options
from imgrec.errors import ConfigError, ImgrecError, did_you_mean
from imgrec.target import build, locate

if TYPE_CHECKING:
    from torch import nn

SOURCES = ("imgrec", "torchvision", "timm", "all")
USAGE = """python -m imgrec.models [key=value ...] lists the networks that model= can select.
  source=imgrec      imgrec, torchvision, timm or all
  filter=*           a pattern over their names, such as resnet* or *vit*
  image_size=        pixels; left out: 32 for networks for small images, else 224 or timm's own
  num_classes=       left out: 10 for networks for small images, 1000 for the others
  out=               a .json or .csv file to write the list to"""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the command line asks for; None leaves sizes to each network."""

    source: str = "imgrec"
    filter: str = "*"
    image_size: int | None = None
    num_classes: int | None = None
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What to type, parameters, operations for one image (a multiply-add is two); None for what a note says instead."""

    source: str
    name: str
    select: str
    parameters: int | None
    flops: int | None
    image_size: int
    num_classes: int
    note: str


@dataclass(frozen=True)
class Candidate:
    """A network that is not built yet, with the image size and the number of classes it is meant for."""

    source: str
    name: str
    select: str
    image_size: int
    num_classes: int
    build: "Callable[[int, int], nn.Module]"  # (num_classes, image_size)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    try:
        query = parse(argv)
        rows = []
        for candidate in candidates(query):
            rows.append(measure(candidate, query))
            if sys.stderr.isatty():
                print(f"\r{len(rows)} networks", end="\r", file=sys.stderr)
        if not rows:
            raise ConfigError(f"filter={query.filter} fits none of source={query.source}. Set source=all, or filter=*resnet*.")
        show(rows)
        if query.out:
            write(rows, Path(query.out))
    except ImgrecError as error:
        if os.environ.get("IMGREC_DEBUG") == "1":
            raise
        print(f"imgrec: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> Query:
    """key=value words as a Query; ConfigError for anything else. Does not import torch."""
    known = [field.name for field in fields(Query)]
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
    query = Query(**given)
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


def candidates(query: Query) -> Iterator[Candidate]:
    """The networks of the asked-for sources whose names fit the filter."""
    sources = SOURCES[:-1] if query.source == "all" else (query.source,)
    for source in sources:
        every = _ours() if source == "imgrec" else _library(source)
        yield from (candidate for candidate in every if fnmatch(candidate.name, query.filter))


def measure(candidate: Candidate, query: Query) -> Row:
    """Builds a network without weights and counts; one that cannot be built for these images says so in its row."""
    import torch

    from imgrec.models.summary import describe

    image_size = query.image_size or candidate.image_size
    num_classes = query.num_classes or candidate.num_classes
    parameters, flops, note = None, None, ""
    try:
        try:
            with weightless():
                net = candidate.build(num_classes, image_size)
        except ConfigError:  # some of timm's compute with their weights while they are built, all on one device
            with torch.device("meta"):
                net = candidate.build(num_classes, image_size)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        flops = describe(net, channels=3, image_size=image_size).flops
    except ConfigError as error:
        note = str(error)
    return Row(
        source=candidate.source,
        name=candidate.name,
        select=candidate.select,
        parameters=parameters,
        flops=flops,
        image_size=image_size,
        num_classes=num_classes,
        note=note,
    )


@contextmanager
def weightless() -> Iterator[None]:
    """Networks built inside have parameters with a shape but no content (torch's meta device): no time, no memory.

    Not `torch.device("meta")`: networks that compute their widths with tensors (torchvision's RegNet) cannot be built under it.
    """
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def without_content(module: "nn.Module", name: str, parameter: "nn.Parameter") -> "nn.Parameter":
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(without_content)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _ours() -> Iterator[Candidate]:
    for option in options("model"):
        if option in ("torchvision", "timm"):
            continue
        node = _node(option, image_size=224, num_classes=10)
        module = sys.modules[locate(node["_target_"]).__module__]
        small_depths: Sequence[int] = getattr(module, "CIFAR_DEPTHS", ())
        for depth in getattr(module, "DEPTHS", (None,)):
            for norm in (False, True) if "batch_norm" in node else (None,):
                settings: Node = {} if depth is None else {"depth": depth}
                name = option if depth is None else f"{option}{depth}"
                if norm is not None:
                    settings["batch_norm"] = norm
                    name += "_bn" if norm else ""
                small = depth in small_depths or option in ("simple_cnn", "lenet")
                words = [f"model={option}", *(f"model.{key}={str(value).lower()}" for key, value in settings.items())]
                size, classes = (32, 10) if small else (224, 1000)
                yield Candidate("imgrec", name, " ".join(words), size, classes, _builder(option, settings))


def _library(source: str) -> Iterator[Candidate]:
    if source == "torchvision":
        from imgrec.models.torchvision import names

        sizes = dict.fromkeys(names(), 224)
    else:
        from imgrec.models.timm import library, own_size

        sizes = {name: own_size(name) for name in library().list_models()}
    for name, size in sizes.items():
        yield Candidate(source, name, f"model={source} model.name={name}", size, 1000, _builder(source, {"name": name}))


def _builder(option: str, settings: Node) -> "Callable[[int, int], nn.Module]":
    def make(num_classes: int, image_size: int) -> "nn.Module":
        net: nn.Module = build(_node(option, image_size=image_size, num_classes=num_classes) | settings)
        return net

    return make


def _node(option: str, *, image_size: int, num_classes: int) -> Node:
    """conf/model/OPTION.yaml, resolved for RGB images of this size."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("by_size", by_size, replace=True)
    data = {"image_size": image_size, "num_classes": num_classes, "channels": 3}
    config = OmegaConf.create({"data": data, "model": OmegaConf.load(conf_dir() / "model" / f"{option}.yaml")})
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    node: Node = tree["model"]
    return node


HEADERS = ("network", "parameters / M", "GFLOPs", "pixels", "classes", "type")
CAPTION = "GFLOPs: 10^9 operations for one RGB image, a multiply-add counted as two (twice the MACs that papers often give)."


def show(rows: Sequence[Row]) -> None:
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


def write(rows: Sequence[Row], path: Path) -> None:
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
