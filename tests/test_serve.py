"""The server's answers and refusals, without sockets; tests/test_serve_process.py starts it."""

import asyncio
import json
import random
import re
import socket
import struct
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import uvicorn
from error_parts import assert_error, assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from image_files import damaged, encode, file_kinds, picture, stored_damage
from marks import fewer
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served import LIMITS, PNG, Client, Echo, ask, form, service
from test_data_folder import PREPROCESSING
from test_pieces import PIECES, low_limits, scans, with_pieces  # noqa: F401
from untrained_run import save_untrained_run

from imgrec import cli
from imgrec.data.decode import decode_bytes
from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.inference.predictor import Prediction, load
from imgrec.serving.access import VARIABLE, is_allowed, read_token, readable_by_others
from imgrec.serving.address import bind
from imgrec.serving.app import ImageJob, answer_jobs
from imgrec.serving.limits import Limits, Refused, Upload, check_image, image_format
from imgrec.serving.page import drop_page
from imgrec.serving.recognizer import CheckpointRecognizer, pack_convolutions, pad_rows
from imgrec.serving.server import READ_BYTES, patient_protocol

TOKEN = "0123456789abcdef"
HEADER = {"authorization": f"Bearer {TOKEN}"}
KINDS = file_kinds(13, 9)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width=60_000, height=60_000):
    """A PNG whose header promises 10.8 GB of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return CheckpointRecognizer(
        load(save_untrained_run(tmp_path_factory.mktemp("run")), device="cpu"), None, batch_size=4, max_pixels=10**6
    )


# Answers


def test_an_image_is_answered_as_predict_answers_it(recognizer, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (expected,) = load(recognizer.file, device="cpu").predict(tmp_path / "a.png", top_k=3)
    reply = ask(service(recognizer), lambda client: client.predict(query="?top_k=3"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    (told,) = reply.json["predictions"]
    assert told["file"] is None
    assert (told["class"], told["probability"]) == (expected.class_name, pytest.approx(expected.probability, abs=1e-6))
    assert [(each["class"], each["probability"]) for each in told["top"]] == [
        (name, pytest.approx(chance, abs=1e-6)) for name, chance in expected.top
    ]


def test_several_images_are_answered_in_their_order():
    files = [(f"{side}.png", encode(picture(side, side, 5), "PNG")) for side in (9, 7, 8)]
    body, kind = form(*files)
    reply = ask(service(), lambda client: client.predict(body, kind))
    assert [(told["file"], told["class"]) for told in reply.json["predictions"]] == [
        (name, f"old {len(content)}") for name, content in files
    ]
    assert [len(told["top"]) for told in reply.json["predictions"]] == [2, 2, 2]


def test_each_request_has_its_own_top_k_also_in_one_batch_and_never_more_than_there_are_classes():
    async def talk(client: Client):
        several = (client.predict(query=query) for query in ("?top_k=1", "", "?top_k=99"))
        return [len(reply.json["predictions"][0]["top"]) for reply in await asyncio.gather(*several)]

    class Asked(Echo):
        device = "cuda"  # whose batches take all that waits

        def answer(self, images, top_k):
            asked.append((len(images), top_k))
            return super().answer(images, top_k)

    asked: list[tuple[int, int]] = []
    assert ask(service(Asked(), max_wait_s=1000.0), talk) == [1, 2, 3]
    assert asked == [(3, 3)]
    (told,) = ask(service(top_k=9), lambda client: client.predict()).json["predictions"]
    assert len(told["top"]) == 3


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/whatever", "application/octet-stream"])
def test_a_file_is_known_by_its_bytes(content_type):
    assert ask(service(), lambda client: client.predict(content_type=content_type)).status == 200


def test_what_a_guarantee_adds_is_in_the_answer():
    for adds, value in (("set", []), ("answered", True)):
        (told,) = ask(service(Echo(adds=adds)), lambda client: client.predict()).json["predictions"]
        assert told[adds] == value


@fewer(10)
@given(parts=st.lists(st.integers(1, 7), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_an_image_has_one_answer_whatever_batch_it_is_in(recognizer, parts, seed):
    pixels = torch.randint(0, 256, (sum(parts), 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    jobs = [ImageJob(recognizer, image, 10) for image in pixels]
    alone = [answer_jobs([job])[0] for job in jobs]
    start = 0
    for count in parts:
        for one, other in zip(answer_jobs(jobs[start : start + count]), alone[start:], strict=False):
            chances = dict(other.top)
            assert all(abs(chance - chances[name]) <= 1e-6 for name, chance in one.top)
        start += count


def test_a_batch_across_a_reload_is_answered_by_the_network_that_each_image_was_read_for():
    old, new = Echo("old"), Echo("new")
    answers = answer_jobs([ImageJob(recognizer, size, 1) for recognizer, size in ((old, 1), (old, 2), (new, 3), (old, 4))])
    assert [answer.class_name for answer in answers] == ["old 1", "old 2", "new 3", "old 4"]


def test_a_checkpoint_reads_no_more_pixels_than_the_server(recognizer):
    small = CheckpointRecognizer(load(recognizer.file, device="cpu"), None, batch_size=1, max_pixels=8 * 6 - 1)
    (refused,) = small.answer([small.read(PNG, "a.png")], 1)
    assert isinstance(refused, DataError)
    assert all(word in str(refused) for word in ("a.png", "8x6", "47"))
    (answered,) = recognizer.answer([recognizer.read(PNG, "a.png")], 1)
    assert isinstance(answered, Prediction)


def test_for_a_gpu_files_are_decoded_before_they_wait_for_it(recognizer, monkeypatch):
    monkeypatch.setattr(recognizer, "device", "cuda")
    pixels = recognizer.read(PNG, "a.png")
    assert pixels.shape == (1, 8, 8)
    monkeypatch.undo()
    assert recognizer.answer([pixels], 2) == recognizer.answer([(PNG, "a.png")], 2)


def test_a_file_that_is_no_image_takes_no_others_of_its_batch_with_it(recognizer):
    files = [recognizer.read(content, name) for content, name in ((PNG, "a.png"), (PNG[:40], "b.png"), (PNG, "c.png"))]
    one, bad, other = recognizer.answer(files, 2)
    assert isinstance(bad, DataError)
    assert "b.png" in str(bad)
    assert [one, other] == recognizer.answer([files[0], files[2]], 2)
    assert [type(answer) for answer in recognizer.answer(files[1:2], 2)] == [DataError]


def test_a_run_that_reads_fewer_pixels_than_the_server_refuses_as_the_server_does(tmp_path):
    run = save_untrained_run(tmp_path, "data.max_pixels=47")
    small = CheckpointRecognizer(load(run, device="cpu"), None, batch_size=1, max_pixels=10**6)
    served = service(small, limits=Limits(**{**vars(LIMITS), "max_pixels": 10**6}))
    reply = ask(served, lambda client: client.predict())
    assert (reply.status, reply.json) == (413, {"error": "the file has 8x6 pixels; at most 47 are read. Make it smaller."})
    document = ask(served, lambda client: client.send("GET", "/openapi.json")).body.decode()
    assert "47 pixels an image" in document


def test_values_without_a_scale_are_refused_without_a_key_of_the_training(recognizer):
    twelve_bits = encode(Image.fromarray(np.full((8, 6), 4000, dtype=np.uint16)), "PNG")
    reply = ask(service(recognizer), lambda client: client.predict(twelve_bits))
    assert (reply.status, "Send it with 8 bits." in reply.json["error"], "data." in reply.json["error"]) == (422, True, False)


@pytest.fixture
def one_thread():
    """As each thread of a server has it; two share the terms of a sum by the size of the batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_linear_layer_gives_a_row_the_same_in_any_batch(one_thread):
    """Without the padding, batches of 1 to 3 differ from larger ones in most rows."""
    torch.manual_seed(0)
    network, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3000, 20)), torch.randn(8, 3, 10, 100)
    plain = network(images)
    pad_rows(network)
    assert torch.equal(network(images), plain)
    for count in range(1, 8):
        assert torch.equal(network(images[-count:]), plain[-count:])


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_packed_convolutions_give_what_plain_ones_give(memory_format):
    """Also with groups, a dilation, a bias, and padding by name or by mirrored pixels, which are left as they are."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 128, 11, stride=4, padding=2, bias=False),
        torch.nn.Conv2d(128, 64, 3, padding=(0, 1)),
        torch.nn.Conv2d(64, 128, 5, padding=2, groups=2, dilation=2),
        torch.nn.Conv2d(128, 32, 3, padding="same"),
        torch.nn.Conv2d(32, 128, 3, padding=1, padding_mode="reflect"),
    ).to(memory_format=memory_format)
    images = torch.randn(5, 3, 40, 36).to(memory_format=memory_format)
    with torch.inference_mode():
        plain = network(images)
        pack_convolutions(network)
        for count in (1, 2, 5):
            torch.testing.assert_close(network(images[:count]), plain[:count], rtol=0, atol=1e-6)
    packed = ["forward" in vars(layer) for layer in network]
    assert packed == [torch.backends.mkldnn.is_available()] * 3 + [False] * 2


def test_a_torch_without_the_operators_packs_nothing(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_reorder_convolution_weight=None))
    layer = torch.nn.Conv2d(64, 64, 3)
    pack_convolutions(layer)
    assert "forward" not in vars(layer)


# Refusals

REFUSED = {
    "no type": ("POST", "/predict", PNG, {}, 415, "Content-Type", "missing", "image/*", "curl"),
    "another type": ("POST", "/predict", PNG, {"content_type": "text/plain"}, 415, "text/plain", "multipart/form-data"),
    "empty": ("POST", "/predict", b"", {"content_type": "image/png"}, 422, "empty"),
    "no image": ("POST", "/predict", b"hello", {"content_type": "image/png"}, 415, "no image file", "jpeg, png"),
    "heic": ("POST", "/predict", b"\0\0\0\x18ftypheic", {"content_type": "image/heic"}, 415, "the file is heic", "jpeg, png"),
    "not served": ("POST", "/predict", b"II*\0....", {"content_type": "image/tiff"}, 415, "tiff", "jpeg, png"),
    "bomb": ("POST", "/predict", bomb(), {"content_type": "image/png"}, 413, "100"),
    "too many pixels": ("POST", "/predict", encode(picture(0, 11, 10), "PNG"), {"content_type": "image/png"}, 413, "11x10", "100"),
    "too large": ("POST", "/predict", [PNG, bytes(20_000)], {"content_type": "image/png"}, 413, "20,000"),
    "too large, and says so": ("POST", "/predict", b"", {"content_type": "image/png", "content_length": "20001"}, 413, "20,000"),
    "no boundary": ("POST", "/predict", b"x", {"content_type": "multipart/form-data"}, 400, "boundary", "curl"),
    "no form": ("POST", "/predict", b"x", {"content_type": "multipart/form-data; boundary=a"}, 400, "form"),
    "strange charset": (
        *("POST", "/predict", form(("a", b"x"))[0], {"content_type": "multipart/form-data; boundary=XyZ; charset=hex"}, 415),
        "a is no image file",
    ),
    "top_k=0": ("POST", "/predict?top_k=0", PNG, {"content_type": "image/png"}, 400, "top_k=0", "1 or more", "?top_k=3"),
    "top_k twice": ("POST", "/predict?top_k=1&top_k=2", PNG, {"content_type": "image/png"}, 400, "top_k=1", "one integer"),
    "misspelt": ("POST", "/predict?topk=1", PNG, {"content_type": "image/png"}, 400, "topk", "top_k"),
    "another method": ("GET", "/predict", b"", {}, 405, "GET /predict", "POST"),
    "a slash too many": ("GET", "/healthz/", b"", {}, 404, "/healthz/", "There are: "),
    "another path": ("GET", "/predictions", b"", {}, 404, "/predictions", "/predict"),
    "reload without a token": ("POST", "/reload", b"", {}, 403, "token_file=FILE"),
    "a long method": ("A" * 9999, "/predict", b"", {}, 405, "AAA...AAA", "POST"),
    "a long path": ("GET", "/" + "a" * 9999, b"", {}, 404, "aaa...aaa"),
    "a long parameter": ("POST", f"/predict?{'a' * 9999}=1", PNG, {"content_type": "image/png"}, 400, "aaa...aaa"),
    "a long value": ("POST", f"/predict?top_k={'1' * 9999}", PNG, {"content_type": "image/png"}, 400, "111...111"),
    "a long type": ("POST", "/predict", PNG, {"content_type": "a" * 9999}, 415, "aaa...aaa"),
    "a long name": ("POST", "/predict", form(("a" * 2000, b"x"))[0], {"content_type": form()[1]}, 415, "aaa...aaa"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_with_its_status(case):
    method, target, body, headers, status, *parts = REFUSED[case]
    reply = ask(service(), lambda client: client.send(method, target, body, **headers))
    assert reply.status == status
    assert list(reply.json) == ["error"]
    for part in parts:
        assert part in reply.json["error"]
    assert reply.json["error"].isprintable()
    assert len(reply.json["error"]) < 300


def test_forms_have_limits():
    for files, words in (([("a.png", PNG)] * 5, "more than 4 files. Send them in several requests."), ([], "no file")):
        body, kind = form(*files)
        reply = ask(service(), lambda client, body=body, kind=kind: client.predict(body, kind))
        assert (reply.status, words in reply.json["error"]) == (400, True)


def test_one_bad_file_refuses_the_form_by_its_name():
    body, kind = form(("good.png", PNG), ("bad.png", PNG[:40]))
    reply = ask(service(), lambda client: client.predict(body, kind))
    assert reply.status == 422
    assert "bad.png" in reply.json["error"]


def test_a_body_that_does_not_arrive_is_given_up():
    limits = Limits(**{**vars(LIMITS), "body_timeout_s": 0.001})
    served = service(limits=limits)
    reply = ask(
        served, lambda client: client.send("POST", "/predict", b"x", ends=False, content_type="image/png", content_length="9")
    )
    assert (reply.status, "0.001 s" in reply.json["error"]) == (408, True)


@pytest.mark.parametrize(
    ("header", "is_read"), [({"connection": "close"}, True), ({}, False), ({"expect": "100-continue"}, False)]
)
def test_a_refused_body_is_read_to_its_end_where_the_connection_closes_after_it(header, is_read):
    """Else the connection is reset, and a client that still sends never sees why."""
    unread = []
    parts = [bytes(20_001), bytes(5), bytes(5)]
    reply = ask(
        service(), lambda client: client.send("POST", "/predict", parts, unread=unread, content_type="image/png", **header)
    )
    assert (reply.status, unread == []) == (413, is_read)


def test_a_full_queue_answers_429_with_a_time_and_before_the_body():
    go = threading.Event()

    async def talk(client: Client):
        waiting = [asyncio.create_task(client.predict()) for _ in range(2)]
        await asyncio.sleep(0)
        full = await client.send("POST", "/predict", b"", ends=False, content_type="image/png")  # never sends its body
        healthy = await client.send("GET", "/healthz")
        go.set()
        return full, healthy, await asyncio.gather(*waiting)

    full, healthy, answered = ask(service(Echo(wait=go.wait), max_queue=2), talk)
    assert full.status == 429
    assert int(full.headers["retry-after"]) >= 1
    assert healthy.status == 200
    assert [reply.status for reply in answered] == [200, 200]


def test_a_form_with_more_images_than_there_is_room_for_is_full_too():
    body, kind = form(*[("a.png", PNG)] * 4)
    assert ask(service(max_queue=3), lambda client: client.predict(body, kind)).status == 429


def test_a_fault_of_the_network_is_a_500_without_its_details():
    def fail():
        raise RuntimeError("secret")

    async def talk(client: Client):
        with pytest.raises(RuntimeError, match="secret"):  # for the log
            await client.predict()
        return client.reply(), (await client.send("GET", "/metrics")).body.decode()

    reply, metrics = ask(service(Echo(wait=fail)), talk)
    assert (reply.status, reply.json) == (500, {"error": "the server failed. Its log says why."})
    assert 'imgrec_requests_total{path="/predict",status="500"} 1.0' in metrics


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
@pytest.mark.parametrize("where", ["file", "network"])
def test_an_image_that_the_memory_does_not_hold_is_asked_for_again_later(error, where, monkeypatch, capsys):
    class Full(Echo):
        def read(self, content, name):
            if where == "file":
                monkeypatch.setattr(Image.Image, "load", lambda image: raise_error(error))
                return decode_bytes(content, name, PREPROCESSING)
            return super().read(content, name)

    async def talk(client: Client):
        return await client.predict(), (await client.send("GET", "/healthz")).status

    reply, health = ask(service(Full(wait=lambda: raise_error(error))), talk)
    assert (reply.status, reply.headers["retry-after"], health) == (503, "5", 200)
    assert_error(reply.json["error"], "the server has not enough memory", "Try again")
    assert capsys.readouterr().err == ""


def raise_error(error):
    raise error


class NoNumber(Echo):
    """A network without an answer to images of 99 bytes."""

    def answer(self, images, top_k):
        if 99 in images:
            raise CheckpointError("x.ckpt: the network's answer is not a number.")
        return super().answer(images, top_k)


def test_an_answer_that_is_not_a_number_is_a_500_with_one_line_in_the_log_and_the_others_are_answered(capsys):
    async def talk(client: Client):
        bad = form(("bad\t.png", PNG[:99]))
        return await asyncio.gather(client.predict(), client.predict(*bad), client.predict())

    replies = ask(service(NoNumber(), max_wait_s=1000.0), talk)
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert replies[1].json == {"error": "the network has no answer to bad?.png. The server's log says why."}
    assert capsys.readouterr().err == "imgrec: bad?.png: x.ckpt: the network's answer is not a number.\n"


def test_a_stop_that_waits_no_longer_answers_503():
    """For a request in the queue and one whose body is still coming, on a connection that is closed after it."""
    go = threading.Event()

    async def talk(client: Client):
        waits = asyncio.create_task(client.predict())
        sends = asyncio.create_task(
            client.send("POST", "/predict", PNG, ends=False, content_type="image/png", connection="close")
        )
        while served._batcher.admitted < 2 or served._batcher.preparing > 1:
            await asyncio.sleep(0)
        for task in (waits, sends):
            task.cancel()
        for _ in range(99):
            await asyncio.sleep(0)
        sends.cancel()  # the end of the event loop, while the body is read to its end
        replies = await waits, await sends
        go.set()
        return replies, served._batcher.admitted

    served = service(Echo(wait=go.wait))
    replies, admitted = ask(served, talk)
    assert [(reply.status, reply.headers["retry-after"]) for reply in replies] == [(503, "5")] * 2
    assert admitted == 0


def test_a_refused_request_holds_its_places_until_all_of_its_images_are_read():
    """Else requests with one bad file among good ones fill the decoders' queue, which has no other bound."""
    go = threading.Event()

    class Slow(Echo):
        def read(self, content, name):
            if name == "bad.png":
                raise DataError("bad.png is bad.")
            go.wait()
            return super().read(content, name)

    async def talk(client: Client):
        asked = asyncio.create_task(client.predict(*form(*[("bad.png", PNG), ("slow.png", PNG)])))
        while served._batcher.admitted < 2:
            await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(served._decoders, lambda: None)  # behind bad.png, on two cores
        for _ in range(9):
            await asyncio.sleep(0)
        held = served._batcher.admitted
        go.set()
        return held, (await asked).status, served._batcher.admitted

    served = service(Slow())
    assert ask(served, talk) == (2, 422, 0)


