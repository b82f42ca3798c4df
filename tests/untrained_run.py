"""Run directories with the checkpoint of a network that was never trained: enough wherever its answers need not be good."""

from pathlib import Path

import torch

from imgrec import config
from imgrec.config.instantiate import instantiate
from imgrec.training.checkpoint import CheckpointWriter, checkpoint_metadata

TINY = ("data=digits", "model=simple_cnn", "model.widths=[4,8]", "model.dense=16", "trainer.channels_last=false")
CLASSES = tuple("0123456789")


def save_untrained_run(
    folder: Path, *words: str, classes: tuple[str, ...] = CLASSES, seed: int = 0, tiny: tuple[str, ...] = TINY
) -> Path:
    """FOLDER/config.yaml and FOLDER/checkpoints/best.ckpt of TINY with overrides; gives the folder back."""
    run = config.load("train", [*tiny, *words]).with_classes(len(classes))
    torch.manual_seed(seed)
    net = instantiate(run.model, num_classes=len(classes))
    for module in net.modules():  # statistics as if it had seen something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    keys = ("image_size", "channels", "mean", "std", "resize", "crop_share", "interpolation", "max_pixels", "scale")
    writer = CheckpointWriter(checkpoint_metadata(run, classes, {key: getattr(run.data, key) for key in keys}))
    writer.save_checkpoint({"state_dict": state, "epoch": 0}, folder / "checkpoints" / "best.ckpt")
    writer.wait()
    (folder / "config.yaml").touch()
    return folder
