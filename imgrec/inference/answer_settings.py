"""How a checkpoint answers, as the keys of `imgrec predict` and `imgrec serve` say."""

from typing import Protocol

from imgrec.config.schema import Device, Precision, SetMethod, Views
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.guarantee import Guarantee, find_guarantee
from imgrec.inference.predictor import Predictor


class AnswerSettings(Protocol):
    """The keys that both commands have."""

    @property
    def coverage(self) -> float | None: ...
    @property
    def risk(self) -> float | None: ...
    @property
    def sets(self) -> SetMethod: ...
    @property
    def sets_by_class(self) -> bool: ...
    @property
    def calibrated(self) -> bool: ...
    @property
    def tta(self) -> Views | None: ...
    @property
    def device(self) -> Device: ...
    @property
    def precision(self) -> Precision | None: ...


def build_predictor(checkpoint: Checkpoint, settings: AnswerSettings) -> tuple[Predictor, Guarantee | None]:
    """The predictor, and what its answers guarantee; errors as of `find_guarantee` and `Predictor`."""
    guarantee = find_guarantee(
        checkpoint,
        coverage=settings.coverage,
        risk=settings.risk,
        sets=settings.sets,
        sets_by_class=settings.sets_by_class,
        calibrated=settings.calibrated,
        tta=settings.tta,
    )
    predictor = Predictor(
        checkpoint, device=settings.device, precision=settings.precision, calibrated=settings.calibrated, tta=settings.tta
    )
    return predictor, guarantee
