"""Several SEG-Y files as one: a folder, a prefix or a pattern, in the order of their names."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib

from geobatch.errors import FormatError, GeometryError, NotFoundError
from geobatch.formats.segy import Lengths, Truncated, open_segy
from geobatch.formats.segy_file import DELAY, TIME_SCALAR, SegyFile, header_field
from geobatch.storage import absolute_url, join_url, open_storage, split_url

SUFFIXES = (".sgy", ".segy")
MAGIC = frozenset("*?[")


def open_source(url: str, *, truncated: Truncated = "refuse", lengths: Lengths = "auto") -> SegyFile:
    """The SEG-Y file at `url`, or all those of a folder, a prefix or a pattern such as `line_*.sgy` as one.

    Args:
        url: A file, a folder (its `.sgy` and `.segy` files), the beginning of their names, or a pattern.
        truncated: As `open_segy` takes it, for each file.
        lengths: As `open_segy` takes it, for each file.

    Raises:
        NotFoundError: no such file, and none of that pattern.
        FormatError: one of them is no SEG-Y file, or differs from the first in samples, interval or format.
        GeometryError: one of them starts at another time.
    """
    url = absolute_url(url)
    root, name = split_url(url)
    # Who may read a file may not be allowed to list its bucket.
    named = name.lower().endswith(SUFFIXES) or next(open_storage(url).list(), None) is None
    if named and open_storage(root).exists(name):
        return open_segy(url, truncated=truncated, lengths=lengths)
    found = find_files(url)
    if not found:
        raise NotFoundError("no SEG-Y file there", where=url, limit="a file, a folder or a pattern of .sgy or .segy")
    return join([open_segy(each, truncated=truncated, lengths=lengths) for each in found], url)


def find_files(url: str) -> list[str]:
    """URLs of the SEG-Y files that a folder, a prefix or a pattern names, in the order of their names."""
    root, name = split_url(url)
    inside = [join_url(url, key) for key, _ in open_storage(url).list() if key.lower().endswith(SUFFIXES)]
    if inside:
        return sorted(inside)
    tail = name
    while MAGIC & set(root):
        root, above = split_url(root)
        tail = f"{above}/{tail}"
    keys = [key for key, _ in open_storage(root).list()]
    if MAGIC & set(tail):
        chosen = [key for key in keys if fnmatch.fnmatchcase(key, tail) and key.count("/") == tail.count("/")]
    else:
        chosen = [key for key in keys if key.startswith(tail) and key.lower().endswith(SUFFIXES)]
    return sorted(join_url(root, key) for key in chosen)


def join(files: list[SegyFile], url: str) -> SegyFile:
    """Files as one, in their order; the first gives the file header."""
    first = files[0]
    if len(files) == 1:
        return first
    for file in files[1:]:
        for what in ("sample_count", "interval_thousandths", "format_code", "byte_order", "extra_headers", "uneven"):
            mine, theirs = getattr(file, what), getattr(first, what)
            if mine != theirs:
                raise FormatError(
                    f"files differ in {what.replace('_', ' ')}",
                    where=file.url,
                    measured=mine,
                    limit=f"{theirs}, as in {first.url}",
                    remedy="Ingest them apart, or leave this one out.",
                )
        if _start(file) != _start(first):
            raise GeometryError(
                "files start at different times",
                where=file.url,
                measured=f"delay and time scalar {_start(file)} in the first trace",
                limit=f"{_start(first)}, as in {first.url}",
                remedy="Ingest them apart, or leave this one out.",
            )
    versions = hashlib.sha256("\n".join(f"{f.url} {f.size_bytes} {f.version}" for f in files).encode()).hexdigest()
    return dataclasses.replace(
        first,
        url=url,
        version=versions,
        size_bytes=sum(file.size_bytes for file in files),
        trace_count=sum(file.trace_count for file in files),
        trailer=b"",
        left_over=0,
        said_traces=0,
        starts=None,
        parts=tuple(files),
    )


def _start(file: SegyFile) -> tuple[int, int]:
    header = file.read_traces(0, 1)
    delay, scalar = (int(header_field(header, *place, file.byte_order)[0]) for place in (DELAY, TIME_SCALAR))
    return delay, scalar
