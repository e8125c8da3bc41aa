"""Raw file formats, by suffix: how each becomes a survey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from geobatch.errors import UsageError
from geobatch.formats.segy_ingest import ingest

INGEST: dict[str, Callable[..., dict[str, Any]]] = {".sgy": ingest, ".segy": ingest}


def find_ingest(url: str) -> Callable[..., dict[str, Any]]:
    """The function that turns the raw file at `url` into a survey, by its suffix.

    Raises:
        UsageError: the suffix is of no known format.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix not in INGEST:
        raise UsageError(
            "unknown file format", where=url, measured=suffix or "no suffix", limit=", ".join(sorted(INGEST))
        )
    return INGEST[suffix]


__all__ = ["INGEST", "find_ingest", "ingest"]
