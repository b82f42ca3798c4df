"""Whether a file of `imgrec export` gives here what it gave when it was written: python verify_model.py model.onnx [PROVIDER ...]"""

import base64
import hashlib
import json
import math
import sys
import zlib

import numpy as np
import onnxruntime

SEAL = b"rJ\n\x06sha256\x12@"  # how the last 76 bytes begin; then comes the hash of all bytes before them, in hexadecimal


def verify(path: str, providers: list[str] | None = None) -> tuple[float, float]:
    """The largest difference of an output from what PyTorch gave for the file's test image, and what is allowed; ValueError for a changed file."""
    with open(path, "rb") as file:
        content = file.read()
    if content[-76:-64] != SEAL or hashlib.sha256(content[:-76]).hexdigest().encode() != content[-64:]:
        raise ValueError("it is damaged, or was not written by imgrec, or changed since")
    session = onnxruntime.InferenceSession(content, providers=providers or onnxruntime.get_available_providers())
    test = json.loads(session.get_modelmeta().custom_metadata_map["test"])
    pixels = zlib.decompressobj().decompress(base64.b64decode(test["image"]), math.prod(test["shape"]))
    outputs = session.run(list(test["outputs"]), {"images": np.frombuffer(pixels, np.uint8).reshape(test["shape"])})
    pairs = zip(outputs, test["outputs"].values(), strict=True)
    return max(float(np.abs(given.astype(float) - expected).max()) for given, expected in pairs), test["tolerance"]


if __name__ == "__main__":
    difference, tolerance = verify(sys.argv[1], sys.argv[2:])
    right = difference <= tolerance
    print(
        f"{sys.argv[1]}: largest difference {difference:.2g}, allowed {tolerance:g}: {'ok' if right else 'WRONG, do not use it here'}"
    )
    sys.exit(0 if right else 2)
