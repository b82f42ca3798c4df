"""Which keys of a prediction exclude one another; imports no torch, so that a command refuses them at once."""

from imgrec.config.schema import Views
from imgrec.errors import ConfigError


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
