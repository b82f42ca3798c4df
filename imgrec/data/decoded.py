"""data.cache=ram: the pixels of image files in memory that all processes of a machine share, each decoded once."""

import mmap
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrec.data.batch import Indices
from imgrec.data.decode import FORMATS
from imgrec.data.pieces import open_image
from imgrec.data.shared_batches import can_share
from imgrec.distributed.process_group import all_gather
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, ImgrecError, SourceError
from imgrec.files import on_progress

KEPT_FREE = 0.1  # of the available memory
HEADERS_AT_ONCE = 64  # that a thread reads: 10 ms
# Of a control group in version 2 and 1: its limit, what it uses, and what of that is cache which the kernel gives up.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class DecodedImages:
    """uint8 [C, H, W] of `count` images, as they are decoded: before crop and resize, which are drawn for each epoch.

    file: of memory that other processes can open too. It begins with int64 [2, count + 1]: where the pixels of an image begin
    (which says how much room they have), and height and width of one that is there.
    """

    def __init__(self, file: str, count: int, channels: int) -> None:
        self.file, self.count, self.channels = file, count, channels
        with open(file, "r+b") as opened:
            self._content = np.frombuffer(mmap.mmap(opened.fileno(), 0), dtype=np.uint8)
        self._starts, self._shapes = self._content[: 16 * (count + 1)].view(np.int64).reshape(2, count + 1)

    def __reduce__(self) -> tuple[Any, ...]:  # for workers that are not forked
        return type(self), (self.file, self.count, self.channels)

    def get(self, index: int) -> Tensor | None:
        """In the memory format in which it was decoded, so that what follows computes the same bits."""
        height, width = divmod(int(self._shapes[index]), 2**32)
        if not height:
            return None
        start = self._starts[index]
        pixels = self._content[start : start + height * width * self.channels]
        return torch.from_numpy(pixels.reshape(height, width, self.channels)).permute(2, 0, 1)

    def put(self, index: int, image: Tensor) -> None:
        """Two processes may put the same image at once: they write the same bytes, and its shape when these are there."""
        start, end = self._starts[index : index + 2]
        if image.numel() <= end - start:
            self._content[start : start + image.numel()] = image.permute(1, 2, 0).reshape(-1).numpy()
            self._shapes[index] = image.shape[1] * 2**32 + image.shape[2]


class StandIns(DecodedImages):
    """A few images in memory that stand for all of a set, to measure how fast it would be read from there."""

    def get(self, index: int) -> Tensor | None:
        return super().get(index % self.count)

    def put(self, index: int, image: Tensor) -> None:
        """Nothing: there is no room for others."""


def decoded_images(opened: Callable[[int], Any], count: int, channels: int) -> DecodedImages:
    """Memory for the `count` images whose files `opened` gives, shared by the ranks of this machine. A collective.

    ConfigError on all ranks where one machine has not as much, SourceError where one cannot read the headers of remote files.
    """
    if not can_share():
        raise ConfigError("data.cache=ram: expected Linux, whose processes share memory by memfd. Set data.cache=none.")
    world, host = read_world(), socket.gethostname()
    made: tuple[str, int] | ImgrecError | None = None
    if world.local_rank == 0:
        try:
            made = _allocate(image_sizes(opened, count) * channels)
        except ImgrecError as error:
            made = error.with_traceback(None)
    said = all_gather((host, made))
    for _, found in said:
        if isinstance(found, ImgrecError):
            raise found
    file = next(found[0] for other, found in said if other == host and isinstance(found, tuple))
    images = DecodedImages(file, count, channels)
    all_gather(None)  # all have opened it
    if isinstance(made, tuple):
        weakref.finalize(images, os.close, made[1])
    return images


def image_sizes(opened: Callable[[int], Any], count: int) -> Indices:
    """Pixels of each image by the header of its file, which takes a tenth of decoding it; 0 of one that cannot be read."""

    def size(index: int) -> int:
        try:
            with opened(index) as file, open_image(file, FORMATS) as image:
                return int(image.width * image.height)
        except SourceError:
            raise
        except Exception:  # PIL's parsers raise any; `decode` says what is wrong
            return 0

    sizes: list[int] = []
    at_once = HEADERS_AT_ONCE
    parts = [range(first, min(first + at_once, count)) for first in range(0, count, at_once)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "imgrec-sizes") as pool:
        for found in pool.map(lambda part: list(map(size, part)), parts):
            sizes += found
            on_progress.get()("reading the sizes of images", len(found), count)
    return np.array(sizes, dtype=np.int64)


def _allocate(sizes: Indices) -> tuple[str, int]:
    """The name and the descriptor of memory in which the images have as many bytes, none of them in use yet."""
    table = 16 * (len(sizes) + 1)
    needed, available = table + int(sizes.sum()), usable_memory()
    if needed > available:
        raise ConfigError(
            f"data.cache=ram: the decoded images need {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are available. "
            "Set data.cache=none, or make the images smaller: imgrec pack FOLDER out=DIR size=256."
        )
    number = os.memfd_create("imgrec-images")
    try:
        os.posix_fallocate(number, 0, needed)  # now, not in the middle of an epoch: 0.3 s a GB
    except OSError as error:
        os.close(number)
        raise ConfigError(f"data.cache=ram: {needed / 1e9:.1f} GB: {error.strerror}. Set data.cache=none.") from error
    os.pwrite(number, np.cumsum(np.append(table, sizes)).astype(np.int64).tobytes(), 0)
    return f"/proc/{os.getpid()}/fd/{number}", number


def usable_memory() -> int:
    """Bytes that images may have."""
    return int((1 - KEPT_FREE) * available_memory())


def available_memory(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine, or a control group of this process (its container's, its SLURM job's), can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for folder in _control_groups(own, groups):
        for limit, used, cache in GROUP_FILES:
            try:
                stored = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                rest = int((folder / limit).read_text()) - int((folder / used).read_text())
                free.append(rest + int(stored[cache]))
            except (OSError, ValueError, KeyError):  # ValueError: "max", no limit
                continue
    return max(0, min(free))


def _control_groups(own: Path, groups: Path) -> Iterator[Path]:
    """The groups of this process that may limit its memory, in version 2 and 1, from its own up to the root, which a container's is."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for _, controller, path in (line.split(":", 2) for line in lines):
        if controller in ("", "memory"):
            root = groups / controller
            group = root / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(root))
