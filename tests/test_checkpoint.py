"""What is written is plain data and is read back; what cannot be used is named; a failed write costs nothing that was there."""

import errno
import os
import pickle
import resource
import subprocess
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from error_parts import assert_error, assert_refused, raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import SMALL

import imgrec.training.checkpoint
from imgrec import cli
from imgrec.config.load import load_config
from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.inference.checkpoint import FORMAT_VERSION, load_checkpoint, read_checkpoint
from imgrec.inference.evaluation import evaluation_images
from imgrec.inference.predictor import Predictor
from imgrec.models.losses import CrossEntropy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run directory of a finished run."""
    runs = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", *SMALL, f"runs_dir={runs}", "name=small"]) == 0
    return runs / "small/1"


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("IMGREC_DEBUG", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@contextmanager
def limited_memory(more: int):
    """An allocation of more than this number of bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def rewritten(trained, tmp_path, **change):
    """The checkpoint with another "imgrec" entry, or None for it."""
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["imgrec"] = {**checkpoint["imgrec"], **change}
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def test_a_checkpoint_is_plain_data_and_enough_by_itself(trained):
    stored = load_checkpoint(trained)
    run = load_config("train", [*SMALL, f"runs_dir={trained.parent.parent}", "name=small"])
    assert stored.file == trained / "checkpoints/best.ckpt"
    assert stored.run == run.with_classes(3)
    assert stored.classes == ("class_0", "class_1", "class_2")
    assert stored.preprocessing == {
        "image_size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "resize": "squash", "crop_share": 1.0,
        "interpolation": "bilinear", "max_pixels": 10**8, "scale": None,
    }  # fmt: skip
    assert not [key for key in stored.content["state_dict"] if not key.startswith("net.") and "tally" not in key]
    assert load_checkpoint(trained / "checkpoints/last.ckpt").run == stored.run


