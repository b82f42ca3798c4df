"""Whether a file of `imgrec export` gives here what it gave when it was written: python verify_model.py model.onnx [PROVIDER ...]"""

import base64
import hashlib
import json
import math
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

SEAL = b"rJ\n\x06sha256\x12@"  # how the last 76 bytes begin; then comes the hash of all bytes before them, in hexadecimal
REMOTE = "AzureExecutionProvider"  # in each wheel; it asks a server of Azure, and computes nothing here
MOST_FILE, MOST_IMAGE = 2**31, 2**29  # bytes
MOST_S = 600.0  # for the test image: a provider may compile the network first


def read_file(path: str) -> bytes:
    """What `verify` takes."""
    with open(path, "rb") as file:
        return file.read(MOST_FILE)


def verify(content: bytes, providers: list[str] | None = None) -> tuple[float, float, list[str]]:
    """The largest difference of an output from what PyTorch gave for the file's test image, what is allowed, and who computed it.

    ValueError for a changed file, one that does not end, and a provider that does not start; ONNX Runtime raises kinds of its own.
    """
    if content[-76:-64] != SEAL or hashlib.sha256(content[:-76]).hexdigest().encode() != content[-64:]:
        raise ValueError("it is damaged, or was not written by imgrec, or changed since")
    providers = providers or [name for name in onnxruntime.get_available_providers() if name != REMOTE]
    # Without its fallback, which prints on the screen and computes with another provider.
    session = onnxruntime.InferenceSession(content, providers=providers, enable_fallback=0)
    used = session.get_providers()
    if providers[0] not in used:
        raise ValueError(f"{providers[0]} does not start here, which leaves {', '.join(used)}")
    test = json.loads(session.get_modelmeta().custom_metadata_map["test"])
    pixels = zlib.decompressobj().decompress(base64.b64decode(test["image"]), min(math.prod(test["shape"]), MOST_IMAGE))
    images = np.frombuffer(pixels, np.uint8).reshape(test["shape"])
    outputs = run(session, list(test["outputs"]), images)
    pairs = zip(outputs, test["outputs"].values(), strict=True)
    return max(float(np.abs(given.astype(float) - expected).max()) for given, expected in pairs), float(test["tolerance"]), used


def run(session: onnxruntime.InferenceSession, names: list[str], images: np.ndarray) -> list[np.ndarray]:
    """`session.run`, ended after MOST_S, with ValueError, and by Ctrl-C: a file may loop for ever."""
    options = onnxruntime.RunOptions()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(session.run, names, {"images": images}, options)
        try:
            outputs: list[np.ndarray] = future.result(MOST_S)
            return outputs
        except TimeoutError:
            raise ValueError(f"its test image took more than {MOST_S:g} s") from None
        finally:
            options.terminate = True  # before the next node


def main(arguments: list[str]) -> int:
    """Print the result in one line; returns 2 for a file that should not be used."""
    if not arguments:
        print("type: python verify_model.py model.onnx [PROVIDER ...]", file=sys.stderr)
        return 2
    try:
        difference, tolerance, _ = verify(read_file(arguments[0]), arguments[1:])
    except Exception as error:  # ONNX Runtime has a dozen kinds for what it cannot read or run
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0] or repr(error)
        print(f"{arguments[0]}: cannot be used: {reason}", file=sys.stderr)
        return 2
    right = difference <= tolerance
    print(
        f"{arguments[0]}: largest difference {difference:.2g}, allowed {tolerance:g}: {'ok' if right else 'WRONG, do not use it here'}"
    )
    return 0 if right else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