def test_an_image_that_the_network_fails_on_takes_no_others_with_it():
    class Picky(Echo):
        def answer(self, images, top_k):
            if 99 in images:
                raise RuntimeError("99")
            return super().answer(images, top_k)

    picky = Picky()
    answers = answer_jobs([ImageJob(picky, size, 1) for size in (1, 99, 3)])
    assert [str(answers[1]), answers[0].class_name, answers[2].class_name] == ["99", "old 1", "old 3"]


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", PIECES)
def test_an_image_has_a_limit_on_its_pieces(kind):
    """Without it 10 MB of such bodies were seconds to minutes of a decoder's time."""
    name, at, piece, count, too_many, reason = PIECES[kind]
    limits = Limits(**{**vars(LIMITS), "max_pixels": 10**6, "max_body_bytes": 10**6})

    async def talk(client: Client):
        return [await client.predict(with_pieces(name, at, piece, number)) for number in (count, too_many)]

    read, refused = ask(service(limits=limits), talk)
    assert read.status == 200
    assert (refused.status, reason in refused.json["error"]) == (422, True)


def test_a_jpeg_has_a_limit_on_its_scans(recognizer):
    limits = Limits(**{**vars(LIMITS), "max_pixels": 64 * 64})

    async def talk(client: Client):
        return [await client.predict(scans(count)) for count in (100, 101)]

    read, refused = ask(service(recognizer, limits=limits), talk)
    assert read.status == 200
    assert (refused.status, "101 scans" in refused.json["error"]) == (422, True)


