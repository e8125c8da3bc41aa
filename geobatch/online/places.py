"""The places a server may read from: its callers name URLs, its operator says under which roots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geobatch.errors import UsageError
from geobatch.online.refusal import refusal
from geobatch.storage import absolute_url


def require_allowed(url: str, allowed: Sequence[str], where: str) -> str:
    """The URL, made absolute, when it lies under one of the allowed roots.

    Raises:
        HTTPException: 403 when it does not.
    """
    place = _resolved(url)
    if place is None or not any(_is_under(place, root) for root in map(_resolved, allowed)):
        raise refusal(
            403,
            "this server does not read from there",
            where=where,
            measured=url[:500],
            limit=", ".join(allowed) or "no place at all",
            remedy="Start the server with --allow and the root of your surveys.",
        )
    return place


def require_root(url: str) -> str:
    """A root from the command line, made absolute.

    Raises:
        UsageError: it names no place that can be read.
    """
    place = _resolved(url)
    if place is None:
        raise UsageError("root cannot be allowed", where="--allow", measured=url, limit="s3://bucket/prefix or a path")
    return place


def _resolved(url: str) -> str | None:
    """The absolute URL or path, links resolved; None for what has another scheme or parts that lead elsewhere."""
    if url.startswith("s3://"):
        parts = url.removeprefix("s3://").rstrip("/").split("/")
        return None if any(part in ("", ".", "..") for part in parts) else "s3://" + "/".join(parts)
    if not url or "\0" in url or ("://" in url and not url.startswith("file:///")):
        return None
    return str(Path(absolute_url(url)).resolve())


def _is_under(place: str, root: str | None) -> bool:
    return root is not None and (place == root or place.startswith(root.rstrip("/") + "/"))
