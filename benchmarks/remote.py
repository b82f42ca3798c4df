"""How fast shards on a server become training batches, against the same shards in a folder; and how well a window mixes.

usage: python benchmarks/remote.py root=DIR [rounds=5] [copies=8] [workers=1] [latency_ms=50] [faults_percent=2] [cache_gb=2]

DIR/train/CLASS/*.jpg. The server runs on this machine: of two cores one worker leaves it one. It answers after `latency_ms`, and
`faults_percent` of its answers are wrong in the ways of tests/range_server.py. All sides draw a random resized crop to 224, in
batches of 64 and in the same order; rounds are interleaved, and what is compared is the time of an epoch with the start of its
workers: with an empty cache, and with one that holds all. The first batch is timed from building the data set, with an empty
cache. Images are linked `copies` times, so that an epoch takes seconds and 1,500 of them are 24 shards, three times the window.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from packed import folder_data
from turns import Result, machine

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build, instantiate
from imgrec.config.split_folders import find_split_folders
from imgrec.data.augment import Augment
from imgrec.data.image_data import ImageData
from imgrec.data.loader import Loader
from imgrec.data.sampler import EpochBatches, shuffled_order, split_epoch
from imgrec.data.window import windowed_order
from imgrec.storage.pack import Packing, pack_images
from imgrec.storage.shards import ImageShards

PEER = "the same shards in a folder"
BATCH, SHARD_IMAGES, WINDOW = 64, 500, 8
SERVER = Path(__file__).parents[1] / "tests/range_server.py"


def linked(root: str, folder: Path, copies: int) -> Path:
    """Each image under `copies` names."""
    for path in sorted(Path(find_split_folders(root).folders["train"]).glob("*/*")):
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (place / f"{path.stem}_{copy}{path.suffix}").symlink_to(path.absolute())
    return folder


@contextmanager
def server(folder: Path, latency_ms: int, faults_percent: int) -> Iterator[str]:
    command = [sys.executable, str(SERVER), str(folder), str(latency_ms / 1000), str(faults_percent / 100)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def shards_data(root: str, cache_gb: int) -> ImageData:
    words = ["data=shards", f"data.root={root}", f"data.window_shards={WINDOW}", f"data.cache_gb={cache_gb}"]
    return build("data", compose_config("train", words)["data"], ImageData)


def epoch_seconds(data: ImageData, workers: int, epoch: int) -> tuple[float, float]:
    """Of all batches of an epoch, and of the first one."""
    node = compose_config("train", ["augment=basic"])["augment"]
    augment: Augment = instantiate({**node, "crop_scale": [0.08, 1.0], "crop_padding": 0.0})
    began = time.monotonic()
    train = data.split("train").for_training(augment, 0)
    assert isinstance(train, ImageShards)
    order = train.reading_order(shuffled_order(len(train), seed=0), 0)
    requests = EpochBatches(split_epoch(len(train), BATCH, devices=1), order, epoch=lambda: epoch, rank=0)
    first = 0.0
    with closing(Loader(train, train.announced(requests), num_workers=workers)) as loader:
        for batch in loader:
            first = first or time.monotonic() - began
            _ = batch
    return time.monotonic() - began, first


class Speeds(Result):
    """A line of results.json, with what the peer reached."""

    images_per_second: int
    first_batch_s: float


def results(
    root: str,
    *,
    rounds: int = 5,
    copies: int = 8,
    workers: int = 1,
    latency_ms: int = 50,
    faults_percent: int = 2,
    cache_gb: int = 2,
) -> list[Speeds]:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        data = folder_data(str(linked(root, place / "photos", copies)))
        packing = Packing("keep", 256, 90, SHARD_IMAGES)
        pack_images(data, place / "packed", packing, num_workers=os.cpu_count() or 1, advance=lambda images: None)
        seconds: dict[str, list[float]] = {"folder": [], "cold": [], "warm": []}
        first: dict[str, list[float]] = {"folder": [], "cold": [], "warm": []}
        with server(place / "packed", latency_ms, faults_percent) as url:
            for lap in range(rounds + 1):
                os.environ["IMGREC_CACHE"] = str(place / f"cache{lap}")
                for side, found in seconds.items():
                    began = time.monotonic()
                    data = shards_data(url if side != "folder" else str(place / "packed"), cache_gb)
                    images, opened = len(data.split("train")), time.monotonic() - began
                    spent, until = epoch_seconds(data, workers, lap)
                    if lap:  # the first warms what the system keeps of the files
                        found.append(spent)
                        first[side].append(opened + until)
                    del data
                subprocess.run(["rm", "-r", os.environ["IMGREC_CACHE"]], check=True)
        return [
            Speeds(
                name=f"remote_shards_{side}",
                peer=PEER,
                # Of the rounds, not of the medians: others use the machine too, and a round's sides share that alike.
                ratio=round(median(folder / ours for folder, ours in zip(seconds["folder"], seconds[side], strict=True)), 3),
                runs=rounds,
                machine=machine(),
                images_per_second=int(images / median(seconds[side])),
                first_batch_s=round(median(first[side]), 2),
            )
            for side in seconds
        ]


def mixing(
    images: int = 1_281_024, classes: int = 1000, shard_images: int = 2001, batch: int = 256
) -> list[tuple[str, float, float]]:
    """For the size of ImageNet: the correlation of the classes of neighbours, and how many classes a batch has."""
    labels = np.arange(images) * classes // images
    by_class = np.arange(images) // shard_images  # of shards that hold one class after another
    by_chance = np.random.default_rng(0).permutation(by_class)  # as imgrec pack writes them
    base = shuffled_order(images, seed=0)
    orders = {"all shards": base}
    for name, shards in (("as imgrec pack writes", by_chance), ("class after class", by_class)):
        orders |= {f"{name}, window of {window}": windowed_order(base, shards, window, seed=0) for window in (4, 8, 16, 64)}
    rows = []
    for name, order in orders.items():
        seen = labels[order(0)]
        counts = [len(np.unique(part)) for part in itertools.islice(np.split(seen, range(batch, len(seen), batch)), 0, None, 10)]
        rows.append((name, float(np.corrcoef(seen[:-1], seen[1:])[0, 1]), float(np.mean(counts))))
    return rows


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if "root" not in given:
        raise SystemExit(__doc__)
    for name, correlation, count in mixing():
        print(f"{name:<40}{correlation:8.3f} correlation of neighbours{count:8.1f} of 1000 classes in a batch of 256")
    rows = results(given.pop("root"), **{name: int(value) for name, value in given.items()})
    print(rows[0]["machine"])
    for row in rows:
        print(
            "{name:<24}{ratio:6.3f} times {peer}  {images_per_second:5} images/s, first batch in {first_batch_s:.2f} s".format_map(
                row
            )
        )


if __name__ == "__main__":
    main()
