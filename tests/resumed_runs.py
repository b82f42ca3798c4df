"""A run with everything on, killed, started again and compared: what test_resume.py, test_resume_ddp.py and prove_resume.py share."""

import argparse
import csv
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processes import exit_codes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imgrec import config
from imgrec.config.changes import changed_keys
from imgrec.config.schema import RunConfig
from imgrec.data.in_memory import InMemoryImages
from imgrec.data.sampler import shuffled_order
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.train import fit
from imgrec.training.module import Classifier
from imgrec.training.timeline import PARTS, share_column

# All that a resume can get wrong: dropout, batch norm, augmentation, mixing, momentum, average, warm-up, accumulation, a short last batch, early stopping.
EVERYTHING = (
    "report=false",
    "data=fake",
    "data.num_classes=3",
    "data.image_size=16",
    "data.train_samples=29",
    "data.test_samples=6",
    "data.val_share=0.2",
    "model=simple_cnn",
    "model.widths=[4,8]",
    "model.dense=8",
    "augment=light",
    "augment.flip=0.5",
    "augment.mixup=0.4",
    "augment.cutmix=1.0",
    "optim=momentum",
    "optim.lr=0.05",
    "scheduler=cosine",
    "scheduler.warmup_share=0.2",
    "epochs=3",
    "batch_size=6",
    "max_device_batch=4",
    "logger=tensorboard",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.ema.decay=0.9",
    "callbacks.early_stopping.patience=2",
    "trainer.log_every_steps=1",
)
SAMPLES, STEPS_PER_EPOCH = 23, 4  # in sixes
TIMES = ("images_per_second", *map(share_column, PARTS), "seconds")


def asked_kills(about: str, kills: int) -> tuple[int, random.Random]:
    """What a script that kills runs is asked for: how often (`kills` if it is not said), and the chance of the moments."""
    options = argparse.ArgumentParser(description=about.splitlines()[0])
    options.add_argument("--kills", type=int, default=kills)
    options.add_argument("--seed", type=int, default=0, help="of the moments; what is trained is always the same")
    asked = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return asked.kills, random.Random(asked.seed)


def load_run(folder: Path, *words: str, pictures: bool = False) -> config.RunConfig:
    """`pictures`: whether they are drawn, which takes half a second at the end of a run."""
    drawn = () if pictures else ("callbacks.pictures=null",)
    return config.load("train", [*EVERYTHING, *drawn, f"runs_dir={folder}", "name=r", "id=a", *words])


def patch_call(count: int, where: Any, name: str, then: Callable[..., Any]) -> None:
    """`then()` at the count-th call of a method, before it does anything; for use in a fork."""
    whole, seen = getattr(where, name), []

    def counted(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == count:
            then(self, *args)
        return whole(self, *args, **kwargs)

    setattr(where, name, counted)


def kill_this_process(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_run(run: config.RunConfig, count: int, where: Any, name: str, *, size: int = 1) -> None:
    """Train until the count-th call of a method on each process, and no further."""

    def work(rank: int) -> None:
        patch_call(count, where, name, kill_this_process)
        fit(run, quiet=True)

    assert exit_codes(size, work) == [-signal.SIGKILL] * size


def finish_run(run: config.RunConfig, *, size: int = 1) -> dict[str, Any]:
    """Train to the end; all that the run has learnt and logged, less times."""
    changed_keys(run.to_dict())  # what the logger compares it with is composed here once, and not by each fork
    assert exit_codes(size, lambda rank: fit(run, quiet=True)) == [0] * size
    return read_outcome(Path(run.runs_dir) / "r/a")


def read_outcome(folder: Path) -> dict[str, Any]:
    last, best = (read_checkpoint(folder / f"checkpoints/{name}.ckpt") for name in ("last", "best"))
    with (folder / "metrics.csv").open() as file:
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    return {
        **{
            key: last.get(key)
            for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")
        },
        "best": best["state_dict"],
        "stopping": [last["callbacks"][key] for key in last["callbacks"] if key.startswith(("EarlyStopping", "EMA"))],
        "rows": rows,
        "curves": read_curves(folder / "tensorboard"),
    }


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every point in the event files, as it stands there: nothing is purged."""
    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("speed/"):
                points.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(found) for tag, found in points.items()}


def assert_same(a: Any, b: Any, at: str = "") -> None:
    """Equal to the last bit."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert a.keys() == b.keys(), (at, a.keys() ^ b.keys())
        for key in a:
            assert_same(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), (at, a, b)
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}[{k}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    else:
        assert a == b, (at, a, b)


def hang_over_sample(run: RunConfig, position: int, trained: int) -> None:
    """In a fork: a loader process asks for a stop and hangs at the sample of this position in the first epoch's order,
    once `trained` micro-batches have begun.
    """
    read_images, begun = InMemoryImages.__getitem__, multiprocessing.Event()

    def hang(self: InMemoryImages, request: Any) -> Any:
        if len(self) == SAMPLES and index in request.indices:
            begun.wait()
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(600)
        return read_images(self, request)

    index = int(shuffled_order(SAMPLES, seed=run.seed)(0)[position])
    InMemoryImages.__getitem__ = hang
    patch_call(trained, Classifier, "training_step", lambda *_: begun.set())


def kill_worker_at_sample(run: config.RunConfig, position: int) -> None:
    """In a fork: the loader process that reads this sample of the first epoch's order is killed, as when memory runs out."""
    read_images, parent = InMemoryImages.__getitem__, os.getpid()
    index = int(shuffled_order(SAMPLES, seed=run.seed)(0)[position])

    def die(self: InMemoryImages, request: Any) -> Any:
        if len(self) == SAMPLES and index in request.indices and os.getpid() != parent:
            kill_this_process()
        return read_images(self, request)

    InMemoryImages.__getitem__ = die
