"""Batches from this process and from workers, through Lightning, and what signals do to them."""

import errno
import gc
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import closing
from multiprocessing.connection import wait
from multiprocessing.synchronize import SemLock
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from error_parts import assert_error, raises_error
from marks import slow_but
from processes import LIMIT_S, run_command, run_ranks, wait_until
from small_run import SMALL
from test_changed_data import GRAY

from imgrec.data import loader as loader_module
from imgrec.data.batch import Batch, Request
from imgrec.data.datamodule import DataModule
from imgrec.data.datasets import Fake
from imgrec.data.image_data import ImageData, Splits
from imgrec.data.in_memory import InMemoryImages
from imgrec.data.loader import Loader, worker_count
from imgrec.data.sampler import EpochBatches, shuffled_order, split_epoch
from imgrec.data.shared_batches import MOST_BLOCKS, SharedBatches
from imgrec.distributed.launcher import _raise_reported
from imgrec.errors import ConfigError, DataError, Died
from imgrec.training.callbacks.batch_norm import first_batches

COMMON = {**GRAY, "split_seed": 0, "changed": "refuse"}
RUN = {"seed": 3, "global_batch": 16, "device_batch": 8, "num_workers": "auto", "sampling": "shuffle", "class_weights": None}
LIMITS = SimpleNamespace(
    limit_train_batches=1.0, limit_val_batches=1.0, limit_test_batches=1.0, timeout_s=LIMIT_S, accelerator="cpu"
)


def data_module(data: ImageData, *, augment=None, devices: int = 1, start=(0, 0), **change) -> DataModule:
    return DataModule(SimpleNamespace(**{**RUN, "trainer": LIMITS, **change}), data, augment, devices=devices, start=start)


def fake(**change) -> Fake:
    return Fake(
        **{**COMMON, "num_classes": 3, "val_share": 0.25, "train_samples": 60, "test_samples": 20, "noise": 0.1, **change}
    )


class Given(ImageData):
    """A set of these labels, each image filled with its own place."""

    def __init__(self, labels, val=None, test=None, classes=("a", "b"), **change) -> None:
        super().__init__(**{**COMMON, "num_classes": None, "val_share": 0.25, **change})
        self.labels, self.names = (labels, val, test), classes

    def read(self) -> Splits:
        train, val, test = (None if labels is None else stored(labels) for labels in self.labels)
        return Splits(tuple(self.names), train, val, test)


def stored(labels) -> InMemoryImages:
    places = torch.arange(len(labels), dtype=torch.uint8)
    return InMemoryImages(places.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), np.array(labels))


