"""How a checkpoint answers, as the keys of `imgrec predict` and `imgrec serve` say."""

from imgrec.config.answers import AnswerSettings
from imgrec.inference.checkpoint import Checkpoint
from imgrec.inference.guarantee import Guarantee, find_guarantee
from imgrec.inference.predictor import Predictor


def build_predictor(
    checkpoint: Checkpoint, settings: AnswerSettings, *, max_pixels: int | None = None
) -> tuple[Predictor, Guarantee | None]:
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
        checkpoint,
        device=settings.device,
        precision=settings.precision,
        calibrated=settings.calibrated,
        tta=settings.tta,
        max_pixels=max_pixels,
    )
    return predictor, guarantee
