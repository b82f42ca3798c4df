"""What grows with the images, the classes, the epochs and the ranks: time and memory of each, as docs/growth.md has them.

usage: OMP_NUM_THREADS=1 python benchmarks/growth.py [rounds=5] [most=14000000]

Times are medians (least to most) of the processor's time where one process works, as others may use it too, and of the clock's between processes.
Memory is the most that was allocated at once, and what stays, by tracemalloc.
"""

import io
import json
import os
import platform
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from torch import distributed, multiprocessing
from torch.utils.tensorboard import SummaryWriter
from turns import processor

from imgrec.data.class_balance import weighted_order
from imgrec.data.file_index import pack_names
from imgrec.data.sampler import shuffled_order
from imgrec.data.splits import split_by_name
from imgrec.data.table_file import read_columns
from imgrec.inference.metrics import ConfusionTally
from imgrec.training.callbacks.history import COLUMNS, History

IMAGENET, CLASSES = 1_281_167, 1000


def row(name: str, way: Callable[[], Any], rounds: int, *, memory: bool = True) -> None:
    """Prints the processor time of `way`, the memory that it takes at most and that what it returns keeps."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        way()
        times.append(time.process_time() - start)
    said = f"{name:<66}{seconds(median(times)):>10} ({seconds(min(times))} to {seconds(max(times))})"
    if memory:
        tracemalloc.start()
        kept = way()
        stays, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del kept
        said += f", {size(most)} at most, {size(stays)} stays"
    print(said, flush=True)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"


def images(counts: Sequence[int], rounds: int) -> None:
    print("\nimages")
    for count in counts:
        row(f"order of an epoch, {count:,} images", lambda count=count: shuffled_order(count, seed=0)(1), rounds)
    labels = np.arange(IMAGENET, dtype=np.int64) % CLASSES
    balanced = weighted_order(labels, [Fraction(1, CLASSES)] * CLASSES, seed=0)
    row(f"the same drawn evenly from {CLASSES:,} classes, {IMAGENET:,} images", lambda: balanced(1), rounds)
    words = [f"n{k % CLASSES:08d}/n{k % CLASSES:08d}_{k}.JPEG" for k in range(IMAGENET)]
    row(f"file names, {IMAGENET:,} of {len(words[-1])} characters", lambda: pack_names(words), rounds)
    names = pack_names(words)
    row(f"validation cut by the names of {IMAGENET:,} files", lambda: split_by_name(names, labels, 0.1, seed=0, stream=0), rounds)
    groups = pack_names(f"patient {k // 20}" for k in range(IMAGENET))
    cut = partial(split_by_name, names, labels, 0.1, seed=0, stream=0, groups=groups)
    row(f"the same by {IMAGENET // 20:,} groups", cut, rounds)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.csv"
        file.write_text(
            "path,label,patient\n" + "".join(f"{word},class {k % CLASSES},p{k // 20}\n" for k, word in enumerate(words))
        )
        columns = {"path": "path", "label": "label", "group": "patient"}
        row(f"a CSV of {IMAGENET:,} rows, read", lambda: read_columns(str(file), columns), rounds)


def classes(counts: Sequence[int], rounds: int) -> None:
    print("\nclasses")
    for count in counts:
        tally, names = ConfusionTally(num_classes=count), [str(k) for k in range(count)]
        scores, labels = torch.randn(256, count), torch.arange(256) % count
        losses = torch.ones(256)
        print(
            f"{count:,} classes: a confusion matrix of {size(count * count * 8)} on each device, summed over ranks in a validation"
        )
        row(
            "  counting a batch of 256", lambda one=(tally, scores, labels, losses): one[0].update(*one[1:]), rounds, memory=False
        )
        row("  the report of a validation", lambda one=(tally, names): one[0].report(one[1]), rounds)


def epochs(counts: Sequence[int], rounds: int) -> None:
    print("\nepochs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in counts:
            history = History(folder / "metrics.csv", "val/accuracy")
            figures = {key: random.random() for key in COLUMNS}
            history.rows = [{**figures, "epoch": k + 1, "step": 100 * k, "best": False} for k in range(count)]
            stored = io.BytesIO()
            torch.save(history.state_dict(), stored)
            history.rows.pop()
            trainer: Any = type("Trainer", (), {"callback_metrics": dict.fromkeys(COLUMNS[3:9], 0.5), "current_epoch": count})
            trainer.global_step, trainer.is_global_zero = 100 * count, True
            trainer.optimizers = [type("Optimizer", (), {"param_groups": [{"lr": 0.1}]})]

            def one(history: History = history, trainer: Any = trainer) -> None:
                history.rows, rows = list(history.rows), history.rows
                end_of_epoch(history, trainer)
                history.rows = rows

            row(f"metrics.csv after epoch {count:,}", one, rounds, memory=False)
            print(
                f"  metrics.csv {size((folder / 'metrics.csv').stat().st_size)}, its rows in the checkpoint {size(stored.getbuffer().nbytes)}"
            )
        writer = SummaryWriter(str(folder / "board"))
        points = 10_000
        start = time.perf_counter()
        for step in range(points):
            writer.add_scalar("train/step_loss", 0.5, step)
        writer.close()
        took = time.perf_counter() - start
        (file,) = (folder / "board").iterdir()
        print(
            f"TensorBoard: {file.stat().st_size / points:.0f} bytes and {seconds(took / points)} a point ({sum(1 for _ in RawEventFileLoader(str(file)).Load()):,} records)"
        )


def end_of_epoch(history: History, trainer: Any) -> None:
    """History's own work, with a classifier that logs nothing."""
    from imgrec.training.module import Classifier

    silent = object.__new__(type("Silent", (Classifier,), {"log_training": lambda self: None}))
    history.on_train_epoch_end(trainer, silent)