def requests(samples: int, size: int, epoch=lambda: 0) -> EpochBatches:
    return EpochBatches(split_epoch(samples, size, devices=1), shuffled_order(samples, seed=0), epoch=epoch, rank=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_with_and_without_workers(num_workers):
    split = stored(np.arange(10) % 2)
    epochs = iter([0, 1])
    loader = Loader(split, requests(10, 4, lambda: next(epochs)), num_workers=num_workers)
    for epoch in range(2):
        order = shuffled_order(10, seed=0)(epoch)
        got = list(loader)
        assert [len(batch.labels) for batch in got] == [4, 4, 2]
        assert torch.cat([batch.indices for batch in got]).tolist() == order.tolist()
        assert torch.cat([batch.images for batch in got])[:, 0, 0, 0].tolist() == order.tolist()
        assert torch.cat([batch.labels for batch in got]).tolist() == (order % 2).tolist()
        assert {batch.epoch for batch in got} == {epoch}
        assert [batch.whole for batch in got] == [4, 4, 2]


class Broken(InMemoryImages):
    def __getitem__(self, request: Request) -> Batch:
        raise DataError("one sentence.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_keeps_its_sentence(num_workers):
    split = Broken(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), np.zeros(4))
    with closing(Loader(split, requests(4, 2), num_workers=num_workers)) as loader, pytest.raises(DataError) as error:
        next(iter(loader))
    assert str(error.value) == "one sentence."


class Signed(InMemoryImages):
    """Its batches name the process that made them."""

    def __getitem__(self, request: Request) -> Batch:
        return super().__getitem__(request)._replace(bad=(str(os.getpid()),))


def test_closing_ends_the_thread_that_pins_memory_before_the_workers():
    """It exists with a GPU only. The names are torch's own."""
    events = []

    def noted(name):
        return lambda *args: events.append(name)

    loader = Loader(stored([0, 1]), requests(2, 1), num_workers=0)
    loader._loader._iterator = SimpleNamespace(
        _pin_memory_thread_done_event=SimpleNamespace(set=noted("told")),
        _worker_result_queue=SimpleNamespace(put=noted("woken")),
        _pin_memory_thread=SimpleNamespace(join=noted("joined")),
        _workers=[SimpleNamespace(terminate=noted("terminated"), kill=noted("killed"))],
        _shutdown_workers=noted("shut down"),
    )
    source = inspect.getsource(torch.utils.data.dataloader._MultiProcessingDataLoaderIter)
    assert all(f"self.{name}" in source for name in vars(loader._loader._iterator) if name != "_shutdown_workers")
    loader.close()
    assert events == ["told", "woken", "joined", "terminated", "shut down", "killed"]


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_memory_is_pinned_for_a_run_on_a_gpu_only(accelerator, monkeypatch):
    """Pinning opens a context on the GPU: some hundred megabytes of it, or an error where another process has it for itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    limits = SimpleNamespace(**vars(LIMITS) | {"accelerator": accelerator})
    loader = data_module(fake(), trainer=limits, num_workers=0).train_dataloader()
    assert loader._loader.pin_memory == (accelerator == "auto")


@pytest.mark.parametrize("taken", [1, 2])
def test_closing_ends_the_workers_and_iterating_again_starts_new_ones(taken):
    split = Signed(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), np.zeros(4))
    ended = set()
    with closing(Loader(split, requests(4, 2), num_workers=1)) as loader:
        for _ in range(2):
            batches = iter(loader)
            seen = {next(batches).bad[0] for _ in range(taken)}
            loader.close()
            assert len(seen) == 1
            assert seen.isdisjoint(ended)
            ended |= seen
            with pytest.raises(ProcessLookupError):
                os.kill(int(*seen), 0)


def test_every_signal_that_kills_a_process_has_a_name():
    """Of the real-time ones only the first and the last are in signal.Signals."""
    for number in range(1, 65):
        name = f"signal {number}" if number in (32, 33, *range(35, 64)) else signal.Signals(number).name
        assert f"{loader_module._describe_end(-number)} ".startswith(f"killed by {name} ")
        rank = SimpleNamespace(rank=1, code=-number, report=dict)
        with pytest.raises(Died, match=f"was killed by {name}. "):
            _raise_reported([rank])


class Mortal(InMemoryImages):
    """Kills its worker at the third request of an epoch."""

    def __getitem__(self, request: Request) -> Batch:
        if 4 in request.indices and os.getpid() != PARENT:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(request)


PARENT = os.getpid()


class Unsent(InMemoryImages):
    """Cannot hand over the third batch of an epoch, as a worker that has no memory for the thread that sends it."""

    def __getitem__(self, request: Request) -> Batch:
        batch = super().__getitem__(request)
        return batch._replace(bad=(lambda: 0,)) if 4 in request.indices and os.getpid() != PARENT else batch


def in_order(samples: int, size: int) -> EpochBatches:
    return EpochBatches(split_epoch(samples, size, devices=1), lambda epoch: np.arange(samples), epoch=lambda: 0, rank=0)


def test_a_worker_that_cannot_hand_over_a_batch_is_named_and_no_batch_is_waited_for(capfd):
    images = stored(np.arange(12) % 2)
    split, said = Unsent(images.images, images.labels), []
    with closing(Loader(split, in_order(12, 2), num_workers=2, timeout_s=300.0, lost=said.append)) as loader:
        assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(12))
    assert_error(said[0], "the loss of loader worker", "could not hand over a batch", "out of memory?", "num_workers")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("timeout_s", slow_but(300.0, among=[None, 300.0]))
def test_a_worker_that_is_killed_is_named_and_the_batches_go_on_in_this_process(timeout_s):
    images = stored(np.arange(12) % 2)
    split, said = Mortal(images.images, images.labels), []
    with closing(Loader(split, in_order(12, 2), num_workers=2, timeout_s=timeout_s, lost=said.append)) as loader:
        assert torch.cat([batch.indices for batch in loader]).tolist() == list(range(12))
        (line,) = said
        assert_error(line, "the loss of loader worker", "killed by SIGKILL", "num_workers")
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    with (
        closing(Loader(split, in_order(12, 2), num_workers=2, timeout_s=LIMIT_S)) as loader,
        raises_error(Died, "the loss", "SIGKILL"),
    ):
        list(loader)


class ClosingFirst(InMemoryImages):
    """Its worker closes its files a while before it ends, as a process that is killed on a busy machine."""

    def __getitem__(self, request: Request) -> Batch:
        if 4 in request.indices:
            os.closerange(3, 1000)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(request)


def test_a_worker_that_is_about_to_end_is_named():
    images = stored(np.arange(12) % 2)
    with closing(Loader(ClosingFirst(images.images, images.labels), in_order(12, 2), num_workers=1)) as loader:
        next(iter(loader))
        (worker,) = loader._workers()
        wait([worker.sentinel])
        assert_error(str(loader._loss(ConnectionResetError())), "the loss of loader worker", worker.pid, "SIGKILL")


@pytest.mark.slow
def test_a_run_in_a_container_with_a_small_dev_shm(tmp_path):
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or run_command(*small, "true").returncode:
        pytest.skip("needs root, to mount one")
    words = ["data.image_size=128", "batch_size=8", "num_workers=2", f"runs_dir={tmp_path}"]
    done = run_command(*small, sys.executable, "-m", "imgrec.cli", "train", *SMALL, *words)  # 0.4 MB a batch
    assert (done.returncode, done.stderr) == (0, "")


class Hanging(InMemoryImages):
    def __getitem__(self, request: Request) -> Batch:
        if 4 in request.indices:
            time.sleep(LIMIT_S)
        return super().__getitem__(request)


def test_a_loader_that_delivers_nothing_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(loader_module, "POLL_SECONDS", 0.1)
    split = Hanging(torch.zeros(12, 1, 2, 2, dtype=torch.uint8), np.zeros(12))
    with closing(Loader(split, in_order(12, 2), num_workers=1, timeout_s=LIMIT_S)) as loader:
        batches = iter(loader)
        next(batches)
        loader._timeout_s = 0.5  # not before: the worker may take longer to start
        (worker,) = loader._workers()
        with raises_error(Died, "trainer.timeout_s=0.5", worker.pid, "trainer.timeout_s=1"):
            list(batches)
    assert not worker.is_alive()


@pytest.mark.slow
def test_workers_that_do_not_begin_an_epoch_are_started_anew(monkeypatch):
    monkeypatch.setattr(loader_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # that torch waits for one to end
    with closing(Loader(stored(np.arange(12) % 2), in_order(12, 2), num_workers=1, timeout_s=LIMIT_S)) as loader:
        assert len(list(loader)) == 6
        (worker,) = loader._workers()
        os.kill(worker.pid, signal.SIGSTOP)
        assert len(list(loader)) == 6
        assert not worker.is_alive()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux")
def test_batches_need_no_room_in_dev_shm(monkeypatch):
    """Of a container it has 64 MB. In the fork of the worker torch finds none."""
    share = torch.UntypedStorage._share_fd_cpu_

    def share_without_room(storage):
        if not storage.is_shared():
            raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")
        return share(storage)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", share_without_room)
    split = InMemoryImages(torch.randint(0, 255, (40, 3, 32, 32), dtype=torch.uint8), np.arange(40) % 2)
    with closing(Loader(split, in_order(40, 16), num_workers=1, timeout_s=LIMIT_S)) as loader:
        files = len(os.listdir("/proc/self/fd"))
        images = torch.cat([batch.images for batch in loader])
        assert torch.equal(images, split.images)
        assert len(os.listdir("/proc/self/fd")) <= files + 10  # of the queues


class Kinds(NamedTuple):
    """Tensors of many kinds, and what is none."""

    empty: torch.Tensor
    turned: torch.Tensor
    single: torch.Tensor
    pictures: torch.Tensor
    none: torch.Tensor
    words: tuple[str, ...]


def test_a_batch_is_handed_over_as_it_is(monkeypatch):
    monkeypatch.setattr("imgrec.data.shared_batches.get_worker_info", lambda: SimpleNamespace(id=1))
    pictures = torch.randint(0, 255, (4, 3, 5, 6), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    batch = Kinds(torch.empty(0, 3), torch.arange(6).view(2, 3).t(), torch.tensor(1.5), pictures[:3], pictures[:0], ("a", "b"))
    batches = SharedBatches(2)
    received = batches.receive(batches.share(batch))
    for sent, got in zip(batch[:-1], received[:-1], strict=True):
        assert torch.equal(sent, got)
        assert sent.dtype == got.dtype
        assert sent.stride() == got.stride()  # or the network would compute in another order than without workers
    assert received.words == batch.words


def test_memory_of_a_validation_is_given_back_after_it(monkeypatch):
    """A validation is in inference mode, outside of which torch writes to no tensor that was made in it."""
    monkeypatch.setattr("imgrec.data.shared_batches.get_worker_info", lambda: SimpleNamespace(id=0))
    with torch.inference_mode():
        batches = SharedBatches(1)
        received = batches.receive(batches.share(Batch(*(torch.arange(5) for _ in range(4)), epoch=0, whole=5)))
        assert batches._in_use.sum() == 1
    batches._blocks.clear()  # which are the worker's
    del received
    gc.collect()
    assert batches._in_use.sum() == 0


def test_a_fork_does_not_give_memory_back_that_its_parent_uses(monkeypatch):
    """Workers that start later are forks with copies of the batches, which their garbage collector may find."""
    monkeypatch.setattr("imgrec.data.shared_batches.get_worker_info", lambda: SimpleNamespace(id=0))
    batches = SharedBatches(1)
    received = [batches.receive(batches.share(Batch(*(torch.arange(5) for _ in range(4)), epoch=0, whole=5)))]
    batches._blocks.clear()  # which are the worker's

    def drop() -> int:
        received.clear()
        gc.collect()
        return int(batches._in_use.sum())

    assert run_ranks(1, lambda rank: drop()) == [1]
    assert drop() == 0


def memory_files(loader: Loader[Batch]) -> int:
    (worker,) = loader._workers()
    folder = Path(f"/proc/{worker.pid}/fd")
    return sum("memfd:imgrec" in os.readlink(file) for file in folder.iterdir())


def test_memory_is_used_again_once_no_tensor_is_left_in_it():
    images = torch.randint(0, 255, (300, 3, 8, 8), dtype=torch.uint8)
    rng = np.random.default_rng(0)
    with closing(
        Loader(InMemoryImages(images, np.arange(300) % 2), in_order(300, 3), num_workers=1, timeout_s=LIMIT_S)
    ) as loader:
        for longest, files in ((0, 12), (3, 16), (9, 24)):
            held: list[tuple[int, torch.Tensor, torch.Tensor]] = []
            for number, batch in enumerate(loader):
                expected = images[3 * number : 3 * number + 3]
                kept = (
                    (batch.images, expected) if number % 2 else (batch.images[1, :, 2:], expected[1, :, 2:])
                )  # a view keeps all
                held.append((number + int(rng.integers(0, longest + 1)), *kept))
                del batch, kept
                held = [(until, *pair) for until, *pair in held if until > number]
                assert all(torch.equal(*pair) for _, *pair in held)
            assert memory_files(loader) <= files  # not one for each of 100 batches


def test_batches_that_are_all_kept_are_not_overwritten():
    split = InMemoryImages(torch.randint(0, 255, (90, 3, 8, 8), dtype=torch.uint8), np.arange(90) % 2)
    with closing(Loader(split, in_order(90, 3), num_workers=1, timeout_s=LIMIT_S)) as loader:
        batches = list(loader)
        assert len(batches) > MOST_BLOCKS
        assert torch.equal(torch.cat([batch.images for batch in batches]), split.images)
        assert memory_files(loader) <= MOST_BLOCKS + 10


@pytest.mark.parametrize("name", ["imgrec.data.loader.get_temp_dir", "torch.utils.data.dataloader.DataLoader.__iter__"])
def test_no_room_for_workers(name, monkeypatch):
    """Their semaphores are in /dev/shm, their sockets in the temporary folder."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(name, full)
    with raises_error(ConfigError, "num_workers=2", "No space left", "/dev/shm", "num_workers=0"):
        next(iter(Loader(stored([0, 1]), in_order(2, 2), num_workers=2)))


@pytest.mark.parametrize("room", slow_but(4, among=range(14)))
def test_no_room_for_one_more_semaphore(room, monkeypatch):
    """Whichever of them it is, nothing is printed besides: pytest fails for an exception in a __del__."""
    make, left = SemLock.__init__, [None] * room

    def limited(lock: SemLock, *arguments: object, **options: object) -> None:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(lock, *arguments, **options)
        weakref.finalize(lock, left.append, left.pop())

    monkeypatch.setattr(SemLock, "__init__", limited)
    with (
        closing(Loader(stored([0, 1]), in_order(2, 2), num_workers=2)) as loader,
        raises_error(ConfigError, "num_workers=2", "No space left", "/dev/shm", "num_workers=0"),
    ):
        next(iter(loader))
    gc.collect()


class Placed(InMemoryImages):
    def __getitem__(self, request: Request) -> Batch:
        return super().__getitem__(request)._replace(bad=(get_temp_dir(),))


def test_workers_have_the_temporary_folder_of_this_process():
    """Which removes it at its end; they are killed."""
    with closing(
        Loader(Placed(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), np.zeros(2)), in_order(2, 2), num_workers=1)
    ) as loader:
        assert [batch.bad for batch in loader] == [(get_temp_dir(),)]


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["at the end", "killed"])
def test_workers_leave_nothing_in_the_temporary_folder(ended, tmp_path):
    lines = [
        "import os, signal, sys, numpy as np, torch",
        "from imgrec.data.loader import Loader, Died",
        "from imgrec.data.in_memory import InMemoryImages",
        "from test_data_loader import in_order",
        "split = InMemoryImages(torch.zeros(64, 1, 8, 8, dtype=torch.uint8), np.zeros(64))",
        "loader = Loader(split, in_order(64, 2), num_workers=2)",
        "batches = iter(loader)",
        "print(next(batches).images.shape)",
        "if sys.argv[1] == 'killed': [os.kill(worker.pid, signal.SIGKILL) for worker in loader._workers()]",
        "loader.close()",
    ]
    path = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": path}
    done = run_command(sys.executable, "-c", "\n".join(lines), ended, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.Size([2, 1, 8, 8])\n", "")
    assert list(tmp_path.iterdir()) == []


def has_pending_signals(pid: int) -> bool:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16))


