"""What imgrec adds to the steps of a hand-written PyTorch loop: the network of experiment=mnist_cnn, batch 128, one thread.

usage: python benchmarks/overhead.py [rounds=30] [steps=10]

Both sides train the same network with the same AdamW and one-cycle rate on the same 28x28 images, held in memory as uint8, each
in a process of its own. They take turns: a round is `steps` steps of each, and its figure is their processor time. The loop has no
metrics, no logger, no checkpoints and no check of the loss; imgrec has all of these, as a user starts it, but for a terminal's bar.
Both start anew five times: where a process got its memory, its steps take up to 5% more or less than those of the next.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from turns import Result, Side, machine, processor_seconds, ratio

LOOP, KEEPING = "a hand-written loop", "the same loop, where glibc keeps freed memory"
WARM_UP = 20  # steps
STARTS = 5
SAMPLES, BATCH = 12_800, 128
RUN = (
    "experiment=mnist_cnn data=fake data.image_size=28 data.channels=1 data.mean=[0.5] data.std=[0.25] data.num_classes=10 "
    f"data.train_samples={SAMPLES} data.val_share=0.05 augment.crop_padding=0 batch_size={BATCH} epochs=1000 name=overhead "
    "trainer.precision=32 trainer.accelerator=cpu trainer.devices=1 trainer.threads=1 trainer.save_every_minutes=1000"
).split()


class Steps:
    """Counts the steps of a training that takes turns of `steps` steps; the process ends with the last turn."""

    def __init__(self, turns: Iterator[None], steps: int) -> None:
        self.turns, self.steps, self.done = turns, steps, -WARM_UP

    def step_done(self) -> None:
        self.done += 1
        if self.done >= 0 and self.done % self.steps == 0 and next(self.turns, "over") == "over":
            os._exit(0)


def imgrec_side(folder: str, steps: int, *, turns: Iterator[None]) -> None:
    import pytorch_lightning as pl

    from imgrec.train import fit

    counted = Steps(turns, steps)

    class Counted(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            counted.step_done()

    fit([*RUN, f"runs_dir={folder}"], callbacks=[Counted()], quiet=True)


def loop_side(steps: int, *, keeping: bool, turns: Iterator[None]) -> None:
    import torch
    import torch.nn.functional as F

    import imgrec
    from imgrec.data.allocator import keep_freed_memory
    from imgrec.models.simple_cnn import SimpleCNN

    if keeping:
        keep_freed_memory()
    run = imgrec.config.load("train", RUN)
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    # Not imgrec's images: importing its data module imports Lightning, which slows down every step of Adam (lightning_compat).
    size, count = run.data.image_size, int(SAMPLES * (1 - run.data.val_share))
    images, labels = torch.randint(256, (count, 1, size, size), dtype=torch.uint8), torch.randint(10, (count,))
    settings = {key: value for key, value in run.model.items() if key != "_target_"}
    net = SimpleCNN(**settings).to(memory_format=torch.channels_last)
    decayed = [weight for weight in net.parameters() if weight.ndim > 1]
    others = [weight for weight in net.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": run.optim["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.optim["lr"], fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.optim["lr"], total_steps=10**6)
    assert "pytorch_lightning" not in sys.modules
    counted = Steps(turns, steps)
    while True:
        for rows in torch.randperm(len(images)).split(BATCH):
            pixels = images[rows].float().div_(255).sub_(0.5).div_(0.25).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(pixels), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            counted.step_done()


def results(rounds: int = 30, steps: int = 10) -> list[Result]:
    """The ratio of imgrec's time to that of each peer in the same round."""
    with tempfile.TemporaryDirectory(prefix="imgrec-overhead-") as folder:
        sides: dict[str, Side] = {
            "imgrec": partial(imgrec_side, folder, steps),
            LOOP: partial(loop_side, steps, keeping=False),
            KEEPING: partial(loop_side, steps, keeping=True),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(STARTS):
            for side, times in processor_seconds(sides, rounds=-(-rounds // STARTS)).items():
                seconds[side] += times
    for side, times in seconds.items():
        print(f"{side:<46}{median(times) / steps * 1e3:7.3f} ms of the processor's time a step")
    return [
        Result(name="step_overhead", peer=peer, ratio=ratio(seconds, "imgrec", peer), runs=rounds, machine=machine())
        for peer in (LOOP, KEEPING)
    ]


def main() -> None:
    given = {"rounds": "30", "steps": "10", **dict(word.split("=", 1) for word in sys.argv[1:])}
    for result in results(int(given["rounds"]), int(given["steps"])):
        print(f"{result['name']} {result['ratio']:.3f} against {result['peer']} ({result['runs']} rounds, {result['machine']})")


if __name__ == "__main__":
    main()
