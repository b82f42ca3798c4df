"""What a request may bring, and the refusals of all else: each one line and a 4xx status, before anything large is allocated."""

import asyncio
import warnings
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from imgrec.config.schema import ServedFormat
from imgrec.data import jpeg
from imgrec.data.decode import ScaleError
from imgrec.data.pieces import PNG_SIGNATURE, open_image
from imgrec.errors import DataError, first_line, plural, printable, shorten
from imgrec.inference.device import is_out_of_memory

FIELDS, FIELD_BYTES = 16, 4096  # of a form, beside its files
MOST_HEAD = 2**14  # bytes of what stands before a body
RAW_TYPES = ("application/octet-stream",)  # beside image/*
TOO_MANY_FILES = "Too many files"  # as Starlette's parser begins that error
HINT = "Type curl -F image=@photo.jpg ADDRESS/predict."
AVIF_BRANDS = (b"avif", b"avis")
HEIC_STARTS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"mif1", b"msf1"))  # of phones; PIL cannot read them
RETRY = {"Retry-After": "5"}  # seconds until another server may have taken its place, or others are answered


class Refused(Exception):
    """A request that is answered with a 4xx or 5xx status and this line."""

    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(printable(line))
        self.status, self.headers = status, headers


@dataclass(frozen=True)
class Limits:
    """Of one request; conf/serve.yaml says what each means."""

    max_images: int
    max_body_bytes: int
    max_pixels: int
    formats: tuple[ServedFormat, ...]
    body_timeout_s: float


class Upload(NamedTuple):
    """An image file of a request."""

    name: str | None  # None: the body is the file
    content: bytes

    def __str__(self) -> str:
        return "the file" if self.name is None else shorten(self.name)


def image_format(content: bytes) -> ServedFormat | None:
    """The format of an image file by its first bytes; None for one that is never served."""
    if content.startswith(jpeg.SIGNATURE):
        return "jpeg"
    if content.startswith(PNG_SIGNATURE):
        return "png"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith(b"BM"):
        return "bmp"
    if content.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    return "avif" if content[4:8] == b"ftyp" and content[8:12] in AVIF_BRANDS else None


def check_image(upload: Upload, limits: Limits) -> None:
    """Refused for a file of another format or with too many pixels; no pixel is decoded."""
    if not upload.content:
        raise Refused(422, f"{upload} is empty. Send an image file.")
    form = image_format(upload.content)
    if form not in limits.formats:
        found = form or ("heic" if upload.content[4:12] in HEIC_STARTS else "no image file")
        raise Refused(415, f"{upload} is {found}. Send one of {', '.join(limits.formats)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, about large images and unusual metadata
            with open_image(BytesIO(upload.content), [form]) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise Refused(413, f"{upload} has more pixels than {limits.max_pixels:,}. Make it smaller.") from error
    except UnidentifiedImageError as error:  # whose text is Python's name of the content
        raise Refused(422, f"{upload} cannot be read: it is damaged from its start on. Send a whole {form} file.") from error
    except DataError as error:
        raise Refused(422, f"{upload} cannot be read: {error}.") from error
    except MemoryError:  # not for a fault of the file
        raise
    except Exception as error:  # PIL's parsers raise OSError, SyntaxError, struct.error, ...
        raise Refused(422, f"{upload} cannot be read: {first_line(error)}. Send a whole {form} file.") from error
    if width * height > limits.max_pixels:
        raise Refused(413, f"{upload} has {width:,}x{height:,} pixels; at most {limits.max_pixels:,} are read. Make it smaller.")


def refuse_for_memory() -> Refused:
    """Of a request for which there is not enough memory now, beside those that are answered."""
    return Refused(503, "the server has not enough memory now. Try again, with fewer or smaller images at once.", RETRY)


def refuse_unreadable(error: DataError, upload: Upload) -> Refused:
    """The refusal of an image that cannot be decoded, without the keys of the training that its error may name."""
    if isinstance(error.__cause__, Exception) and is_out_of_memory(error.__cause__):
        return refuse_for_memory()
    if isinstance(error, ScaleError):
        return Refused(422, f"{upload}: which of its values are black and white is not known. Send it with 8 bits.")
    return Refused(422, str(error))


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """The image files of a request: its body, or the files of its form."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    is_form = kind == b"multipart/form-data"
    if not is_form and not kind.startswith(b"image/") and kind.decode("latin-1") not in RAW_TYPES:
        given = shorten(request.headers.get("content-type", "missing"))
        raise Refused(415, f"Content-Type is {given}; expected image/*, {RAW_TYPES[0]} or multipart/form-data. {HINT}")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            if is_form:
                return await _read_form(request, limits, options.get(b"boundary", b""))
            return [Upload(None, b"".join([chunk async for chunk in _limited(request, limits)]))]
    except TimeoutError as error:
        raise Refused(408, f"the request did not arrive within {limits.body_timeout_s:g} s. Send a smaller image.") from error


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"the request has more than {limits.max_body_bytes:,} bytes. Send smaller or fewer images.")


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        yield chunk


class _InMemory(MultiPartParser):
    spool_max_size = 2**40  # the body has a limit, and no image of a user is written to a disk


async def _read_form(request: Request, limits: Limits, boundary: bytes) -> list[Upload]:
    if not boundary or b'"' in boundary:
        raise Refused(400, f"Content-Type has no boundary of the form's parts. {HINT}")
    # Of the header's parameters only the boundary: a charset may be one that is none of text.
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary.decode("latin-1")}"'})
    parser = _InMemory(
        headers, _limited(request, limits), max_files=limits.max_images, max_fields=FIELDS, max_part_size=FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:  # the second of starlette 1.0
        if str(error).startswith(TOO_MANY_FILES):
            raise Refused(400, f"more than {plural(limits.max_images, 'file')}. Send them in several requests.") from error
        raise Refused(400, f"the form cannot be read: {first_line(error)}. {HINT}") from error
    files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
    if not files:
        raise Refused(400, f"the form has no file. {HINT}")
    return [Upload(file.filename or "a file without a name", await file.read()) for file in files]
