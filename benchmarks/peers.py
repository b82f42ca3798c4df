"""Other loaders, as sides of benchmarks/input.py and packed.py: the same JPEG files, a random resized crop and a flip, batches of 64.

Each as its documentation has it, but for the last step: whatever the loader, its batch is uint8, as imgrec's is. webdataset, litdata and
FFCV first write the files into their own form, FFCV by encoding them anew; tf.data resizes without antialiasing, and
decodes by JDCT_IFAST, which are its defaults.
`make bench` installs those of peers.txt in .venv-bench, of which only these sides know: TensorBoard, for one, would import TensorFlow in
others. BENCH_PEERS names another virtual environment.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torchvision.transforms import v2
from turns import Side

BATCH = 64
QUALITY = 90  # of FFCV's JPEG images
VENV = Path(os.environ.get("BENCH_PEERS", Path(__file__).parents[1] / ".venv-bench"))


class Work(NamedTuple):
    """Of a turn: the files in the order in which they are read."""

    files: list[str]
    labels: list[int]
    size: int
    workers: int  # 0: in the process itself, or in one thread of it


Peer = Callable[..., None]
PEERS: dict[str, tuple[str, Peer]] = {}  # by name: the package that has to be there, and the side


def peer(name: str, package: str) -> Callable[[Peer], Peer]:
    def add(side: Peer) -> Peer:
        PEERS[name] = package, side
        return side

    return add


def installed(work: Work, names: Collection[str] = PEERS.keys()) -> dict[str, Side]:
    """The sides of those that are installed; says which are not."""
    found: dict[str, Side] = {}
    for name in names:
        package, _ = PEERS[name]
        # By its folder: "nvidia" alone, which find_spec would look for first, comes with torch.
        if not any(Path(entry, package.replace(".", "/")).is_dir() for entry in [*sys.path, *packages()]):
            print(f"{name}: {package} is not installed in {VENV}, so it is left out, and its last figures stay.")
        else:
            found[name] = partial(run, name, work)
    return found


def packages() -> list[str]:
    return [str(folder) for folder in VENV.glob("lib/python*/site-packages")]


def run(name: str, work: Work, *, turns: Iterator[None]) -> None:
    sys.path += packages()
    torch.set_num_threads(1)
    PEERS[name][1](work, turns=turns)


@peer("timm", "timm")
def timm_side(work: Work, *, turns: Iterator[None]) -> None:
    from timm.data import ImageDataset, create_loader

    class Reader:
        def __len__(self) -> int:
            return len(work.files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return open(work.files[index], "rb"), work.labels[index]  # as its own reader does

    loader = create_loader(
        ImageDataset(root="", reader=Reader()),
        (3, work.size, work.size),
        BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=work.workers,
        persistent_workers=work.workers > 0,
        device=torch.device("cpu"),
    )
    batches = loader.loader  # without the PrefetchLoader, which normalises on the device
    for _ in turns:
        for _ in batches:
            pass


@peer("webdataset", "webdataset")
def webdataset_side(work: Work, *, turns: Iterator[None]) -> None:
    import webdataset

    with TemporaryDirectory() as folder:
        with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=BATCH, verbose=0) as writer:
            for row, (file, label) in enumerate(zip(work.files, work.labels, strict=True)):
                writer.write({"__key__": f"{row:08}", "jpg": Path(file).read_bytes(), "cls": label})
        shards = sorted(map(str, Path(folder).iterdir()))
        crop = v2.Compose([v2.RandomResizedCrop(work.size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        data = (
            webdataset.WebDataset(shards, shardshuffle=False)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(crop, int)
            .batched(BATCH)
        )
        loader = webdataset.WebLoader(data, batch_size=None, num_workers=work.workers, persistent_workers=work.workers > 0)
        for _ in turns:
            for _ in loader:
                pass


@peer("litdata", "litdata")
def litdata_side(work: Work, *, turns: Iterator[None]) -> None:
    import litdata
    from litdata.streaming.cache import Cache
    from PIL import Image

    crop = v2.Compose([v2.RandomResizedCrop(work.size), v2.RandomHorizontalFlip()])

    class Cropped(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
            image, label = super().__getitem__(index)
            return crop(image), label

    with TemporaryDirectory() as folder:
        writer = Cache(folder, chunk_bytes="16MB")
        for row, (file, label) in enumerate(zip(work.files, work.labels, strict=True)):
            writer[row] = (Image.open(file), label)  # the file's own bytes
        writer.done()
        writer.merge()
        loader = litdata.StreamingDataLoader(
            Cropped(folder), batch_size=BATCH, num_workers=work.workers, persistent_workers=work.workers > 0
        )
        for _ in turns:
            for _ in loader:
                pass


@peer("tf.data", "tensorflow")
def tensorflow_side(work: Work, *, turns: Iterator[None]) -> None:
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import tensorflow as tf

    threads = max(1, work.workers)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)

    def read(file: Any, label: Any) -> Any:
        content = tf.io.read_file(file)
        start, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(content),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([start[:2], extent[:2]], 0)
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(content, window, channels=3), [work.size, work.size])
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8), label

    files = tf.data.Dataset.from_tensor_slices((work.files, work.labels))
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    loader = files.map(read, num_parallel_calls=threads).batch(BATCH).prefetch(1).with_options(options)
    for _ in turns:
        for _ in loader:
            pass


@peer("DALI on the CPU", "nvidia.dali")
def dali_side(work: Work, *, turns: Iterator[None]) -> None:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=BATCH, num_threads=max(1, work.workers), device_id=None)
    def cropped() -> Any:
        files, labels = fn.readers.file(files=work.files, labels=work.labels, name="files")
        area = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
        images = fn.resize(fn.decoders.image_random_crop(files, device="cpu", **area), size=[work.size, work.size])
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    loader = DALIGenericIterator([cropped()], ["images", "labels"], reader_name="files", auto_reset=True)
    for _ in turns:
        for _ in loader:
            pass


class Opened:
    """What FFCV writes from."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __len__(self) -> int:
        return len(self.work.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.open(self.work.files[index]).convert("RGB"), self.work.labels[index]


@peer("FFCV", "ffcv")
def ffcv_side(work: Work, *, turns: Iterator[None]) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    with TemporaryDirectory() as folder:
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=QUALITY), "label": IntField()}
        DatasetWriter(f"{folder}/images.beton", fields, num_workers=1).from_indexed_dataset(Opened(work))
        images = [RandomResizedCropRGBImageDecoder((work.size, work.size)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
        loader = Loader(
            f"{folder}/images.beton",
            BATCH,
            num_workers=max(1, work.workers),
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            pipelines={"image": images, "label": [IntDecoder(), ToTensor()]},
        )
        for _ in turns:
            for _ in loader:
                pass
