"""What imgrec adds to the steps of a hand-written PyTorch loop: the network of experiment=mnist_cnn, batch 128, one thread.

usage: python benchmarks/overhead.py [rounds=31] [steps=10]

Both sides train the same network with the same AdamW and one-cycle rate on the same 28x28 images, held in memory as uint8, each
in a process of its own. They take turns: a round is `steps` steps of each, and its figure is their processor time. The loop has no
metrics, no logger, no checkpoints and no check of the loss; imgrec has all of these, as a user starts it, but for a terminal's bar.
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

from turns import machine

PEERS = {
    "loop": "a hand-written loop",
    "loop mallopt": "the same loop, where glibc keeps freed memory",
}
SIDES = ("imgrec", *PEERS)
WARM_UP = 20  # steps
SAMPLES, BATCH = 12_800, 128
RUN = (
    "experiment=mnist_cnn data=fake data.image_size=28 data.channels=1 data.mean=[0.5] data.std=[0.25] data.num_classes=10 "
    f"data.train_samples={SAMPLES} data.val_share=0.05 augment.crop_padding=0 batch_size={BATCH} epochs=1000 name=overhead "
    "trainer.precision=32 trainer.accelerator=cpu trainer.devices=1 trainer.threads=1 trainer.save_every_minutes=1000"
).split()


class Turns:
    """Calls of `step_done` end the turns of a side: it reports the processor time of the last and waits for the next."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, -WARM_UP

    def step_done(self) -> None:
        self.done += 1
        if self.done >= 0 and self.done % self.steps == 0:
            if self.done:
                print(time.process_time() - self.began, file=sys.__stdout__, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.began = time.process_time()


def train_imgrec(turns: Turns) -> None:
    import pytorch_lightning as pl

    from imgrec.train import fit

    class Counted(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            turns.step_done()

    with tempfile.TemporaryDirectory(prefix="imgrec-overhead-") as folder:
        fit([*RUN, f"runs_dir={folder}"], callbacks=[Counted()], quiet=True)


def train_loop(turns: Turns) -> None:
    import torch
    import torch.nn.functional as F

    import imgrec
    from imgrec.models.simple_cnn import SimpleCNN

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
    while True:
        for rows in torch.randperm(len(images)).split(BATCH):
            pixels = images[rows].float().div_(255).sub_(0.5).div_(0.25).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(pixels), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            turns.step_done()


def measure(rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds a step of each side in each round."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    processes = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--side", side, str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | (kept if side.endswith("mallopt") else {}),
        )
        for side in SIDES
    }
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    try:
        for turn in range(rounds + 1):  # the first is not counted
            for side, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                print("go", file=process.stdin, flush=True)
                seconds = float(process.stdout.readline())
                if turn:
                    found[side].append(seconds / steps * 1e3)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def results(rounds: int = 31, steps: int = 10) -> list[dict[str, Any]]:
    """The ratio of imgrec's time to that of each peer in the same round."""
    found = measure(rounds, steps)
    for side, times in found.items():
        print(f"{side:<13}{median(times):7.3f} ms a step ({min(times):.3f} to {max(times):.3f})", file=sys.stderr)
    ratios = {peer: median(ours / theirs for ours, theirs in zip(found["imgrec"], found[peer], strict=True)) for peer in PEERS}
    return [
        {"name": "step_overhead", "peer": words, "ratio": round(ratios[peer], 4), "runs": rounds, "machine": machine()}
        for peer, words in PEERS.items()
    ]


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, steps = sys.argv[2:]
        (train_imgrec if side == "imgrec" else train_loop)(Turns(int(steps)))
    given = {"rounds": "31", "steps": "10", **dict(word.split("=", 1) for word in sys.argv[1:])}
    for result in results(int(given["rounds"]), int(given["steps"])):
        print(f"{result['name']} {result['ratio']:.3f} against {result['peer']} ({result['runs']} rounds, {result['machine']})")


if __name__ == "__main__":
    main()
