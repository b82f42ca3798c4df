"""The temperature of a checkpoint, with what was measured of the validation images when it was fitted."""

import sys
from dataclasses import dataclass
from typing import Any

import torch

from imgrec.analysis.calibration import TEMPERATURES
from imgrec.analysis.validation_record import ValidationRecord
from imgrec.config.annotations import check_type
from imgrec.config.schema import Node
from imgrec.errors import ConfigError

CALIBRATION = "calibration"  # in the "imgrec" entry; a checkpoint without a fitted temperature lacks it
FIGURES = ("temperature", "log_loss_before", "log_loss_after")
TYPES: dict[str, Any] = dict.fromkeys(FIGURES, float) | {"images": int, "validation": dict, "weights": str | None}
STORED = (torch.int32, torch.float32)


@dataclass(frozen=True)
class Calibration:
    """softmax(logits / temperature) is closer to how often a class is right (Guo 2017, arXiv 1706.04599)."""

    temperature: float
    log_loss_before: float  # mean over the validation images, with temperature 1
    log_loss_after: float
    images: int  # of validation that it was fitted on
    validation: ValidationRecord  # with this temperature
    weights: str | None = None  # `weights_hash` of the network; None of a checkpoint from before it was stored

    def pack(self) -> Node:
        """Plain data for a checkpoint, with a tensor for each array."""
        arrays = self.validation.to_arrays()
        return vars(self) | {"validation": {name: torch.from_numpy(array) for name, array in arrays.items()}}

    @classmethod
    def unpack(cls, node: Node, *, classes: int) -> "Calibration":
        """What `pack` gave, with plain tensors; ConfigError for other keys, types or values."""
        for name, kind in TYPES.items():
            check_type(f"{CALIBRATION}.{name}", node.get(name), kind)
        values = {name: node[name] for name in FIGURES}
        low, high = TEMPERATURES
        if not (low <= values["temperature"] <= high and all(0 <= values[name] <= sys.float_info.max for name in FIGURES)):
            raise ConfigError(f"'{CALIBRATION}' has a temperature outside {low:g} to {high:g}, or a log loss that is not finite.")
        if unknown := set(node) - set(TYPES):
            raise ConfigError(f"'{CALIBRATION}' has a key that imgrec does not write: {str(unknown.pop())[:50]!r}.")
        arrays = {
            name: tensor.detach().resolve_neg().numpy() for name, tensor in node["validation"].items() if tensor.dtype in STORED
        }
        try:
            record = ValidationRecord.from_arrays(arrays, images=node["images"], classes=classes)
        except ValueError as error:
            raise ConfigError(f"'{CALIBRATION}' has no record of validation images as imgrec writes it: {error}.") from error
        figures = {name: float(value) for name, value in values.items()}
        return cls(**figures, images=node["images"], validation=record, weights=node.get("weights"))
