"""data=shards from a server: the images, orders and runs of the same shards in a folder, through every fault, within the cache."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_parts import assert_error, raises_error
from marks import slow_but
from obstore.exceptions import BaseError
from processes import LIMIT_S, wait_until
from range_server import FAULTS, RangeServer, served
from test_data_folder import folder, make, whole
from test_pack import SPLITS, pack, shards

from imgrec import config
from imgrec.config.start_checks import check_start
from imgrec.data.batch import Request
from imgrec.data.readable import check_readable, find_unreadable
from imgrec.data.sampler import EpochBatches, shuffled_order, split_epoch
from imgrec.errors import ConfigError, DataError, SourceError
from imgrec.storage import block_cache, fetch, remote, store
from imgrec.storage.block_cache import block_path
from imgrec.storage.fetch import Fetcher
from imgrec.storage.index import INDEX, ShardIndex
from imgrec.storage.shards import ImageShards
from imgrec.storage.store import ObjectStore


class Here:
    """`Downloads` without a process of its own, so that a test can see and change what it does."""

    def __init__(self, root: str, folder: str, most_bytes: int) -> None:
        self.root, self.folder, self.most_bytes = root, folder, most_bytes
        self.fetcher = Fetcher(root, folder, most_bytes)
        self.calls: list[tuple[str, Any]] = []

    def call(self, name: str, argument: Any) -> Any:
        self.calls.append((name, argument))
        return getattr(self.fetcher, name)(argument)

    send = call


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    photos = make(tmp_path_factory.mktemp("photos"), {"cat": 9, "dog": 14, "eel": 10})
    return pack(folder(photos), tmp_path_factory.mktemp("kept") / "out")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IMGREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/imgrec/shards"


@pytest.fixture
def here(monkeypatch) -> None:
    """Downloads in this process, in small blocks, without waiting between attempts."""
    monkeypatch.setattr(remote, "Downloads", Here)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def server(kept) -> Iterator[RangeServer]:
    with served(kept) as (_, server):
        yield server


def equal(ours: ImageShards, theirs: ImageShards) -> bool:
    one, other = whole(ours), whole(theirs)
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


# Reading


def test_images_are_those_of_the_folder_and_each_byte_comes_once(kept, server, cache):
    data = shards(server.url + "/")
    for split in SPLITS:
        ours, theirs = data.split(split), shards(kept).split(split)
        assert ours.names.tolist() == theirs.names.tolist()
        assert equal(ours, theirs)
        assert equal(ours, theirs)
    assert len(server.requests) == 1 + len(list(cache.iterdir()))
    ours = shards(server.url).split("train")
    assert equal(ours, theirs := shards(kept).split("train"))
    assert [path for path, _ in server.requests].count(f"/{INDEX}") == 2
    assert len(server.requests) == 2 + len(list(cache.iterdir()))
    assert np.array_equal(ours.content(), theirs.content())


@pytest.mark.parametrize("kind", slow_but("429", "reset", "damaged", among=FAULTS))
def test_each_fault_is_made_good(kept, server, here, kind):
    server.faults, server.kinds = 0.6, (kind,)
    assert equal(shards(server.url).split("train"), shards(kept).split("train"))
    assert server.failed[kind] >= 3


@pytest.mark.parametrize("kind", slow_but("short", among=FAULTS[:5] + FAULTS[-1:]))
def test_an_index_comes_whole_or_not_at_all(server, here, kind):
    server.faults, server.kinds = 0.6, (kind,)
    for _ in range(4):
        assert len(shards(server.url).classes) == 3
    assert server.failed[kind]


def test_an_index_comes_in_pieces_each_with_its_own_time(kept, server, here, monkeypatch):
    monkeypatch.setattr(store, "PIECE_BYTES", 1000)
    index = (kept / INDEX).read_bytes()
    assert ObjectStore(server.url).read(INDEX, None) == index
    assert len(server.requests) == -(-len(index) // 1000)


def test_an_index_is_read_where_a_server_sends_it_whole(kept, server):
    server.faults, server.kinds = 1.0, ("whole",)
    assert ObjectStore(server.url).read(INDEX, None) == (kept / INDEX).read_bytes()
    assert server.failed["whole"] == 2


def test_a_server_that_stalls_is_left_before_its_time_is_over(kept, server, monkeypatch):
    monkeypatch.setattr(store, "STALLED_S", 0.2)
    monkeypatch.setattr(store, "REQUEST_S", 3600)
    server.latency_s = 3600.0
    with pytest.raises(BaseError):
        ObjectStore(server.url).read(INDEX, None)


def test_an_index_that_is_damaged_on_the_server_is_named(kept, server, here, tmp_path):
    (tmp_path / INDEX).write_bytes((kept / INDEX).read_bytes()[:-100])
    server.folder = tmp_path
    with raises_error(DataError, f"{server.url}/{INDEX}", "damaged", "pack the images again"):
        _ = shards(server.url).splits
    assert len(server.requests) == 2


def test_blocks_are_cut_at_images(kept):
    index = ShardIndex.read(kept)
    places = np.concatenate([split.places for split in index.splits.values()])
    _, blocks = remote.cut_blocks(places, index.shards, "key")
    assert (blocks.stop[:-1] <= blocks.start[1:])[blocks.shard[:-1] == blocks.shard[1:]].all()
    found = set()
    for block in range(len(blocks.start)):
        for offset, length, checksum in blocks.images[blocks.first[block] : blocks.first[block + 1]].tolist():
            assert 0 <= offset < offset + length <= blocks.size(block)
            found.add((int(blocks.shard[block]), int(blocks.start[block]) + offset, length, checksum))
    assert found == set(map(tuple, places.tolist()))


def test_what_is_damaged_in_the_store_is_named_and_skipped_alone(kept, server, here, tmp_path):
    index = ShardIndex.read(kept)
    packed = index.splits["train"]
    shard, offset, length, _ = packed.places[5].item()
    server.folder = tmp_path / "copied"
    subprocess.run(["cp", "-r", kept, server.folder], check=True)
    path = server.folder / index.shards[shard]
    content = bytearray(path.read_bytes())
    content[offset + length // 2] ^= 1
    path.write_bytes(content)
    name = f"{server.url}/{index.shards[shard]}: {packed.names[5].decode()}"
    with raises_error(DataError, name, "checksum", "Copy the shard there again"):
        whole(shards(server.url).split("train"))
    batch = whole(shards(server.url, on_bad_image="skip").split("train").for_training(None, 0))
    assert batch.bad == (name,)
    assert len(batch.labels) == len(packed.labels) - 1


def test_an_empty_image_is_named_and_skipped_alone(kept, server, here, tmp_path):
    """Also where it is all of a block: a request has to be for a byte at least."""
    index = ShardIndex.read(kept)
    packed = index.splits["train"]
    _, blocks = remote.cut_blocks(packed.places, index.shards, "key")
    alone = int(np.flatnonzero(np.diff(blocks.first) == 1)[0])
    row = int(
        np.flatnonzero((packed.places["shard"] == blocks.shard[alone]) & (packed.places["offset"] == blocks.start[alone]))[0]
    )
    packed.places[row]["length"] = packed.places[row]["checksum"] = 0
    server.folder = Path(shutil.copytree(kept, tmp_path / "copied"))
    index.write(server.folder)
    images = shards(server.url, on_bad_image="skip").split("train").for_training(None, 0)
    assert whole(images).bad == (images.path(row),)
    with raises_error(DataError, images.path(row), "the file is empty"):
        images.decode(row)


def test_a_block_that_was_damaged_in_the_cache_is_downloaded_again(kept, server, here, cache):
    images = shards(server.url, on_bad_image="skip").split("train")
    fetch_all(images)
    for block in cache.iterdir():
        block.write_bytes(bytes(block.stat().st_size))
    assert equal(images, shards(kept).split("train"))


@pytest.mark.parametrize("span", [(1, 1001), None], ids=["an image", "the index"])
def test_a_body_without_an_end_is_not_read_on(server, monkeypatch, span):
    monkeypatch.setattr(store, "PIECE_BYTES", 1000)
    server.faults, server.kinds = 1.0, ("endless",)
    with pytest.raises(ValueError, match="more than the 1,000 bytes came"):
        ObjectStore(server.url).read(INDEX, span)


def test_an_index_that_the_memory_does_not_hold_is_refused(server, monkeypatch):
    monkeypatch.setattr(store, "COPIES", 2**60)
    with pytest.raises(ValueError, match="memory of this machine does not hold"):
        ObjectStore(server.url).read(INDEX, None)


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("500", ("500 Internal Server Error", "10 attempts", "Start the same command again")),
        ("whole", ("Range request", "range of bytes")),
        ("cut", ("10 attempts", "Start the same command again")),
    ],
)
def test_a_server_that_never_answers_well_is_named_with_shard_and_image_and_no_image_is_skipped(server, here, fault, parts):
    images = shards(server.url, on_bad_image="skip").split("train").for_training(None, 0)
    server.faults, server.kinds = 1.0, (fault,)
    with raises_error(SourceError, images.path(0), "cannot be read", *parts):
        _ = images[Request(0, np.array([0]), 1)]
    assert server.failed[fault] == (3 if fault == "whole" else 10)  # a server that knows no ranges learns none


def test_what_another_attempt_cannot_help_is_said_at_once(server, here, kept, tmp_path, monkeypatch):
    images = shards(server.url).split("train")
    server.folder = tmp_path
    before = len(server.requests)
    with raises_error(SourceError, images.path(0), "no such file", "data.root"):
        whole(images)
    with raises_error(
        SourceError, f"{server.url}/{INDEX}", "no such file", "imgrec pack FOLDER out=DIR", "imgrec pack index DIR"
    ):
        _ = shards(server.url).splits
    monkeypatch.setattr(RangeServer, "fault", lambda self: "403")
    server.folder = kept
    with raises_error(SourceError, f"{server.url}/{INDEX}", "403", "AWS_ACCESS_KEY_ID"):
        _ = shards(server.url).splits
    monkeypatch.setattr(RangeServer, "fault", lambda self: "416")
    with raises_error(SourceError, images.path(0), "416", "shorter there", "Copy it there again"):
        whole(images)
    assert len({path for path, _ in server.requests[before:]}) <= 20
    assert [path for path, _ in server.requests[before:]].count(f"/{INDEX}") == 2


def test_a_page_of_a_server_is_not_repeated_whole(server, here):
    images = shards(server.url).split("train")

    class Page:
        def read(self, path: str, span: tuple[int, int] | None) -> memoryview:
            raise ValueError("status code: 400 " + "page " * 10_000)

    images.files.downloads.fetcher.store = Page()
    with pytest.raises(SourceError) as caught:
        _ = images[Request(0, np.array([0]), 1)]
    assert_error(str(caught.value), images.path(0), "cannot be read", "400", "Correct data.root")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("root", ["nonsense://bucket/set", "http://", "s3://"])
def test_an_address_that_nothing_reads_is_refused(here, root):
    with raises_error(SourceError, f"data.root={root}", "cannot be opened", "https://..."):
        _ = shards(root).splits


def test_what_the_system_says_is_part_of_the_reason(here):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with raises_error(SourceError, f"{url}/{INDEX}", "Connection refused", "10 attempts", "when the server answers"):
        _ = shards(url).splits
    refused = Exception("error sending request\n\nDebug source:\nerror: InvalidCertificate(\n UnknownIssuer,\n)")
    assert store.read_failure(refused) == "error sending request (its certificate is not valid here)"


@pytest.mark.parametrize("name", ["../out.tar", "/etc/passwd", "a/../../b.tar", "http://other/x.tar"])
def test_an_index_that_names_a_shard_elsewhere_is_refused(kept, server, here, tmp_path, name):
    index = ShardIndex.read(kept)
    index._replace(shards=(name, *index.shards[1:])).write(tmp_path)
    server.folder = tmp_path
    for root in (tmp_path, server.url):
        with raises_error(DataError, f"{root}/{INDEX}", name, "Do not use"):
            _ = shards(root).splits


def test_nothing_is_looked_at_before_the_first_step_unless_all_is(kept, server, here):
    data = shards(server.url, on_bad_image_eval="skip")
    assert list(find_unreadable(data, rank=0, size=1)) == []
    check_readable(data)
    assert len(server.requests) == 1
    assert [part for part in find_unreadable(shards(server.url, check="all"), rank=0, size=1) if part] == []
    assert len(server.requests) > 10


def test_without_obstore_what_to_install_is_said(monkeypatch):
    run = config.load("train", ["data=shards", "data.root=s3://bucket/set"])
    check_start(run)
    monkeypatch.setattr("imgrec.config.start_checks.find_spec", lambda name: None)
    with raises_error(ConfigError, "data.root=s3://bucket/set", "obstore", 'pip install "imgrec[remote]"'):
        check_start(run)


@pytest.mark.parametrize("key", ["name:secret", "secret", "name:se@cret"])
def test_a_password_in_an_address_is_refused_and_not_repeated(key):
    with pytest.raises(ConfigError) as caught:
        check_start(config.load("train", ["data=shards", f"data.root=https://{key}@host/set"]))
    assert_error(str(caught.value), "data.root=https://...@host/set", "Set data.root=https://host/set", "environment")
    assert "cret" not in str(caught.value)
    check_start(config.load("train", ["data=shards", "data.root=abfs://container@account.dfs.core.windows.net/set"]))


def test_other_addresses_are_read_by_fsspec(kept, here):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(kept), "/set", recursive=True)
    assert equal(shards("memory://set").split("val"), shards(kept).split("val"))


# The cache


def test_the_cache_stays_within_its_bound_and_forgets_what_was_used_longest_ago(kept, server, here, cache, monkeypatch):
    images = shards(server.url).split("train")
    sizes = [images.files.blocks.size(block) for block in range(len(images.files.blocks.start))]
    fetcher = images.files.downloads.fetcher
    fetcher.cache.most_bytes = 3 * max(sizes)
    monkeypatch.setattr(block_cache, "FULL", 2 / 3)
    monkeypatch.setattr(block_cache, "LEFT", 2 / 3)
    numbers = np.unique(images.files.numbers(images.places)).tolist()
    assert len(numbers) >= 6
    for number in numbers:
        fetcher.need([number])
        assert sum(file.stat().st_size for file in cache.iterdir()) <= 2 * max(sizes)
        assert os.path.exists(block_path(str(cache), images.files.key, number))
    assert equal(images, shards(kept).split("train"))


def test_blocks_that_are_announced_are_not_the_oldest(server, here, cache):
    images = shards(server.url).split("train")
    files, key = images.files, images.files.key
    for number in (0, 1, 2):
        files.downloads.call("need", [number])
        os.utime(block_path(str(cache), key, number), (number, number))
    files.downloads.call("ahead", [0])
    sizes = [files.blocks.size(number) for number in (0, 1, 2)]
    block_cache._remove_oldest(str(cache), int(sum(sizes) / block_cache.LEFT) - sizes[1])
    assert [os.path.exists(block_path(str(cache), key, number)) for number in (0, 1, 2)] == [True, False, True]


def test_a_cache_too_small_for_the_window_is_refused_with_numbers(kept, server, here):
    index = ShardIndex.read(kept)
    train = sorted(index.sizes[np.unique(index.splits["train"].places["shard"])].tolist(), reverse=True)
    most = sum(train[:2]) / remote.WINDOW_SHARE / 1e9
    _ = shards(server.url, window_shards=2, cache_gb=most * 1.001).splits
    with raises_error(ConfigError, f"data.cache_gb={most * 0.999:g}", "2 shards", "data.cache_gb=1", "data.window_shards=1"):
        _ = shards(server.url, window_shards=2, cache_gb=most * 0.999).splits
    with raises_error(ConfigError, "data.cache_gb=1e-09", f"{len(train)} shards", "data.cache_gb=1"):
        _ = shards(server.url, cache_gb=1e-9).splits


@pytest.mark.parametrize("number", [28, 13], ids=["full", "not ours"])
def test_a_disk_that_cannot_be_written_is_named(server, here, cache, monkeypatch, number):
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    images = shards(server.url).split("train")
    monkeypatch.setattr(block_cache.os, "write", fail)
    parts = ("Free disk space", "data.cache_gb") if number == 28 else ("Make it a folder that you can write to",)
    with raises_error(SourceError, cache, os.strerror(number), *parts, "IMGREC_CACHE=FOLDER"):
        fetch_all(images)


@pytest.mark.parametrize("kind", ["file", "link to itself", "link to nothing"])
def test_a_cache_that_is_no_folder_is_named(server, here, cache, kind):
    cache.parent.mkdir(parents=True)
    if kind == "file":
        cache.write_text("the user's")
    else:
        cache.symlink_to(cache if kind == "link to itself" else "nothing")
    images = shards(server.url).split("train")
    with raises_error(SourceError, cache, "Make it a folder", "IMGREC_CACHE=FOLDER"):
        _ = images[Request(0, np.array([0]), 1)]
    images.files.downloads.send("ahead", [0])  # says nothing
    assert kind != "file" or cache.read_text() == "the user's"


def test_only_blocks_are_removed_from_the_cache(server, here, cache):
    images = shards(server.url).split("train")
    fetch_all(images)
    blocks = list(cache.iterdir())
    others = [cache / "00000.tar", cache / "0-1", cache / "folder" / "x", cache / f"{'a' * 32}-1.part.tar"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10_000))
        os.utime(path, (1, 1))
    block_cache._remove_oldest(str(cache), 1)
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in blocks)


def test_a_cache_that_is_removed_while_it_is_written_is_made_again(kept, server, here, cache, monkeypatch):
    read, removed = Fetcher._read, []

    def remove_first(self: Fetcher, path: str, *rest: Any) -> memoryview:
        content = read(self, path, *rest)
        if path != INDEX and len(removed) < 2:
            removed.append(path)
            shutil.rmtree(cache)
        return content

    monkeypatch.setattr(Fetcher, "_read", remove_first)
    assert equal(shards(server.url).split("train"), shards(kept).split("train"))
    assert len(removed) == 2


def test_many_processes_may_wait_for_the_same_blocks(server, here, monkeypatch):
    monkeypatch.setattr(fetch, "REQUESTS_NEEDED", 1)
    monkeypatch.setattr(fetch, "REQUESTS_AHEAD", 1)
    images = shards(server.url).split("train")
    fetcher = images.files.downloads.fetcher
    store, go = fetcher.store, threading.Event()

    class Slow:
        def read(self, path: str, span: tuple[int, int] | None) -> memoryview:
            go.wait(LIMIT_S)
            return store.read(path, span)

    fetcher.store = Slow()
    wanted = [[number] for number in np.unique(images.files.numbers(images.places)).tolist()] * 2
    with ThreadPoolExecutor(len(wanted)) as pool:
        waiting = [pool.submit(fetcher.need, numbers) for numbers in wanted]
        wait_until(lambda: all(future.running() or future.done() for future in waiting))
        go.set()
        for future in waiting:
            future.result()


def fetch_all(images: ImageShards) -> None:
    images.files.downloads.call("need", np.unique(images.files.numbers(images.places)).tolist())


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_without_a_cache_folder_it_is_said(server, monkeypatch, value):
    monkeypatch.setenv("IMGREC_CACHE", value)
    with raises_error(ConfigError, f"IMGREC_CACHE={value}", "absolute", "IMGREC_CACHE=FOLDER"):
        _ = shards(server.url).splits


def test_processes_that_share_a_cache_download_each_block_once(server, here, cache):
    both = [shards(server.url).split("train") for _ in range(2)]
    server.latency_s = 0.01
    threads = [threading.Thread(target=fetch_all, args=(images,)) for images in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 2 + len(list(cache.iterdir()))


def test_a_block_that_another_process_finishes_after_it_was_missed_is_not_read_again(tmp_path, monkeypatch):
    cache, is_whole = block_cache.BlockCache(str(tmp_path), 10**6), block_cache._is_whole
    cache.write("key", 0, 5, lambda: memoryview(b"block"))
    looks = iter([False])
    monkeypatch.setattr(block_cache, "_is_whole", lambda path, size: next(looks, None) is None and is_whole(path, size))
    cache.write("key", 0, 5, lambda: pytest.fail("read again"))
    assert [file.name for file in tmp_path.iterdir()] == ["key-0"]


def test_without_locks_each_process_writes_blocks_of_its_own(kept, server, here, cache, without_locks):
    both = [shards(server.url).split("train") for _ in range(2)]
    server.latency_s = 0.01
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fetch_all, both))
    assert equal(both[0], shards(kept).split("train"))
    assert all("." not in file.name for file in cache.iterdir())  # nothing is left unfinished


def test_one_process_claims_an_unfinished_block_without_locks(tmp_path, without_locks):
    path = block_path(str(tmp_path), "a" * 32, 0)
    Path(path + block_cache.PART).write_text("left by a killed process")
    with block_cache._claimed(path, 9) as (first, name), block_cache._claimed(path, 9) as (second, other):
        assert name != other
        assert all(block_cache.BLOCK_NAME.fullmatch(os.path.basename(each)) for each in (name, other))
        assert not os.path.samestat(os.fstat(first), os.fstat(second))


def test_a_block_that_a_killed_process_left_half_written_is_written_again(kept, server, here, cache):
    images = shards(server.url).split("train")
    first, second, *_ = np.unique(images.files.numbers(images.places)).tolist()
    path = block_path(str(cache), images.files.key, first)
    cache.mkdir(parents=True)
    code = "from imgrec.storage.block_cache import _claimed; import os, time\n"
    code += f"with _claimed({path!r}, 9) as (f, _):\n os.write(f, b'x' * 9000); print(1, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert os.path.getsize(path + block_cache.PART) == 9000
    Path(block_path(str(cache), images.files.key, second)).write_bytes(b"cut short by a power failure")
    assert equal(images, shards(kept).split("train"))
    assert not list(cache.glob("*" + block_cache.PART))


# Reading ahead


def test_requests_are_the_same_and_are_announced_before_they_are_drawn(server, here):
    images = shards(server.url).split("train")
    requests = EpochBatches(split_epoch(len(images), 3, devices=1), shuffled_order(len(images), seed=0), epoch=lambda: 2, rank=0)
    announced = images.announced(requests)
    assert len(announced) == len(requests)
    calls = images.files.downloads.calls
    for drawn, wanted in zip(announced, requests, strict=True):
        assert np.array_equal(drawn.indices, wanted.indices)
        blocks = set(images.files.numbers(images.places[wanted.indices % len(images)]).tolist())
        assert blocks <= {number for name, numbers in calls if name == "ahead" for number in numbers}
    fetch_all(images)
    images.files.downloads.most_bytes = 0  # as little as possible: the next one
    calls.clear()
    _ = list(islice(images.announced(requests), 2))
    assert [name for name, _ in calls] == ["ahead"] * 3


# The process


def test_the_process_leaves_workers_their_cores_ignores_signals_of_the_run_and_ends_with_who_started_it(kept, server):
    images = shards(server.url).split("train")
    pid = images.files.downloads.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(pid, number)
    assert equal(images, shards(kept).split("train"))
    place = Path(images.files.downloads._address)
    assert place.exists()
    del images
    gc.collect()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() and not place.parent.exists())


def test_the_process_looks_for_no_module_in_the_working_folder(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("open('it_ran', 'w')")
    assert len(shards(server.url).classes) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["json.py"]


def test_a_process_that_was_killed_is_named(server):
    images = shards(server.url).split("train")
    os.kill(images.files.downloads.pid, signal.SIGKILL)
    with raises_error(SourceError, f"data.root={server.url}", "was killed", "Start the same command again"):
        whole(images)
    place = Path(images.files.downloads._address).parent
    del images
    gc.collect()
    assert not place.exists()


def test_errors_of_the_process_arrive_as_they_are(server, tmp_path):
    """They are pickled there: of a module that was started with `python -m`, no other process knows the classes."""
    images = shards(server.url).split("train")
    with raises_error(SourceError, f"{server.url}/other/{INDEX}", "no such file", "imgrec pack"):
        _ = shards(f"{server.url}/other").splits
    server.folder = tmp_path
    with raises_error(SourceError, images.path(0), "no such file", "data.root"):
        whole(images)


def test_a_process_that_ends_at_its_start_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "true")
    with raises_error(SourceError, f"data.root={server.url}", "ended at its start", "start the same command again"):
        _ = shards(server.url).splits
    gc.collect()
    assert not list(tmp_path.glob("imgrec-*"))


def test_what_a_process_that_ended_did_not_read_is_no_error(tmp_path):
    process = subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.wait()
    process.stdin.write(b"settings")
    with pytest.raises(BrokenPipeError):
        process.stdin.flush()
    place = tmp_path / "place"
    place.mkdir()
    remote._end(process, str(place), os.getpid())
    assert not place.exists()


def test_a_temporary_folder_whose_path_is_too_long_for_a_socket_is_refused(server, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with raises_error(ConfigError, f"TMPDIR={long}", "107 bytes", "TMPDIR=/tmp"):
        _ = shards(server.url).splits
    assert not list(long.iterdir())
