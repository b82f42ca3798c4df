"""What a run needs of this machine: the folder of its data, its weights, packages, a GPU. Checked before torch is imported."""

import ctypes
import os
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from imgrec.config.annotations import format_value, read_pattern
from imgrec.config.compose import SMALL_IMAGE
from imgrec.config.instantiate import EXTRAS
from imgrec.config.options import shipped_targets
from imgrec.config.schema import DataConfig, MovedData, Node, RunConfig, target_nodes
from imgrec.config.split_folders import check_class_count, class_folders, find_split_folders
from imgrec.config.stored_classes import check_teacher_classes, folder_classes, stored_classes
from imgrec.errors import CheckpointError, ConfigError, DataError, did_you_mean
from imgrec.files import LAYOUTS, TABLE_EXTENSIONS, did_you_mean_path
from imgrec.paths import find_checkpoint

# How torchvision and timm call their weights.
LIBRARY_WEIGHTS = re.compile(r"(\w+_Weights\.)?(DEFAULT|IMAGENET1K_\w+)")
# Our networks that are torchvision's with the first layers (or the head) for large images, and the least image that these accept.
LEAST_SIZE = {"resnet": 1, "densenet": 32, "vgg": 32, "googlenet": 16, "alexnet": 63}

_MNIST_FILES = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
# Of the sets that torchvision reads: the paths below data.root.
TORCHVISION_FILES = {
    "MNIST": f"MNIST/raw/{_MNIST_FILES}",
    "FashionMNIST": f"FashionMNIST/raw/{_MNIST_FILES}",
    "CIFAR10": "cifar-10-batches-py/{data_batch_1,...,data_batch_5,test_batch,batches.meta}",
    "CIFAR100": "cifar-100-python/{train,test,meta}",
}


def check_start(run: RunConfig) -> None:
    """An ImgrecError for a folder, weights, a package or a GPU that a training needs and does not find."""
    check_data(run.data)
    for path, node in target_nodes(run.to_dict()):
        _check_package(path, node)
    if run.weights is not None and os.path.exists(run.weights):
        _check_checkpoint("weights", run.weights)
    elif run.weights is not None:
        _check_library_weights(run.weights, run.model, run.data.image_size)
    if run.distill.teacher is not None:
        _check_teacher(run.distill.teacher, run.data)
    check_gpu("trainer.accelerator", run.trainer.accelerator)
    if run.trainer.compile:
        _check_compiler(run.trainer.accelerator)


def check_data(data: DataConfig) -> None:
    """An ImgrecError for a folder, a table or a pattern that a shipped data set needs."""
    if data.own.get("_target_") in shipped_targets():
        _check_table(data)
        _check_root(data)
        _check_files(data)
        _check_classes(data)
        for key in ("label_from", "group_from"):
            if (pattern := data.own.get(key)) is not None:
                read_pattern(f"data.{key}", pattern)
        if (skip_list := data.own.get("skip_list")) is not None and not os.path.isfile(skip_list):
            raise DataError(
                f"data.skip_list={skip_list} is not a file. Set data.skip_list=FILE that imgrec check write=skip has written, or null."
            )


def _check_checkpoint(key: str, path: str) -> Path:
    """The checkpoint file of a path; CheckpointError, which names the key, where it is none and no run directory with one."""
    try:
        return find_checkpoint(path)
    except CheckpointError as error:
        raise type(error)(f"{key}={error}") from error


def _check_teacher(teacher: str, data: DataConfig) -> None:
    """An ImgrecError for what is no checkpoint, and for one of a run that does not know a class folder of the data."""
    known = stored_classes(_check_checkpoint("distill.teacher", teacher))
    if known is not None and _has_class_folders(data):
        folder = find_split_folders(data.own["root"]).folders["train"]
        check_teacher_classes(teacher, known, folder_classes(folder, known))


