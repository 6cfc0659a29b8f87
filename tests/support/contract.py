"""Checks answers of the API against its OpenAPI document."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import jsonschema

import tbmon

DOCUMENT = tbmon.openapi()


@functools.cache
def validator(pointer: str) -> Any:
    """For the schema at a JSON pointer into the document; references are looked up in it."""
    return jsonschema.Draft202012Validator(
        {"$ref": pointer, "components": DOCUMENT["components"], **DOCUMENT}
    )


def operation_of(method: str, path: str) -> tuple[str, dict[str, Any]] | None:
    """The path in the document that `path` belongs to, the most literal first, and its
    operation.
    """
    plain = path.partition("?")[0]
    for known in sorted(DOCUMENT["paths"], key=lambda name: name.count("{")):
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(known))
        if (
            re.fullmatch(pattern, plain)
            and method.lower().replace("head", "get") in DOCUMENT["paths"][known]
        ):
            return known, DOCUMENT["paths"][known][method.lower().replace("head", "get")]
    return None


def check(method: str, path: str, status: int, headers: Any, body: bytes) -> None:
    """Fail unless the answer is one that the document promises for this request."""
    found = operation_of(method, path)
    if (
        status in (204, 304)
        or method == "HEAD"
        or not path.startswith(("/api", "/metrics", "/health"))
    ):
        return
    kind = headers["Content-Type"].partition(";")[0]
    if status != 200 or found is None:
        assert status in (400, 401, 403, 404, 405, 409, 410, 413, 415, 421, 429, 431, 503), (
            path,
            status,
            body,
        )
        jsonschema.validate(json.loads(body), DOCUMENT["components"]["schemas"]["Error"])
        return
    known, operation = found
    contents = operation["responses"]["200"]["content"]
    assert kind in contents, (path, kind)
    if kind == "application/json":
        place = known.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
        method = "get" if method == "HEAD" else method.lower()
        pointer = f"#/paths/{place}/{method}/responses/200/content/application~1json/schema"
        errors = sorted(validator(pointer).iter_errors(json.loads(body)), key=str)
        assert not errors, (path, [error.message[:300] for error in errors[:5]])
