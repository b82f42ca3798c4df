"""conf/trainer and conf/logger into a Lightning Trainer, and the parts of a run into a Classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from imgrec.config.instantiate import instantiate, locate, parameter_types
from imgrec.config.schema import Node, RunConfig, monitor_mode
from imgrec.data.augment import Augment
from imgrec.data.datamodule import ImageData
from imgrec.data.preprocess import Preprocess
from imgrec.data.sampler import BatchPlan
from imgrec.distributed.device_checks import trainer_devices
from imgrec.distributed.sync_batchnorm import convert_sync_batchnorm
from imgrec.distributed.world import cluster_environment, world
from imgrec.errors import ConfigError
from imgrec.models.factory import build_network
from imgrec.models.layers import layers
from imgrec.models.pretrained import transfer_weights
from imgrec.models.summary import ModelSize, measure_size
from imgrec.training.callbacks.best import BestCheckpoint
from imgrec.training.lightning_compat import prepare_trainer
from imgrec.training.module import Classifier
from imgrec.training.optimizer import build_optimizer
from imgrec.training.scheduler import lightning_schedulers
from imgrec.training.strategies import StrategyName, make_strategy
from imgrec.training.transfer import pretrained_weights

Precision = Literal["32", "bf16-mixed", "16-mixed"]
Limit = int | float  # a number of batches, or a share of them


def build_trainer(
    *,
    accelerator: str,
    devices: int | str | list[int],
    num_nodes: int | Literal["auto"],
    strategy: StrategyName,
    sync_batchnorm: bool,
    timeout_s: float,
    precision: Precision,
    gradient_clip: float,
    channels_last: bool,
    compile: bool,
    ema_decay: float,
    early_stopping_patience: int,
    max_minutes: float | None,
    save_every_steps: int | None,
    save_every_minutes: float,
    limit_train_batches: Limit,
    limit_val_batches: Limit,
    limit_test_batches: Limit,
    deterministic: bool,
    log_every_steps: int,
    plugins: Sequence[Any] = (),
    **run: Any,
) -> pl.Trainer:
    """The Lightning Trainer of a conf/trainer node; `run` holds what the run adds: callbacks, logger, epochs, accumulation.

    `channels_last`, `compile` and `sync_batchnorm` are the network's, `ema_decay` and `early_stopping_patience` become callbacks in `guards`, `max_minutes` and
    `save_every_*` are the step boundary's.
    Raises ConfigError for an accelerator or devices that are not there.
    """
    try:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=1 if num_nodes == "auto" else num_nodes,
            strategy=make_strategy(strategy, world_size=world().size),
            precision="32-true" if precision == "32" else precision,
            gradient_clip_val=gradient_clip or None,
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            deterministic=deterministic,
            benchmark=not deterministic,
            log_every_n_steps=log_every_steps,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # imgrec.data.sampler shares the samples out, and pads nothing
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[*plugins, cluster_environment(world())],
            **run,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        gpus = torch.cuda.device_count()
        raise ConfigError(
            f"trainer.accelerator={accelerator} trainer.devices={devices} trainer.strategy={strategy} cannot be had: {str(error).strip().splitlines()[0]} "
            f"Found: {gpus} CUDA devices. Set trainer.accelerator=auto trainer.devices=auto."
        ) from error
    # Lightning would compute in bfloat16 and say so in a warning.
    if precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed needs a GPU, but this run is on the CPU. Set trainer.precision=bf16-mixed or trainer.precision=32."
        )
    prepare_trainer(trainer)
    return trainer


def guards(run: RunConfig, folder: Path) -> list[Callback]:
    """The callbacks that change the run: EMA, early stopping, the best checkpoint."""
    mode = monitor_mode(run.monitor)
    found: list[Callback] = []
    if run.trainer["ema_decay"]:
        found.append(EMAWeightAveraging(decay=run.trainer["ema_decay"]))
    if run.trainer["early_stopping_patience"]:
        found.append(
            EarlyStopping(run.monitor, patience=run.trainer["early_stopping_patience"], mode=mode, check_on_train_epoch_end=True)
        )
    best = BestCheckpoint(
        folder, "best", monitor=run.monitor, mode=mode, enable_version_counter=False, save_on_train_epoch_end=True
    )
    return [*found, best]


def build_logger(node: Node, folder: Path) -> Logger:
    """The Lightning logger of a conf/logger node, writing under the run folder where it writes at all."""
    takes = parameter_types(locate(node["_target_"]))
    logger = instantiate(node, **({"save_dir": str(folder)} if "save_dir" in takes else {}))
    assert isinstance(logger, Logger)
    return logger


def build_data(run: RunConfig, trainer: pl.Trainer) -> tuple[ImageData, Augment, BatchPlan]:
    """The data of a run, read; its augmentation; and the plan of its batches, which the Trainer is told: its steps and limits are global batches."""
    data, augment = instantiate(run.data), instantiate(run.augment)
    plan = data.prepare_run(
        seed=run.seed,
        batch_size=run.batch_size,
        max_device_batch=run.max_device_batch,
        num_workers=run.num_workers,
        augment=augment,
        devices=trainer.world_size,
        sampling=run.sampling,
        class_weights=run.class_weights,
    )
    trainer.accumulate_grad_batches = plan.accumulate
    if isinstance(trainer.limit_train_batches, int):
        trainer.limit_train_batches *= plan.accumulate
    return data, augment, plan


def trainer_arguments(run: RunConfig) -> Node:
    """The trainer node as keywords, with the devices and nodes that this process has a part in."""
    return {key: value for key, value in run.trainer.items() if not key.startswith("_")} | trainer_devices(run, world())


def build_classifier(run: RunConfig, data: ImageData, augment: Augment) -> tuple[Classifier, ModelSize, str | None]:
    """The classifier of a run, ready to be trained; its size; and what was taken from `weights`, in a sentence."""
    classes = data.classes
    net = build_network(run, classes)
    size = measure_size(net, channels=run.data["channels"], image_size=run.data["image_size"])
    taken = transfer_weights(net, pretrained_weights(run.weights, run.model), classes) if run.weights else None
    if run.monitor == "val/top5" and len(classes) <= 5:
        raise ConfigError(
            f"monitor=val/top5, but with {len(classes)} classes every answer is among the first five. Set monitor=val/accuracy."
        )
    loss = instantiate(run.loss)
    loss.set_class_counts(torch.from_numpy(data.counts("train")))
    if run.trainer["sync_batchnorm"]:
        net = convert_sync_batchnorm(net)
    if run.trainer["compile"]:
        net.compile()  # in place: torch.compile(net) would rename every key of the state dict

    def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
        decay = run.finetune["layer_decay"]
        node = dict(run.optim)
        # Fused kernels unscale by themselves, too late for clipping (Lightning refuses them with bf16 too); not all of them take the parts of
        # fsdp; and SGD's wants momentum of all parameters or of none, while those that are thawed have none yet.
        late = run.trainer["precision"] != "32" and run.trainer["gradient_clip"]
        if node.get("fused") and (late or run.trainer["strategy"] == "fsdp" or run.finetune["freeze_epochs"]):
            node["fused"] = False
        return build_optimizer(
            node,
            net,
            batch=data.plan.global_size,
            decay_on=run.decay_on,
            layer_decay=decay,
            layers=layers(net, len(classes)) if decay != 1 else None,
        )

    def make_schedulers(optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int) -> list[dict[str, Any]]:
        return lightning_schedulers(run.scheduler, optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch)

    classifier = Classifier(
        net=net,
        loss=loss,
        preprocess=Preprocess(image_size=run.data["image_size"], mean=run.data["mean"], std=run.data["std"]),
        classes=classes,
        augment=augment,
        seed=run.seed,
        make_optimizer=make_optimizer,
        make_schedulers=make_schedulers,
        freeze_epochs=run.finetune["freeze_epochs"],
        decay_on=run.decay_on,
        channels_last=run.trainer["channels_last"],
    )
    return classifier, size, taken
