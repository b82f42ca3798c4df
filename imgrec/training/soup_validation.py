"""The validation of weights that no training has at hand, and the test of those that are chosen, as a training has them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from imgrec.config.instantiate import build
from imgrec.config.schema import SPLITS, Device, Monitor, Node, RunConfig
from imgrec.data.augment import Augment
from imgrec.data.datamodule import DataModule
from imgrec.data.split_record import Changes, find_changes
from imgrec.distributed.worker_group import WorkerGroup
from imgrec.distributed.world import World
from imgrec.inference.calibration import CALIBRATION
from imgrec.inference.checkpoint import Checkpoint, package_versions, weights_hash
from imgrec.inference.device import choose_device
from imgrec.inference.evaluation import stored_data
from imgrec.inference.metadata import SOUP
from imgrec.models.summary import measure_size
from imgrec.paths import BEST, LAST
from imgrec.scan.known_faults import known_faults
from imgrec.training.callbacks.batch_norm import BatchNormStatistics
from imgrec.training.callbacks.history import WEIGHTS_ONLY, History
from imgrec.training.checkpoint import to_cpu
from imgrec.training.final_test import Tests, test_network
from imgrec.training.module import Classifier, validation_figures
from imgrec.training.soup import Soup, Validated, Weights
from imgrec.training.summary import describe_device, result_sentence, run_result
from imgrec.training.tested_checkpoint import Tested
from imgrec.training.trainer import build_trainer, prepare_process


class SoupValidation:
    """The data and the network of a run in this process, on one device."""

    def __init__(
        self, first: Checkpoint, changes: Node, *, device: Device, num_workers: int | Literal["auto"], norm_images: int
    ) -> None:
        """changes: keys of the run's data that are others now, those that are None are not. norm_images: with which batch norm is measured for a mean."""
        self.first = first
        self.run = _on_one_device(first.run, choose_device(device).type, num_workers)
        parent = self.run.extended()
        # Of frozen extensions all have the norms of their parent, whose answers to old classes they keep.
        self.norm_images = 0 if parent is not None and parent.frozen else norm_images
        prepare_process(self.run)
        changed = {key: value for key, value in changes.items() if value is not None}
        self.data, augment = stored_data(first, changed), build("augment", self.run.augment, Augment)
        self.loaders = DataModule(self.run, self.data, augment, devices=1)
        net, shape = first.network(), self.run.data
        self.size = measure_size(net, channels=shape.channels, image_size=shape.image_size, num_classes=len(self.data.classes))
        self.classifier = Classifier(self.run, net, self.data, augment, self.loaders.plan)
        self._statistics = BatchNormStatistics(images=0, until_step=0)  # no step is taken: it measures before each validation
        self.trainer = build_trainer(
            self.run.trainer,
            self.loaders.plan,
            World(),
            callbacks=[self._statistics],
            logger=False,
            max_epochs=self.run.epochs,
            enable_checkpointing=False,
        )
        self.device = describe_device(self.trainer.strategy.root_device, 1, self.run.trainer.precision)

    def close(self) -> None:
        """End the worker processes."""
        self.loaders.close()

    def changes(self) -> Changes | None:
        """What became of the images since the run's training; None where nothing did, and where that was not recorded."""
        if (then := self.first.record()) is None:
            return None
        found = find_changes(then, self.data.record(content=SPLITS))
        return found if found.counts else None

    def alone(self, state: Weights) -> Validated:
        """Of a run, with its own statistics of batch norm."""
        return self._validate(state, 0)

    def mean(self, state: Weights) -> Validated:
        """Of a mean, whose statistics of batch norm are measured, as those of the runs belong to other weights."""
        return self._validate(state, self.norm_images)

    def _validate(self, state: Weights, norm_images: int) -> Validated:
        self._statistics.images = norm_images
        self.classifier.load_state_dict(state)
        self.trainer.validate(self.classifier, datamodule=self.loaders, verbose=False)
        return Validated(validation_figures(self.classifier.validation_report), to_cpu(self.classifier.state_dict()))

    def test(self, tested: Tested, folder: Path) -> Tests:
        """Once; the temperature is fitted first and stored in the checkpoint in `folder`."""
        return test_network(self.run, self.trainer, self.classifier, self.loaders, tested, folder, WorkerGroup())

    def result(
        self, tested: Tested, tests: Tests, soup: Soup, monitor: Monitor, command: Sequence[str], run_dir: Path
    ) -> dict[str, Any]:
        """The content of result.json."""
        assert soup.validated is not None
        row = {"epoch": tested.content["epoch"] + 1, **soup.validated.figures, "best": True}
        history = History(run_dir / "metrics.csv", monitor)  # which is not written: there are no epochs
        history.rows.append(row)
        faults = known_faults(self.data, self.data.record(content=SPLITS), self.run)
        result = run_result(
            self.run, history, tested, tests, self.device, self.size, command,
            longer="", loaders=self.loaders, faults=faults, run_dir=run_dir,
        )  # fmt: skip
        chosen = f"mean of {sum(each.kept for each in soup.ingredients)} runs by {monitor}"
        validated = self.loaders.images_read("val")
        summary = result_sentence(tests.report, row, None, monitor, validated=validated, chosen=chosen)
        return result | {"summary": summary, "weights": result["weights"] | {"last": None}}


def _on_one_device(run: RunConfig, device: str, num_workers: int | Literal["auto"]) -> RunConfig:
    on_device = {"accelerator": device, "devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer = replace(run.trainer, **on_device, sync_batchnorm=False, compile=False)  # type: ignore[arg-type]
    if trainer.precision == "16-mixed" and device != "cuda":
        trainer = replace(trainer, precision="bf16-mixed")
    return replace(run, trainer=trainer, num_workers=num_workers)


def mean_checkpoint(first: Checkpoint, mean: Validated, place: Node, soup: Node) -> Tested:
    """The checkpoint of a mean: of the run `first` but for the weights and where it lies, without a temperature; soup: of `soup_content`."""
    info = {key: value for key, value in first.content["imgrec"].items() if key != CALIBRATION}
    info |= {"config": info["config"] | place, "versions": package_versions(), SOUP: soup}
    content = {key: first.content[key] for key in WEIGHTS_ONLY if key in first.content}
    content |= {"state_dict": mean.state, "imgrec": info}
    weights = weights_hash(content)
    return Tested(BEST, {BEST: weights, LAST: weights}, content)


def soup_content(soup: Soup, monitor: Monitor, runs: Sequence[str], hashes: Sequence[str], norm_images: int) -> Node:
    """What a mean was made of, plain data for its checkpoint and result.json. hashes: of the weights of the runs."""
    tried = [
        {"run": runs[each.row], "weights": hashes[each.row], "alone": each.alone, "mean": each.mean, "kept": each.kept}
        for each in soup.ingredients
    ]
    return {"monitor": monitor, "norm_images": norm_images, "ingredients": tried}
