"""The keys of how a checkpoint answers, and which exclude one another; imports no torch, so that a command refuses them at once."""

from dataclasses import dataclass

from imgrec.config.schema import Device, Precision, SetMethod, Views
from imgrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """The keys that conf/predict.yaml and conf/serve.yaml have in common."""

    ckpt: str | None
    top_k: int
    coverage: float | None
    sets: SetMethod
    sets_by_class: bool
    risk: float | None
    tta: Views | None
    device: Device
    precision: Precision | None
    calibrated: bool
    batch_size: int


def check_answers(*, coverage: float | None, risk: float | None, calibrated: bool, tta: Views | None) -> None:
    """ConfigError for two answers, and for one that is not fitted on the probabilities that are wanted."""
    if coverage is None and risk is None:
        return
    if coverage is not None and risk is not None:
        raise ConfigError(f"coverage={coverage} and risk={risk} are two answers. Set one of them.")
    wanted = f"coverage={coverage}" if risk is None else f"risk={risk}"
    if not calibrated:
        raise ConfigError(f"calibrated=false: {wanted} is fitted on calibrated probabilities. Leave calibrated out.")
    if tta is not None:
        raise ConfigError(f"tta={tta}: {wanted} is fitted on probabilities of single images. Leave tta out.")