@pytest.mark.slow
def test_workers_ignore_signals_unless_their_parent_ends_them():
    split = Signed(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), np.zeros(40))
    loader = Loader(split, requests(40, 2), num_workers=1)
    batches = iter(loader)
    worker = int(next(batches).bad[0])
    assert worker != os.getpid()
    for name in ("INT", "USR1", "USR2", "HUP", "TERM", "TERM"):  # from another process, as SLURM and a terminal send them
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    wait_until(lambda: not has_pending_signals(worker))  # 17 batches are not begun: a worker is two ahead
    assert [batch.bad for batch in batches] == [(str(worker),)] * 19
    os.kill(worker, signal.SIGTERM)  # from the parent, as DataLoader and multiprocessing send it
    process = loader._loader._iterator._workers[0]
    process.join(timeout=LIMIT_S)
    assert process.exitcode == 0


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 3)
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": []}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append([batch.epoch, batch.whole, *batch.indices.tolist()])
        return torch.nn.functional.cross_entropy(self.layer(batch.images.flatten(1) / 255), batch.labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].append(batch.indices.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


# Lightning 2.6 and torch 2.15 between themselves, not ours.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The `srun` command is available")  # on a machine with SLURM
def test_lightning_runs_through_the_planned_batches_without_a_warning(tmp_path):
    """Warnings are errors here: Lightning must find nothing to say about workers or samplers."""
    data = fake()
    loaders = data_module(data)
    made = loaders.plan
    assert (made.steps_per_epoch, made.accumulate, loaders.workers) == (3, 2, 0)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        accumulate_grad_batches=made.accumulate,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    net = Tiny()
    trainer.fit(net, datamodule=loaders)
    assert trainer.global_step == 6
    order = [shuffled_order(45, seed=3)(epoch).tolist() for epoch in range(2)]
    assert [i for row in net.seen["train"] for i in row[2:]] == order[0] + order[1]
    assert [row[:2] for row in net.seen["train"]] == [[epoch, whole] for epoch in (0, 1) for whole in (16, 16, 16, 16, 13, 13)]
    assert net.seen["val"] == [list(range(8)), list(range(8, 15))] * 2
    assert sum(len(batch.labels) for batch in loaders.test_dataloader()) == 20


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_every_rank_evaluates_its_share_and_nothing_twice(devices):
    data = fake(test_samples=19)
    loaders = data_module(data, global_batch=24, devices=devices)
    seen, steps = [], set()
    for rank in range(devices):
        loaders.trainer = SimpleNamespace(global_rank=rank, world_size=devices, current_epoch=0)
        loader = loaders.test_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        steps.add(len(batches))
        seen += [i for batch in batches for i in batch.indices.tolist()]
    assert sorted(seen) == list(range(19))
    assert len(steps) == 1


def test_full_batches_are_one_step_over_all_training_samples():
    data = fake()
    loaders = data_module(data, global_batch="full")
    made = loaders.plan
    assert str(made) == "global batch 45 = 1 device x at most 8 x 6"
    assert made.steps_per_epoch == 1
    batches = list(loaders.train_dataloader())
    assert {batch.whole for batch in batches} == {45}
    assert sorted(i for batch in batches for i in batch.indices.tolist()) == list(range(45))


class Marks:
    """An augmentation that writes down who asked."""

    needs_samples, mixes = True, False

    def crop_box(self, height: int, width: int, *, seed: int, epoch: int, index: int) -> None:
        return None

    def sample(self, image: torch.Tensor, *, seed: int, epoch: int, index: int) -> torch.Tensor:
        return torch.full_like(image, 100 * seed + 10 * epoch + index % 10)


def test_sample_augmentation_is_for_training_only_and_knows_seed_and_index():
    data = fake()
    loaders = data_module(data, seed=1, augment=Marks())
    for batch in loaders.train_dataloader():
        assert batch.images[:, 0, 0, 0].tolist() == [100 + i % 10 for i in batch.indices.tolist()]
    images = data.split("val").images
    assert torch.equal(torch.cat([batch.images for batch in loaders.val_dataloader()]), images)


def test_workers_come_from_slurm_or_the_affinity_mask(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda pid: set(range(12)))
    assert worker_count("auto", in_memory=True, processes_here=1) == 0
    assert worker_count("auto", in_memory=False, processes_here=1) == 12
    assert worker_count("auto", in_memory=False, processes_here=5) == 2
    assert worker_count(7, in_memory=True, processes_here=5) == 7
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert worker_count("auto", in_memory=False, processes_here=1) == 16
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert worker_count("auto", in_memory=False, processes_here=8) == 4


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"num_classes": 5}, ("data.num_classes=5", "2 classes", "a, b", "data.num_classes=2")),
        ({"channels": 3}, ("data.mean", 1, "data.channels=3", "data.mean=[0.5,0.5,0.5]")),
    ],
)
def test_keys_that_contradict_each_other(change, parts):
    with raises_error(ConfigError, *parts):
        _ = Given(np.arange(20) % 2, **change).splits


