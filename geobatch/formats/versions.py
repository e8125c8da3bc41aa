"""Versions of source files: what tells that one changed while it was read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from geobatch.errors import DataError
from geobatch.storage import open_storage, split_url

LOOKERS = 16


def versions_of(urls: Sequence[str]) -> list[str]:
    """The version of every file, asked for several at a time."""

    def version(url: str) -> str:
        root, name = split_url(url)
        return open_storage(root).version(name)

    with ThreadPoolExecutor(LOOKERS) as lookers:
        return list(lookers.map(version, urls))


def require_unchanged(sources: Sequence[tuple[str, str]]) -> None:
    """Refuse sources of which one has another version now: its parts were read at different times."""
    for (url, expected), found in zip(sources, versions_of([url for url, _ in sources]), strict=True):
        if found != expected:
            raise DataError(
                "file changed while it was being read",
                where=url,
                measured=f"version {found}",
                limit=f"version {expected}",
                remedy="Run it again when nothing writes the file.",
            )
