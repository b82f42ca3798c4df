"""The server's requests and answers as an OpenAPI 3.1 document."""

from typing import Any

from imgrec import __version__
from imgrec.serving.limits import RAW_TYPES, Limits

Schema = dict[str, Any]
REFUSALS = {
    400: "a parameter or a form that cannot be read",
    401: "the token is missing or wrong",
    403: "without a token: a page of another site asks, or a reload",
    405: "another method than this path has",
    408: "the body took too long",
    409: "the checkpoint cannot be loaded, or a reload is under way; the network from before answers",
    413: "too many bytes or pixels",
    415: "another type of body or file than is read",
    422: "a file that cannot be read as an image",
    429: "too many images are waiting: try again after the seconds of Retry-After",
    500: "the network's answer is not a number, or the server failed; its log says why",
    503: "the server is stopping, or has not enough memory now",
}
_TEXT: Schema = {"type": "string"}
_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def _object(properties: dict[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": [*properties], **more}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _refusals(*statuses: int) -> dict[str, Schema]:
    refused = {str(status): _json(REFUSALS[status], {"$ref": "#/components/schemas/Error"}) for status in (*statuses, 403, 405)}
    if 429 in statuses:
        refused["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return refused


def api_description(limits: Limits, adds: str | None, needs_token: bool) -> Schema:
    """adds: "set" or "answered", what a guarantee adds to each prediction."""
    security: list[Schema] = [{"token": []}] if needs_token else []
    binary: Schema = {"type": "string", "format": "binary"}
    body = {
        "required": True,
        "description": f"One image, or a form with up to {limits.max_images} files. At most {limits.max_body_bytes:,} bytes, "
        f"and {limits.max_pixels:,} pixels an image.",
        "content": {
            **{f"image/{form}": {"schema": binary} for form in limits.formats},
            RAW_TYPES[0]: {"schema": binary},
            "multipart/form-data": {
                "schema": _object({"image": {"type": "array", "items": binary, "minItems": 1, "maxItems": limits.max_images}})
            },
        },
    }
    predict = {
        "summary": "The classes of an image or several",
        "security": security,
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "most probable classes in each answer, at most as many as there are",
                "schema": {"type": "integer", "minimum": 1, "maximum": 10**9 - 1},
            }
        ],
        "requestBody": body,
        "responses": {
            "200": _json("one prediction an image, in their order", {"$ref": "#/components/schemas/Answer"}),
            **_refusals(400, 401, 408, 413, 415, 422, 429, 500, 503),
        },
    }
    reload = {
        "summary": "Read the checkpoint again; no request is lost",
        "security": security,
        "responses": {
            "200": _json("the new network answers", _object({"weights": _TEXT, "classes": {"type": "integer"}})),
            **_refusals(401, 409),
        },
    }
    text = {"200": {"description": "Prometheus's text format", "content": {"text/plain": {"schema": _TEXT}}}}
    page = {"200": {"description": "a page to try it", "content": {"text/html": {"schema": _TEXT}}}}
    status = _object({"status": _TEXT})
    return {
        "openapi": "3.1.0",
        "info": {"title": "imgrec serve", "version": __version__, "description": "Classes of images and their probabilities."},
        "paths": {
            "/predict": {"post": predict},
            "/reload": {"post": reload},
            "/healthz": _get("Whether the process answers", {"200": _json("it does", status)}),
            "/readyz": _get("Whether it takes images", {"200": _json("it does", status), "503": _json("it is stopping", status)}),
            "/metrics": _get("Counts and times", {**text, **_refusals(401)}, security),
            "/": _get("A page to try it", page),
            "/openapi.json": _get("This document", {"200": _json("OpenAPI 3.1", {"type": "object"})}),
        },
        "components": {
            "schemas": {"Answer": _answer(adds), "Error": _object({"error": _TEXT}, description="one line: what to change")},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _get(summary: str, responses: dict[str, Schema], security: list[Schema] | None = None) -> Schema:
    return {
        "get": {"summary": summary, "responses": {**_refusals(), **responses}, **({"security": security} if security else {})}
    }


def _answer(adds: str | None) -> Schema:
    ranked = _object({"class": _TEXT, "probability": _PROBABILITY})
    prediction: dict[str, Schema] = {
        "file": {"type": ["string", "null"], "description": "its name in the form"},
        "class": {"type": "string", "description": "the most probable one"},
        "probability": _PROBABILITY,
        "top": {"type": "array", "items": ranked, "minItems": 1, "description": "the first top_k classes"},
    }
    if adds == "set":
        prediction["set"] = {"type": "array", "items": _TEXT, "description": "classes that hold the right one, by coverage="}
    elif adds == "answered":
        prediction["answered"] = {"type": "boolean", "description": "false: none of these, by risk="}
    return _object(
        {
            "weights": {"type": "string", "description": "begin of the SHA-256 of the network's weights"},
            "predictions": {"type": "array", "items": _object(prediction), "minItems": 1},
        }
    )
