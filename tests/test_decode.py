"""What image files become: PIL's pixels to the last level whichever way they come in, an error for damage, and never a crash."""

import io
import random
import resource
import struct
import zlib
from typing import get_args

import numpy as np
import pytest
import torch
from error_parts import assert_error, raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    coloured_files,
    damaged,
    encode,
    file_kinds,
    insert_chunk,
    picture,
    png_chunk,
    stored_damage,
    turned_files,
)
from PIL import Image, ImageOps
from processes import run_ranks
from test_data_folder import PREPROCESSING as COLOUR
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor
from torchvision.transforms.v2 import functional as F

from imgrec.config.named_values import Decoder
from imgrec.data.batch import Request
from imgrec.data.decode import Preprocessing, ScaleError, decode, fit_to_size, from_pil, load_image
from imgrec.data.file_splits import folder_split
from imgrec.data.jpeg import check_decoder
from imgrec.errors import ConfigError, DataError
from imgrec.files import IMAGE_EXTENSIONS, IMAGE_FORMATS

GRAY = Preprocessing(**{**COLOUR, "channels": 1, "mean": [0.5], "std": [0.25]})


def scaled(*scale: float) -> Preprocessing:
    return Preprocessing(**{**GRAY, "scale": list(scale) or None})


def by_pil(content: bytes, preprocessing: Preprocessing) -> torch.Tensor:
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # PIL would clip them
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return pil_to_tensor(upright.convert("L" if preprocessing["channels"] == 1 else "RGB"))


def decoded(tmp_path, content: bytes, preprocessing: Preprocessing = COLOUR) -> torch.Tensor:
    path = tmp_path / "image"
    path.write_bytes(content)
    return decode(str(path), preprocessing)


# The same pixels whichever way they come in

CASES = {
    **file_kinds(),
    **{name: content for name, _, content in turned_files()},
    **dict(coloured_files()),
}


@pytest.mark.parametrize("preprocessing", [COLOUR, pytest.param(GRAY, marks=pytest.mark.slow)], ids=["colour", "gray"])
def test_training_and_prediction_by_path_or_from_a_picture_see_pils_pixels(tmp_path, preprocessing):
    (tmp_path / "class").mkdir()
    for name, content in CASES.items():
        (tmp_path / "class" / name).write_bytes(content)
    files = folder_split(
        str(tmp_path), ["class"], preprocessing, on_bad_image="refuse", on_bad_image_eval="refuse", decoder="auto"
    )
    assert len(files) == len(CASES)
    trained = files[Request(0, np.arange(len(files)), len(files))].images
    for row, image in enumerate(trained):
        path = files.path(row)
        reference = by_pil(CASES[path.rpartition("/")[2]], preprocessing)
        assert torch.equal(decode(path, preprocessing), reference), path
        assert torch.equal(image, fit_to_size(reference, preprocessing)), path
        with Image.open(path) as opened:
            assert torch.equal(from_pil(opened, preprocessing), reference), path  # opened, not loaded
            assert torch.equal(from_pil(opened, preprocessing), reference), path  # loaded


@pytest.mark.parametrize("preprocessing", [COLOUR, pytest.param(GRAY, marks=pytest.mark.slow)], ids=["colour", "gray"])
@pytest.mark.parametrize("decoder", [name for name in get_args(Decoder) if name != "auto"])
def test_every_decoder_sees_pils_pixels(tmp_path, preprocessing, decoder):
    if decoder == "torchcodec":
        pytest.importorskip(decoder, reason="torchcodec is not installed")
    for name, content in CASES.items():
        (tmp_path / name).write_bytes(content)
        pixels = decode(str(tmp_path / name), preprocessing, decoder).int()
        assert (pixels - by_pil(content, preprocessing)).abs().max() <= 1, name


@pytest.mark.parametrize("decoder", ["simplejpeg", "torchvision", "pil"])
def test_a_jpeg_that_is_cut_short_is_an_error_of_every_decoder(tmp_path, decoder):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(picture(0), "JPEG")[:-300])
    with pytest.raises(DataError) as error:
        decode(str(path), COLOUR, decoder)
    assert_error(str(error.value), str(path), "truncated")
    assert ".cpp" not in str(error.value)  # the place in torchvision's source


def test_a_decoder_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("imgrec.data.jpeg.find_spec", lambda name: None)
    with raises_error(ConfigError, "data.decoder=torchcodec", "pip install torchcodec", "data.decoder=auto"):
        check_decoder("torchcodec")


