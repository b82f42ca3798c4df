"""A hook of schemathesis: most bodies of POST /predict that the schema allows become real images, of the folder IMAGES.

Without it hardly any request has an answer 200, as bytes at random are no image.
"""

import os
import random
from pathlib import Path
from typing import Any

import schemathesis

IMAGES = [file.read_bytes() for file in sorted(Path(os.environ["IMAGES"]).iterdir())]
CHANCE = random.Random(0)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """What is sent, not the case: schemathesis would take a case with other bytes as one that the schema forbids."""
    body = case.meta and case.meta.components.get("body")
    refused = body and body.mode == "negative"  # of a body that the schema forbids
    if case.path != "/predict" or case.method != "POST" or refused or CHANCE.random() < 0.1:
        return
    if case.media_type == "multipart/form-data":
        kwargs["files"] = [("image", (f"{number}.png", CHANCE.choice(IMAGES))) for number in range(CHANCE.randint(1, 3))]
    else:
        kwargs["data"] = CHANCE.choice(IMAGES)


@schemathesis.hook
def filter_query(context: Any, query: Any) -> bool:
    """Not those with a value that leaves no trace in the address, such as []: what is sent is what the schema allows."""
    return not any(
        value in ([], {}) or (isinstance(value, list) and all(part in ([], {}) for part in value))
        for value in (query or {}).values()
    )