def check_moved(moved: MovedData, *, download: bool | None = None) -> None:
    """DataError where the run's data is not at the folder or the table that it is said to have moved to.

    download: whether it will be downloaded to the folder.
    """
    if moved.root is not None and "://" not in moved.root and not download and not os.path.isdir(moved.root):
        raise DataError(
            f"data.root={moved.root} is not a folder.{did_you_mean_path(moved.root, folder=True)} Set data.root=FOLDER of the run's images."
        )
    if moved.file is not None and not os.path.isfile(moved.file):
        raise DataError(f"data.file={moved.file} is not a file. Set data.file=TABLE.csv of the run's images.")


def check_no_changes(changes: Node, beside: str) -> None:
    """ConfigError for a change of the run's data, which has no effect beside another setting."""
    for key, value in changes.items():
        if value is not None:
            raise ConfigError(f"data.{key}={format_value(value)} has no effect beside {beside}. Leave it out.")


def check_beside_folder(changes: Node, folder: str) -> None:
    """ConfigError for a change of the run's data that has no effect on the images of a folder."""
    check_no_changes({key: changes[key] for key in changes if key not in ("on_bad_image_eval", "image_size")}, f"folder={folder}")


def _check_compiler(accelerator: str) -> None:
    """ConfigError where a network would be compiled on the CPU, and there is no compiler."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses it
    if (accelerator == "cpu" or not may_have_gpu()) and shutil.which(compiler) is None:
        raise ConfigError(
            f"trainer.compile=true needs a C++ compiler, and there is no {compiler}. Type: apt install g++, "
            "or set CXX=COMPILER, or trainer.compile=false."
        )


def check_temporary_folder() -> None:
    """ConfigError where Python finds no folder for temporary files: torch makes one at its import, loader workers another."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        where = os.environ.get("TMPDIR", "/tmp")
        raise ConfigError(
            f"TMPDIR={where}: no file can be written there, in /tmp or in this folder. Make room there, or set TMPDIR=FOLDER."
        ) from error


def check_gpu(key: str, value: str) -> None:
    """ConfigError for a GPU on a machine without the driver of one."""
    if value in ("gpu", "cuda") and not may_have_gpu():
        raise ConfigError(f"{key}={value}: this machine has no driver of a GPU. Set {key}=auto.")


def _check_root(data: DataConfig) -> None:
    root = data.own.get("root")
    if root is not None and os.path.isfile(f"{root}/config.yaml") and os.path.isdir(f"{root}/checkpoints"):
        raise DataError(f"data.root={root} is the directory of a run, which holds no images. {LAYOUTS}")
    if root is None or data.own.get("download") or os.path.isdir(root):
        return
    is_shards = data.own["_target_"].endswith(".Shards")
    if is_shards and "://" in root:
        if found := re.search("(?<=^http://)[^/?#]*@|(?<=^https://)[^/?#]*@", root):
            shown = root.replace(found[0], "...@")
            raise ConfigError(
                f"data.root={shown}: a name or password in an address is not sent to the server, and would be stored with the run. "
                f"Set data.root={root.replace(found[0], '')}, and keys by the environment, such as AWS_ACCESS_KEY_ID."
            )
        check_packages(f"data.root={root}", "remote", "obstore")
        return
    fix = LAYOUTS
    if is_shards:
        fix = "Set data.root=DIR that imgrec pack FOLDER out=DIR has made."
    elif "download" in data.own:
        fix = "Set data.root=FOLDER that holds its files, or data.download=true."
    elif "file" in data.own:
        fix = "Set data.root=FOLDER that its paths start from."
    raise DataError(f"data.root={root} is not a folder.{did_you_mean_path(root, folder=True)} {fix}")


def _check_files(data: DataConfig) -> None:
    """DataError where there is no folder of the files of a set that torchvision reads; what is in it, torchvision says."""
    kind = data.own["_target_"].rpartition(".")[2]
    folder = TORCHVISION_FILES.get(kind, "").partition("/")[0]
    if folder and not data.own["download"] and not os.path.isdir(os.path.join(data.own["root"], folder)):
        raise missing_files(kind, data.own["root"], "are missing", download=False)