def test_a_header_that_the_memory_does_not_hold_is_no_fault_of_the_file(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("imgrec.serving.limits.open_image", fail)
    reply = ask(service(), lambda client: client.predict())
    assert (reply.status, "memory" in reply.json["error"], reply.headers["retry-after"]) == (503, True, "5")


def test_a_damaged_start_is_said_without_a_name_of_python():
    """Of Pillow's text for it, or of the KeyError of a format that it does not register."""
    for name in ("colour.jpg", "colour.png", "one.gif", "lossy.webp", "colour.bmp"):
        reply = ask(service(), lambda client, name=name: client.predict(KINDS[name][:14]))
        assert reply.status == 422
        assert not re.search("0x|object|'MPO'", reply.json["error"])


@pytest.mark.parametrize("name", ["colour.jpg", "colour.png", "lossy.webp", "one.gif", "colour.bmp", "raw.tif", "colour.avif"])
def test_formats_are_known_by_their_first_bytes(name):
    form = image_format(KINDS[name])
    assert form == {"jpg": "jpeg", "tif": "tiff"}.get(name.partition(".")[2], name.partition(".")[2])
    check_image(Upload(name, KINDS[name]), Limits(**{**vars(LIMITS), "max_pixels": 13 * 9, "formats": (form,)}))


def broken(count, seed=0):
    chance, kinds = random.Random(seed), list(KINDS.values())
    return [*stored_damage().values(), *(damaged(kinds[number % len(kinds)], chance) for number in range(count - 200))]


@pytest.mark.parametrize("count", [pytest.param(40), pytest.param(1000, marks=pytest.mark.slow)])
def test_broken_images_are_answered_or_refused(recognizer, count):
    limits = Limits(**{**vars(LIMITS), "formats": ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"), "max_pixels": 10**6})

    async def talk(client: Client):
        return [(await client.predict(content)).status for content in broken(count)[:count]]

    found = set(ask(service(recognizer, limits=limits), talk))
    assert found <= {200, 413, 415, 422}
    assert {200, 422} <= found


# The token


def test_a_token_is_asked_for_what_costs_or_tells_something():
    async def talk(client: Client):
        asked = {}
        for header in (None, f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            headers = {} if header is None else {"authorization": header}
            asked[header] = [
                (await client.predict(**headers)).status,
                (await client.send("POST", "/reload", **headers)).status,
                (await client.send("GET", "/metrics", **headers)).status,
            ]
        return asked, [(await client.send("GET", path)).status for path in ("/", "/openapi.json", "/healthz", "/readyz")]

    asked, is_open = ask(service(token=TOKEN), talk)
    assert is_open == [200] * 4
    assert list(asked.values()) == [[401] * 3] * 4 + [[200] * 3] * 2


@pytest.mark.parametrize("given", ["", TOKEN, TOKEN * 2, TOKEN[:-1], TOKEN.upper(), f" {TOKEN} ", "\udcff", "é"])
def test_only_the_token_is_allowed(given):
    assert is_allowed(f"Bearer {given}", TOKEN) == (given.strip() == TOKEN)


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None) is None
    (file := tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(str(file)) == TOKEN
    for content, parts in (
        (b"short", ("5 characters", "16")),
        (b"\xff" * 20, ("ASCII",)),
        (b"two words of text", ("16",)),
        (b"x" * 2000, ("2,000 characters", "1,024")),
    ):
        file.write_bytes(content)
        with raises_error(ConfigError, f"token_file={file}", *parts, "openssl rand"):
            read_token(str(file))
    with raises_error(ConfigError, "token_file=nowhere", "No such file", "openssl rand"):
        read_token("nowhere")
    with raises_error(ConfigError, "token_file=/dev/zero", "2,048 characters", "openssl rand"):  # without an end
        read_token("/dev/zero")
    file.write_bytes(f"{TOKEN}\r\n".encode())
    assert read_token(str(file)) == TOKEN
    for mode, is_open in ((0o644, True), (0o600, False)):
        file.chmod(mode)
        assert readable_by_others(str(file)) is is_open
    monkeypatch.setenv(VARIABLE, "")
    with raises_error(ConfigError, VARIABLE, "0 characters", f"unset {VARIABLE}"):
        read_token(None)
    monkeypatch.setenv(VARIABLE, TOKEN * 2)
    assert read_token(None) == TOKEN * 2
    with raises_error(ConfigError, f"token_file={file}", VARIABLE, "one of them"):
        read_token(str(file))


SITES = {
    "http://[::1]:8000": 200,
    "localhost:8000": 200,
    "LOCALHOST.": 200,
    "a.localhost": 200,
    "192.168.1.5:80": 200,
    "box": 200,
    "evil.example:8000": 403,
    "localhost.evil.example": 403,
    "127.0.0.1.evil.example": 403,
    "[evil.example]": 403,
}


@pytest.mark.parametrize("host", SITES)
def test_a_name_that_another_site_pointed_here_is_refused_where_no_token_is_asked_for(host):
    """DNS rebinding: to the browser the answer belongs to the site, so its page could read it."""
    name = host.removeprefix("http://")

    async def talk(client: Client):
        return [
            (await client.predict(host=name, **HEADER)).status,
            *[(await client.send("GET", path, host=name)).status for path in ("/", "/metrics")],
        ]

    assert ask(service(local_host="box"), talk) == [SITES[host]] * 3
    assert ask(service(local_host=None), talk) == [200] * 3  # others reach it by whatever name
    assert ask(service(local_host="box", token=TOKEN), talk)[0] == 200


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200), (None, 200)]
)
def test_a_page_of_another_site_posts_no_images(site, status):
    headers = {} if site is None else {"sec_fetch_site": site}

    async def talk(client: Client):
        return (await client.predict(**headers)).status, (await client.send("GET", "/", **headers)).status

    assert ask(service(), talk) == (status, 200)  # a link from elsewhere opens the page


# Reload, readiness, metrics


def test_a_reload_answers_what_the_old_network_has_accepted_and_then_the_new_one():
    go = threading.Event()

    async def talk(client: Client):
        early = asyncio.create_task(client.predict(**HEADER))
        while served._batcher.preparing or not served._batcher.admitted:
            await asyncio.sleep(0)
        reply = await client.send("POST", "/reload", **HEADER)
        late = asyncio.create_task(client.predict(**HEADER))
        await asyncio.sleep(0)
        go.set()
        return reply, await early, await late

    served = service(Echo(wait=go.wait), lambda: Echo("new"), token=TOKEN)
    reply, early, late = ask(served, talk)
    assert reply.json == {"weights": "new", "classes": 3}
    assert [(each.status, each.json["weights"]) for each in (early, late)] == [(200, "old"), (200, "new")]


def test_a_second_reload_at_the_same_time_is_refused():
    go = threading.Event()

    async def talk(client: Client):
        first = asyncio.create_task(client.send("POST", "/reload", **HEADER))
        while not served._reloading.locked():
            await asyncio.sleep(0)
        second = await client.send("POST", "/reload", **HEADER)
        go.set()
        return (await first).status, second.status, second.json["error"]

    served = service(load=lambda: go.wait() and Echo("new"), token=TOKEN)
    assert ask(served, talk) == (200, 409, "a reload is under way. Wait for its answer.")


def test_a_checkpoint_that_cannot_be_loaded_leaves_the_network_from_before():
    def load_bad():
        raise CheckpointError("x.ckpt is damaged. Name another.")

    async def talk(client: Client):
        return await client.send("POST", "/reload", **HEADER), await client.predict(**HEADER)

    refused, answered = ask(service(load=load_bad, token=TOKEN), talk)
    assert refused.status == 409
    assert "x.ckpt is damaged" in refused.json["error"]
    assert answered.json["weights"] == "old"


def test_a_server_that_stops_is_not_ready_and_takes_no_image():
    async def talk(client: Client):
        before = (await client.send("GET", "/readyz")).status
        served.stopping = True
        return before, (await client.send("GET", "/readyz")).status, (await client.predict()).status

    served = service()
    assert ask(served, talk) == (200, 503, 503)


def test_metrics_count_requests_images_and_batches():
    async def talk(client: Client):
        await client.predict()
        await client.predict(b"")
        body, kind = form(("a.png", PNG), ("b.png", PNG))
        await client.predict(body, kind)
        await client.send("GET", "/anything")
        return (await client.send("GET", "/metrics")).body.decode().splitlines()

    lines = ask(service(), talk)
    for line in (
        'imgrec_requests_total{path="/predict",status="200"} 2.0',
        'imgrec_requests_total{path="/predict",status="422"} 1.0',
        'imgrec_requests_total{path="other",status="404"} 1.0',
        "imgrec_images_total 3.0",
        "imgrec_predict_seconds_count 2.0",
        "imgrec_waiting_images 0.0",
    ):
        assert line in lines


def test_metrics_are_prometheus_text_with_the_servers_own_first():
    async def talk(client: Client):
        await client.predict()
        return (await client.send("GET", "/metrics")).body.decode()

    families = list(text_string_to_metric_families(ask(service(), talk)))
    names = [family.name for family in families]
    own = [name for name in names if name.startswith("imgrec_")]
    assert names == [*own, *(name for name in names if name.startswith("process_"))]
    values = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    assert values["imgrec_requests_total", "/predict", "200"] == values["imgrec_images_total",] == 1
    assert values["imgrec_batch_images_bucket", "1.0"] == values["imgrec_batch_images_bucket", "+Inf"] == 1
    assert values["imgrec_batch_images_sum",] == 1


def test_an_image_that_the_recognizer_refuses_late_is_not_counted_as_answered():
    class Late(Echo):
        def answer(self, images, top_k):
            return [DataError("a.png is bad."), *super().answer(images[1:], top_k)]

    async def talk(client: Client):
        refused = await client.predict(*form(("a.png", PNG), ("b.png", PNG)))
        return refused.status, (await client.send("GET", "/metrics")).body.decode()

    served = service(Late())
    status, metrics = ask(served, talk)
    assert (status, served.answered) == (422, 0)
    assert "imgrec_images_total 0.0" in metrics
    assert "imgrec_predict_seconds_count 0.0" in metrics


# The documents


def test_openapi_names_every_path_and_the_limits():
    document = ask(service(), lambda client: client.send("GET", "/openapi.json")).json
    assert set(document["paths"]) == {"/", "/predict", "/reload", "/openapi.json", "/healthz", "/readyz", "/metrics"}
    form = document["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["maxItems"] == 4
    assert {"200", "400", "401", "413", "415", "422", "429", "503"} <= set(document["paths"]["/predict"]["post"]["responses"])


def test_the_page_shows_names_as_text_and_loads_nothing_else():
    reply = ask(service(), lambda client: client.send("GET", "/"))
    assert "connect-src 'self'" in reply.headers["content-security-policy"]
    page = drop_page(["<script>", "b"], LIMITS, needs_token=True)
    assert "&lt;script&gt;" in page
    assert 'id="token" type="password"' in page
    assert "http" not in page.replace("http://127.0.0.1:8000", "").replace("http-equiv", "")


# The command


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("ckpt=null", "ckpt=runs/NAME/ID")),
        (("ckpt=x.onnx", "coverage=0.9"), ("coverage=0.9", "as it was exported", "Leave coverage out")),
        (("ckpt=x.onnx", "calibrated=false"), ("calibrated=false", "Leave calibrated out")),
        (("ckpt=nowhere",), ("nowhere", "no such file", "runs/NAME/ID")),
        (("ckpt=/dev/zero",), ("/dev/zero", "device", "runs/NAME/ID")),
        (("ckpt=x", "max_images=20", "max_queue=5"), ("max_images=20", "max_queue=5", "max_queue=20")),
        (("ckpt=x", "formats=[]"), ("formats=[]", "formats=[jpeg,png]")),
        (("ckpt=x", "formats=[psd]"), ("formats", "psd", "jpeg")),
        (("ckpt=x.onnx", "sets=aps"), ("sets=aps has no effect", "coverage=0.95")),
        (("ckpt=x", "port=70000"), ("port=70000", "65535")),
        (("ckpt=x", "coverage=0.9", "risk=0.1"), ("coverage=0.9", "risk=0.1", "one of them")),
    ],
)
def test_a_wrong_key_is_one_line(words, parts, capsys):
    assert cli.main(["serve", *words]) == 2
    assert_refused(capsys.readouterr().err, *parts)


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("imgrec.config.start_checks.find_spec", lambda name: None if name == "uvicorn" else object())
    assert cli.main(["serve", "ckpt=x"]) == 2
    assert_refused(capsys.readouterr().err, "serve needs uvicorn", 'pip install "imgrec[serve]"')
    monkeypatch.setattr("imgrec.config.start_checks.find_spec", lambda name: None if name == "onnxruntime" else object())
    (tmp_path / "x.onnx").touch()
    for words, what in ((["serve", "x.onnx"], "ckpt=x.onnx"), (["verify", str(tmp_path / "x.onnx")], "verify")):
        assert cli.main(words) == 2
        assert_refused(capsys.readouterr().err, f"{what} needs onnxruntime", 'pip install "imgrec[export]"')


