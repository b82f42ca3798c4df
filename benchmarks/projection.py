"""What training costs on n GPUs, from the step of one, the bytes of its gradients and the speed of the links: closed forms, no measurement.

FORMULA below is what benchmarks/scaling.py prints. Its assumptions: links are never shared with other jobs, all GPUs are equally fast (with n of them
a step waits for the slowest, which no formula knows), and pictures arrive in time (benchmarks/input.py measures that).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FORMULA = """\
step(n)    = compute + not hidden + flags
compute    = micro * fixed + b * image               b images a GPU, in micro = ceil(b / max_device_batch) micro-batches
all-reduce = k * (inside + between), of S = bytes / k in each of k = ceil(bytes / bucket) buckets
  inside   = 2 (g-1)/g S / speed_in + 2 (g-1) hop_in                             ring of the g GPUs of a node: reduce-scatter, all-gather
  between  = the smaller of ring and tree, of S/g on each GPU's own link, over m = n/g nodes
             ring 2 (m-1)/m S/g / speed_out + 2 (m-1) hop_out;  tree 2 S/g / speed_out + 2 ceil(log2 m) hop_out
not hidden = max(all-reduce / k, all-reduce - backward (k-1)/k)                  backward of the last micro-batch makes bucket after bucket
flags      = max(0, 2 (n-1) hop_host - compute - not hidden)                     gloo reduces the stop and save flags on a ring beside the step, from one boundary
                                                                                 to the next: a step waits only where the ring takes longer than it
epoch(n)   = order + ceil(images / batch) step + ceil(val / (n * val_batch)) * val_batch_time + saves * held
                                                     order: every process sorts all images of the epoch before its first batch"""


@dataclass(frozen=True)
class Links:
    """Bytes and seconds: speed of one GPU's link, and the latency of one hop."""

    per_node: int  # GPUs
    inside: float  # bytes/s between GPUs of a node
    between: float  # bytes/s of a GPU's share of its node's network
    hop_inside: float  # seconds
    hop_between: float
    hop_host: float  # of a small gloo message from CPU to CPU


@dataclass(frozen=True)
class Work:
    """What one GPU does: seconds, bytes and images."""

    fixed: float  # seconds of a micro-batch whatever its size: launches, optimizer
    image: float  # further seconds for each image
    backward: float  # share of a micro-batch's time in which gradients appear
    gradients: float  # bytes
    bucket: float  # bytes that are reduced at once
    max_device_batch: int
    images: int  # of an epoch
    val_images: int
    val_batch: int  # of a device
    val_fixed: float  # seconds of a validation batch whatever its size
    val_image: float
    held: float  # seconds that a save keeps the training waiting
    saves: int  # in an epoch
    order: float  # seconds to draw the order of an epoch


def ring(n: int, size: float, speed: float, hop: float) -> float:
    """Seconds to all-reduce `size` bytes over n: each of 2 (n-1) turns moves size/n (Patarasuk and Yuan 2009)."""
    return 2 * (n - 1) / n * size / speed + 2 * (n - 1) * hop


def tree(n: int, size: float, speed: float, hop: float) -> float:
    """Seconds of a pipelined double binary tree, up and down (Sanders 2009; NCCL since 2.4)."""
    return 2 * size / speed + 2 * math.ceil(math.log2(n)) * hop if n > 1 else 0.0


def all_reduce(n: int, size: float, links: Links) -> float:
    """Seconds for one bucket of `size` bytes: inside the nodes by a ring, between them by the faster of ring and tree."""
    here = min(n, links.per_node)
    nodes = math.ceil(n / here)
    share = size / here, links.between, links.hop_between
    return ring(here, size, links.inside, links.hop_inside) + min(ring(nodes, *share), tree(nodes, *share))


def not_hidden(communication: float, backward: float, buckets: int) -> float:
    """Seconds of communication after the end of a backward pass that finishes a bucket every backward/buckets seconds.

    The reductions follow one another. Where each is faster than the next bucket appears, only the last one is left; else they never pause,
    from the first bucket on.
    """
    return max(communication / buckets, communication - backward * (buckets - 1) / buckets)


