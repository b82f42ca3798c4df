"""Every input that cannot be used: one line that says what was given, what was found and what to type, and exit code 2."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import assert_error, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from processes import run_command
from small_run import SMALL
from test_data_folder import make
from test_data_sets import write_mnist

from imgrec import cli
from imgrec.config.annotations import format_value
from imgrec.config.load import load_config
from imgrec.config.options import conf_dir, option_names
from imgrec.errors import ConfigError, shorten_words
from imgrec.files import EXTENSIONS_TEXT

DEFAULT = load_config("train", ["optim=adam"])  # whose values may be tuned without an edit here
LR, BETAS, WARMUP = DEFAULT.optim["lr"], format_value(DEFAULT.optim["betas"]), DEFAULT.scheduler["warmup_share"]
OPTIMS, COMMANDS = ", ".join(option_names("optim")), ", ".join(cli.COMMANDS)
ADAM = ", ".join(key for key in DEFAULT.optim if not key.startswith("_"))
BELOW_1 = ("0 or more", "less than 1")
HELP = "imgrec train --help"
MODELS = ", ".join(option_names("model"))

# What the composed config shows. The words after `imgrec`: what was given, what is allowed, what to type.
SHOWN: dict[str, tuple[object, ...]] = {
    # keys
    "train optim=adam optim.lrr=0.1": ("'optim.lrr=0.1'", "optim.lr", ADAM),
    "train optim=adam +optim.learning_rate=0.1": ("'+optim.learning_rate=0.1'", ADAM),
    "train ++seed=1": ("'++seed=1'", "seed=1"),
    "train ~seed": ("'~seed'", "seed=VALUE"),
    "train epoch=3": ("'epoch=3'", "epochs", HELP),
    "train lr=0.1": ("'lr=0.1'", "optim.lr", HELP),
    "train resnet": ("'resnet'", "key=value", "model=resnet"),
    "train nowhere": ("'nowhere'", "no such key, option or folder", "seed=0", "imgrec train FOLDER"),
    "train --epochs 5": ("'--epochs 5'", "key=value", "imgrec train epochs=5"),
    "train --epochs=5 --lr 0.1 seed=1": ("'--epochs=5 --lr 0.1'", "key=value", "imgrec train epochs=5 optim.lr=0.1 seed=1"),
    "train epochs 5": ("'epochs 5'", "key=value", "imgrec train epochs=5"),
    "train epochs = 5": ("'epochs = 5'", "key=value", "imgrec train epochs=5"),
    "train --data imagefolder": ("'--data imagefolder'", "key=value", "imgrec train data=imagefolder"),
    "train --batch-size 32 -m seed=1,2": ("'--batch-size 32'", "key=value", "imgrec train batch_size=32 -m seed=1,2"),
    "train --multi-run seed=1,2": ("'--multi-run'", "key=value", "imgrec train --multirun seed=1,2"),
    "train photos photos": ("'photos'", "one path", "data.root", "Remove it"),
    "train --config-dir=none": ("--config-dir none", "model/, data/, experiment/"),
    "photos epochs=5": ("photos", "no such command", "imgrec train photos epochs=5", COMMANDS),
    "train callbacks.emma.decay=0.9": ("'callbacks.emma.decay=0.9'", "callbacks.ema.decay", "ema, batch_norm, progressive_size, early_stopping"),
    "train data.root=photos": ("'data.root=photos'", "no key data.root", "data=photos"),
    "train callbacks.steps=5": ("callbacks.steps=5", "callbacks.steps=null"),
    "train callbacks=ema callbacks.pictures.images=0": ("'callbacks.pictures.images=0'", "callbacks", "ema"),
    # options and commands
    "train modle=vgg": ("'modle=vgg'", "model", HELP),
    "train optim=adma": ("optim=adma", "adam", OPTIMS),
    "train model=resnt --help": ("model=resnt", "resnet", MODELS),
    "train optim=AdamW": ("optim=AdamW", "adamw", OPTIMS),
    "train model=ResNet-50": ("model=ResNet-50", "resnet50", MODELS),
    "train model=efficientnet_b0": ("model=efficientnet_b0", MODELS, "model=torchvision model.name=efficientnet_b0"),
    "train data=nowhere/x": ("data=nowhere/x", "no such folder", "data=FOLDER"),
    "train Epochs=5": ("'Epochs=5'", "epochs", HELP),
    "train optim=null": ("'optim=null'", "optim=OPTION"),
    "train model=vgg,lenet": ("'model=vgg,lenet'", "imgrec train -m model=vgg,lenet for a job of each."),
    "train seed=1,2": ("'seed=1,2'", "imgrec train -m seed=1,2 for a job of each", "seed=[...]"),
    "trian model=vgg": ("trian", "train", COMMANDS),
    "train --config-dir": ("--config-dir", "--config-dir FOLDER"),
    "train --config-dir none": ("--config-dir none", "model/, data/, experiment/"),
    "train --config-dir none --help": ("--config-dir none", "model/, data/, experiment/"),
    # types
    "train optim=adam optim.lr=fast": ("optim.lr=fast", "number", LR),
    "train callbacks=default,ema(1)": ("'callbacks=default,ema(1)'", "imgrec train -m 'callbacks=default,ema(1)' for a job of each."),
    "train seed=range(0,3)": ("'seed=range(0,3)'", "imgrec train -m 'seed=range(0,3)' for a job of each", "seed=[...]"),
    "train +data.image_size=(9)": ("'+data.image_size=(9)'", "Type 'data.image_size=(9)'."),
    "train seed=abc": ("seed=abc", "integer", DEFAULT.seed),
    "train epochs=2.5": ("epochs=2.5", "integer", DEFAULT.epochs),
    "train batch_size=big": ("batch_size=big", "integer", "full", DEFAULT.batch_size),
    "train data.mean=red": ("data.mean=red", "list", "[0.3053]"),
    "train data.mean=[red]": ("data.mean=[red]", "list", "numbers", "[0.3053]"),
    "train trainer.deterministic=7": ("trainer.deterministic=7", "true or false", "false"),
    "train data.image_size=big": ("data.image_size=big", "integer", 8),
    "train finetune=3": ("finetune=3", "finetune.KEY=VALUE", "freeze_epochs, layer_decay"),
    "train finetune=[1]": ("finetune=[1]", "finetune.KEY=VALUE", "freeze_epochs, layer_decay"),
    "train callbacks.steps=[1]": ("callbacks.steps=[1]", "callbacks.steps=null"),
    "train data.image_size=???": ("data.image_size=???", "integer", 8),
    "train monitor=val/acc": ("monitor=val/acc", "val/loss", "val/top5", "val/accuracy"),
    "train trainer=debug trainer.devices=x": ("trainer.devices=x", "an integer, auto or a list of integers", 1),
    "train model.num_classes=7": ("model.num_classes=7", "data.num_classes=7"),
    # ranges
    "train seed=4294967296": ("seed=4294967296", "less than 4294967296", DEFAULT.seed),
    "train batch_size=0": ("batch_size=0", "1 or more", DEFAULT.batch_size),
    "train optim=adam optim.lr=0,01": ("optim.lr=0,01", "decimal comma", "optim.lr=0.01"),
    "train -m optim=adam optim.lr=0,01": ("optim.lr=0,01", "decimal comma", "optim.lr=0.01"),
    "train optim=adam optim.lr=0.1)": ("optim.lr=0.1)", "number", LR),
    "train seed={": ("seed={", "integer", DEFAULT.seed),
    "train name=${x}": ("name=${x}", "another key", "${seed}", "${oc.env:HOME}"),
    "train optim=adam optim.lr=-0.1": ("optim.lr=-0.1", "more than 0", LR),
    "train optim=adam optim.lr=nan": ("optim.lr=nan", "more than 0", LR),
    "train optim=adam optim.base_batch=0": ("optim.base_batch=0", "1 or more"),
    "train optim=adam optim.betas=[0.9,1.0]": ("optim.betas=[0.9,1.0]", *BELOW_1, BETAS),
    "train loss.label_smoothing=2": ("loss.label_smoothing=2.0", *BELOW_1, 0.0),
    "train scheduler.warmup_share=1": ("scheduler.warmup_share=1.0", *BELOW_1, WARMUP),
    "train data.max_pixels=0": ("data.max_pixels=0", "1 or more", 100_000_000),
    "predict ckpt=r files=a.jpg max_pixels=178956971": ("max_pixels=178956971", "178956970"),
    "train data.scale=white": ("data.scale=white", "numbers"),
    "train trainer.limit_val_batches=1.5": ("trainer.limit_val_batches=1.5", 1.0, "trainer.limit_val_batches=2"),
    "train callbacks.ema.decay=1": ("callbacks.ema.decay=1.0", *BELOW_1, 0.0),
    # without effect
    "train optim=gd batch_size=32": ("batch_size=32", "optim=gd", "optim=sgd", "batch_size"),
    "train decay_on=all": ("decay_on=all", "optim.weight_decay=0.0005", "loss.l1", "loss.l2", "decay_on"),
    "train augment.randaug_ops=3": ("augment.randaug_ops=3", "augment=randaug", "augment.policy=randaug", "augment.randaug_ops"),
    "train data.crop_share=0.9": ("data.crop_share=0.9", "data.resize=crop", "data.crop_share"),
    "train finetune.freeze_epochs=2": (
        "finetune.freeze_epochs=2", "weights=DEFAULT", "weights=RUN_DIRECTORY", "finetune.freeze_epochs",
    ),
    "train callbacks.early_stopping.patience=2 callbacks.early_stopping=null": (
        "callbacks.early_stopping.patience", "callbacks.early_stopping=null", "Remove",
    ),
    "train epochs=5 callbacks.early_stopping.patience=5": (
        "callbacks.early_stopping.patience=5", "epochs", "callbacks.early_stopping.patience",
    ),
    "train optim=sgd optim.batch_rule=sqrt": ("optim.batch_rule=sqrt", "optim.base_batch=256", "optim.batch_rule"),
    "train optim=gd optim.base_batch=256": (
        "optim.base_batch=256", "optim.batch_rule=linear", "optim.batch_rule=sqrt", "optim.base_batch",
    ),
    "train optim=nesterov optim.momentum=0 optim.nesterov=true": ("optim.nesterov=true", "optim.momentum=0.9", "optim.nesterov"),
    # directories and files
    "train photo": ("'photo'", "no such folder", "imgrec train photos"),
    "train one": ("one", "only the class folder cat", "data.root=FOLDER"),
    "train empty": ("empty", "no class folders", "data.root=FOLDER"),
    "train .own/loose": (".own/loose", "no class folders", ".own/loose/CLASS/"),
    "lr_find data=imagefolder data.root=mixed": ("mixed", "train", "cat, dog", "class_train"),
    "train loop": ("loop/", "symbolic links", "Fix it or remove it"),
    "train nothing": ("'nothing'", "no such key, option or folder", "imgrec train FOLDER"),
    "train data=imagefolder data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER", "train/CLASS/*.jpg"),
    "train train.csv": ("'train.csv'", "imgrec train data=table data.file=train.csv"),
    "train data=table data.root=photos": ("data.file=null", "data.file=TABLE.csv"),
    "train data=table data.file=trian.csv": ("data.file=trian.csv", "train.csv", "data.file=TABLE.csv"),
    "train data=table data.file=train.xls": ("data.file=train.xls", ".csv", ".parquet", "Save", "data.file=train.csv"),
    "train data=table data.file=train.csv data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER", "paths start"),
    "train photos data.label_from=[a-z": ("data.label_from=[a-z", "unterminated", "data.label_from='^[a-z]+'"),
    "train photos data.group_from=(?<p": ("data.group_from=(?<p", "data.group_from="),
    "train data=mnist data.root=nowhere": ("data.root=nowhere", "data.root=FOLDER", "data.download=true"),
    "train data=mnist data.root=photos": ("the files of MNIST", "photos/MNIST/raw", "data.root=FOLDER", "data.download=true"),
    "train data=cifar100 data.root=photos": ("the files of CIFAR100", "photos/cifar-100-python", "data.download=true"),
    "lr_find data=imagefolder data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER"),
    # weights
    "train photos weights=m.onnx": ("weights=m.onnx", "exported file", "the run"),
    "train photos weights=t.csv": ("weights=t.csv", "a text file", "runs/NAME/ID"),
    "train photos weights=photos": ("weights=photos", "checkpoints/best.ckpt", "runs/NAME/ID"),
    "train photos distill.teacher=m.onnx": ("distill.teacher=m.onnx", "exported file", "the run"),
    "train photos distill.teacher=runs/n/1": ("distill.teacher=runs/n/1", 2, "dog", "distill.teacher=RUN"),
    "train photos weights=imagenet": ("weights=imagenet", "weights=DEFAULT", "weights=PATH", "weights=null"),
    "lr_find photos weights=no.ckpt": ("weights=no.ckpt", "weights=DEFAULT", "weights=PATH", "weights=null"),
    "train model=lenet data.image_size=12 weights=DEFAULT": ("weights=DEFAULT", "lenet", "model=resnet18", "weights=null"),
    "train photos data.image_size=32 weights=DEFAULT": (
        "weights=DEFAULT", "model.stem=small", "model=resnet18 data.image_size=224", "model=resnet18 model.stem=imagenet",
    ),
    "train data=digits model=vgg16 weights=DEFAULT": ("weights=DEFAULT", "model.head=small", "data.image_size=224"),
    "train id=a/b": ("id=a/b", "id=NAME", "runs_dir=FOLDER"),
    # the other commands; an.ckpt is an empty file
    "evaluate": ("ckpt=null", "ckpt=runs/NAME/ID", ".ckpt"),
    "evaluate none": ("none", ".ckpt", "runs/NAME/ID"),
    "evaluate an.ckpt photos": ("'photos'", "one path", "ckpt", "folder=photos"),
    "export an.ckpt model.onnx": ("'model.onnx'", "one path", "ckpt", "out=model.onnx"),
    "export an.ckpt m.pt2": ("'m.pt2'", "one path", "ckpt", "out=m.pt2 format=torch_export"),
    "export an.ckpt out=m.pt2": ("out=m.pt2", ".onnx", "format=torch_export", "out=m.onnx"),
    "serve m.onnx": ("m.onnx", "damaged", "Export it again"),
    "serve m.pt2": ("m.pt2", ".onnx", "runs/NAME/ID"),
    "serve an.ckpt host=192.0.2.1": ("host=192.0.2.1", "no such address", "host=127.0.0.1"),
    "evaluate --split val an.ckpt": ("'--split val'", "imgrec evaluate split=val an.ckpt"),
    "evaluate ckpt=none": ("none", ".ckpt", "runs/NAME/ID"),
    "evaluate split=tset": ("split=tset", "test, val", "train", "test"),
    "evaluate model=vgg": ("'model=vgg'", "Remove model="),
    "evaluate ckpt=an.ckpt folder=none": ("folder=none", "folder=FOLDER", "CLASS/*.jpg"),
    "evaluate runs/n/1 folder=photos": ("photos", "dog", "cat", "Rename the folder"),
    "evaluate ckpt=an.ckpt out=x.txt": ("out=x.txt", ".json", "out=x.json"),
    "evaluate ckpt=an.ckpt plot=x.jpg": ("plot=x.jpg", ".png", "plot=x.png"),
    "evaluate ckpt=an.ckpt folder=photos by=sise": ("by=sise", "size, brightness, type", "size"),
    "evaluate ckpt=an.ckpt folder=photos data.root=x": ("data.root=x", "folder=photos", "Leave it out"),
    "evaluate ckpt=an.ckpt data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER"),
    "evaluate ckpt=an.ckpt data.file=trian.csv": ("data.file=trian.csv", "data.file=TABLE.csv"),
    "evaluate run by=camera": ("by=camera", "size, brightness, type", "by=brightness"),
    "evaluate tabled by=camra": ("by=camra", "camera", "by=COLUMN"),
    "explain an.ckpt photos data.root=x": ("data.root=x", "neighbours=0", "Leave it out"),
    "explain an.ckpt photos neighbours=3 data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER"),
    "export an.ckpt data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER"),
    "check ckpt=an.ckpt suspects=true data.root=photo": ("data.root=photo", "photos", "data.root=FOLDER"),
    "extend an.ckpt data.root=photo": ("data.root=photo", "photos", "CLASS/*.jpg"),
    "extend an.ckpt data.root=null": ("data.root", "data.root=FOLDER"),
    "extend an.ckpt data.root=train.csv": ("data.root=train.csv", "not a folder", "CLASS/*.jpg"),
    "extend an.ckpt empty": ("empty", "no class folders", "CLASS/*.jpg"),
    "extend an.ckpt .own/loose": (".own/loose", "no class folders", ".own/loose/CLASS/"),
    "extend an.ckpt .own/loose data.label_from=(z+)": ("data.label_from=(z+)", "finds nothing", "move these images away"),
    "extend runs/n/1 one": ("data.root=one", "no new class", "cat", "data.root=FOLDER"),
    "extend an.ckpt run": ("data.root=run", "directory of a run", "CLASS/*.jpg"),
    "report phots": ("runs=phots", "photos", "runs/NAME/ID"),
    "report photos": ("runs=photos", "no run directory", "runs/NAME/ID"),
    "compare run photos": ("runs=photos", "no run directory", "runs/NAME/ID"),
    "soup photos run": ("runs=photos", "no run directory", "runs/NAME/ID"),
    "soup runs/n": ("runs=runs/n", "2 finished runs", "imgrec soup runs/n/*/"),
    "compare runs": ("runs=runs", "3 finished runs", "imgrec compare", "runs/n/1"),
    "soup runs/n/1 runs/n/2": ("runs=runs/n/2", "another network", "model.depth=32, 20 in runs/n/1", "Name runs"),
    "soup runs/n/1 runs/mean/1": ("runs=runs/mean/1", "a mean of runs already", "runs/n/8 runs/n/9"),
    "check suspects=true ckpt=no.ckpt": ("no.ckpt", "an.ckpt", "runs/NAME/ID"),
    "predict files=x": ("ckpt=null", "ckpt=runs/NAME/ID", ".ckpt"),
    "predict topk=3": ("'topk=3'", "top_k", "imgrec predict --help"),
    "predict top_k=0": ("top_k=0", "1 or more", 3),
    "predict precision=16": ("precision=16", "32, bf16-mixed, 16-mixed or null"),
    "predict data=mnist": ("'data=mnist'", "Remove data="),
    "predict an.ckpt --top-k 5": ("'--top-k 5'", "imgrec predict an.ckpt top_k=5"),
    "predict an.ckpt no.png": ("files=no.png", "files="),
    "predict an.ckpt": ("files=null", "files=FOLDER, FILE", "[a.jpg,b.jpg]"),
    "predict ckpt=an.ckpt": ("files=null", "files=FOLDER, FILE", "[a.jpg,b.jpg]"),
    "predict photos": ("photos", "checkpoints/best.ckpt", "runs/NAME/ID"),
    "predict ckpt=an.ckpt files=no.png": ("files=no.png", "files="),
    "predict ckpt=an.ckpt files=a.png,b.png": ("files=a.png,b.png", "files=[a.png,b.png]"),
    "predict ckpt=an.ckpt files=*.tif": ("files=*.tif", "quotes"),
    "predict ckpt=an.ckpt files=empty": ("files=empty", EXTENSIONS_TEXT, "files=FOLDER"),
    "predict ckpt=an.ckpt files=.own/loose/a.png out=x.xlsx": ("out=x.xlsx", ".csv", ".json", ".parquet", "out=x.csv"),
    "predict an.ckpt m.onnx": ("files=m.onnx", "an exported file", "files="),
    "predict an.ckpt t.csv an.ckpt": ("files=t.csv", "a text file", "none of 2 files is an image", "files="),
    "explain runs/n/1": ("images=null", "runs/n/1", "images=FOLDER"),
    "explain an.ckpt t.csv": ("images=t.csv", "a text file", "images="),
    "lr_find lr_min=1 lr_max=0.1": ("lr_min=1 lr_max=0.1", "lr_max above lr_min", "lr_max=1000"),
    "lr_find lr_min=small": ("lr_min=small", "number", 1e-06),
    "lr_find lr_max=0": ("lr_max=0.0", "more than 0", 1.0),
    "lr_find steps=1": ("steps=1", "2 or more", 100),
    "lr_find plot=.own/mine.png": ("plot=.own/mine.png", "did not write it", "plot=ANOTHER", "overwrite=true"),
    "lr_find --lr-min 0.1": ("'--lr-min 0.1'", "imgrec lr_find lr_min=0.1"),
    "lr_find plot=no/dir.png": ("plot=no/dir.png", ".png", "folder", "plot=lr_find.png"),
    "lr_find plot=curve.svg": ("plot=curve.svg", ".png", "plot=lr_find.png"),
    "models filtr=x": ("filtr=x", "filter", "source, filter, image_size, num_classes, sizes, out, overwrite"),
    "models out=.own/mine.csv": ("out=.own/mine.csv", "did not write it", "out=ANOTHER", "overwrite=true"),
    "models --source timm": ("'--source timm'", "imgrec models source=timm"),
    "slurm --nodes 2 -- data=mnist": ("'--nodes 2'", "imgrec slurm nodes=2"),
    "models source=tim": ("source=tim", "imgrec, torchvision, timm or all", "timm"),
    "models image_size=big": ("image_size=big", "integer"),
    "models out=models.txt": ("out=models.txt", ".json or .csv", "out=models.json"),
}  # fmt: skip

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


def write_finished(run, config):
    """What is read of a finished run before its checkpoint."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/best.ckpt").write_bytes(b"PK\x03\x04")
    (run / "config.yaml").write_text(config)
    best = {"val/loss": 1.0}
    images = {"train": {"cat": 1}}
    result = {"summary": "", "best": best, "last": best, "test": None, "train_seconds": 1.0, "images": images}
    (run / "result.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(exit code, stderr, was torch imported) of every SHOWN input, from one process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "IMGREC_DEBUG"}
    cwd = tmp_path_factory.mktemp("cwd")
    (cwd / "an.ckpt").write_bytes(b"PK\x03\x04")  # as a checkpoint begins
    (cwd / "train.csv").touch()
    folders = ("photos/cat", "photos/dog", "one/cat", "mixed/train/cat", "mixed/cat", "mixed/dog", "loop", "empty", ".own/loose")
    for name in (*folders, "run/checkpoints", "tabled/checkpoints"):
        (cwd / name).mkdir(parents=True)
    for name in (".own/loose", "photos/dog", "mixed/cat", "mixed/dog"):
        (cwd / name / "a.png").touch()
    for name, other in ("ab", "ba"):
        (cwd / "loop" / name).symlink_to(other)
    (cwd / "m.onnx").write_bytes(b"\x08\x08")
    (cwd / "m.pt2").write_bytes(b"PK\x03\x04")
    for name, depth, more in (("n/1", 20, ""), ("n/2", 32, ""), ("mean/1", 20, "soup: [runs/n/8, runs/n/9]")):
        write_finished(cwd / "runs" / name, f"model: {{depth: {depth}}}\ndata: {{}}\nmonitor: val/loss\n{more}")
    (cwd / "t.csv").write_text("path,label,camera\n")
    for name, data in (
        ("run", "{_target_: imgrec.data.datasets.Digits}"),
        ("tabled", "{_target_: imgrec.data.table.ImageTable, file: t.csv}"),
    ):
        (cwd / name / "checkpoints/best.ckpt").write_bytes(b"PK\x03\x04")
        (cwd / name / "config.yaml").write_text(f"data: {data}\n")
    for name in ("mine.png", "mine.csv"):
        (cwd / ".own" / name).write_text("not imgrec's")
    done = run_command(sys.executable, "-c", MANY, input=json.dumps(list(SHOWN)), cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", SHOWN)
def test_what_the_config_shows_is_refused_before_torch_is_imported(answers, words):
    code, said, torch_is_imported = answers[words]
    assert (code, torch_is_imported) == (2, False)
    assert_refused(said, *SHOWN[words])


@pytest.mark.parametrize("start", [["-m", "imgrec.train"], ["-m", "imgrec.cli", "train"]])
def test_a_process_ends_with_code_2_and_one_line(start, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "IMGREC_DEBUG"}
    done = run_command(sys.executable, *start, "optim=adma", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert_refused(done.stderr, *SHOWN["train optim=adma"])
    assert list(tmp_path.iterdir()) == []


# Everything below runs in this process


@pytest.fixture(autouse=True)
def no_debug(monkeypatch, tmp_path):
    monkeypatch.delenv("IMGREC_DEBUG", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refuses(capsys):
    """refuses(["train", ...], GIVEN, ..., SUGGESTION): the command ends with exit code 2 and that error."""

    def run(argv, *parts):
        code = cli.main(list(argv))
        said = capsys.readouterr().err
        assert code == 2, said
        assert_refused(said, *parts)

    return run


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("x" * 9000, "`imgrec train --help`"),
        ("a b " * 3000, "`imgrec train --help`"),
        ("x" * 9000 + "=1", "`imgrec train --help`"),
        ("optim.lr=" + "x" * 9000, "The default is"),
        ("weights=" + "a b " * 3000, "weights=null."),
    ],
)
def test_a_word_of_thousands_of_letters_is_quoted_in_part(capsys, word, typed):
    assert cli.main(["train", word]) == 2
    said = capsys.readouterr().err
    assert (len(said) < 3100, said.count("\n")) == (True, 1)
    assert re.search(r"\S{501}|'[^']{501,}'", said) is None
    assert said.partition(word[:9])[2].partition("...")[2].partition(typed)[1], "the two ends of the word, and what to type"
    assert shorten_words(f"{'a/' * 249}a cannot be read.") == f"{'a/' * 249}a cannot be read."


def test_imgrec_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("IMGREC_DEBUG", "1")
    with pytest.raises(ConfigError) as error:
        cli.main(["train", "optim=adma"])
    assert_error(str(error.value), *SHOWN["train optim=adma"])


NO_FP16 = pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU.*")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        # a key that stands elsewhere
        ("trainer.ema_decay=3", ("'trainer.ema_decay=3'", "callbacks.ema.decay")),
        ("trainer.early_stopping_patience=3", ("'trainer.early_stopping_patience=3'", "callbacks.early_stopping.patience")),
        ("early_stopping_patience=3", ("'early_stopping_patience=3'", "callbacks.early_stopping.patience")),
        ("trainer.max_epochs=4", ("'trainer.max_epochs=4'", "Did you mean epochs?")),  # Lightning's name
        ("max_epochs=4", ("'max_epochs=4'", "Did you mean epochs?")),
        # what a signature says
        ("optim.base_batch=8 optim.batch_rule=linaer", ("optim.batch_rule=linaer", "linear, sqrt or none")),
        ("optim.base_batch=8.5", ("optim.base_batch=8.5", "integer or null")),
        ("augment.crop_scale=[1]", ("augment.crop_scale=[1]", "2 values")),
        # devices
        ("trainer.accelerator=cpux", ("trainer.accelerator=cpux", "auto, cpu, gpu, cuda or mps", "cpu")),
        ("trainer.devices=all", ("trainer.devices=all", "integer, auto", "list of integers")),
        ("trainer.strategy=ddp_spawn", ("trainer.strategy=ddp_spawn", "auto, ddp or fsdp")),
        pytest.param("trainer.accelerator=gpu", ("trainer.accelerator=gpu", "trainer.accelerator=auto"), marks=NO_GPU),
        pytest.param(
            "trainer.precision=16-mixed",
            ("trainer.precision=16-mixed", "CPU", "trainer.precision=bf16-mixed", "trainer.precision=32"),
            marks=NO_FP16,
        ),
        # weights that are nowhere
        ("weights=none.ckpt", ("weights=none.ckpt", "lenet", "weights=PATH", "weights=null")),
    ],
)
def test_what_torch_is_needed_to_see(refuses, overrides, parts):
    refuses(["train", *SMALL, *overrides.split()], *parts)