def test_turned_files_are_upright():
    """Against the picture itself, where a format loses nothing."""
    upright, seen = pil_to_tensor(picture(1)), set()
    for name, orientation, content in turned_files():
        if name.endswith((".png", ".webp", ".tif")):
            seen.add(orientation)
            with Image.open(io.BytesIO(content)) as image:
                assert torch.equal(from_pil(image, COLOUR), upright), name
    assert seen == set(range(1, 9))


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pil_is_converted(mode):
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")
    image = picture(2).convert(through).convert(mode)
    straight = image.convert(through) if mode in ("La", "RGBa") else image
    assert torch.equal(from_pil(image, COLOUR), pil_to_tensor(straight.convert("RGB")))
    assert torch.equal(from_pil(image, GRAY), pil_to_tensor(straight.convert("L")))


def test_metadata_that_cannot_be_read_says_nothing_of_the_pixels(tmp_path):
    reference = pil_to_tensor(picture(1))
    for exif in (
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"no header at all",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x01",
    ):
        png = insert_chunk(encode(picture(1), "PNG"), png_chunk(b"eXIf", exif), b"IDAT")
        assert torch.equal(decoded(tmp_path, png), reference), exif
    for orientation in (0, 9, 65535):
        block = struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        assert torch.equal(decoded(tmp_path, encode(picture(1), "PNG", exif=block)), reference)


def test_squash_and_crop_are_torchvisions_on_pil_images(tmp_path):
    for k, (width, height) in enumerate([(61, 44), (44, 61), (300, 100), (20, 30), (24, 24)]):
        path = tmp_path / f"{k}.png"
        picture(k, width, height).save(path)
        with Image.open(path) as image:
            squashed = pil_to_tensor(v2.Resize([24, 24])(image))
            middle = pil_to_tensor(v2.Compose([v2.Resize(32), v2.CenterCrop(24)])(image))
        for resize, reference in (("squash", squashed), ("crop", middle)):
            image = load_image(str(path), Preprocessing(**{**COLOUR, "resize": resize, "crop_share": 0.75}))
            assert image.shape == reference.shape
            assert (image.int() - reference.int()).abs().max() <= 2


# More than 8 bits


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, form):
    values = (np.arange(2400).reshape(40, 60) * 27).astype(np.uint16)
    assert decoded(tmp_path, encode(Image.fromarray(values), form), GRAY)[0].tolist() == (values >> 8).tolist()


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_a_16_bit_file_become_256_equal_steps(tmp_path, bits):
    values = np.arange(2**bits, dtype=np.uint16).reshape(32, -1)
    levels = decoded(tmp_path, encode(Image.fromarray(values), "PNG"), scaled(0, 2**bits - 1))
    assert levels[0].tolist() == (values >> (bits - 8)).tolist()


@given(st.integers(0, 2**32 - 1), st.floats(-1e6, 1e6, width=32), st.floats(0.125, 1e6, width=32))
@settings(max_examples=50, deadline=None)
def test_floats_become_torchvisions_levels(seed, black, width):
    shares = np.random.default_rng(seed).uniform(-0.25, 1.25, (5, 7))
    values = (black + shares * width).astype(np.float32)
    levels = from_pil(Image.fromarray(values), scaled(black, black + width))
    unit = torch.from_numpy((values.astype(np.float64) - black) / (black + width - black)).clamp(0, 1)
    reference = F.to_dtype(unit[None], torch.uint8, scale=True)
    assert (levels.int() - reference.int()).abs().max() <= 1  # which takes 255.999 steps, not 256
    assert levels.min() >= 0


@pytest.mark.parametrize(
    ("values", "suggestion"),
    [
        (np.linspace(0, 1, 12, dtype=np.float32), "data.scale=[0,1]"),
        (np.linspace(-1, 1, 12, dtype=np.float32), "data.scale=[-1,1]"),
        (np.linspace(0, 65535, 12, dtype=np.float32), "data.scale=[0,65535]"),
        (np.linspace(-3, 1e9, 12, dtype=np.float32), "data.scale=[-3,1e+09]"),
        (np.zeros(12, dtype=np.float32), "data.scale=[0,1]"),
        (np.arange(0, 4080, 340, dtype=np.uint16), "data.scale=[0,4095]"),
        (np.arange(12, dtype=np.uint16), "data.scale=[0,255]"),
        (np.arange(-6, 6, dtype=np.int32) * 9999, "data.scale=[-59994,49995]"),
        (np.arange(12, dtype=np.int32) * 9999, "data.scale=[0,109989]"),
    ],
)
def test_values_whose_white_is_not_known_are_refused_also_where_bad_files_are_skipped(tmp_path, values, suggestion):
    (tmp_path / "class").mkdir()
    path = tmp_path / "class" / "a.tif"
    Image.fromarray(values.reshape(3, 4)).save(path)
    files = folder_split(str(tmp_path), ["class"], GRAY, on_bad_image="skip", on_bad_image_eval="skip", decoder="auto")
    with raises_error(ScaleError, path, f"{values.min():g}", f"{values.max():g}", "data.scale=[BLACK,WHITE]", suggestion):
        _ = files[Request(0, np.arange(1), 1)]
    black, white = map(float, suggestion.partition("[")[2][:-1].split(","))
    assert 0 <= int(decode(str(path), scaled(black, white)).max()) <= 255


