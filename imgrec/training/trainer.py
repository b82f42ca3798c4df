"""The Lightning Trainer of a run, its callbacks and its logger."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers.logger import DummyLogger, Logger
from pytorch_lightning.utilities.model_helpers import is_overridden

from imgrec.config.durations import parse_time
from imgrec.config.instantiate import build, check_signatures, instantiate, node_target, parameter_types, wrong_result
from imgrec.config.schema import Node, RunConfig, TrainerConfig
from imgrec.data.allocator import keep_freed_memory, use_huge_pages
from imgrec.data.sampler import BatchPlan
from imgrec.distributed.device_checks import check_accelerator
from imgrec.distributed.world import World, cluster_environment
from imgrec.errors import ConfigError, first_line
from imgrec.terminal import Terminal
from imgrec.training.callbacks.batch_norm import BatchNormStatistics
from imgrec.training.callbacks.early_stopping import Pruning
from imgrec.training.callbacks.finite import FiniteLoss
from imgrec.training.callbacks.freeze import FreezeBackbone
from imgrec.training.callbacks.history import BestCheckpoint, History
from imgrec.training.callbacks.logger import LogRun
from imgrec.training.callbacks.profile import Profile
from imgrec.training.callbacks.throughput import Throughput
from imgrec.training.callbacks.time_budget import TimeBudget
from imgrec.training.event_files import event_errors
from imgrec.training.lightning_compat import NoProfiler, prepare_trainer, silence_known_warnings
from imgrec.training.new_classes import KeepOldClasses
from imgrec.training.run_dir import RunDir
from imgrec.training.step_boundary import StepBoundary
from imgrec.training.strategies import make_strategy


def prepare_process(run: RunConfig) -> None:
    """What comes before the data of a run is read, in each process; ConfigError for keys or a device that cannot be used."""
    check_signatures(run)
    check_accelerator(run.trainer)
    silence_known_warnings()
    keep_freed_memory()
    use_huge_pages()
    pl.seed_everything(run.seed, workers=True, verbose=False)


def build_trainer(
    config: TrainerConfig,
    plan: BatchPlan,
    world: World,
    *,
    callbacks: Sequence[pl.Callback],
    logger: Logger | bool,
    checkpoint_io: CheckpointIO | None = None,
    **length: Any,
) -> pl.Trainer:
    """Lightning's Trainer for the ranks of `world`. `plan` gives the accumulation, `length` max_epochs or max_steps.

    Raises ConfigError for an accelerator or devices that are not available.
    """
    assert config.precision != "auto", "chosen_precision comes first"
    chosen = isinstance(config.devices, list) or world.started_by == "alone"
    try:
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices if chosen else world.local_size,
            num_nodes=world.nodes,
            strategy=make_strategy(config.strategy, world_size=world.size),
            precision="32-true" if config.precision == "32" else config.precision,
            gradient_clip_val=config.gradient_clip or None,
            accumulate_grad_batches=plan.accumulate,
            deterministic=config.deterministic,
            benchmark=not config.deterministic,
            log_every_n_steps=config.log_every_steps,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # imgrec.data.sampler divides the samples, without padding
            enable_progress_bar=False,
            enable_model_summary=False,
            profiler=NoProfiler(),
            callbacks=list(callbacks),
            logger=logger,
            plugins=[plugin for plugin in (cluster_environment(world), checkpoint_io) if plugin is not None],
            **length,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"trainer.accelerator={config.accelerator} trainer.devices={config.devices} trainer.strategy={config.strategy} "
            f"is not available: {first_line(error)}; torch has {torch.cuda.device_count()} CUDA devices. "
            "Set trainer.accelerator=auto trainer.devices=auto."
        ) from error
    # Lightning would compute in bfloat16, with a warning only.
    if config.precision == "16-mixed" and trainer.strategy.root_device.type == "cpu":
        raise ConfigError(
            "trainer.precision=16-mixed: expected a GPU, but this run is on the CPU. "
            "Set trainer.precision=bf16-mixed or trainer.precision=32."
        )
    prepare_trainer(trainer)
    return trainer


def run_callbacks(
    run: RunConfig,
    run_dir: RunDir,
    terminal: Terminal,
    history: History,
    boundary: StepBoundary,
    given: Sequence[pl.Callback] = (),
) -> list[pl.Callback]:
    """The callbacks of a training in the order that they need: the step boundary first, the best checkpoint last.

    Of those of conf/callbacks, Throughput comes before History, which collects what it measured; the others after it.
    given: objects from Python, after these.
    """
    config = run.to_dict()
    arguments = {
        "monitor": run.monitor,
        "config": config,
        "history": history,
        "run_dir": run_dir.path,
        "terminal": terminal,
        "timeline": boundary.timeline,
    }
    configured = configured_callbacks(run.callbacks, arguments)
    measuring = [callback for callback in configured if isinstance(callback, Throughput)]
    callbacks = [boundary, FiniteLoss(run_dir.checkpoints), *measuring, history, LogRun(config, history)]
    if run.time is not None:
        callbacks.append(TimeBudget(parse_time(run.time), run.time, terminal.say))
    if run.finetune.freeze_epochs and run.continue_from is None:
        callbacks.append(FreezeBackbone(run.finetune.freeze_epochs))
    if (parent := run.extended()) is not None and parent.frozen:
        callbacks.append(KeepOldClasses(sum(parent.classes)))
        # It leaves frozen norms as they are, but for those without weights, of which it cannot tell.
        configured = [callback for callback in configured if not isinstance(callback, BatchNormStatistics)]
    callbacks += [callback for callback in configured if callback not in measuring]
    if run.profile:
        callbacks.append(Profile(run_dir.path / "profile", terminal.say))
    if run.trainer.pruning_thresholds:
        callbacks.append(Pruning(history, run.trainer.pruning_thresholds, terminal.say))
    callbacks += [*given, BestCheckpoint(run_dir.best, history, boundary.timeline)]
    _check_states(callbacks)
    return callbacks


def check_callbacks(given: Sequence[object]) -> None:
    """ConfigError unless they are objects of Lightning's Callback."""
    for callback in given:
        if not isinstance(callback, pl.Callback):
            name = callback.__name__ if isinstance(callback, type) else "MyCallback"
            what = name if isinstance(callback, type) else repr(callback)
            raise ConfigError(f"callbacks=[{what}]: expected objects of pytorch_lightning.Callback. Type callbacks=[{name}()].")