SGD = "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n"
CALLBACK = "defaults: [default, _self_]\nown:\n  _target_: "
RECIPE = "# @package _global_\n"
TRUST = ("imgrec, torch, torchvision", "export IMGREC_ALLOW=os")


OWN: list[tuple[str, str, tuple[object, ...]]] = [
    # at its top, in a group and beside _partial_: what Hydra lets pass
    ("experiment", RECIPE + "epoch: 3", ("epoch=3", "epochs")),
    ("experiment", RECIPE + "optim: {learning_rate: 3}", ("optim.learning_rate=3", "lr, base_batch")),
    ("experiment", RECIPE + "finetune: {freeze_epoch: 3}", ("finetune.freeze_epoch=3", "freeze_epochs")),
    ("experiment", RECIPE + "data: {val_share: 2}", ("data.val_share=2.0", "more than 0", "less than 1", 0.02)),
    ("experiment", RECIPE + "optim: {lr: fast}", ("optim.lr=fast", "number", LR)),
    # only the signature of the code it names tells: after torch is imported and before any data is read
    ("optim", SGD + "momentun: 0.9", ("optim.momentun=0.9", "torch.optim.SGD", "momentum")),
    ("optim", SGD.replace("SGD", "SDG"), ("_target_=torch.optim.SDG", "SGD")),
    ("optim", SGD + "nesterov: 3", ("optim.nesterov=3", "true or false")),
    ("optim", SGD + "base_batch: 8", ("optim.base_batch=8", "base_batch and batch_rule", "batch_rule: linear")),
    ("optim", SGD.replace("torch.optim.SGD", "os.system"), ("_target_=os.system", *TRUST)),
    ("callbacks", CALLBACK + "os.getcwd", ("_target_=os.getcwd", *TRUST)),
    ("callbacks", CALLBACK + "torch.nn.ReLU", ("callbacks.own._target_=torch.nn.ReLU", "pytorch_lightning.Callback", "ReLU")),
    (
        "callbacks",
        CALLBACK + "pytorch_lightning.callbacks.Timer\n  duratoin: 00:12:00:00",
        ("callbacks.own.duratoin=00:12:00:00", "pytorch_lightning.callbacks.Timer", "duration"),
    ),
]


