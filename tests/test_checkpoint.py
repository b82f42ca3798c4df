"""What is written is plain data and is read back; what cannot be used is named; a failed write costs nothing that was there."""

import os
import pickle
import resource
import subprocess
from contextlib import contextmanager, suppress

import pytest
import torch
from error_parts import assert_error, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from small_run import SMALL

import imgrec.training.checkpoint
from imgrec import cli
from imgrec.config.compose import load_config
from imgrec.errors import CheckpointError
from imgrec.inference.checkpoint import FORMAT_VERSION, load_checkpoint, read_checkpoint
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
    assert_error(refusal(objects), objects, "pickled objects")
    objects.write_bytes(b"")
    assert_error(refusal(objects), objects, "0 bytes", "truncated")
    assert_error(refusal(tmp_path), tmp_path, "checkpoints/best.ckpt", "checkpoints/last.ckpt")


def test_another_version_and_code_outside_the_allowed_packages(trained, tmp_path):
    file = rewritten(trained, tmp_path, version=FORMAT_VERSION + 1, versions={"imgrec": "9.1"})
    assert_error(refusal(file), file, f"format {FORMAT_VERSION + 1}", f"format {FORMAT_VERSION}", "Train again")
    config = load_checkpoint(trained).run.to_dict()
    file = rewritten(trained, tmp_path, config={**config, "model": {"_target_": "os.system", "command": "true"}})
    allowed = ("imgrec.models.*", "torchvision.models.*", "timm.models.*")
    assert_error(refusal(file), file, "os.system", "model", *allowed, "export IMGREC_ALLOW=os")
    for node, target in (
        ("data", "torch.hub.load"),
        ("loss", "torch.utils.collect_env.run"),
        ("name", "imgrec.models.lenet.LeNet"),
    ):
        file = rewritten(trained, tmp_path, config={**config, node: {"_target_": target}})
        assert_error(refusal(file), file, target, node)
    file = rewritten(trained, tmp_path, config={**config, "callbacks": {"own": {"_target_": "torch.hub.load"}}})
    assert_error(refusal(file), file, "torch.hub.load", "callbacks.own", "imgrec.training.callbacks.*")


def test_your_own_package_is_called_when_you_say_so(trained, tmp_path, monkeypatch):
    config = load_checkpoint(trained).run.to_dict()
    file = rewritten(trained, tmp_path, config={**config, "model": config["model"] | {"_target_": "mine.Net"}})
    monkeypatch.setenv("IMGREC_ALLOW", "other, mine")
    assert load_checkpoint(file).run.model["_target_"] == "mine.Net"
    for change in ({"config": None}, {"config": {}}, {"classes": None}, {"preprocessing": None}, {"data": 3}):
        file = rewritten(trained, tmp_path, **change)
        key = next(iter(change)) if change != {"config": {}} else "name"
        assert_error(refusal(file), file, f"'{key}'", "checkpoint that imgrec wrote")


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused_wherever_it_ends(trained, tmp_path_factory, share):
    content = (trained / "checkpoints/last.ckpt").read_bytes()
    file = tmp_path_factory.getbasetemp() / "cut.ckpt"
    file.write_bytes(content[: int(share * len(content))])
    assert_error(refusal(file), file)


@pytest.mark.parametrize(
    "command", [["evaluate", "ckpt={}"], ["predict", "ckpt={}", "files={}"], ["train", *SMALL, "weights={}"]]
)
def test_every_command_that_takes_a_checkpoint_refuses_half_of_one(trained, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
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


def full_at_the_second_epoch(folder, monkeypatch, capsys, full) -> None:
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
    assert_refused(capsys.readouterr().err, failed[0], "cannot be written", failed[0], "whole", "disk space", "same command")
    assert sorted(file.name for file in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert {read_checkpoint(file)["global_step"] for file in checkpoints.iterdir()} == {2}
    assert cli.main(words) == 0
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 6


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    full_at_the_second_epoch(tmp_path, monkeypatch, capsys, no_large_files)


def test_a_file_system_that_is_full_leaves_the_checkpoint_before(small_disk, monkeypatch, capsys):
    full_at_the_second_epoch(small_disk, monkeypatch, capsys, nothing_left)
