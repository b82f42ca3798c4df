"""Images into tar shards: python -m imgrec.pack FOLDER out=DIR, then python -m imgrec.train data=shards data.root=DIR"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgrec.config.annotations import format_value
from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build, check_signature
from imgrec.config.schema import OWN_TEXTS, SPLITS, DataConfig, Node, dotted_types, parse_settings
from imgrec.config.start_checks import check_data
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, DataError, first_names, plural
from imgrec.files import resolved
from imgrec.storage.index import INDEX, ShardIndex
from imgrec.terminal import Terminal

FULL_SIZE = 256  # pixels of the shorter side, of which the default data.image_size=224 is cut
MOST_NAMED = 20  # damaged or unreadable images that are named


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """The keys of conf/pack.yaml."""

    data: Node
    out: str | None
    verify: str | None
    index: str | None
    format: Literal["jpeg", "raw", "keep"]
    size: int
    quality: int
    shard_images: int
    num_workers: int | Literal["auto"]


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Pack a data set, verify a pack, or write the index of shards; `verify DIR` is `verify=DIR`, `index DIR` is `index=DIR`."""
    words = list(argv)
    if words[:1] in (["verify"], ["index"]) and len(words) > 1:
        words[:2] = [f"{words[0]}={words[1]}"]
    types = dotted_types(PackConfig) | {f"data.{key}": str | None for key in OWN_TEXTS}
    config = parse_settings(PackConfig, compose_config("pack", words, config_dir, types=types))
    terminal = Terminal()
    if config.verify is not None:
        return _verify(Path(config.verify), terminal)
    if config.index is not None:
        return _index(Path(config.index), terminal)
    if not config.out:
        raise ConfigError(f"out={format_value(config.out)}: pack needs a folder for the shards. Set out=DIR.")
    data = DataConfig.from_node(config.data)
    root = data.own.get("root")
    if root is not None and "file" not in data.own and resolved(config.out).is_relative_to(resolved(root)):
        raise ConfigError(
            f"out={config.out} is in data.root={root}, where shards would be taken for images. Set out=DIR beside it."
        )
    check_data(data)
    return _pack(config, Path(config.out), terminal)


def _pack(config: PackConfig, out: Path, terminal: Terminal) -> int:
    from imgrec.data.folder import FileData
    from imgrec.data.image_data import ImageData
    from imgrec.data.loader import worker_count
    from imgrec.storage.pack import Packing, pack_images

    check_signature("data", config.data)
    data = build("data", config.data, ImageData)
    if not isinstance(data, FileData):
        name = config.data["_target_"].rpartition(".")[2]
        raise ConfigError(f"data: {name} is held in memory, and needs no shards. Set data=imagefolder data.root=FOLDER.")
    packing = Packing(config.format, config.size, config.quality, config.shard_images)
    start = time.perf_counter()
    with terminal.bar() as bar:
        task = bar.add_task("images", total=sum(int(data.counts(split).sum()) for split in SPLITS), note="")
        workers = worker_count(config.num_workers, in_memory=False, processes_here=1)
        index, bad = pack_images(data, out, packing, num_workers=workers, advance=lambda done: bar.advance(task, done))
    images = _split_sizes(index)
    terminal.say(
        f"{out}: {images} images of {len(index.classes)} classes in {plural(len(index.shards), 'shard')}, "
        f"{index.sizes.sum() / 1e6:,.1f} MB, {time.perf_counter() - start:,.1f} s"
    )
    if bad:
        terminal.say(f"{plural(len(bad), 'image')} left out, which could not be read: {first_names(bad, MOST_NAMED)}", "yellow")
    # At the size that evaluation cuts from the middle: larger ones would be made of fewer pixels than they have.
    small = [f"data.image_size={config.size * 7 // 8}"] * (config.format != "keep" and config.size < FULL_SIZE)
    terminal.say(f"next:\n  {shlex.join(['imgrec', 'train', 'data=shards', f'data.root={out}', *small])}")
    return 0


def _split_sizes(index: ShardIndex) -> str:
    return ", ".join(f"{name} {len(index.splits[name].labels):,}" for name in SPLITS if name in index.splits)


def _verify(folder: Path, terminal: Terminal) -> int:
    from imgrec.storage.verify import find_damage

    if not (folder / INDEX).is_file():
        raise DataError(f"verify={folder}: there is no {INDEX}. Set verify=DIR that imgrec pack FOLDER out=DIR has made.")
    index = ShardIndex.read(folder)
    with terminal.bar() as bar:
        task = bar.add_task("shards", total=len(index.shards), note="")
        damage = find_damage(folder, advance=lambda done: bar.advance(task, done))
    if damage:
        shown = "; ".join(damage[:MOST_NAMED]) + "; ..." * (len(damage) > MOST_NAMED)
        raise DataError(
            f"verify={folder}: {len(damage):,} damaged: {shown}. "
            f"Copy these shards again, or remove {folder} and pack the images again."
        )
    images = sum(len(split.labels) for split in index.splits.values())
    terminal.say(f"{folder}: {plural(images, 'image')} in {plural(len(index.shards), 'shard')}, all as they were packed")
    return 0


def _index(folder: Path, terminal: Terminal) -> int:
    from imgrec.storage.webdataset import write_index

    if not folder.is_dir() or os.path.lexists(folder / INDEX):
        why = "is not a folder" if not folder.is_dir() else f"has an {INDEX} already"
        raise DataError(f"index={folder} {why}. Set index=DIR with shards of webdataset, DIR/train/*.tar.")
    index = write_index(folder)
    images = _split_sizes(index)
    terminal.say(f"{folder / INDEX}: {images} images of {len(index.classes)} classes in {plural(len(index.shards), 'shard')}")
    terminal.say(
        f"next, or with the address of a copy:\n  {shlex.join(['imgrec', 'train', 'data=shards', f'data.root={folder}'])}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command("pack", main, sys.argv[1:]))
