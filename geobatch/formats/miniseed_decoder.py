"""A process of its own that decodes MiniSEED records with obspy: what makes libmseed crash or hang costs only it.

    python -P miniseed_decoder.py MEMORY

Requests come on standard input, answers go to standard output, both as JSON lines. The bytes they are about stand in a
file in memory, whose descriptor is MEMORY: of a request for records first three columns of int64, times in ns, samples
and lengths in bytes, then the records, and from `answer_at` on their samples. Run by path, so that it starts as fast as
obspy does.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import sys
import warnings
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# obspy keeps times to the microsecond.
SAME_TIME_NS = 1_000_000


def decode(body: memoryview, starts_ns: Ints, counts: Ints, lengths: Ints) -> tuple[Any, list[list[Any]]]:
    """The samples of records that lie one after the other, and the number and fault of each that does not decode.

    Args:
        body: The records.
        starts_ns: Time of each record.
        counts: Samples of each record.
        lengths: Bytes of each record.

    Returns:
        All samples in the order of the records, int32, float32 or float64, zeros for what does not decode.
    """
    edges = np.concatenate(([0], np.cumsum(lengths)))
    parts: list[npt.NDArray[Any]] = []
    bad: list[list[Any]] = []
    left = [(0, len(counts))]
    while left:
        first, end = left.pop()
        part, fault = _read(body[edges[first] : edges[end]], starts_ns[first:end], counts[first:end])
        if part is not None:
            parts.append(part)
        elif end - first == 1:
            parts.append(np.zeros(counts[first], np.int32))
            bad.append([first, fault])
        else:
            middle = (first + end) // 2
            left += [(middle, end), (first, middle)]
    if len(parts) == 1:
        return parts[0], bad
    kinds = [part.dtype for part in parts if part.any()] or [parts[0].dtype]
    return np.concatenate(parts).astype(np.result_type(*kinds), copy=False), bad


def _read(body: memoryview, starts_ns: Ints, counts: Ints) -> tuple[npt.NDArray[Any] | None, str]:
    """The samples when obspy reads all of them, in order and without a complaint; else its complaint."""
    import obspy

    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        try:
            traces = obspy.read(io.BytesIO(body), format="MSEED").traces
        except Exception as error:  # obspy raises bare exceptions of many kinds.
            return None, f"{type(error).__name__}: {error}"
    # Of what libmseed complains about, this alone means that samples are wrong.
    if wrong := [str(complaint.message) for complaint in complaints if "integrity" in str(complaint.message)]:
        return None, wrong[0]
    found = sum(len(trace.data) for trace in traces)
    if found != counts.sum():
        return None, f"gives {found} samples, its header claims {counts.sum()}"
    firsts = np.cumsum(counts) - counts
    position = 0
    for trace in traces:
        record = int(np.searchsorted(firsts, position))
        known = record < len(firsts) and firsts[record] == position
        if not known or abs(trace.stats.starttime.ns - int(starts_ns[record])) > SAME_TIME_NS:
            return None, "is read at another time than its header tells"
        position += len(trace.data)
    return (traces[0].data if len(traces) == 1 else np.concatenate([trace.data for trace in traces])), ""


def inventory(body: memoryview) -> list[dict[str, Any]]:
    """One entry per channel and epoch of a StationXML document."""
    import obspy

    entries = []
    for network in obspy.read_inventory(io.BytesIO(body), format="STATIONXML"):
        for station in network:
            for channel in station:
                sensitivity = channel.response.instrument_sensitivity if channel.response else None
                entries.append(
                    {
                        "channel": f"{network.code}.{station.code}.{channel.location_code}.{channel.code}",
                        "start_ns": channel.start_date.ns if channel.start_date else None,
                        "end_ns": channel.end_date.ns if channel.end_date else None,
                        "latitude": _number(channel.latitude),
                        "longitude": _number(channel.longitude),
                        "elevation_m": _number(channel.elevation),
                        "depth_m": _number(channel.depth),
                        "azimuth_deg": _number(channel.azimuth),
                        "dip_deg": _number(channel.dip),
                        "sensitivity": _number(sensitivity.value) if sensitivity else None,
                        "input_units": sensitivity.input_units if sensitivity else None,
                    }
                )
    return entries


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(float(value)) else float(value)


def serve(requests: BinaryIO, answers: BinaryIO, memory: int) -> None:
    """Answer requests until there are no more."""
    room = memoryview(b"")
    while line := requests.readline():
        request = json.loads(line)
        if len(room) != request["room"]:
            room = memoryview(mmap.mmap(memory, request["room"]))
        columns = np.frombuffer(room, np.int64, 3 * request["records"]).reshape(3, -1)
        body = room[columns.nbytes : columns.nbytes + request["bytes"]]
        try:
            if request["what"] == "inventory":
                answer: dict[str, Any] = {"entries": inventory(body)}
            else:
                values, bad = decode(body, *columns)
                np.frombuffer(room, values.dtype, len(values), request["answer_at"])[:] = values
                answer = {"dtype": values.dtype.str, "bad": bad}
        except Exception as error:  # The answer to whatever goes wrong is what went wrong.
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    # What libraries print must not mix with answers.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # While the other process still reads; what is missing is told to the first request.
    with contextlib.suppress(ImportError):
        import obspy  # noqa: F401
    serve(sys.stdin.buffer, channel, int(sys.argv[1]))
