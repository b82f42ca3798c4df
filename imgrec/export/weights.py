"""The weights of a network as safetensors, which are read without running any code, and as JSON what it takes to use them."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from imgrec.config.schema import Node
from imgrec.export.agreement import FileAnswer
from imgrec.export.classifier import WholeClassifier
from imgrec.export.torch_program import module_answer
from imgrec.files import utf8_json
from imgrec.inference.checkpoint import Checkpoint, network_state
from imgrec.models.losses import BCE, Loss

# How logits become probabilities, by who says so.
FORMULAS = {Loss.probabilities: "softmax(logits / temperature)", BCE.probabilities: "softmax(logsigmoid(logits / temperature))"}


def network_facts(checkpoint: Checkpoint, loss: Loss) -> Node:
    """How the network is built, in the words of the run's config, and how its logits become probabilities."""
    formula = FORMULAS.get(type(loss).probabilities, f"{checkpoint.run.loss['_target_']}.probabilities(logits / temperature)")
    return {"network": checkpoint.run.model | {"num_classes": len(checkpoint.classes)}, "probabilities": formula}


def weights_bytes(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> bytes:
    """The file: the tensors by their names in the network, and the facts as JSON under "imgrec" of its metadata."""
    from safetensors.torch import save

    # Contiguous, as the format demands, and each with memory of its own: some networks share tensors, which it refuses.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network_state(checkpoint.content).items()
    }
    return bytes(save(tensors, metadata={"format": "pt", "imgrec": utf8_json(facts)}))


def weights_answer(content: bytes, classifier: WholeClassifier, checkpoint: Checkpoint) -> FileAnswer:
    """The outputs of the classifier for uint8 [B, H, W, C], with the weights of a file in its network."""
    from safetensors.torch import load

    state = {f"net.{name}": tensor for name, tensor in load(content).items()}
    own = copy.deepcopy(classifier)
    own.network = replace(checkpoint, content=checkpoint.content | {"state_dict": state}).network().eval()

    return module_answer(own)