def test_a_file_that_imgrec_did_not_write(trained, tmp_path):
    plain = tmp_path / "plain.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), plain)
    assert_error(refusal(plain), plain, "'imgrec'", "weights=DEFAULT")
    objects = tmp_path / "objects.pt"
    torch.save(torch.nn.Linear(2, 2), objects)
    assert_error(refusal(objects), objects, "pickled objects", "weights_only=True", "checkpoint that imgrec wrote")
    objects.write_bytes(pickle.dumps({"a": os.getcwd}))
    assert_error(refusal(objects), objects, "another format", "runs/NAME/ID")
    assert_error(refusal(tmp_path), tmp_path, "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    for name, fix in (("m.onnx", "Type imgrec serve"), ("m.pt2", "Name the run"), ("m.safetensors", "Name the run")):
        objects.rename(exported := tmp_path / name)
        assert_error(refusal(exported), exported, "exported file", fix)
        exported.rename(objects)


def test_another_version_and_code_outside_the_allowed_packages(trained, tmp_path):
    file = rewritten(trained, tmp_path, version=FORMAT_VERSION + 1, versions={"imgrec": "9.1"})
    assert_error(refusal(file), file, f"format {FORMAT_VERSION + 1}", f"format {FORMAT_VERSION}", "Train again")
    file = rewritten(trained, tmp_path, version=torch.zeros(2))
    assert_error(refusal(file), file, "format Tensor", "Train again")
    config = load_checkpoint(trained).run.to_dict()
    file = rewritten(trained, tmp_path, config={**config, "model": {"_target_": "os.system", "command": "true"}})
    allowed = ("conf/model", "torchvision.models", "timm.models")
    assert_error(refusal(file), file, "os.system", "model", *allowed, "export IMGREC_ALLOW=os")
    for node, target in (
        ("data", "torch.hub.load"),
        ("loss", "torch.utils.collect_env.run"),
        ("name", "imgrec.models.lenet.LeNet"),
    ):
        file = rewritten(trained, tmp_path, config={**config, node: {"_target_": target}})
        assert_error(refusal(file), file, target, node)
    file = rewritten(trained, tmp_path, config={**config, "callbacks": {"own": {"_target_": "torch.hub.load"}}})
    assert_error(refusal(file), file, "torch.hub.load", "callbacks.own", "conf/callbacks", "pytorch_lightning.callbacks")


def test_your_own_package_is_called_when_you_say_so(trained, tmp_path, monkeypatch):
    config = load_checkpoint(trained).run.to_dict()
    file = rewritten(trained, tmp_path, config={**config, "model": config["model"] | {"_target_": "mine.Net"}})
    monkeypatch.setenv("IMGREC_ALLOW", "other, mine")
    assert load_checkpoint(file).run.model["_target_"] == "mine.Net"
    for change in ({"config": None}, {"config": {}}, {"classes": None}, {"preprocessing": None}, {"data": 3}):
        file = rewritten(trained, tmp_path, **change)
        key = next(iter(change)) if change != {"config": {}} else "name"
        assert_error(refusal(file), file, f"'{key}'", "checkpoint that imgrec wrote")


ODD = st.sampled_from(
    [None, True, 0, -1, 2.5, float("nan"), 10**30, "", "x" * 10**4, "\x1b[31mred\n\nlines", [], [1], [[]], {}, {"a": 1}, {1: 2}, (1, 2),
     {"_target_": "os.system"}, b"bytes", torch.zeros(2)]
)  # fmt: skip


def places(node, path=()):
    """The path of every value in nested dictionaries."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@settings(max_examples=20)
@given(data=st.data())
def test_metadata_of_another_type_is_one_line_or_does_not_matter(trained, tmp_path_factory, data):
    load_odd(trained, tmp_path_factory.getbasetemp() / "odd.ckpt", data)


@pytest.mark.slow
@settings(max_examples=1000)
@given(data=st.data())
def test_metadata_of_any_other_type_is_one_line_or_does_not_matter(trained, tmp_path_factory, data):
    load_odd(trained, tmp_path_factory.getbasetemp() / "odd.ckpt", data)


def load_odd(trained, file, data):
    """Read a checkpoint in which one value is another or missing."""
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    *path, last = data.draw(st.sampled_from(list(places({key: checkpoint[key] for key in ("imgrec", "epoch", "state_dict")}))))
    node = checkpoint
    for key in path:
        node = node[key]
    if data.draw(st.booleans()):
        del node[last]
    else:
        node[last] = data.draw(ODD)
    torch.save(checkpoint, file)
    try:
        loaded = load_checkpoint(file)
        loaded.network()
        loaded.loss(None)
    except CheckpointError as error:
        line = str(error)
        assert_error(line, file)


def test_a_checkpoint_from_before_a_key_was_added_loads(trained, tmp_path):
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    for key in ("profile", "report"):
        del checkpoint["imgrec"]["config"][key]
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    load_checkpoint(tmp_path / "earlier.ckpt").network()


def test_metadata_that_contains_itself_or_explodes_is_one_line(trained, tmp_path):
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    inside: list[object] = []
    inside.append(inside)
    laughs: list[object] = []
    for _ in range(30):
        laughs = [laughs] * 10
    for value in (inside, laughs):
        checkpoint["imgrec"]["config"]["model"]["widths"] = value
        torch.save(checkpoint, tmp_path / "odd.ckpt")
        assert_error(refusal(tmp_path / "odd.ckpt"), tmp_path / "odd.ckpt", "values", "levels")


@pytest.mark.parametrize(
    "tensor",
    [
        None,
        1.0,
        torch.zeros(5).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, device="meta"),
        torch.zeros(1).expand(10**11),
        torch.zeros(3, 1),
        torch.zeros(0),
    ],
    ids=["none", "number", "sparse", "complex", "meta", "expanded", "shape", "empty"],
)
def test_weights_that_are_no_tensors_of_the_network_are_one_line(trained, tmp_path, tensor):
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    name = next(key for key in checkpoint["state_dict"] if key.startswith("net."))
    checkpoint["state_dict"][name] = tensor
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "odd.ckpt").network()
    assert_error(str(error.value), tmp_path / "odd.ckpt")


SIMPLE = {
    "_target_": "imgrec.models.simple_cnn.SimpleCNN", "channels": 3, "image_size": 16, "widths": [8, 16], "padding": ["same"],
    "kernel": 3, "norm": "none", "dense": 0, "stage_dropout": 0.0, "dense_dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"dense": 10**12}, {"widths": [10**6, 10**6]}, {"kernel": 10**6}, {"image_size": 8192, "dense": 10**8}]
)
def test_a_size_in_the_config_takes_no_memory(trained, tmp_path, change):
    config = load_checkpoint(trained).run.to_dict()
    stored = load_checkpoint(rewritten(trained, tmp_path, config={**config, "model": SIMPLE | change}))
    with limited_memory(2 * 2**30), pytest.raises(CheckpointError) as error:
        stored.network()
    assert_error(str(error.value), stored.file, "do not fit the network")


def test_sizes_of_data_and_pictures_are_bounded(trained, tmp_path):
    stored = load_checkpoint(trained)
    file = rewritten(trained, tmp_path, preprocessing={**stored.preprocessing, "image_size": 50_000})
    assert_error(refusal(file), file, "data.image_size=50000", "8192")
    config = stored.run.to_dict()
    file = rewritten(trained, tmp_path, config={**config, "data": config["data"] | {"train_samples": 10**9}})
    with raises_error(ConfigError, "data.train_samples=1000000000", "too many", "data.train_samples=512"):
        evaluation_images(load_checkpoint(file), split="test", folder=None, changes={})
    file = rewritten(trained, tmp_path, preprocessing={**stored.preprocessing, "image_size": 8192})
    with raises_error(ConfigError, "batch_size=64", "memory of this machine", "batch_size="):
        list(Predictor(load_checkpoint(file)).predict_files(["a.jpg"] * 64))


def test_the_folder_that_a_checkpoint_names_is_not_written_to(trained, tmp_path):
    config = load_checkpoint(trained).run.to_dict()
    common = {
        key: value for key, value in config["data"].items() if key not in ("_target_", "train_samples", "test_samples", "noise")
    }
    data = {"_target_": "imgrec.data.datasets.MNIST", "root": str(tmp_path / "new"), "download": True, **common}
    stored = load_checkpoint(rewritten(trained, tmp_path, config={**config, "data": data}))
    with raises_error(DataError, "the files of MNIST", tmp_path / "new", "data.root=FOLDER", "data.download=true"):
        evaluation_images(stored, split="test", folder=None, changes={})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_records_that_grow_when_they_are_read_are_refused(trained, tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", compression) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    assert_error(refusal(tmp_path / "bomb.ckpt"), tmp_path / "bomb.ckpt", "compressed")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused_wherever_it_ends(trained, tmp_path_factory, share):
    content = (trained / "checkpoints/last.ckpt").read_bytes()
    file = tmp_path_factory.getbasetemp() / "cut.ckpt"
    file.write_bytes(content[: int(share * len(content))])
    assert_error(refusal(file), file)


@pytest.mark.parametrize(
    "command", [["evaluate", "ckpt={}"], ["predict", "ckpt={}", "files=a.png"], ["train", *SMALL, "weights={}"]]
)
def test_every_command_that_takes_a_checkpoint_refuses_half_of_one(trained, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    content = (trained / "checkpoints/last.ckpt").read_bytes()
    half = tmp_path / "half.ckpt"
    half.write_bytes(content[: len(content) // 2])
    assert cli.main([word.format(half) for word in command]) == 2
    assert_refused(capsys.readouterr().err, half, f"{len(content) // 2:,} bytes", "truncated")


# A run that stops


LOWER = ("Lower optim.lr", "trainer.gradient_clip=1.0", "trainer.precision=32")


def run_words(tmp_path, *more: str) -> list[str]:
    return ["train", *SMALL, f"runs_dir={tmp_path}/runs", "name=stops", *more]


def test_a_loss_that_explodes_stops_at_its_step(tmp_path, capsys):
    assert cli.main(run_words(tmp_path, "optim.lr=1e30", "scheduler=constant")) == 2
    said = capsys.readouterr().err
    assert "nan" in said or "inf" in said
    assert_refused(said, "the loss is", "step 2", "epoch 1", "before anything was saved", *LOWER)
    assert not list((tmp_path / "runs").iterdir())


def test_the_checkpoint_before_a_loss_that_is_not_finite_is_kept(tmp_path, capsys, monkeypatch):
    whole, steps = CrossEntropy.per_sample, []

    def per_sample(self, logits, targets):
        steps.extend([1] if torch.is_grad_enabled() else [])
        return whole(self, logits, targets) * (float("nan") if len(steps) == 5 and torch.is_grad_enabled() else 1)

    monkeypatch.setattr(CrossEntropy, "per_sample", per_sample)
    assert cli.main(run_words(tmp_path, "epochs=4", "trainer.save_every_steps=2")) == 2
    folder = tmp_path / "runs/stops/1/checkpoints"
    assert_refused(capsys.readouterr().err, "the loss is nan", "step 5", "epoch 3", folder, *LOWER)
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 4
    assert all(value.isfinite().all() for value in load_checkpoint(folder.parent).content["state_dict"].values())
    assert cli.main(run_words(tmp_path, "epochs=4")) == 0  # the same command resumes from there
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 8


def test_weights_that_explode_at_the_end_of_an_epoch_are_not_saved(tmp_path, capsys):
    """The training loss of that step is still finite: the validation tells. The rate is 0 at the first step and 1e30 at the second."""
    cycle = ["scheduler=cyclic", "scheduler.floor=0", "scheduler.up_epochs=1", "optim.lr=1e30"]
    assert cli.main(run_words(tmp_path, "epochs=3", "trainer.limit_train_batches=1", "trainer.save_every_steps=1", *cycle)) == 2
    folder = tmp_path / "runs/stops/1/checkpoints"
    assert_refused(capsys.readouterr().err, "the validation loss", "step 2", "epoch 2", folder, *LOWER)
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 1


# A disk that is full


@contextmanager
def no_large_files(_):
    """The kernel refuses to write beyond 20 kB of a file, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nothing_left(folder):
    """The rest of the file system is taken."""
    filler = folder / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def full_at_the_second_epoch(folder, monkeypatch, capsys, full, code) -> None:
    whole, failed = imgrec.training.checkpoint.write_checkpoint, []

    def write(checkpoint, path):
        if checkpoint["global_step"] == 2:
            return whole(checkpoint, path)
        failed.append(path)
        with full(folder):
            return whole(checkpoint, path)

    words = run_words(folder, "epochs=3", "trainer.save_every_steps=2")
    with monkeypatch.context() as patched:
        patched.setattr(imgrec.training.checkpoint, "write_checkpoint", write)
        assert cli.main(words) == 2
    checkpoints = folder / "runs/stops/1/checkpoints"
    reason = f"cannot be written: {os.strerror(code)}."  # torch's own error is that of C++, about its archive
    assert_refused(capsys.readouterr().err, failed[0], reason, failed[0], "whole", "disk space", "same command")
    assert sorted(file.name for file in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert {read_checkpoint(file)["global_step"] for file in checkpoints.iterdir()} == {2}
    assert cli.main(words) == 0
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 6


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    full_at_the_second_epoch(tmp_path, monkeypatch, capsys, no_large_files, errno.EFBIG)


def test_a_file_system_that_is_full_leaves_the_checkpoint_before(small_disk, monkeypatch, capsys):
    full_at_the_second_epoch(small_disk, monkeypatch, capsys, nothing_left, errno.ENOSPC)
