"""What is wrong with a job file, as one sentence that names the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from geobatch.errors import UsageError

_TAGS = ("step", "kind", "name")
"""Keys that tell which of several schemas a mapping follows."""


def explained(error: ValidationError, schema: type[BaseModel], where: str) -> UsageError:
    """The first fault of a job file as one sentence, an unknown key with the nearest known one."""
    fault = error.errors()[0]
    if isinstance(cause := fault.get("ctx", {}).get("error"), UsageError):
        return cause
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _known_keys(schema, fault["loc"][:-1])
        near = nearest(str(fault["loc"][-1]), known)
        return UsageError("unknown key", where=where, measured=key, limit=f"one of {', '.join(known)}", remedy=near)
    if fault["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in fault["ctx"]["expected_tags"].split(",")]
        tag, kind = str(fault["ctx"]["tag"]), fault["ctx"]["discriminator"].strip("'")
        limit, place = f"one of {', '.join(known)}", f"{where}, {key}"
        return UsageError(f"unknown {kind}", where=place, measured=tag, limit=limit, remedy=nearest(tag, known))
    if fault["type"] == "missing":
        return UsageError("key is missing", where=where, limit=key, remedy="geobatch schema lists every key.")
    return UsageError(f"{key}: {fault['msg']}", where=where, measured=repr(fault["input"])[:200])


def _known_keys(schema: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys a mapping inside a job may hold, found in the schema's JSON form."""
    document = schema.model_json_schema()
    definitions = document.get("$defs", {})
    place: dict[str, Any] = document
    for part in path:
        choices = [_resolved(choice, definitions) for choice in place.get("anyOf", place.get("oneOf", [place]))]
        if isinstance(part, int):
            place = _resolved(choices[0].get("items", {}), definitions)
        else:
            found = [c["properties"][part] for c in choices if part in c.get("properties", {})]
            tagged = [c for c in choices if any(part in str(c.get("properties", {}).get(tag, {})) for tag in _TAGS)]
            place = _resolved((found or tagged or [{}])[0], definitions)
    choices = [_resolved(choice, definitions) for choice in place.get("anyOf", place.get("oneOf", [place]))]
    return sorted({name for choice in choices for name in choice.get("properties", {})})


def _resolved(place: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = place.get("$ref", "")
    found: dict[str, Any] = definitions[reference.rsplit("/", 1)[-1]] if reference else place
    return found


def nearest(word: str, known: Sequence[str]) -> str:
    """The question whether the known word most like this one was meant, empty where none is like it."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else ""