def test_a_port_that_is_taken_names_the_next(tmp_path, capsys):
    run = save_untrained_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", f"ckpt={run}", f"port={port}"]) == 2
    assert_refused(capsys.readouterr().err, f"port={port}", f"port={port + 1}", "port=0")


@pytest.mark.parametrize(
    "host", ["no.such.name.invalid", "203.0.113.9", "ff02::1", "224.0.0.1", "255.255.255.255", "127.255.255.255"]
)
def test_a_host_that_is_not_here_is_refused(host):
    with raises_error(ConfigError, f"host={host}", "host=127.0.0.1"):
        bind(host, 0)


def test_a_connection_is_read_in_small_pieces():
    """A body in chunks of one byte, for each of which h11 takes time, holds up others no longer than one piece takes."""
    sizes = []

    class Recorded(patient_protocol(10)):
        def data_received(self, data):
            sizes.append(len(data))
            super().data_received(data)

    async def talk():
        server = uvicorn.Server(uvicorn.Config(service().app(), port=0, http=Recorded, log_level="error", ws="none"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"1\r\nx\r\n" * 8000 + b"0\r\n\r\n")
        status = await reader.readline()
        writer.close()
        server.should_exit = True
        await serving
        return status

    assert b" 415 " in asyncio.run(talk())
    assert sum(sizes) > max(sizes)
    assert max(sizes) <= READ_BYTES


def test_answers_do_not_wait_for_acknowledgements():
    """asyncio sets TCP_NODELAY on connections of a socket whose protocol is named."""
    with bind("127.0.0.1", 0) as opened:
        assert opened.proto == socket.IPPROTO_TCP


def test_refusals_are_printable():
    assert_error(str(Refused(400, "a\nb\ud800")), "a?b?")
    assert json.dumps(str(Refused(400, "\ud800")))
