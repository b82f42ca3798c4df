"""Every input that cannot be used: one line that says what was given, what was found and what to type, and exit code 2."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_command
from small_run import SMALL
from test_data_folder import make
from test_data_sets import write_mnist

from imgrec import cli
from imgrec.config.annotations import format_value
from imgrec.config.compose import load_config
from imgrec.config.options import option_names

DEFAULT = load_config("train", ["optim=adam"])  # whose values may be tuned without an edit here
OPTIMS = "There are: adagrad, adam, adamw, gd, lamb, momentum, muon, nesterov, rmsprop, sgd."
ADAM = "optim has: lr, base_batch, batch_rule, betas, eps, weight_decay, amsgrad, fused."

# What the composed config shows: (words after `imgrec`, the sentence or how it begins).
SHOWN: dict[str, str] = {
    # keys
    "train optim=adam optim.lrr=0.1": f"'optim.lrr=0.1': there is no key optim.lrr. Did you mean optim.lr? {ADAM}",
    "train optim=adam +optim.learning_rate=0.1": f"'+optim.learning_rate=0.1': there is no key optim.learning_rate. {ADAM}",
    "train ++seed=1": "'++seed=1': seed exists already. Type seed=1.",
    "train ~seed": "'~seed': keys are not deleted. Type seed=VALUE.",
    "train epoch=3": "'epoch=3': there is no key epoch. Did you mean epochs? `imgrec train --help` lists the keys.",
    "train lr=0.1": "'lr=0.1': there is no key lr. Did you mean optim.lr? `imgrec train --help` lists the keys.",
    "train resnet": "'resnet' cannot be read: Error parsing override 'resnet'. Overrides look like key=value, for example optim.lr=0.01.",
    # options and commands
    "train modle=vgg": "'modle=vgg': there is no key modle. Did you mean model? `imgrec train --help` lists the keys.",
    "train optim=adma": f"optim=adma: there is no such optim. Did you mean adam? {OPTIMS}",
    "train optim=null": "'optim=null': config groups are not added or deleted. Type optim=OPTION, or remove it.",
    "trian model=vgg": "trian: there is no such command. Did you mean train? There are: train, evaluate, predict, lr_find, models, slurm.",
    "train --config-dir": "--config-dir needs a folder. Type --config-dir FOLDER that holds your model/, data/, experiment/ yaml.",
    "train --config-dir none": "--config-dir none: there is no such folder. Name the folder with your model/, data/, experiment/ yaml.",
    # types
    "train optim=adam optim.lr=fast": f"optim.lr=fast: expected a number. The default is {DEFAULT.optim['lr']}.",
    "train seed=abc": f"seed=abc: expected an integer. The default is {DEFAULT.seed}.",
    "train epochs=2.5": f"epochs=2.5: expected an integer. The default is {DEFAULT.epochs}.",
    "train batch_size=big": f"batch_size=big: expected an integer or full. The default is {DEFAULT.batch_size}.",
    "train data.mean=red": "data.mean=red: expected a list. The default is [0.3053].",
    "train data.mean=[red]": "data.mean=[red]: expected a list of numbers. The default is [0.3053].",
    "train trainer.deterministic=7": "trainer.deterministic=7: expected true or false. The default is false.",
    "train data.image_size=big": "data.image_size=big: expected an integer. The default is 8.",
    "train finetune=3": "finetune=3: expected a group of keys. Type finetune.KEY=VALUE; its keys are freeze_epochs, layer_decay.",
    "train monitor=val/acc": "monitor=val/acc: expected val/loss, val/accuracy, val/macro_f1 or val/top5. Did you mean val/accuracy?",
    # ranges
    "train batch_size=0": f"batch_size=0: batch_size must be 1 or more. The default is {DEFAULT.batch_size}.",
    "train optim=adam optim.lr=-0.1": f"optim.lr=-0.1: lr must be more than 0. The default is {DEFAULT.optim['lr']}.",
    "train optim=adam optim.lr=nan": f"optim.lr=nan: lr must be more than 0. The default is {DEFAULT.optim['lr']}.",
    "train optim=adam optim.base_batch=0": "optim.base_batch=0: base_batch must be 1 or more.",
    "train optim=adam optim.betas=[0.9,1.0]": "optim.betas=[0.9,1.0]: betas must be 0 or more and less than 1. "
    f"The default is {format_value(DEFAULT.optim['betas'])}.",
    "train loss.label_smoothing=2": "loss.label_smoothing=2.0: label_smoothing must be 0 or more and less than 1. The default is 0.0.",
    "train scheduler.warmup_share=1": "scheduler.warmup_share=1.0: warmup_share must be 0 or more and less than 1. "
    f"The default is {DEFAULT.scheduler['warmup_share']}.",
    "train trainer.limit_val_batches=1.5": "trainer.limit_val_batches=1.5: expected a share up to 1.0, or a number of batches. "
    "Set trainer.limit_val_batches=2.",
    # without effect
    "train optim=gd batch_size=32": "batch_size=32, but optim=gd uses the whole training split in each step. "
    "Type optim=sgd for batches, or remove batch_size.",
    "train decay_on=all": "decay_on=all has no effect in this config. "
    "Set optim.weight_decay=0.0005, loss.l1 or loss.l2, or remove decay_on.",
    "train augment.randaug_ops=3": "augment.randaug_ops=3 has no effect in this config. "
    "Set augment=randaug or augment.policy=randaug, or remove augment.randaug_ops.",
    "train data.crop_share=0.9": "data.crop_share=0.9 has no effect in this config. Set data.resize=crop, or remove data.crop_share.",
    "train finetune.freeze_epochs=2": "finetune.freeze_epochs=2 has no effect in this config. "
    "Set weights=DEFAULT or weights=RUN_DIRECTORY too, or remove finetune.freeze_epochs.",
    "train callbacks.emma.decay=0.9": "'callbacks.emma.decay=0.9': there is no key callbacks.emma.decay. "
    "Did you mean callbacks.ema.decay? callbacks has: tensorboard, ema, early_stopping.",
    "train callbacks=ema callbacks.tensorboard.images=0": "'callbacks.tensorboard.images=0': there is no key callbacks.tensorboard.images. "
    "callbacks has: ema.",
    "train callbacks.ema.decay=1": "callbacks.ema.decay=1.0: decay must be 0 or more and less than 1. The default is 0.0.",
    "train epochs=5 callbacks.early_stopping.patience=5": "callbacks.early_stopping.patience=5 has no effect in this config. "
    "Set epochs to more than the patience, or remove callbacks.early_stopping.patience.",
    "train optim=sgd optim.batch_rule=sqrt": "optim.batch_rule=sqrt has no effect in this config. "
    "Set optim.base_batch=256, the batch that optim.lr is for, or remove optim.batch_rule.",
    "train optim=gd optim.base_batch=256": "optim.base_batch=256 has no effect in this config. "
    "Set optim.batch_rule=linear or optim.batch_rule=sqrt, or remove optim.base_batch.",
    "train optim=nesterov optim.momentum=0 optim.nesterov=true": "optim.nesterov=true has no effect in this config. "
    "Set optim.momentum=0.9, or remove optim.nesterov.",
    # what the file system shows
    "evaluate ckpt=none": "none: there is no such file or folder. Name a checkpoint (.ckpt) or a run directory such as runs/NAME/ID.",
    "train id=a/b": "id=a/b: expected a name for a directory, without a slash. Set id=NAME, or runs_dir=FOLDER.",
}

MANY = """
import contextlib, io, json, sys
from imgrec.cli import main
found = {}
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words.split())
    found[words] = (code, said.getvalue(), "torch" in sys.modules or "pytorch_lightning" in sys.modules)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(exit code, stderr, was torch imported) of every SHOWN input, from one process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "IMGREC_DEBUG"}
    cwd = tmp_path_factory.mktemp("cwd")
    done = run_command(sys.executable, "-c", MANY, input=json.dumps(list(SHOWN)), cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", SHOWN)
def test_what_the_config_shows_is_refused_before_torch_is_imported(answers, words):
    assert answers[words] == [2, f"imgrec: {SHOWN[words]}\n", False]


@pytest.mark.parametrize("start", [["-m", "imgrec.train"], ["-m", "imgrec.cli", "train"]])
def test_a_process_ends_with_code_2_and_one_line(start, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "IMGREC_DEBUG"}
    done = run_command(sys.executable, *start, "optim=adma", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"imgrec: {SHOWN['train optim=adma']}\n")
    assert list(tmp_path.iterdir()) == []


def test_imgrec_debug_shows_the_traceback(tmp_path):
    env = {**os.environ, "IMGREC_DEBUG": "1"}
    done = run_command(sys.executable, "-m", "imgrec.cli", "train", "optim=adma", cwd=tmp_path, env=env)
    assert done.returncode != 0
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith(f"imgrec.errors.ConfigError: {SHOWN['train optim=adma']}\n")


# Everything below runs in this process


@pytest.fixture(autouse=True)
def no_debug(monkeypatch, tmp_path):
    monkeypatch.delenv("IMGREC_DEBUG", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """refused("train", ...) is the line on stderr of a command that ends with exit code 2."""

    def run(*argv: str) -> str:
        code = cli.main(list(argv))
        said = capsys.readouterr().err
        assert code == 2, said
        assert said.startswith("imgrec: ")
        assert said.count("\n") == 1
        return said.removeprefix("imgrec: ").rstrip("\n")

    return run


@pytest.fixture
def train(refused):
    return lambda *words: refused("train", *SMALL, *words)


def test_a_key_misspelt_in_a_file_of_ones_own(refused, tmp_path):
    """At its top, in a group and beside _partial_: what Hydra lets pass."""
    folder = tmp_path / "mine/experiment"
    folder.mkdir(parents=True)
    for text, sentence in {
        "epoch: 3": "epoch=3: there is no key epoch. Did you mean epochs? Known here: ",
        "optim: {learning_rate: 3}": "optim.learning_rate=3: there is no key optim.learning_rate. Known here: lr, base_batch, ",
        "finetune: {freeze_epoch: 3}": "finetune.freeze_epoch=3: there is no key finetune.freeze_epoch. Did you mean freeze_epochs? ",
        "data: {val_share: 2}": "data.val_share=2.0: val_share must be more than 0 and less than 1. The default is 0.1.",
        "optim: {lr: fast}": f"optim.lr=fast: expected a number. The default is {DEFAULT.optim['lr']}.",
    }.items():
        (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        assert refused("train", "--config-dir", str(tmp_path / "mine"), "experiment=mine").startswith(sentence)


def test_an_option_of_ones_own_is_held_to_the_code_it_names(train, tmp_path):
    """Only the signature tells, so this is after torch is imported and before any data is read."""
    folder = tmp_path / "mine/optim"
    folder.mkdir(parents=True)
    for text, sentence in {
        "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nmomentun: 0.9": "optim.momentun=0.9: torch.optim.SGD takes no momentun. Did you mean momentum?",
        "_target_: torch.optim.SDG\n_partial_: true\nlr: 0.1": "_target_=torch.optim.SDG: torch.optim has no SDG. Did you mean SGD?",
        "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nnesterov: 3": "optim.nesterov=3: expected true or false.",
        "_target_: os.system\n_partial_: true\nlr: 0.1": "_target_=os.system: code outside imgrec, torch, torchvision, torchmetrics, timm, pytorch_lightning "
        "is not called unless you say so. If you trust it, type: export IMGREC_ALLOW=os",
    }.items():
        (folder / "mine.yaml").write_text(text + "\n")
        assert train("--config-dir", str(tmp_path / "mine"), "optim=mine") == sentence
    assert list(tmp_path.glob("runs/*/*")) == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("trainer.ema_decay", "callbacks.ema.decay"),
        ("trainer.early_stopping_patience", "callbacks.early_stopping.patience"),
        ("early_stopping_patience", "callbacks.early_stopping.patience"),
    ],
)
def test_a_key_that_stands_elsewhere_is_named(train, key, meant):
    assert train(f"{key}=3").startswith(f"'{key}=3': there is no key {key}. Did you mean {meant}?")


def test_a_callback_of_ones_own_is_held_to_the_code_it_names(train, tmp_path):
    folder = tmp_path / "mine/callbacks"
    folder.mkdir(parents=True)
    for text, sentence in {
        "_target_: pytorch_lightning.callbacks.Timer\n  duratoin: 00:12:00:00": "callbacks.own.duratoin=00:12:00:00: "
        "pytorch_lightning.callbacks.Timer takes no duratoin. Did you mean duration?",
        "_target_: torch.nn.ReLU": "callbacks.own._target_=torch.nn.ReLU: expected a pytorch_lightning.Callback, "
        "and it returns a ReLU. Name another function or class.",
        "_target_: os.getcwd": "_target_=os.getcwd: code outside imgrec, torch, torchvision, torchmetrics, timm, pytorch_lightning "
        "is not called unless you say so. If you trust it, type: export IMGREC_ALLOW=os",
    }.items():
        (folder / "mine.yaml").write_text(f"defaults: [default, _self_]\nown:\n  {text}\n")
        assert train("--config-dir", str(tmp_path / "mine"), "callbacks=mine") == sentence


def test_the_keys_of_the_batch_are_held_to_the_rule_that_takes_them(train, tmp_path):
    assert train("optim.base_batch=8", "optim.batch_rule=linaer") == ("optim.batch_rule=linaer: expected linear, sqrt or none.")
    assert train("optim.base_batch=8.5") == "optim.base_batch=8.5: expected an integer or null."
    folder = tmp_path / "mine/optim"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\nbase_batch: 8\n")
    assert train("--config-dir", str(tmp_path / "mine"), "optim=mine") == (
        "optim.base_batch=8: expected base_batch and batch_rule, or neither. Write batch_rule: linear beside it, or delete it."
    )


def test_a_short_list_is_held_to_the_signature(train):
    assert train("augment.crop_scale=[1]") == "augment.crop_scale=[1]: expected a list of 2 values or null."


@pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU.*")
def test_a_device_that_is_not_there_or_cannot(train):
    assert train("trainer.accelerator=cpux") == (
        "trainer.accelerator=cpux: expected auto, cpu, gpu, cuda or mps. Did you mean cpu?"
    )
    assert train("trainer.devices=all") == "trainer.devices=all: expected an integer, auto or a list of integers."
    assert train("trainer.strategy=ddp_spawn") == "trainer.strategy=ddp_spawn: expected auto, ddp or fsdp."
    if not torch.cuda.is_available():
        assert train("trainer.accelerator=gpu") == "trainer.accelerator=gpu: torch has no GPU here. Set trainer.accelerator=auto."
    assert train("trainer.precision=16-mixed") == (
        "trainer.precision=16-mixed: expected a GPU, but this run is on the CPU. Set trainer.precision=bf16-mixed or trainer.precision=32."
    )


def test_weights_that_are_nowhere(train):
    assert train("weights=none.ckpt") == (
        "weights=none.ckpt: there is no such file or folder, and torchvision has no weights for this lenet. "
        "Set weights=PATH to an imgrec checkpoint or run directory, or weights=null."
    )


# Data


def folder_words(root: Path, *words: str) -> list[str]:
    return ["data=imagefolder", f"data.root={root}", "data.image_size=16", *words]


@pytest.fixture
def refuse_folder(refused):
    small = [word for word in SMALL if not word.startswith("data")]
    return lambda root, *words: refused("train", *small, *folder_words(root, *words))


HINT = "Set data.root=FOLDER with train/CLASS/*.jpg, or with CLASS/*.jpg."


def test_folders_that_cannot_be_used(refuse_folder, tmp_path):
    root = tmp_path / "photos"
    assert refuse_folder(root) == f"data.root={root} is not a folder. {HINT}"
    root.mkdir()
    assert refuse_folder(root) == f"{root} has no class folders. {HINT}"
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
    assert refuse_folder(root).startswith(f"{root}/train has no images in class folders (files that end in .jpg, ")
    make(root / "more", {"cat": 4})
    for file in (root / "more/cat").iterdir():
        file.rename(root / "train/cat" / file.name)
    assert refuse_folder(root) == f"the class folder {root}/train/dog has no images. Add some, or remove it."
    assert not list(tmp_path.glob("runs/*")), "a refused run leaves no folder that holds the next start to its config"


def test_a_split_with_an_unknown_class(refuse_folder, tmp_path):
    make(tmp_path / "train", {"cat": 4, "dog": 4})
    make(tmp_path / "val", {"cat": 2, "dogs": 2})
    assert refuse_folder(tmp_path) == (
        f"{tmp_path}/val has the class dogs, but train does not (cat, dog). Did you mean dog? Rename the folder, or add the class to train."
    )


def test_more_or_fewer_classes_than_said(refuse_folder, tmp_path):
    make(tmp_path / "train", {"cat": 4, "dog": 4})
    assert refuse_folder(tmp_path, "data.num_classes=3") == (
        f"data.num_classes=3, but {tmp_path} has 2 class folders (cat, dog). Set data.num_classes=2."
    )


def halve(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_image_of_train_is_named_or_left_out_and_counted(refuse_folder, capsys, tmp_path, num_workers):
    make(tmp_path / "train", {"cat": 5, "dog": 5})
    make(tmp_path / "val", {"cat": 2, "dog": 2})
    bad = halve(tmp_path / "train/dog/001.jpg")
    words = [f"num_workers={num_workers}", "trainer.limit_train_batches=1.0"]
    said = refuse_folder(tmp_path, *words)
    assert said.startswith(f"{bad} cannot be read: ")
    assert said.endswith(" Remove or replace it, or leave unreadable images out with data.on_bad_image=skip.")
    if num_workers:
        return
    small = [word for word in SMALL if not word.startswith("data")]
    assert cli.main(["train", *small, *folder_words(tmp_path, *words, "data.on_bad_image=skip", "name=skips")]) == 0
    assert f"1 images that cannot be read were left out: {bad}" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/skips/1/result.json").read_text())["left_out"] == [str(bad)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_refuse_a_bad_image_unless_told(refuse_folder, tmp_path, split):
    make(tmp_path / "train", {"cat": 4, "dog": 4})
    make(tmp_path / "val", {"cat": 2, "dog": 2})
    make(tmp_path / "test", {"cat": 2, "dog": 2})
    bad = halve(tmp_path / split / "cat/000.jpg")
    said = refuse_folder(tmp_path, "data.on_bad_image=skip")
    assert said.startswith(f"{bad} cannot be read: ")
    assert said.endswith(" data.on_bad_image_eval=skip.")
    small = [word for word in SMALL if not word.startswith("data")]
    assert cli.main(["train", *small, *folder_words(tmp_path, "data.on_bad_image_eval=skip")]) == 0


def test_a_label_outside_the_classes(refused, tmp_path):
    write_mnist(tmp_path, "MNIST", np.arange(60) % 10)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8 + 7] = 12  # the eighth image, after a header of 8 bytes
    labels.write_bytes(bytes(content))
    words = [word for word in SMALL if not word.startswith("data")]
    assert refused("train", *words, "data=mnist", f"data.root={tmp_path}") == (
        "image 7 of the train split has the label 12, but the 10 classes have the labels 0 to 9. Fix the label, or add the class."
    )
    assert refused("train", *words, "data=mnist", f"data.root={tmp_path}/none").startswith(
        f"the files of MNIST are missing or damaged: {tmp_path}/none/MNIST/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte. Put them there, "
    )


QUICK = {"lenet", "resnet", "simple_cnn"}  # the others take a second each to be made
MODELS = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in option_names("model")]


@pytest.mark.parametrize("model", MODELS)
def test_a_network_takes_images_of_2_pixels_or_says_which_it_takes(capsys, model):
    words = ["train", *SMALL, f"model={model}"]
    if cli.main([*words, "data.image_size=2"]) == 0:
        return
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    named = re.search(r"Set (data\.image_size=\d+)", said)
    assert named, said
    assert cli.main([*words, named[1]]) == 0
