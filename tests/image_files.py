"""Image files for the tests of the decoder: every format and mode, every place of an orientation, and damage.

PYTHONPATH=. python tests/image_files.py writes damaged_images.zip anew: 200 damaged files, stored as encoders change.
"""

import errno
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from imgrec.data.folder import ImageFiles

STORED = Path(__file__).with_name("damaged_images.zip")
# What PIL does to show a picture of this orientation upright, undone.
TURNED_BY = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def fail_to_open(patched: pytest.MonkeyPatch, name: bytes) -> None:
    """Image files of this name cannot be read, as on a disk with errors."""

    def open_or_fail(images: ImageFiles, index: int, real=ImageFiles.open):
        if images.names[index] == name:
            raise OSError(errno.EIO, "Input/output error")
        return real(images, index)

    patched.setattr(ImageFiles, "open", open_or_fail)


def picture(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    """A smooth colour picture with some noise: what JPEG is made for, and no two alike."""
    made = np.random.default_rng(seed)
    coarse = Image.fromarray(made.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray(np.clip(smooth + made.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def encode(image: Image.Image, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


# Kinds of files


def file_kinds(width: int = 47, height: int = 33) -> dict[str, bytes]:
    """A small picture in each format, by the name of a file, that PIL writes and the decoder reads."""
    colour = picture(0, width, height)
    gray, palette, bits = colour.convert("L"), colour.convert("P"), colour.convert("1")
    sixteen = Image.fromarray(np.asarray(gray, dtype=np.uint16) * 257)
    kinds: list[tuple[str, Image.Image, str, dict[str, object]]] = [
        ("colour.jpg", colour, "JPEG", {}),
        ("progressive.jpg", colour, "JPEG", {"progressive": True}),
        ("full_chroma.jpg", colour, "JPEG", {"subsampling": 0}),
        ("restarts.jpg", colour, "JPEG", {"restart_marker_blocks": 2}),
        ("gray.jpg", gray, "JPEG", {}),
        ("cmyk.jpg", colour.convert("CMYK"), "JPEG", {}),
        ("rgb.jpg", colour, "JPEG", {"keep_rgb": True}),
        ("two.mpo", colour, "MPO", {"save_all": True, "append_images": [colour]}),
        ("colour.png", colour, "PNG", {}),
        ("gray.png", gray, "PNG", {}),
        ("bits.png", bits, "PNG", {}),
        ("palette.png", palette, "PNG", {}),
        ("transparent_palette.png", palette, "PNG", {"transparency": 3}),
        ("transparent_colour.png", colour, "PNG", {"transparency": (1, 2, 3)}),
        ("alpha.png", colour.convert("RGBA"), "PNG", {}),
        ("gray_alpha.png", colour.convert("LA"), "PNG", {}),
        ("sixteen.png", sixteen, "PNG", {}),
        ("moving.png", colour, "PNG", {"save_all": True, "append_images": [gray.convert("RGB")]}),
        ("one.gif", palette, "GIF", {}),
        ("moving.gif", palette, "GIF", {"save_all": True, "append_images": [gray.convert("P")]}),
        ("lossy.webp", colour, "WEBP", {}),
        ("lossless.webp", colour, "WEBP", {"lossless": True}),
        ("alpha.webp", colour.convert("RGBA"), "WEBP", {"lossless": True}),
        ("moving.webp", colour, "WEBP", {"save_all": True, "append_images": [gray.convert("RGB")]}),
        ("raw.tif", colour, "TIFF", {}),
        ("lzw.tif", colour, "TIFF", {"compression": "tiff_lzw"}),
        ("jpeg.tif", colour, "TIFF", {"compression": "jpeg"}),
        ("deflate.tif", colour, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("fax.tif", bits, "TIFF", {"compression": "group4"}),
        ("cmyk.tif", colour.convert("CMYK"), "TIFF", {}),
        ("alpha.tif", colour.convert("RGBA"), "TIFF", {}),
        # Pillow before 13 refuses a whole one as cut short.
        *([("ycbcr.tif", colour.convert("YCbCr"), "TIFF", {})] if int(PIL.__version__.partition(".")[0]) >= 13 else []),
        ("sixteen.tif", sixteen, "TIFF", {}),
        ("pages.tif", colour, "TIFF", {"save_all": True, "append_images": [gray.convert("RGB")]}),
        ("colour.bmp", colour, "BMP", {}),
        ("bits.bmp", bits, "BMP", {}),
        ("palette.bmp", palette, "BMP", {}),
        ("colour.ppm", colour, "PPM", {}),
        ("gray.pgm", gray, "PPM", {}),
        ("bits.pbm", bits, "PPM", {}),
        ("sixteen.pgm", sixteen, "PPM", {}),
        ("colour.ico", colour, "ICO", {}),
        ("colour.tga", colour, "TGA", {}),
        ("packed.tga", colour, "TGA", {"compression": "tga_rle"}),
        ("colour.jp2", colour, "JPEG2000", {}),
        ("colour.pcx", colour, "PCX", {}),
        ("colour.qoi", colour, "QOI", {}),
        ("colour.sgi", colour, "SGI", {}),
        ("colour.dds", colour, "DDS", {}),
        ("bits.msp", bits, "MSP", {}),
        ("bits.xbm", bits, "XBM", {}),
        ("colour.avif", colour, "AVIF", {}),
    ]
    return {name: encode(image, form, **how) for name, image, form, how in kinds}


# Orientations, wherever a file carries them


def exif_block(orientation: int, endian: str = "<") -> bytes:
    """A TIFF header with one directory of one entry."""
    magic = b"II*\0" if endian == "<" else b"MM\0*"
    return magic + struct.pack(f"{endian}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp_block(orientation: int, *, as_element: bool = False) -> bytes:
    begin = (
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description"
    )
    form = b"><tiff:Orientation>%d</tiff:Orientation></rdf:Description>" if as_element else b' tiff:Orientation="%d"/>'
    return begin + form % orientation + b"</rdf:RDF></x:xmpmeta>"


def app_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def insert_chunk(png: bytes, chunk: bytes, before: bytes) -> bytes:
    place = png.index(before) - 4
    return png[:place] + chunk + png[place:]


def turned_files() -> Iterator[tuple[str, int, bytes]]:
    """(name, orientation, content) of `picture(1)`, which all show when they are upright."""
    for orientation, turn in TURNED_BY.items():
        upright = picture(1)
        stored = upright if turn is None else upright.transpose(turn)
        for endian, byte_order in (("<", "II"), (">", "MM")):
            exif = exif_block(orientation, endian)
            jpeg, segment = encode(stored, "JPEG", quality=95), app_segment(0xE1, b"Exif\0\0" + exif)
            tables = jpeg.index(b"\xff\xdb")
            yield f"{byte_order}{orientation}_first.jpg", orientation, jpeg[:2] + segment + jpeg[2:]
            yield f"{byte_order}{orientation}_after_jfif.jpg", orientation, jpeg[:tables] + segment + jpeg[tables:]
            later = jpeg.index(b"\xff\xda")
            yield f"{byte_order}{orientation}_before_scan.jpg", orientation, jpeg[:later] + segment + jpeg[later:]
            others = app_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + app_segment(0xED, b"Photoshop 3.0\0") + segment
            yield f"{byte_order}{orientation}_after_others.jpg", orientation, jpeg[:tables] + others + jpeg[tables:]
            png, chunk = encode(stored, "PNG"), png_chunk(b"eXIf", exif)
            for place, before in (("before", b"IDAT"), ("after", b"IEND")):
                yield f"{byte_order}{orientation}_{place}_pixels.png", orientation, insert_chunk(png, chunk, before)
            yield f"{byte_order}{orientation}.webp", orientation, encode(stored, "WEBP", lossless=True, exif=exif)
        for as_element in (False, True):
            xmp, how = xmp_block(orientation, as_element=as_element), "element" if as_element else "attribute"
            yield f"xmp_{how}{orientation}.jpg", orientation, encode(stored, "JPEG", quality=95, xmp=xmp)
            yield f"xmp_{how}{orientation}.webp", orientation, encode(stored, "WEBP", lossless=True, xmp=xmp)
            text = PngImagePlugin.PngInfo()
            text.add_itxt("XML:com.adobe.xmp", xmp.decode())
            yield f"xmp_{how}{orientation}.png", orientation, encode(stored, "PNG", pnginfo=text)
        tags = Image.Exif()
        tags[0x0112] = orientation
        for compression in (None, "tiff_lzw"):
            yield f"{compression}{orientation}.tif", orientation, encode(stored, "TIFF", compression=compression, exif=tags)
        yield f"{orientation}.avif", orientation, encode(stored, "AVIF", quality=90, exif=tags)


def coloured_files() -> Iterator[tuple[str, bytes]]:
    """Gamma, chromaticities and profiles, which decoders may or may not apply."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    chunks = {
        "gamma": png_chunk(b"gAMA", struct.pack(">I", 100_000)),
        "chroma": png_chunk(b"cHRM", struct.pack(">8I", *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000])),
        "srgb": png_chunk(b"sRGB", b"\0"),
        "profile": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)),
        "background": png_chunk(b"bKGD", b"\0\1\0\2\0\3"),
        "bits": png_chunk(b"sBIT", b"\5\5\5"),
    }
    for mode in ("L", "RGB", "P", "RGBA"):
        png = encode(picture(2).convert(mode), "PNG")
        for name, chunk in chunks.items():
            if mode == "RGB" or name not in ("background", "bits"):
                # After the header, which is 8 + 25 bytes.
                yield f"{name}_{mode}.png", png[:33] + chunk + png[33:]
    for mode in ("L", "RGB", "CMYK"):
        yield f"profile_{mode}.jpg", encode(picture(2).convert(mode), "JPEG", icc_profile=profile)


# Damage


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A copy of a file, damaged as transfers, disks and fuzzers do."""
    changed = bytearray(content)
    kind = chance.choice(["flips", "flips", "header", "header", "cut", "zeros", "insertion", "large number"])
    place = chance.randrange(len(changed))
    if kind == "flips":
        for _ in range(chance.choice([1, 5, 50])):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == "header":
        for _ in range(chance.choice([1, 2, 6])):
            changed[chance.randrange(min(len(changed), 80))] = chance.choice([0, 255, 127, 128, 1, chance.randrange(256)])
    elif kind == "cut":
        del changed[max(1, place) :]
    elif kind == "zeros":
        changed[place : place + 40] = bytes(len(changed[place : place + 40]))
    elif kind == "insertion":
        changed[place:place] = chance.randbytes(chance.choice([1, 9, 300]))
    else:
        start = chance.randrange(max(1, min(len(changed) - 4, 200)))
        changed[start : start + 4] = chance.choice(
            [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x00\x10\x00\x00"]
        )
    return bytes(changed)


def stored_damage() -> dict[str, bytes]:
    with zipfile.ZipFile(STORED) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def main() -> None:
    chance, kinds = random.Random(0), list(file_kinds(13, 9).items())
    with zipfile.ZipFile(STORED, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(200):
            # Half of them are PNG, as decoders ended on these.
            pngs = [(name, content) for name, content in kinds if name.endswith(".png")]
            name, content = pngs[number // 2 % len(pngs)] if number % 2 else kinds[number // 2 % len(kinds)]
            archive.writestr(zipfile.ZipInfo(f"{number:03d}_{name}"), damaged(content, chance))


if __name__ == "__main__":
    main()