@dataclass(frozen=True)
class Row:
    """A projection: seconds of a step and of an epoch on `gpus`."""

    gpus: int
    batch: int  # images on one GPU in a step
    compute: float
    fixed: float  # the part of compute that more images would not lengthen
    communication: float
    latency: float  # the part of communication that faster links would not shorten
    exposed: float
    reduction: float  # of the flags, beside the step
    validation: float  # of an epoch
    saving: float
    order: float
    steps: int  # of an epoch

    @property
    def step(self) -> float:
        return self.compute + self.exposed + self.flags

    @property
    def flags(self) -> float:
        """The part of the flags' reduction that a step waits for."""
        return max(0.0, self.reduction - self.compute - self.exposed)

    @property
    def epoch(self) -> float:
        return self.steps * self.step + self.between

    @property
    def between(self) -> float:
        """Seconds of an epoch in which nothing is trained."""
        return self.order + self.validation + self.saving

    @property
    def rate(self) -> float:
        """Images per second while training."""
        return self.gpus * self.batch / self.step


def project(gpus: int, batch: int, work: Work, links: Links) -> Row:
    """`batch`: images on each GPU."""
    micro = math.ceil(batch / work.max_device_batch)
    compute = micro * work.fixed + batch * work.image
    buckets = max(1, math.ceil(work.gradients / work.bucket))
    size = work.gradients / buckets
    communication = buckets * all_reduce(gpus, size, links) if gpus > 1 else 0.0
    endless = Links(links.per_node, math.inf, math.inf, links.hop_inside, links.hop_between, links.hop_host)
    val_batches = math.ceil(work.val_images / (gpus * work.val_batch))
    in_batch = math.ceil(work.val_images / (gpus * max(1, val_batches)))
    return Row(
        gpus=gpus,
        batch=batch,
        compute=compute,
        fixed=micro * work.fixed,
        communication=communication,
        latency=buckets * all_reduce(gpus, size, endless) if gpus > 1 else 0.0,
        exposed=not_hidden(communication, work.backward * compute / micro, buckets),
        reduction=2 * (gpus - 1) * links.hop_host,
        validation=val_batches * (work.val_fixed + in_batch * work.val_image),
        saving=work.saves * work.held,
        order=work.order,
        steps=math.ceil(work.images / (gpus * batch)),
    )


def efficiency(row: Row, one: Row) -> float:
    """Images per second of `row` per GPU, over those of one GPU."""
    return row.rate / (row.gpus * one.rate)


def bends(rows: Sequence[Row]) -> list[str]:
    """Where each of the costs begins to show, in sentences; `rows` by rising number of GPUs."""
    costs: list[tuple[Callable[[Row], bool], Callable[[Row], str]]] = [
        (
            lambda r: r.exposed > 0.1 * r.compute,
            lambda r: (
                f"communication is no longer hidden: {r.communication * 1e3:.1f} ms of it, {r.exposed * 1e3:.1f} ms after backward, compute {r.compute * 1e3:.1f} ms"
            ),
        ),
        (
            lambda r: r.latency > r.communication / 2 > 0.005 * r.step,
            lambda r: (
                f"hops and not bytes are most of the all-reduce: {r.latency * 1e3:.2f} of {r.communication * 1e3:.2f} ms; faster links stop helping"
            ),
        ),
        (
            lambda r: r.fixed > r.compute / 2,
            lambda r: (
                f"a GPU has too few images: of {r.compute * 1e3:.1f} ms for {r.batch}, {r.fixed * 1e3:.1f} ms would pass for none"
            ),
        ),
        (
            lambda r: r.flags > 0.05 * r.step,
            lambda r: (
                f"the flags' reduction takes longer than a step: {r.reduction * 1e3:.1f} ms over {2 * (r.gpus - 1):,} hops, {r.flags * 1e3:.1f} ms of it waited for"
            ),
        ),
        (
            lambda r: r.between > 0.05 * r.epoch,
            lambda r: (
                f"what lies between epochs shows: order {r.order:.2g} s, validation {r.validation:.2g} s, saves {r.saving:.2g} s of {r.epoch:.3g} s ({r.steps:,} steps)"
            ),
        ),
    ]
    found = []
    for condition, sentence in costs:
        first = next((row for row in rows if condition(row)), None)
        if first is not None:
            found.append(f"from {first.gpus:,} GPU{'s' if first.gpus > 1 else ''} on {sentence(first)}")
    best = max(rows, key=lambda row: row.rate)
    if best is not rows[-1]:
        found.append(f"fastest with {best.gpus:,} GPUs, {best.rate:,.0f} images/s: more of them take longer")
    return found