@pytest.mark.parametrize(
    ("labels", "others", "parts"),
    [
        ([0, 0, 0, 1], {}, ("class b", "1 image", "data.val_share=0.25", 2)),
        ([0, 0, 1, 1], {}, ("data.val_share=0.25", "4 images", 1, "2 classes")),
        ([0, 1, 2], {"val": [0]}, ("image 2", "train", "label 2", "0 to 1")),
        ([0, 1], {"val": [0], "test": [-1]}, ("image 0", "test", "label -1")),
        ([0, 1, -3], {}, ("image 2", "train", "label -3")),
        ([0, 1], {"val": []}, ("the val split", "no images")),
    ],
)
def test_labels_that_cannot_be_used(labels, others, parts):
    with raises_error(DataError, *parts):
        _ = Given(labels, **others).splits


def test_a_split_that_is_not_there():
    data = Given(np.arange(20) % 2)
    assert data.counts("test").tolist() == [0, 0]
    with raises_error(DataError, "Given", "test", "train, val", "split=val"):
        data.split("test")


class OneUnreadable(InMemoryImages):
    """Skips the third image of train, and counts the batches that were read."""

    read = 0

    def __getitem__(self, request: Request) -> Batch:
        self.read += 1
        return super().__getitem__(request._replace(indices=request.indices[request.indices != 2]))


