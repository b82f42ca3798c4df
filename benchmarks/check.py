"""What `imgrec check` finds of 14 kinds of faults that were planted among photographs, what it finds besides, and its time beside decoding's.

    OMP_NUM_THREADS=1 python benchmarks/check.py root=DIR [images=20000] [each=72] [turns=40]

DIR/CLASS/NN_NAME.jpg: photographs of which NN is the same for windows of one. They are linked into a temporary folder, a fifth of them as a test
split, and `each` faults of every kind are planted. Windows of one photograph may be nearly the same picture, so between them nothing is judged.
The time is that of one process.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageEnhance

from imgrec.analysis.duplicates import find_duplicates, usual_distance
from imgrec.analysis.image_faults import FileState, find_image_faults
from imgrec.config.compose import compose_config
from imgrec.config.instantiate import build
from imgrec.data.decode import decode
from imgrec.data.folder import ImageFiles
from imgrec.data.image_data import ImageData
from imgrec.errors import DataError
from imgrec.scan.copy_faults import SURE_BITS
from imgrec.scan.file_scan import Scan, scan_files

IN_TURN = 256
Change = Callable[[Image.Image], Image.Image]


def encoded(image: Image.Image, form: str = "JPEG", **settings: int) -> bytes:
    file = BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def blank(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).integers(20, 23, (image.height, image.width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def zeroed(content: bytes) -> bytes:
    """An eighth of it, from its middle on."""
    middle, count = len(content) // 2, len(content) // 8
    return content[:middle] + bytes(count) + content[middle + count :]


# The content of a faulty file, of a good one's.
FAULTS: dict[str, tuple[str, Callable[[bytes, Image.Image], bytes]]] = {
    "empty": ("unreadable", lambda content, image: b""),
    "a web page": ("unreadable", lambda content, image: b"<!DOCTYPE html><title>404</title>" * 40),
    "half of the file": ("truncated", lambda content, image: content[: len(content) // 2]),
    "zeros in its middle": ("truncated", lambda content, image: zeroed(content)),
    "a PNG called .jpg": ("wrong_extension", lambda content, image: encoded(image, "PNG")),
    "an icon": ("tiny", lambda content, image: encoded(image.resize((40, 30)))),
    "a strip": ("extreme_aspect", lambda content, image: encoded(image.resize((500, 70)))),
    "a covered lens": ("blank", lambda content, image: encoded(blank(image), quality=95)),
}
LEAKS: dict[str, Change | None] = {  # from train into test
    "the same file": None,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "JPEG of quality 40": lambda image: Image.open(BytesIO(encoded(image, quality=40))),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}
OTHER_LABEL = "the same file in another class"  # of train
# Beside the 14 kinds: the picture itself is another one.
CHANGED: dict[str, Change | None] = {
    "brightened by 1.15": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "1% cut off at each side": lambda image: image.crop(
        (image.width // 100, image.height // 100, image.width * 99 // 100, image.height * 99 // 100)
    ),
}
COPIES = {**LEAKS, OTHER_LABEL: None, **CHANGED}


def plant(source: Path, root: Path, *, images: int, each: int) -> dict[str, tuple[str, str]]:
    """Fills ROOT/train and ROOT/test; the name of each planted file, its kind, and the name of what it was made of."""
    files = sorted(source.glob("*/*.jpg"))
    rng = np.random.default_rng(0)
    chosen = [files[row] for row in rng.permutation(len(files))[:images]]
    names = []
    for number, file in enumerate(chosen):
        name = f"{'test' if number % 5 == 0 else 'train'}/{file.parent.name}/{file.name}"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(file.resolve())
        names.append(name)
    classes = sorted({Path(name).parent.name for name in names})
    planted = {}
    originals = iter([name for name in names if name.startswith("train")])
    for kind, (_, change) in FAULTS.items():
        for number in range(each):
            original = next(originals)
            name = f"{Path(original).parent}/planted {kind} {number}.jpg"
            content = (root / original).read_bytes()
            (root / name).write_bytes(change(content, Image.open(BytesIO(content))))
            planted[name] = kind, original
    for kind, copy in COPIES.items():
        for number in range(each):
            original = next(originals)
            label = Path(original).parent.name
            other = classes[(classes.index(label) + 1) % len(classes)]
            name = f"{f'train/{other}' if kind == OTHER_LABEL else f'test/{label}'}/planted {kind} {number}.jpg"
            content = (root / original).read_bytes()
            content = content if copy is None else encoded(copy(Image.open(BytesIO(content))), quality=90)
            (root / name).write_bytes(content)
            planted[name] = kind, original
    return planted


def judge(scan: Scan, splits: list[ImageFiles], planted: Mapping[str, tuple[str, str]], image_size: int) -> None:
    names = [name.decode() for name in scan.names.tolist()]
    faults = {kind.name: {names[row] for row in rows.tolist()} for kind, rows in find_image_faults(scan.facts, image_size).items() if kind.is_fault}  # fmt: skip
    for kind, (expected, _) in FAULTS.items():
        of_kind = {name for name, (planted_kind, _) in planted.items() if planted_kind == kind}
        print(f"{len(of_kind & faults.get(expected, set())):>5} of {len(of_kind)} found: {kind}")
    whole = np.flatnonzero(scan.facts["state"] == FileState.WHOLE)
    labels = np.concatenate([images.labels for images in splits])
    numbers = np.repeat(np.arange(len(splits)), [len(images) for images in splits])
    start = time.process_time()
    copies = find_duplicates(scan.fingerprints[whole], labels[whole], numbers[whole])
    seconds = time.process_time() - start
    nearest = [frozenset((names[one], names[two])) for one, two in whole[copies.pairs].tolist()]
    pairs = dict(zip(nearest, copies.distances.tolist(), strict=True))
    most = usual_distance(len(whole))
    for kind in COPIES:
        of_kind = [frozenset((name, original)) for name, (planted_kind, original) in planted.items() if planted_kind == kind]
        bits = np.array([pairs[pair] for pair in of_kind if pair in pairs])
        print(
            f"{len(bits):>5} of {len(of_kind)} found: copy, {kind}; {(bits <= max(0, most - SURE_BITS)).sum()} as a fault, the others as a hint"
        )
    photograph = {name: "/".join(planted.get(name, ("", name))[1].split("/")[1:]).split("_0")[0] for name in names}
    false = [pair for pair in pairs if len({photograph[name] for name in pair}) > 1]
    alarms = {name for found in faults.values() for name in found} - {
        name for name, (kind, _) in planted.items() if kind in FAULTS
    }
    print(
        f"false alarms among {len(names):,} images: {len(alarms)} faults, {len(false)} copies (of two photographs); "
        f"of {len(nearest):,} pairs within {most} bits, found in {seconds:.2f} s"
    )


def time_beside_decoding(images: ImageFiles, root: str, turns: int) -> None:
    """Processor time of a check beside that of decoding alone, in turns of IN_TURN images, as others on the machine come and go."""
    ratios = []
    for turn in range(turns):
        part = images.take(np.arange(turn * IN_TURN, (turn + 1) * IN_TURN) % len(images))
        start = time.process_time()
        for row in range(len(part)):
            with suppress(DataError):
                decode(part.path(row), part.preprocessing)
        middle = time.process_time()
        scan_files([part], root, num_workers=0)
        ratios.append((time.process_time() - middle) / (middle - start))
    low, high = np.percentile(ratios, [25, 75])
    print(f"{median(ratios):.2f} times the processor time of decoding alone, {low:.2f} to {high:.2f} in half of {turns} turns")


def main() -> None:
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    usual = {"images": 20000, "each": 72, "turns": 40}
    images, each, turns = (int(words.get(key, number)) for key, number in usual.items())
    os.environ["IMGREC_CACHE"] = ""  # nothing is kept from one scan to the next
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photographs"
        planted = plant(Path(words["root"]), root, images=images, each=each)
        data = build("data", compose_config("train", ["data=imagefolder", f"data.root={root}"])["data"], ImageData)
        splits = [data.splits.train, data.splits.val, data.splits.test]
        assert all(isinstance(images, ImageFiles) for images in splits)
        judge(scan_files(splits, str(root), num_workers=0), splits, planted, 224)
        time_beside_decoding(splits[0], str(root), turns)


if __name__ == "__main__":
    main()