def ranks(counts: Sequence[int], rounds: int) -> None:
    print("\nranks")
    sums = [torch.zeros(()) for _ in range(4)]
    cuda = torch.zeros(16, dtype=torch.uint8)  # a seed and an offset
    mine = {"torch": torch.get_rng_state(), "cuda": cuda, "sums": sums}

    def stored(states: list[Any]) -> int:
        file = io.BytesIO()
        torch.save(states, file)
        return file.getbuffer().nbytes

    for count in (1, 8, 1024):
        copies = [torch.load(io.BytesIO(_saved(mine)), weights_only=True) for _ in range(count)]
        start = time.perf_counter()
        found = stored(copies)
        print(
            f"random states of {count:,} ranks in a checkpoint: {size(found)}, written in {seconds(time.perf_counter() - start)}"
        )
    beat = {
        "doing": "waiting for the others before step 123456 (epoch 12)",
        "moves": 1234567,
        "at": "",
        "host": "node0123",
        "pid": 12345,
    }
    print(f"heartbeat: a line of about {len(json.dumps(beat)) + 1} bytes a second from each rank to the first")
    for count in counts:
        times, _ = together(flags, count, rounds)
        mid = median(times)
        print(
            f"reduce of the stop and save flags over {count} gloo processes: {seconds(mid)} ({seconds(min(times))} to {seconds(max(times))}), "
            f"{mid / (2 * (count - 1)) * 1e6:.0f} us a hop",
            flush=True,
        )
    for count in counts[:4]:
        times, more = together(confusion, count, 1)
        print(
            f"sum of the confusion matrix of {CLASSES:,} classes over {count} gloo processes: {seconds(times[0])}, {size(more)} more on each"
        )


def together(way: Callable[..., Any], count: int, rounds: int) -> tuple[list[float], int]:
    """What `way` puts into its queue in the first of `count` forked processes that one group connects."""
    context = multiprocessing.get_context("fork")
    queue, port = context.Queue(), random.randint(20_000, 29_000)
    workers = [context.Process(target=connected, args=(way, rank, count, port, rounds, queue)) for rank in range(count)]
    for worker in workers:
        worker.start()
    found: tuple[list[float], int] = queue.get(timeout=300)
    for worker in workers:
        worker.join()
    return found


def connected(way: Callable[[int], tuple[list[float], int]], rank: int, count: int, port: int, rounds: int, queue: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    found = way(rounds)
    if rank == 0:
        queue.put(found)
    distributed.barrier()
    distributed.destroy_process_group()


def flags(rounds: int) -> tuple[list[float], int]:
    found, times = torch.zeros(2, dtype=torch.int32), []
    for _ in range(rounds + 1):
        distributed.barrier()
        start = time.perf_counter()
        for _ in range(50):
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        times.append((time.perf_counter() - start) / 50)
    return times[1:], 0


def confusion(rounds: int) -> tuple[list[float], int]:
    """Once: the most memory that a process has had is known, but not that of a second time."""
    tally = ConfusionTally(num_classes=CLASSES)
    tally.update(torch.randn(256, CLASSES), torch.arange(256), torch.ones(256))
    distributed.barrier()
    before, start = getrusage(RUSAGE_SELF).ru_maxrss, time.perf_counter()
    tally.compute()
    return [time.perf_counter() - start], (getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024


def _saved(found: Any) -> bytes:
    file = io.BytesIO()
    torch.save(found, file)
    return file.getvalue()


def main() -> None:
    given = {"rounds": "5", "most": "14000000", **dict(word.split("=", 1) for word in sys.argv[1:])}
    rounds, most = int(given["rounds"]), int(given["most"])
    torch.set_num_threads(1)
    print(
        f"{processor()}, {os.cpu_count()} CPUs, one thread; Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}; "
        f"medians of {rounds}; load {os.getloadavg()[0]:.1f}"
    )
    ranks([2, 4, 8, 16, 32], rounds)  # first: forking is for processes without threads
    images([count for count in (1_200_000, 14_000_000) if count <= most], rounds)
    classes([10, 1000, 5000], rounds)
    epochs([100, 1000, 10_000], rounds)


if __name__ == "__main__":
    main()