def missing_files(kind: str, root: str, problem: str, *, download: bool) -> DataError:
    """The error for files of a set of torchvision that are not there, or not whole."""
    other = "" if download else ", set data.root=FOLDER with these files, or set data.download=true"
    return DataError(f"the files of {kind} {problem}: {Path(root).absolute()}/{TORCHVISION_FILES[kind]}. Put them there{other}.")


def _check_classes(data: DataConfig) -> None:
    """DataError for a folder that is read as splits in two ways, or has no class folders, or only one of two that are needed."""
    if _has_class_folders(data):
        root, least = data.own["root"], 1 if "old_classes" in data.own else 2  # beside those of imgrec extend
        folder = find_split_folders(root).folders["train"]
        check_class_count(root, folder, class_folders(folder), least=least)


def _has_class_folders(data: DataConfig) -> bool:
    """Whether classes are folders below data.root, by a shipped data set."""
    return data.own.get("_target_") in shipped_targets() and data.own.get("label_from", "") is None


def _check_table(data: DataConfig) -> None:
    if "file" not in data.own:
        return
    file = data.own["file"]
    if file is None:
        raise ConfigError("data.file=null: data=table reads its classes from a table. Set data.file=TABLE.csv.")
    path = Path(file)
    if path.suffix.lower() not in TABLE_EXTENSIONS:
        csv = f"{os.path.splitext(file)[0]}.csv"
        raise ConfigError(
            f"data.file={file}: the name must end in {', '.join(TABLE_EXTENSIONS)}. Save the table as CSV, and set data.file={csv}."
        )
    if not os.path.isfile(file):
        beside = [found.name for found in path.absolute().parent.glob("*") if found.suffix.lower() in TABLE_EXTENSIONS]
        raise DataError(f"data.file={file} is not a file.{did_you_mean(path.name, beside)} Set data.file=TABLE.csv.")


def _check_package(path: str, node: Node) -> None:
    for package in EXTRAS:
        if package in str(node["_target_"]).split("."):
            check_packages(path, package, package)


def check_packages(what: str, extra: str, *names: str) -> None:
    """ConfigError where `what` needs a package that is not installed, with the extra that brings it."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f'{what} needs {name}, which is not installed. Type: pip install "imgrec[{extra}]"')


def _check_library_weights(weights: str, model: Node, image_size: int) -> None:
    """CheckpointError for weights that are no path, where no library has them for this network."""
    target = str(model["_target_"])
    family = target.split(".")[-2] if "." in target else target
    ours = target in shipped_targets()
    none = f" and torchvision has no weights for {family}" if ours and family not in (*LEAST_SIZE, "torchvision", "timm") else ""
    if none or not LIBRARY_WEIGHTS.fullmatch(weights):
        default = "weights=DEFAULT for the library's, " if not none else "model=resnet18 for a network that has some, "
        raise CheckpointError(
            f"weights={weights}: there is no such file or folder,{none or ' nor has a library weights of that name'}.{did_you_mean_path(weights)} "
            f"Set {default}weights=PATH to an imgrec checkpoint or run directory, or weights=null."
        )
    small = [f"model.{key}" for key in ("stem", "head") if model.get(key) == "small"]
    if not ours or family not in LEAST_SIZE or not small:
        return
    other = "model=resnet18 " if family == "resnet" and model["depth"] not in (18, 34, 50, 101, 152) else ""
    large = f"{other}{small[0]}=imagenet" if image_size >= LEAST_SIZE[family] else ""
    size = f"{other}data.image_size=224" if image_size < SMALL_IMAGE else ""
    raise CheckpointError(
        f"weights={weights}: torchvision's {family} is for large images, and {small[0]}=small here, for data.image_size={image_size}. "
        f"Set {', or '.join(filter(None, (size, large)))}."
    )


def may_have_gpu() -> bool:
    """Whether a driver is installed with which torch may find a GPU: NVIDIA's, AMD's or Apple's."""
    if sys.platform == "darwin" or os.path.exists("/dev/kfd"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