def test_nan_is_damage_and_a_black_16_bit_picture_is_none(tmp_path):
    values = np.full((3, 4), np.nan, dtype=np.float32)
    with raises_error(DataError, tmp_path / "image", "cannot be read", "not a number"):
        decoded(tmp_path, encode(Image.fromarray(values), "TIFF"), scaled(0, 1))
    assert decoded(tmp_path, encode(Image.fromarray(np.zeros((3, 4), np.uint16)), "PNG"), GRAY).max() == 0


def sixteen_bit_colour(values: np.ndarray) -> bytes:
    height, width, _ = values.shape
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def test_16_bit_colour_keeps_its_upper_eight_bits_and_is_refused_where_these_are_empty(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    assert decoded(tmp_path, sixteen_bit_colour(values)).permute(1, 2, 0).tolist() == (values >> 8).tolist()
    twelve, black = sixteen_bit_colour(values >> 4), sixteen_bit_colour(values * 0)
    for content, scale in ((twelve, None), (twelve, [0, 4095]), (sixteen_bit_colour(values), [0, 4095])):
        with raises_error(ScaleError, tmp_path / "image", "16 bits", "Convert"):
            decoded(tmp_path, content, Preprocessing(**{**COLOUR, "scale": scale}))
    assert decoded(tmp_path, black).max() == 0


# Damage


def jpeg(**options: object) -> bytes:
    return encode(picture(3, 200, 150), "JPEG", quality=90, **options)


PNG = encode(picture(3), "PNG")
BROKEN = {
    "half": jpeg()[: len(jpeg()) // 2],
    "half_progressive": jpeg(progressive=True)[: len(jpeg(progressive=True)) // 2],
    "half_cmyk": encode(picture(3).convert("CMYK"), "JPEG")[:-400],
    # A download that was given its full length at the start.
    "half_then_zeros": jpeg()[: len(jpeg()) // 2] + bytes(len(jpeg()) // 2),
    "no_end": jpeg()[:-2],
    "half_png": PNG[: len(PNG) // 2],
    "png_without_pixels": PNG[:33] + PNG[-12:],
    "empty": b"",
    "garbage": np.random.default_rng(0).bytes(5000),
    "text": b"<html>404 Not Found</html>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path, kind):
    with raises_error(DataError, tmp_path / "image", "cannot be read"):
        decoded(tmp_path, BROKEN[kind])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("how", ["missing", "zeros"])
def test_a_jpeg_that_lost_data_in_its_middle_is_damaged(tmp_path, how, mode, options):
    """PIL fills it with gray and says nothing, or something else."""
    whole = encode(picture(3, 200, 150).convert(mode), "JPEG", quality=90, **options)
    scan = whole.index(b"\xff\xda")
    for share in (0.2, 0.5, 0.8):
        start = scan + int(share * (len(whole) - scan))
        content = whole[:start] + bytes(1000 if how == "zeros" else 0) + whole[start + 1000 :]
        with raises_error(DataError, tmp_path / "image", "cannot be read", "truncated or damaged"):
            decoded(tmp_path, content)


def test_every_flipped_byte_of_a_png_is_refused_or_does_no_harm(tmp_path):
    content = encode(picture(3, 12, 9), "PNG")
    whole = decoded(tmp_path, content)
    for place in range(8, len(content)):
        changed = bytearray(content)
        changed[place] ^= 8
        try:
            assert torch.equal(decoded(tmp_path, bytes(changed)), whole), place
        except DataError:
            continue


def test_bytes_after_the_end_do_no_harm_and_a_missing_file_is_named(tmp_path):
    with Image.open(io.BytesIO(jpeg())) as image:
        assert torch.equal(decoded(tmp_path, jpeg() + bytes(100)), pil_to_tensor(image))
    with raises_error(DataError, tmp_path / "b.jpg", "cannot be read", "No such file"):
        decode(str(tmp_path / "b.jpg"), COLOUR)
    with raises_error(DataError, tmp_path, "cannot be read"):
        decode(str(tmp_path), COLOUR)


def claim(width: int, height: int) -> dict[str, bytes]:
    """Small files that claim to be large."""
    size, start = struct.pack(">HH", height, width), jpeg().index(b"\xff\xc0") + 5
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    gif, bmp = encode(picture(0), "GIF"), encode(picture(0), "BMP")
    return {
        "jpeg": jpeg()[:start] + size + jpeg()[start + 4 :],
        "png": PNG[:8] + header + PNG[33:],
        "gif": gif[:6] + struct.pack("<HH", width, height) + gif[10:],
        "bmp": bmp[:18] + struct.pack("<ii", width, height) + bmp[26:],
        "ppm": b"P6\n%d %d\n255\n" % (width, height) + bytes(100),
    }


@pytest.mark.parametrize("kind", claim(9, 9))
def test_a_picture_above_max_pixels_is_refused_before_anything_is_allocated(tmp_path, kind):
    def refuse(rank: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with raises_error(
            DataError, tmp_path / "image", "12,000x9,000", "data.max_pixels=100000000", "smaller", "data.max_pixels=108000000"
        ):
            decoded(tmp_path, claim(12_000, 9_000)[kind])
        # Without a limit of its own, only PIL opens no file of that size.
        most = [] if kind == "jpeg" else ["178,956,970"]
        with raises_error(DataError, tmp_path / "image", "data.max_pixels=100000000", *most, "smaller"):
            decoded(tmp_path, claim(30_000, 30_000)[kind])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    (kilobytes,) = run_ranks(1, refuse)
    assert kilobytes < 20_000


def test_a_picture_that_the_memory_does_not_hold_says_so(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(0, 8, 6), "PNG"))

    def convert(*arguments):
        raise MemoryError  # it has no text

    monkeypatch.setattr(Image.Image, "load", convert)
    with raises_error(DataError, path, "memory", "smaller"):
        decode(str(path), COLOUR)


def test_max_pixels_is_the_largest_that_is_read(tmp_path):
    content = encode(picture(0, 20, 10), "PNG")
    assert decoded(tmp_path, content, Preprocessing(**{**COLOUR, "max_pixels": 200})).shape == (3, 10, 20)
    with raises_error(DataError, tmp_path / "image", "20x10", "data.max_pixels=199", "data.max_pixels=200"):
        decoded(tmp_path, content, Preprocessing(**{**COLOUR, "max_pixels": 199}))


def survive(folder, contents: list[bytes]) -> int:
    """How many of these files are read; each other one raises a DataError of one line. In a process that they may end."""
    path = folder / "image"

    def outcome(content: bytes) -> str:
        path.write_bytes(content)
        try:
            return str(tuple(load_image(str(path), COLOUR).shape))
        except DataError as error:
            return str(error)

    (outcomes,) = run_ranks(1, lambda rank: [outcome(content) for content in contents])
    read = outcomes.count("(3, 24, 24)")
    assert len(contents) - read == sum(text.startswith(str(path)) and "\n" not in text for text in outcomes)
    return read


def test_no_damaged_file_ends_the_process(tmp_path):
    """Stored, with PNGs that ended it in torchvision's decoder."""
    assert 0 < survive(tmp_path, list(stored_damage().values())) < 200


@pytest.mark.slow
@pytest.mark.parametrize("suffix", sorted({name.partition(".")[2] for name in file_kinds()}))
def test_no_damaged_file_of_any_format_ends_the_process(tmp_path, suffix):
    chance = random.Random(suffix)
    kinds = [content for name, content in file_kinds(13, 9).items() if name.endswith(f".{suffix}")]
    survive(tmp_path, [damaged(kinds[number % len(kinds)], chance) for number in range(3000)])


# Names


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_libtiff_prints_nothing(tmp_path, capfd, compression):
    """Where it meets a damaged file while a bar or a table is on the screen."""
    whole, file, rng = io.BytesIO(), tmp_path / "a.tif", random.Random(0)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "TIFF", compression=compression)
    refused = 0
    for _ in range(20):
        content = bytearray(whole.getvalue())
        for _ in range(5):
            content[rng.randrange(8, len(content))] ^= 0xFF
        file.write_bytes(content)
        try:
            decode(str(file), COLOUR)
        except DataError:
            refused += 1
    assert refused
    assert capfd.readouterr().err == ""


def test_extensions_are_those_of_every_format_that_is_decoded():
    Image.init()
    names = {name for name, form in Image.registered_extensions().items() if form in {*IMAGE_FORMATS, "MPO"}}
    assert names == IMAGE_EXTENSIONS
    assert set(IMAGE_FORMATS) <= set(Image.OPEN)
    left = set(Image.OPEN) - set(IMAGE_FORMATS)
    assert {"EPS", "HDF5", "GRIB", "BUFR", "WMF", "MPEG"} <= left  # programs that PIL would start, and headers without pixels