@pytest.mark.parametrize("ranks", slow_but(2, among=[1, 2, 3]))
def test_statistics_of_batch_norm_are_measured_with_the_same_images_on_all_ranks(ranks):
    """Each batch is read once; of 45 images one is left over, and one is alone as the other was skipped."""
    order = shuffled_order(45, seed=3)(0)[:44].reshape(22, 2)

    def work(rank: int) -> tuple[list[list[int]], list[torch.Tensor], int]:
        loaders = data_module(fake(), global_batch=2)
        whole = loaders._training
        loaders._training = OneUnreadable(whole.images, whole.labels)
        batches = first_batches(loaders, 512, rank, ranks)
        return [batch.indices.tolist() for batch in batches], [batch.images for batch in batches], loaders._training.read

    found = run_ranks(ranks, work, group=True)
    images = data_module(fake(), global_batch=2)._training.images
    assert sum(read for _, _, read in found) == 23
    for indices, pixels, _ in found:
        assert indices == [pair.tolist() for pair in order if 2 not in pair]
        assert torch.equal(torch.cat(pixels), images[np.concatenate(indices)])


def test_a_resumed_epoch_goes_on_where_it_stopped():
    data = fake()
    loaders = data_module(data)
    whole = [batch.indices.tolist() for batch in loaders.train_dataloader()]
    loaders = data_module(data, start=(0, 2))
    assert [batch.indices.tolist() for batch in loaders.train_dataloader()] == whole[4:]
    assert len(loaders.train_dataloader()) == len(whole)  # Lightning adds what is done itself


@pytest.mark.parametrize("limit", [1.0, 0.4, 1, 2, 50])
@pytest.mark.parametrize("batch_size", [7, 20, 61])
def test_it_is_known_how_many_images_a_loader_reads(limit, batch_size):
    limits = {name: limit if name.startswith("limit") else value for name, value in vars(LIMITS).items()}
    module = data_module(fake(), global_batch=batch_size, trainer=SimpleNamespace(**limits))
    for split in ("train", "val", "test"):
        batches = getattr(module, f"{split}_dataloader")()
        assert module.images_read(split) == sum(len(batch.labels) for batch in batches)