def _check_states(callbacks: Sequence[pl.Callback]) -> None:
    """ConfigError for two callbacks whose states would have the same name in a checkpoint."""
    names = Counter(callback.state_key for callback in callbacks if is_overridden("state_dict", callback, pl.Callback))
    for name, count in names.items():
        if count > 1:
            raise ConfigError(
                f"callbacks: {count} of them have the state_key {name}. Leave one out, or give it a state_key of its own."
            )


def configured_callbacks(nodes: Mapping[str, Node | None], given: Mapping[str, Any]) -> list[pl.Callback]:
    """The callbacks of conf/callbacks, in its order; one that is null, or whose target returns None, is off.

    A target with parameters of the names in `given` also gets these.
    """
    callbacks: list[pl.Callback] = []
    for name, node in nodes.items():
        if node is None:
            continue
        parameters = parameter_types(node_target(node))
        extra = {key: value for key, value in given.items() if key in parameters and key not in node}
        callback = instantiate(node, **extra)
        if isinstance(callback, pl.Callback):
            callbacks.append(callback)
        elif callback is not None:
            raise wrong_result(f"callbacks.{name}", node, "a pytorch_lightning.Callback", callback)
    return callbacks


@contextmanager
def opened_logger(node: Node, folder: Path, *, rank: int) -> Iterator[Logger]:
    """The Lightning logger of a conf/logger node on rank 0, with save_dir=`folder` and closed, where it has these."""
    if rank > 0:
        yield DummyLogger()
        return
    parameters = parameter_types(node_target(node))
    place = {"save_dir": str(folder)} if "save_dir" in parameters else {}
    logger = build("logger", node, Logger, **place)  # type: ignore[type-abstract]
    with event_errors(folder), closing(logger) if hasattr(logger, "close") else nullcontext():
        yield logger
