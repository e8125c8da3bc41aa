"""Traces of different length: each is found from the header of the one before it."""

from __future__ import annotations

import dataclasses

import numpy as np

from geobatch.errors import FormatError
from geobatch.formats.segy_file import TRACE_SAMPLES, SegyFile, binary_field, said_samples
from geobatch.formats.segy_samples import SAMPLE_BYTES
from geobatch.storage import Storage, open_storage, split_url

WINDOW_BYTES = 4 * 2**20
# One long trace among short ones would make a survey of padding.
MOST_PADDING = 4


def looks_even(file: SegyFile, count: int, over: int) -> bool:
    """True when traces at the places of equal length say that length, or nothing: the file was cut, not uneven.

    Args:
        file: With the sample count of its header.
        count: Whole traces of that length.
        over: Bytes after them.
    """
    root, name = split_url(file.url)
    storage = open_storage(root)
    whole = {0, count // 2, count - 1} & set(range(count))
    said = []
    for ordinal in sorted(whole | ({count} if over >= file.header_bytes else set())):
        start = len(file.header) + ordinal * file.trace_bytes
        header = storage.get_range(name, start, file.header_bytes)
        said.append(int(binary_field(header, *TRACE_SAMPLES, file.byte_order)))
    return bool(said) and said[0] in (0, file.sample_count) and len(set(said)) == 1


def walk(file: SegyFile, *, drop: bool, force: bool) -> SegyFile | None:
    """The file with the places of its traces by bytes 115-116 of each; None when they do not end with the file.

    Traces that turn out to be of one length have none: only the file header was wrong.

    Reads the file once in windows of 4 MiB and keeps 8 bytes a trace.

    Args:
        file: With the sample count of its header, which stands for traces that say 0.
        drop: Leave out a last trace that is cut off.
        force: Refuse instead of returning None.

    Raises:
        FormatError: the file does not end with a whole trace, or its traces differ so much that padding them to one
            length takes more than four times the file.
    """
    root, name = split_url(file.url)
    end = file.size_bytes - len(file.trailer)
    starts, left_over = _starts(open_storage(root), name, file, end)
    if len(starts) < 2 or (left_over and not drop):
        if force:
            raise FormatError(
                "file does not end with a whole trace",
                where=file.url,
                measured=f"{len(starts) - 1} traces of the lengths in bytes 115-116, then {left_over} bytes",
                limit="whole traces",
                remedy="Copy the file again, or drop the last trace with --set truncated=drop.",
            )
        return None
    places = np.array(starts, np.int64)
    width = SAMPLE_BYTES[file.format_code]
    longest = int(np.diff(places).max() - file.header_bytes) // width
    padded = (len(places) - 1) * longest * width
    if padded > MOST_PADDING * file.size_bytes:
        raise FormatError(
            "traces differ too much in length for one sample axis",
            where=file.url,
            measured=f"{padded} bytes of samples when all are as long as the longest, {longest} samples",
            limit=f"{MOST_PADDING} times the {file.size_bytes} bytes of the file",
            remedy="Split the file by trace length.",
        )
    if longest == 0:
        return None
    even = int(np.diff(places).min()) == int(np.diff(places).max())
    return dataclasses.replace(
        file,
        sample_count=longest,
        trace_count=len(places) - 1,
        starts=None if even else places,
        left_over=left_over,
    )


def _starts(storage: Storage, name: str, file: SegyFile, end: int) -> tuple[list[int], int]:
    """First byte of each whole trace and the end of the last, and the bytes that are left over."""
    width, usual = SAMPLE_BYTES[file.format_code], said_samples(file.header, file.byte_order, file.revision)
    place = len(file.header)
    starts = [place]
    window, origin = b"", place
    while end - place >= file.header_bytes:
        if place + file.header_bytes > origin + len(window):
            origin = place
            window = storage.get_range(name, origin, min(max(WINDOW_BYTES, file.header_bytes), end - origin))
        at = place - origin + TRACE_SAMPLES[0] - 1
        said = int.from_bytes(window[at : at + 2], "big" if file.byte_order == ">" else "little")
        following = place + file.header_bytes + (said or usual) * width
        if following > end:
            break
        place = following
        starts.append(place)
    return starts, end - place
