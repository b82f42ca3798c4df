"""What a second process costs here, measured; and from one device's step, its gradients and the links, what 8 to 1,024 GPUs would do.

usage: python benchmarks/scaling.py [KEY=VALUE of a run ...] [--processes 2] [--rounds 7] [--plot FILE.png]
       python benchmarks/scaling.py experiment=imagenet_resnet50 --step-ms 103.6 --device-batch 256     # projected alone

Measured, in turns, medians: whole steps of the run's network, loss and optimizer on made-up pictures, by one process with the global batch and
by `--processes` gloo processes, one thread each, that share it; the same without the gradients' exchange (DDP's no_sync); that exchange alone on
as many bytes; the reduction of the flags, alone and what a step boundary takes of it; a batch of validation; a save. One process works while the
others wait. How fast pictures arrive is benchmarks/input.py's part.

With --step-ms, the time of a whole step of one GPU on --device-batch images, nothing is measured. 103.6 ms for 256 is 2,470 images/s: ResNet-50 in
mixed precision on one A100 80GB, as NVIDIA publishes it (DeepLearningExamples, PyTorch ResNet50 v1.5, container 21.03).
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from projection import FORMULA, Links, Row, Work, bends, efficiency, project
from steps import EVALUATED, Sizes, Times, classes, measure
from turns import processor

from imgrec.config.instantiate import instantiate
from imgrec.config.load import load_config
from imgrec.config.schema import RunConfig
from imgrec.data.sampler import shuffled_order
from imgrec.errors import ImgrecError
from imgrec.models.summary import measure_size as size_of

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("overrides", nargs="*", help="of a run, for example model=resnet optim=adam batch_size=64")
    add("--processes", type=int, default=2, help="gloo processes that share the global batch")
    add("--rounds", type=int, default=7, help="measurements of each, in turns")
    add("--laps", type=int, default=4, help="steps in one measurement")
    add(
        "--images",
        type=int,
        help="of a training epoch (default: 1,281,167 with 1,000 classes as ImageNet has, else the 1,293 of the digits)",
    )
    add("--val-images", type=int, help="of a validation (default: 50,000 likewise, else 144)")
    add("--step-ms", type=float, help="a whole step of one GPU on --device-batch images: projected without measuring")
    add("--device-batch", type=int, help="images on one GPU in that step (default: as the run shares its global batch out)")
    add(
        "--fixed-ms",
        type=float,
        default=15.0,
        help="the part of --step-ms that stays with few images: launches, optimizer (assumed)",
    )
    add("--backward-share", type=float, default=0.6, help="of a step in which gradients appear, with --step-ms (assumed)")
    add(
        "--copy-gbs",
        type=float,
        default=10.0,
        help="GB/s at which a save copies the states from the GPU, with --step-ms (assumed)",
    )
    add("--per-node", type=int, default=8, help="GPUs of a node")
    add("--inside-gbs", type=float, default=450.0, help="GB/s of a GPU to those of its node, each way: NVLink 4")
    add("--between-gbs", type=float, default=50.0, help="GB/s of a GPU's network link: 400 Gb/s for each")
    add("--hop-inside-us", type=float, default=2.0, help="microseconds from one GPU to another of its node (assumed)")
    add("--hop-between-us", type=float, default=8.0, help="between nodes (assumed)")
    add("--hop-host-us", type=float, help="of a small gloo message (default: as measured, else 25, assumed)")
    add("--bucket-mb", type=float, default=25.0, help="of gradients that DDP reduces at once: its bucket_cap_mb")
    add("--plot", type=Path, help="PNG of the efficiencies")
    found = parser.parse_intermixed_args(argv)
    if found.processes < 2 or found.rounds < 1 or found.laps < 1:
        parser.error("--processes takes 2 or more, --rounds and --laps 1 or more")
    return found


def main(argv: list[str]) -> None:
    given = arguments(argv)
    if given.step_ms is None and "RANK" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given.processes}"]
        os.execv(sys.executable, [*start, __file__, *argv])
    try:
        run = load_config("train", given.overrides)
    except ImgrecError as error:
        raise SystemExit(f"benchmarks/scaling.py: {error}") from error
    large = run.data.num_classes == 1000
    given.images = given.images or (1_281_167 if large else 1_293)
    given.val_images = given.val_images or (50_000 if large else 144)
    if run.batch_size == "full":
        raise SystemExit("benchmarks/scaling.py: batch_size=full has no batch to share out. Set batch_size=64.")
    if given.step_ms is None:
        found = measure(run, rounds=given.rounds, laps=given.laps)
        if found is None:
            return  # not the first process
        times, sizes = found
        print_measured(run, given, times, sizes)
        work, host = measured_work(run, given, times, sizes)
    else:
        work, host = stated_work(run, given), 25e-6
    links = Links(
        per_node=given.per_node,
        inside=given.inside_gbs * 1e9,
        between=given.between_gbs * 1e9,
        hop_inside=given.hop_inside_us * 1e-6,
        hop_between=given.hop_between_us * 1e-6,
        hop_host=host if given.hop_host_us is None else given.hop_host_us * 1e-6,
    )
    print_projected(run, given, work, links)


# Measured here


def print_measured(run: RunConfig, given: argparse.Namespace, times: Times, sizes: Sizes) -> None:
    n, batch = given.processes, int(run.batch_size)
    mid = {name: median(values) for name, values in times.items()}
    ratios = [one / two for one, two in zip(times["step"], times["ddp"], strict=True)]
    steps = -(-given.images // batch)
    print(
        f"{processor()}, {os.cpu_count()} CPUs, one thread a process; Python {platform.python_version()}, torch {torch.__version__}, gloo, all on this machine"
    )
    print(
        f"{describe(run)}: {sizes.gradients / 1e6:.2f} MB of gradients; medians of {given.rounds} rounds in turns (least to most)"
    )
    print(f"{'':<44}{'1 process':>26}{f'{n} processes':>30}")

    def line(name: str, one: str, two: str) -> None:
        print(f"{name:<44}{one:>26}{two:>30}")

    def ms(name: str) -> str:
        return f"{mid[name] * 1e3:.1f} ms ({min(times[name]) * 1e3:.1f} to {max(times[name]) * 1e3:.1f})"

    line(f"a step on the global batch of {batch}", ms("step"), ms("ddp"))
    line("images/s", f"{batch / mid['step']:,.0f}", f"{batch / mid['ddp']:,.0f} (ratio {median(ratios):.2f})")
    line(f"the same step on {batch // n} images, nobody else at work", ms("share"), "")
    line("the step without the gradients' exchange", "", ms("ddp apart"))
    share = [1 - apart / whole for apart, whole in zip(times["ddp apart"], times["ddp"], strict=True)]
    line("share of the step in communication", "0%", f"{median(share):.0%} ({min(share):.0%} to {max(share):.0%})")
    line("all-reduce of as many bytes, alone", "", ms("all-reduce"))

    def us(name: str) -> str:
        return f"{mid[name] * 1e6:.0f} us ({min(times[name]) * 1e6:.0f} to {max(times[name]) * 1e6:.0f})"

    line("reduction of the flags, alone", "", us("flags"))
    line("  before a step, if it were awaited there", "", us("flags awaited"))
    line("  before a step: to read the one before", "", us("flags read"))
    line("  before a step: to start the next", "", us("flags started"))
    val = validation(given, times)
    epochs = [
        steps * mid["step"] + val + 2 * mid["hold"],
        steps * (mid["ddp"] + mid["flags read"] + mid["flags started"]) + val / n + 2 * mid["hold"],
    ]
    line(f"epoch of {given.images:,} images, validation, 2 saves", f"{epochs[0]:.2f} s", f"{epochs[1]:.2f} s")
    line(f"  share in validation ({given.val_images:,} images)", f"{val / epochs[0]:.1%}", f"{val / n / epochs[1]:.1%}")
    line("  share in saves (copied; written meanwhile)", *(f"{2 * mid['hold'] / epoch:.2%}" for epoch in epochs))
    print(
        f"a checkpoint of {sizes.checkpoint / 1e6:.1f} MB keeps training waiting for {mid['hold'] * 1e3:.2f} ms and is on the disk {mid['write'] * 1e3:.0f} ms later"
    )
    slower = mid["ddp apart"] / mid["share"]
    print(f"{n} processes that exchange nothing are {slower:.2f} times as slow as one alone: they share this machine\n")


def validation(given: argparse.Namespace, times: Times) -> float:
    """Seconds of one process for a validation."""
    fixed, image = line_through(median(times["validate half"]), median(times["validate"]), EVALUATED // 2)
    return -(-given.val_images // EVALUATED) * fixed + given.val_images * image


def line_through(half: float, whole: float, count: int) -> tuple[float, float]:
    """(seconds whatever the size, seconds an image) from the times of `count` and of 2 * `count` images."""
    image = min(max(0.0, whole - half) / count, half / count)
    return half - image * count, image


# Projected


def measured_work(run: RunConfig, given: argparse.Namespace, times: Times, sizes: Sizes) -> tuple[Work, float]:
    mid = {name: median(values) for name, values in times.items()}
    batch = int(run.batch_size)
    fixed, image = line_through(mid["half"], mid["step"], batch // 2)
    val_fixed, val_image = line_through(mid["validate half"], mid["validate"], EVALUATED // 2)
    work = Work(
        fixed=fixed,
        image=image,
        backward=max(0.0, 1 - mid["forward"] / mid["step"]),
        gradients=sizes.gradients,
        val_fixed=val_fixed,
        val_image=val_image,
        held=mid["hold"],
        **common(run, given),
    )
    return work, mid["flags"] / (2 * (given.processes - 1))


def stated_work(run: RunConfig, given: argparse.Namespace) -> Work:
    net = instantiate(run.model, num_classes=classes(run))
    size = size_of(net, channels=run.data.channels, image_size=run.data.image_size).parameters * 4
    count = given.device_batch or min(int(run.batch_size), run.max_device_batch)
    fixed = given.fixed_ms / 1e3
    image = (given.step_ms / 1e3 - fixed) / count
    if image <= 0:
        raise SystemExit(
            f"benchmarks/scaling.py: --fixed-ms {given.fixed_ms:g} is the part of --step-ms {given.step_ms:g} that stays with few images. Set it below."
        )
    forward = 1 - given.backward_share
    return Work(
        fixed=fixed,
        image=image,
        backward=given.backward_share,
        gradients=size,
        val_fixed=forward * fixed,
        val_image=forward * image,
        held=3 * size / given.copy_gbs / 1e9,  # weights and two states of the optimizer at most
        **common(run, given),
    )


def order(images: int) -> float:
    """Seconds of this machine to draw the order of an epoch, the least of three: a CPU does it wherever the network is."""
    times = []
    for epoch in range(3):
        start = time.perf_counter()
        shuffled_order(images, seed=0)(epoch)
        times.append(time.perf_counter() - start)
    return min(times)


def common(run: RunConfig, given: argparse.Namespace) -> dict[str, Any]:
    largest = max(run.max_device_batch, given.device_batch or 0)
    return {
        "bucket": given.bucket_mb * 1e6,
        "max_device_batch": largest,
        "images": given.images,
        "val_images": given.val_images,
        "val_batch": EVALUATED,
        "saves": 2,
        "order": order(given.images),
    }


def print_projected(run: RunConfig, given: argparse.Namespace, work: Work, links: Links) -> None:
    per_device = given.device_batch or min(int(run.batch_size), work.max_device_batch)
    measured = "measured above" if given.step_ms is None else "as stated"
    print(f"Projected, not measured. {describe(run)}: {work.gradients / 1e6:.1f} MB of gradients; one GPU, {measured}:")
    print(
        f"  {work.fixed * 1e3:.1f} ms + {work.image * 1e3:.3f} ms an image, {work.backward:.0%} of it backward; a save holds it for "
        f"{work.held * 1e3:.1f} ms; the order of an epoch takes {work.order:.2g} s (measured here)"
    )
    print(
        f"  nodes of {links.per_node}; {links.inside / 1e9:g} GB/s and {links.hop_inside * 1e6:g} us inside, {links.between / 1e9:g} GB/s and "
        f"{links.hop_between * 1e6:g} us between, {links.hop_host * 1e6:.0f} us a gloo hop"
    )
    print(FORMULA)
    fixed = [project(n, int(run.batch_size) // n, work, links) for n in GPUS if int(run.batch_size) % n == 0]
    grown = [project(n, per_device, work, links) for n in GPUS]
    show(f"The global batch stays at {run.batch_size}: the same training, sooner", fixed)
    show(f"Every GPU has {per_device} images: the global batch, and by optim.base_batch the rate, grow", grown)
    if given.plot is not None:
        draw(given.plot, {f"global batch of {run.batch_size}": fixed, f"{per_device} images a GPU": grown}, describe(run))
        print(f"curves in {given.plot}")


def show(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    print(
        f"{'GPUs':>6}{'a GPU':>7}{'compute':>10}{'all-reduce':>12}{'not hidden':>12}{'flags':>8}{'step':>10}{'images/s':>12}{'efficiency':>12}"
        f"{'epoch':>10}{'between':>10}"
    )
    for row in rows:
        print(
            f"{row.gpus:>6,}{row.batch:>7,}{row.compute * 1e3:>10.1f}{row.communication * 1e3:>12.2f}{row.exposed * 1e3:>12.2f}{row.flags * 1e3:>8.2f}"
            f"{row.step * 1e3:>10.1f}{row.rate:>12,.0f}{efficiency(row, rows[0]):>12.0%}{row.epoch:>8.4g} s"
            f"{row.between / row.epoch:>10.1%}"
        )
    for line in bends(rows):
        print(f"  {line}")


def draw(file: Path, curves: dict[str, list[Row]], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, rows in curves.items():
        axes.plot([row.gpus for row in rows], [100 * efficiency(row, rows[0]) for row in rows], "o-", label=name)
    axes.set(xscale="log", xlabel="GPUs", ylabel="images/s per GPU, % of one", ylim=(0, 105), title=f"{title}, projected")
    axes.set_xticks(GPUS, [str(n) for n in GPUS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png")


def describe(run: RunConfig) -> str:
    depth = f"-{run.model['depth']}" if "depth" in run.model else ""
    return f"{run.model['_target_'].rpartition('.')[2]}{depth} on {run.data.image_size}x{run.data.image_size}"


if __name__ == "__main__":
    main(sys.argv[1:])
