"""Trainings on one GPU against a hand-written PyTorch loop of the same network on the same card.

    python benchmarks/gpu.py out=FOLDER             # gpu.json and gpu.txt there, in `seconds` at most
    python benchmarks/gpu.py device=cpu side=32 batch=8 steps=2 warm_up=1 rounds=1 depths=18 speed_images=64

Images per second of ResNet-18 and -50 in bfloat16 from memory, JPEG files and shards, in interleaved rounds, and of a
ResNet-18 on images so small that what a step costs the CPU decides; the share of the time in which the GPU computes; the
memory; the seconds of an epoch of experiment=cifar10_speed on random pixels; and decoding on the GPU against the CPU.
Both sides copy uint8 and normalise on the device.
"""

import csv
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor
from torch.autograd import DeviceType
from torch.utils.data import DataLoader
from torchvision import transforms

import imgrec
from imgrec import pack
from imgrec.data.datasets import Fake
from imgrec.data.image_data import Splits
from imgrec.data.in_memory import InMemoryImages

CLASSES = 10
PHOTOS = 800  # different ones; the folder names each several times
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sizes:
    """The arguments of the command."""

    device: str = "cuda"
    side: int = 224
    batch: int = 256
    warm_up: int = 8  # steps that are not timed: they choose algorithms and fill the queues
    steps: int = 24  # that are
    rounds: int = 5
    depths: str = "18,50"
    workers: int = 16
    speed_images: int = 50_000
    seconds: float = 210.0  # no round is begun after that
    out: str = "gpu-report"

    def of_files(self) -> "Sizes":
        """Its timed steps begin when those are used up that the loader processes prepare ahead, two each."""
        return replace(self, warm_up=max(self.warm_up, 2 * self.workers))

    def small(self) -> "Sizes":
        """Of a step that launches as many kernels, each with little to do."""
        return replace(self, side=min(self.side, 32), batch=max(1, self.batch // 4), steps=8 * self.steps)

    @property
    def images(self) -> int:
        return self.batch * (self.warm_up + self.steps)


@dataclass
class Measured:
    """One training."""

    images_per_s: float
    memory_gib: float


def synchronize(sizes: Sizes) -> None:
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def memory_gib(sizes: Sizes) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if sizes.device == "cuda" else 0.0


class Clock(pl.Callback):
    """Times the steps after the warm-up; wait for the device only before and after them."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.done, self.began, self.seconds = sizes, 0, 0.0, 0.0

    def step(self) -> None:
        self.done += 1
        if self.done == self.sizes.warm_up:
            synchronize(self.sizes)
            self.began = time.perf_counter()
        elif self.done == self.sizes.warm_up + self.sizes.steps:
            synchronize(self.sizes)
            self.seconds = time.perf_counter() - self.began

    def on_train_batch_end(self, *args: Any) -> None:
        self.step()

    def measured(self) -> Measured:
        return Measured(self.sizes.batch * self.sizes.steps / self.seconds, memory_gib(self.sizes))


class DeviceShare(pl.Callback):
    """The share of the time of some steps in which the GPU ran kernels, by torch's profiler."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.done, self.share = sizes, 0, 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        self.done += 1
        if self.done == self.sizes.warm_up:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            synchronize(self.sizes)
            self.profiler.start()
            self.began = time.perf_counter()
        elif self.done == self.sizes.warm_up + self.sizes.steps:
            synchronize(self.sizes)
            seconds = time.perf_counter() - self.began
            self.profiler.stop()
            kernels = [event for event in self.profiler.key_averages() if event.device_type == DeviceType.CUDA]
            self.share = sum(kernel.self_device_time_total for kernel in kernels if not kernel.is_user_annotation) / 1e6 / seconds


# imgrec


def random_pixels(pixels: Tensor) -> None:
    """data=fake gives these images; to draw its patterns would take longer than the training."""

    def read(self: Fake) -> Splits:
        labels = np.arange(len(pixels), dtype=np.int64) % CLASSES
        test = InMemoryImages(pixels[: 4 * CLASSES], labels[: 4 * CLASSES])
        return Splits(tuple(map(str, range(CLASSES))), train=InMemoryImages(pixels, labels), val=None, test=test)

    Fake.read = read  # type: ignore[method-assign]


def settings(sizes: Sizes, folder: Path, *words: str) -> list[str]:
    return [
        *words,
        f"runs_dir={folder}",
        "resume=false",
        "epochs=1",
        "logger=none",
        f"trainer.accelerator={sizes.device}",
        "trainer.devices=1",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
    ]


def resnet(sizes: Sizes, folder: Path, depth: int, data: list[str], watch: pl.Callback) -> None:
    words = [
        *data,
        "model=resnet",
        f"model.depth={depth}",
        "model.stem=imagenet",
        "optim=nesterov",
        "scheduler=constant",
        f"batch_size={sizes.batch}",
        f"data.image_size={sizes.side}",
        "trainer.precision=bf16-mixed",
        f"trainer.limit_train_batches={sizes.warm_up + sizes.steps}",
    ]
    imgrec.fit(settings(sizes, folder, *words), quiet=True, callbacks=watch)


# The loop


def loop(sizes: Sizes, depth: int, batches: Iterator[tuple[Tensor, Tensor]]) -> Measured:
    """What a tutorial would write for speed: bfloat16, channels last, a fused optimizer, copies that do not wait."""
    torch.backends.cudnn.benchmark = True
    device, clock = torch.device(sizes.device), Clock(sizes)
    net = torchvision.models.get_model(f"resnet{depth}", num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    for images, labels in batches:
        pixels, targets = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        normal = ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(net(normal), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step()
    return clock.measured()


def memory_batches(sizes: Sizes, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    labels = torch.arange(len(pixels)) % CLASSES
    for rows in torch.randperm(len(pixels))[: sizes.images].split(sizes.batch):
        images = pixels.index_select(0, rows)
        yield (images.pin_memory() if sizes.device == "cuda" else images), labels[rows]


def file_batches(sizes: Sizes, root: Path) -> Iterator[tuple[Tensor, Tensor]]:
    steps = [transforms.RandomResizedCrop(sizes.side), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    images = torchvision.datasets.ImageFolder(str(root), transforms.Compose(steps))
    loader: DataLoader[Any] = DataLoader(
        images, sizes.batch, shuffle=True, num_workers=sizes.workers, pin_memory=sizes.device == "cuda", drop_last=True
    )
    for count, batch in enumerate(loader):
        if count == sizes.warm_up + sizes.steps:
            return
        yield batch[0], batch[1]


# Data


def write_photo(file: Path) -> None:
    """A JPEG of 500x375 pixels and about 96 KB, as ImageNet's: smooth colours with some noise."""
    random = np.random.default_rng(int(file.stem))
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noise = random.normal(0, 14, (375, 500, 3))
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(file, quality=90)


def write_photos(folder: Path, count: int, workers: int) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{index}.jpg" for index in range(count)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(write_photo, files))
    return files


def link_photos(root: Path, photos: list[Path], count: int) -> None:
    """`count` files in class folders, which are the photographs again and again."""
    for index in range(count):
        folder = root / f"class_{index % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").hardlink_to(photos[index % len(photos)])


# Measurements

Row = dict[str, Any]


def machine() -> str:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{card}, Python {platform.python_version()}, torch {torch.__version__}, Lightning {pl.__version__}"


def compare(sizes: Sizes, name: str, ours: Callable[[], Measured], theirs: Callable[[], Measured], end: float) -> Row:
    """The median of the rounds' ratios of images per second, the sides in turns."""
    ratios, found, peer = [], [], []
    for _ in range(sizes.rounds):
        if ratios and time.monotonic() > end:
            break
        found.append(ours())
        peer.append(theirs())
        ratios.append(found[-1].images_per_s / peer[-1].images_per_s)
    return {
        "name": name,
        "peer": "PyTorch loop",
        "ratio": round(statistics.median(ratios), 3),
        "runs": len(ratios),
        "machine": machine(),
        "images_per_s": round(statistics.median(run.images_per_s for run in found), 1),
        "peer_images_per_s": round(statistics.median(run.images_per_s for run in peer), 1),
        "memory_gib": round(max(run.memory_gib for run in found), 2),
        "peer_memory_gib": round(max(run.memory_gib for run in peer), 2),
    }


def attempt(failed: list[str], name: str, measurement: Callable[[], Row]) -> Iterator[Row]:
    """Its row, or its name among the failed ones with a traceback: what comes next is measured, as such a machine is lent for minutes."""
    try:
        row = measurement()
    except Exception:  # of anything that runs on a GPU for the first time
        traceback.print_exc()
        failed.append(name)
    else:
        yield row


def throughput(sizes: Sizes, folder: Path, end: float, failed: list[str]) -> Iterator[Row]:
    spare = 4 * CLASSES  # for validation, which is cut off by class and rounded

    def draw(sizes: Sizes) -> Tensor:
        return torch.randint(0, 256, (sizes.images + 2 * spare, 3, sizes.side, sizes.side), dtype=torch.uint8)

    small, files = sizes.small(), sizes.of_files()
    pixels, small_pixels = draw(sizes), draw(small)

    def in_memory(pixels: Tensor) -> list[str]:
        return ["data=fake", "augment=none", f"data.num_classes={CLASSES}", f"data.val_share={spare / len(pixels)}"]

    photos = write_photos(folder / "photos", min(PHOTOS, files.images), sizes.workers)
    for split, count in (("train", files.images), ("val", spare)):
        link_photos(folder / "files" / split, photos, count)
    pack.main([f"{folder}/files", f"out={folder}/shards", f"num_workers={sizes.workers}"])
    sources = {
        "memory": (in_memory(pixels), lambda: memory_batches(sizes, pixels)),
        "small": (in_memory(small_pixels), lambda: memory_batches(small, small_pixels)),
        "jpeg": (
            [f"data={folder}/files", "augment=basic", f"num_workers={sizes.workers}"],
            lambda: file_batches(files, folder / "files" / "train"),
        ),
        # The loop reads the files, as torchvision has no shards.
        "shards": (
            ["data=shards", f"data.root={folder}/shards", "augment=basic", f"num_workers={sizes.workers}"],
            lambda: file_batches(files, folder / "files" / "train"),
        ),
    }
    depths = [int(depth) for depth in sizes.depths.split(",")]
    cases = [(depths[0], "small"), *((depth, source) for depth in depths for source in ("memory", "jpeg", "shards"))]
    for number, (depth, source) in enumerate(cases):
        now = time.monotonic()
        until = now + (end - now) / (len(cases) - number)  # each its share of the time that is left
        of, drawn = {"small": (small, small_pixels), "memory": (sizes, pixels)}.get(source, (files, pixels))
        name, (data, batches) = f"gpu_resnet{depth}_{source}", sources[source]
        yield from attempt(failed, name, partial(against_loop, of, name, folder, depth, data, batches, drawn, until, end))


def against_loop(
    sizes: Sizes,
    name: str,
    folder: Path,
    depth: int,
    data: list[str],
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    drawn: Tensor,
    until: float,
    end: float,
) -> Row:
    """Rounds of a ResNet with imgrec and in the loop until time.monotonic() `until`, then the GPU's share, if it is not `end` yet."""
    random_pixels(drawn)

    def watched(watch: pl.Callback) -> None:
        resnet(sizes, folder / "runs", depth, data, watch)

    def forget_peak() -> None:
        if sizes.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def ours() -> Measured:
        forget_peak()
        watched(clock := Clock(sizes))
        return clock.measured()

    def theirs() -> Measured:
        forget_peak()
        return loop(sizes, depth, batches())

    row = compare(sizes, name, ours, theirs, until)
    if sizes.device == "cuda" and time.monotonic() < end:
        watched(share_of := DeviceShare(sizes))
        row["gpu_share"] = round(share_of.share, 3)
    return row


def speed_recipe(sizes: Sizes, folder: Path) -> Row:
    """Seconds of an epoch of cifar10_speed on random pixels: the median without the first, which compiles."""
    random_pixels(torch.randint(0, 256, (sizes.speed_images, 3, 32, 32), dtype=torch.uint8))
    compiled = "true" if sizes.device == "cuda" else "false"
    words = ["experiment=cifar10_speed", "data=fake", "data.image_size=32", f"data.num_classes={CLASSES}"]
    words += [f"trainer.compile={compiled}", f"data.val_share={200 / (200 + sizes.speed_images)}"]
    chosen = [word for word in settings(sizes, folder, *words) if word != "epochs=1"]
    if sizes.device == "cpu":
        chosen += ["epochs=1", "batch_size=16", "trainer.limit_train_batches=2"]
    began = time.perf_counter()
    result = imgrec.fit(chosen, quiet=True)
    whole = time.perf_counter() - began
    with (result.folder / "metrics.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return {
        "name": "gpu_cifar10_speed_epoch_s",
        "peer": "none",
        "ratio": round(statistics.median(seconds[1:] or seconds), 3),
        "runs": len(seconds),
        "machine": machine(),
        "seconds_of_epochs": seconds,
        "seconds_with_start_and_test": round(whole, 1),
    }


def decoding(sizes: Sizes, folder: Path) -> Row:
    """Images per second of nvJPEG, by torchvision, over those of simplejpeg on one core; both decode whole photographs."""
    import simplejpeg

    files = [file.read_bytes() for file in sorted((folder / "photos").glob("*.jpg"))[:256]]
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in files]
    rates: dict[str, list[float]] = {"gpu": [], "cpu": []}
    for turn in range(sizes.rounds + 1):
        for side, found in rates.items():
            began = time.perf_counter()
            if side == "gpu":
                torchvision.io.decode_jpeg(encoded, device="cuda")
                torch.cuda.synchronize()
            else:
                for content in files:
                    simplejpeg.decode_jpeg(content)
            if turn:  # the first one chooses algorithms
                found.append(len(files) / (time.perf_counter() - began))
    gpu, cpu = (statistics.median(rates[side]) for side in rates)
    return {
        "name": "gpu_decoding",
        "peer": "simplejpeg on one core",
        "ratio": round(gpu / cpu, 2),
        "runs": sizes.rounds,
        "machine": machine(),
        "images_per_s": round(gpu, 1),
        "peer_images_per_s": round(cpu, 1),
    }


def measure(sizes: Sizes, failed: list[str]) -> Iterator[Row]:
    """One row after the other, so that those of a run that is cut short are there. failed: gets the names of those that failed."""
    end = time.monotonic() + sizes.seconds
    with tempfile.TemporaryDirectory(prefix="imgrec-gpu-") as name:
        folder = Path(name)
        yield from attempt(failed, "gpu_cifar10_speed_epoch_s", lambda: speed_recipe(sizes, folder / "speed"))
        yield from throughput(sizes, folder, end, failed)
        if sizes.device == "cuda":
            yield from attempt(failed, "gpu_decoding", lambda: decoding(sizes, folder))


def report(rows: list[Row]) -> str:
    lines = [rows[0]["machine"] if rows else machine(), ""]
    for row in rows:
        extra = {key: value for key, value in row.items() if key not in ("name", "peer", "ratio", "runs", "machine")}
        lines.append(f"{row['name']:28}{row['ratio']:10.3f}   against {row['peer']}, {row['runs']} runs")
        lines += [f"    {key:30}{value}" for key, value in extra.items()]
    return "\n".join(lines) + "\n"


def read_sizes(words: list[str]) -> Sizes:
    types = {field.name: type(field.default) for field in fields(Sizes)}
    values = dict(word.partition("=")[::2] for word in words)
    if unknown := values.keys() - types:
        raise SystemExit(f"{unknown.pop()}: there is no such argument. There are: {', '.join(types)}.")
    return replace(Sizes(), **{name: types[name](value) for name, value in values.items()})


def main(words: list[str]) -> int:
    sizes = read_sizes(words)
    if sizes.device == "cuda" and not torch.cuda.is_available():
        print("torch has no CUDA device here. Set device=cpu to try the script.", file=sys.stderr)
        return 2
    out, rows, failed = Path(sizes.out), [], list[str]()
    out.mkdir(parents=True, exist_ok=True)
    for row in measure(sizes, failed):
        rows.append(row)
        print(json.dumps(row), flush=True)
        (out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
        (out / "gpu.txt").write_text(report(rows))
    with suppress(BrokenPipeError):
        print(report(rows))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