@pytest.mark.parametrize(
    ("group", "text", "parts"),
    [pytest.param(*row, marks=pytest.mark.slow if k % 4 else (), id=row[2][0]) for k, row in enumerate(OWN)],
)
def test_a_yaml_of_ones_own(refuses, tmp_path, group, text, parts):
    file = tmp_path / "mine" / group / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    small = () if group == "experiment" else SMALL
    refuses(["train", *small, "--config-dir", str(tmp_path / "mine"), f"{group}=mine"], *parts)
    assert list(tmp_path.glob("runs/*/*")) == []


LAUGHS = "\n".join(["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9))])
ODD_YAML = {
    "a: [1": "line 1", "\t- x": "line 1", "a: &x [*x]": "levels", LAUGHS: "values", "[" * 50 + "]" * 50: "levels", "a: 1\n---\nb: 2": "document",
    "!!python/object/apply:os.system ['touch pwned']": "tag", "\x00": "special characters", "[]": "no group of keys", "5": "no group of keys",
    "a: 2024-13-01": "month",
}  # fmt: skip


@pytest.mark.parametrize("group", slow_but("model", among=["model", "experiment", "trainer", "callbacks"]))
@pytest.mark.parametrize("text", slow_but(*list(ODD_YAML)[::3], among=ODD_YAML))
def test_a_yaml_that_is_none_is_named(refuses, tmp_path, group, text):
    file = tmp_path / "mine" / group / "odd.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    words = ["train", "--config-dir", str(tmp_path / "mine"), f"{group}=odd"]
    refuses(words, file, ODD_YAML[text])
    assert not (tmp_path / "pwned").exists()
    file.write_bytes(b"a: \xff\xfe")
    refuses(words, file, "utf-8")


ODD_KEYS = ("1: 2\n", "null: 1\n", "true: false\n", "? [a]\n: b\n", "defaults: 5\n", "a: 1\na: 2\n", "a: ${b}\nb: ${a}\n", "a: ${x:1}\n", "",
            "# @package nowhere\na: 1\n", "# @package _global_\nmodel: null\n", "# @package _global_\ndata: 5\n", "_target_: [1]\n")  # fmt: skip


@pytest.mark.parametrize("text", slow_but(ODD_KEYS[0], among=ODD_KEYS))
@pytest.mark.parametrize("group", slow_but("model", among=["model", "optim", "trainer", "logger", "experiment"]))
def test_a_yaml_with_odd_keys_is_one_line(tmp_path, monkeypatch, capsys, group, text):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine" / group / "odd.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for more in ((), (f"{group}.a=1",)):
        code = cli.main(["train", "--config-dir", str(tmp_path / "mine"), f"{group}=odd", *more, "data.num_classes=5"])
        err = capsys.readouterr().err
        assert (code, err.count("\n"), err[:8]) == (2, 1, "imgrec: ")


@pytest.mark.slow
@given(depth=st.integers(33, 900), brackets=st.sampled_from(["[]", "{}", "()"]))
def test_an_override_in_many_brackets_is_one_line(depth, brackets):
    inner = "a:" if brackets == "{}" else ""
    value = f"{brackets[0]}{inner}" * depth + "1" + brackets[1] * depth
    with pytest.raises(ConfigError) as error:
        load_config("train", [f"augment.crop_scale={value}"])
    assert_error(str(error.value), "'augment.crop_scale=", "32 brackets")


# Data


def folder_words(root: Path, *words: str) -> list[str]:
    small = [word for word in SMALL if not word.startswith("data")]
    return ["train", *small, "data=imagefolder", f"data.root={root}", "data.image_size=16", *words]


LAYOUTS = ("data.root=FOLDER", "train/CLASS/*.jpg", "CLASS/*.jpg")


def test_folders_that_cannot_be_used(refuses, tmp_path):
    root = tmp_path / "photos"
    words = folder_words(root)
    refuses(words, f"data.root={root}", *LAYOUTS)
    root.mkdir()
    refuses(words, root, "class folders", *LAYOUTS)
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
    refuses(words, f"{root}/train", "images", ".jpg")
    make(root / "more", {"cat": 4})
    for file in (root / "more/cat").iterdir():
        file.rename(root / "train/cat" / file.name)
    refuses(words, f"{root}/train", "only the class folder cat", *LAYOUTS)
    (root / "train/dog/a.heic").write_bytes(b"no format that is read")
    refuses(words, "the class folder", f"{root}/train/dog", "remove")
    (root / "checkpoints").mkdir()
    (root / "config.yaml").touch()
    for command in ("train", "tune", "lr_find", "benchmark", "pack", "check"):
        typed = [command, str(root), *(["out=packed"] if command == "pack" else [])]
        refuses(typed, f"data.root={root}", "the directory of a run", "no images", *LAYOUTS)
    assert not list(tmp_path.glob("runs/*")), "a refused run leaves no folder that holds the next start to its config"


def test_a_split_with_an_unknown_class(refuses, tmp_path):
    make(tmp_path / "train", {"cat": 4, "dog": 4})
    make(tmp_path / "val", {"cat": 2, "dogs": 2})
    refuses(folder_words(tmp_path), f"{tmp_path}/val", "dogs", "cat, dog", "dog", "Rename")


def test_more_or_fewer_classes_than_said(refuses, tmp_path):
    make(tmp_path / "train", {"cat": 4, "dog": 4})
    words = folder_words(tmp_path, "data.num_classes=3")
    refuses(words, "data.num_classes=3", tmp_path, 2, "cat, dog", "data.num_classes=2")


def halve(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_image_of_train_is_named_or_left_out_and_counted(refuses, capsys, tmp_path, num_workers):
    make(tmp_path / "train", {"cat": 5, "dog": 5})
    make(tmp_path / "val", {"cat": 2, "dog": 2})
    bad = halve(tmp_path / "train/dog/001.jpg")
    words = [f"num_workers={num_workers}", "trainer.limit_train_batches=1.0"]
    refuses(folder_words(tmp_path, *words), bad, "data.on_bad_image=skip")
    if num_workers:
        return
    assert cli.main(folder_words(tmp_path, *words, "data.on_bad_image=skip", "name=skips")) == 0
    assert str(bad) in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/skips/1/result.json").read_text())["left_out"] == [str(bad)]


def test_constant_images_and_ignored_files_are_counted_and_named(capsys, tmp_path):
    make(tmp_path / "train", {"cat": 5, "dog": 5})
    make(tmp_path / "val", {"cat": 2, "dog": 2})
    for name in (
        "train/cat/a.txt",
        "train/cat/deep/b.TXT",
        "train/dog/README",
        "val/dog/c.csv",
        "val/dog/.hidden",
        "train/d.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    gray = tmp_path / "train/dog/gray.gif"
    Image.new("RGB", (20, 30), (9, 9, 9)).save(gray)
    assert cli.main(folder_words(tmp_path, "trainer.limit_train_batches=1.0", "epochs=2")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ignored +2 \.txt, 1 without extension, 1 \.csv: ", shown, re.MULTILINE), shown
    assert re.findall(f"^ +(1 image .*): {gray}$", shown, re.MULTILINE) == ["1 image with the same value everywhere"]


def test_files_of_12_bits_need_a_scale(refuses, tmp_path):
    root = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog") * 8):
        (root / name).mkdir(exist_ok=True, parents=True)
        values = np.random.default_rng(number).integers(0, 4096, (20, 20)).astype(np.uint16)
        Image.fromarray(values).save(root / name / f"{number}.png")
    refuses(folder_words(root, "data.on_bad_image=skip"), f"{root}/", "data.scale=[BLACK,WHITE]", "data.scale=[0,4095]")
    refuses(folder_words(root, "data.scale=[4095,0]"), "data.scale=[4095,0]", "[BLACK,WHITE]", "data.scale=[0,4095]")
    assert cli.main(folder_words(root, "data.scale=[0,4095]")) == 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_refuse_a_bad_image_unless_told(refuses, tmp_path, split):
    make(tmp_path / "train", {"cat": 4, "dog": 4})
    make(tmp_path / "val", {"cat": 2, "dog": 2})
    make(tmp_path / "test", {"cat": 2, "dog": 2})
    bad = halve(tmp_path / split / "cat/000.jpg")
    words = folder_words(tmp_path, "data.on_bad_image=skip")
    refuses([*words, "data.on_bad_image_eval=refuse"], bad, "data.on_bad_image_eval=skip")
    assert cli.main(words) == 0  # for all splits where nothing else is said of validation and test


def test_a_label_outside_the_classes(refuses, tmp_path):
    write_mnist(tmp_path, "MNIST", np.arange(60) % 10)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8 + 7] = 12  # the eighth image, after a header of 8 bytes
    labels.write_bytes(bytes(content))
    small = [word for word in SMALL if not word.startswith("data")]
    words = ["train", *small, "data=mnist"]
    refuses([*words, f"data.root={tmp_path}"], "image 7", "train", 12, "0 to 9", "Fix")
    raw = f"{tmp_path}/none/MNIST/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte"
    (tmp_path / "none").mkdir()
    refuses([*words, f"data.root={tmp_path}/none"], "the files of MNIST", raw)


QUICK = {"lenet", "resnet"}  # the others take a second each to be made
FAMILIES = [name for name in option_names("model") if "_target_: " in (conf_dir() / f"model/{name}.yaml").read_text()]
NETWORKS = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]


def test_no_temporary_folder(monkeypatch, capsys, tmp_path):
    """As where /tmp is full, and the current folder read-only."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setenv("TMPDIR", "/full")
    for command in ("train", "evaluate", "predict"):
        assert cli.main([command]) == 2
        assert_refused(capsys.readouterr().err, "TMPDIR=/full", "/tmp", "TMPDIR=FOLDER")


@pytest.mark.parametrize("model", NETWORKS)
def test_a_network_takes_images_of_2_pixels_or_says_which_it_takes(capsys, model):
    words = ["train", *SMALL, f"model={model}"]
    if cli.main([*words, "data.image_size=2"]) == 0:
        return
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    named = re.search(r"Set (data\.image_size=\d+)", said)
    assert named, said
    assert cli.main([*words, named[1]]) == 0
