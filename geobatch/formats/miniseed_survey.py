"""What a survey of waveforms says of itself: stations, channels, gaps, statistics, and what to look at first."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.miniseed_headers import NS_PER_S
from geobatch.formats.miniseed_layout import Group
from geobatch.formats.miniseed_piece import COUNTS, Piece
from geobatch.shards import ArraySpec

# Version of everything here that decides a sample's value: placement, what is kept of overlaps, what counts as missing.
NUMERICAL_VERSION = 1
FEW = 0.5
MANY_CLIPPED = 1e-4
MANY_GAPS_PER_DAY = 24
DAY_S = 86_400
STATION_VARIABLES = {
    "latitude": ("latitude of the station", "degrees_north"),
    "longitude": ("longitude of the station", "degrees_east"),
    "elevation": ("elevation of the station above sea level", "m"),
}
CHANNEL_VARIABLES = {
    "sensitivity": ("counts per unit of ground motion at the reference frequency; not applied", "counts"),
    "azimuth": ("direction of positive motion, clockwise from north", "degrees"),
    "dip": ("direction of positive motion, down from the horizontal", "degrees"),
}
_ENTRY_KEYS = {"elevation": "elevation_m", "azimuth": "azimuth_deg", "dip": "dip_deg"}


def text_array(name: str, dims: tuple[str, ...], values: Any, **attributes: Any) -> tuple[ArraySpec, npt.NDArray[Any]]:
    """Spec and values of a small array of text."""
    array = np.array(values, np.str_)
    return ArraySpec.small(name, dims, array, **attributes), array


def small_arrays(
    group: Group, inventory: Sequence[Mapping[str, Any]]
) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Specs and values of the axes of a group, its channel ids and what StationXML says of them."""
    station, component = f"station{group.suffix}", f"component{group.suffix}"
    texts = [
        text_array(station, (station,), group.stations, long_name="network.station.location.band and instrument"),
        text_array(component, (component,), group.components, long_name="orientation code of the channel"),
        text_array(
            f"channel{group.suffix}", (station, component), group.channels, long_name="SEED channel id, empty: none"
        ),
    ]
    specs = [spec for spec, _ in texts]
    values = {spec.name: array for spec, array in texts}
    if inventory:
        maps: dict[str, npt.NDArray[Any]] = {
            name: np.full(np.shape(group.channels), np.nan) for name in CHANNEL_VARIABLES
        }
        points: dict[str, npt.NDArray[Any]] = {name: np.full(len(group.stations), np.nan) for name in STATION_VARIABLES}
        for (row, column), entry in epochs(group, inventory).items():
            for name, array in maps.items():
                array[row, column] = _value(entry, name)
            for name, array in points.items():
                array[row] = _value(entry, name)
        for name, array in {**points, **maps}.items():
            long_name, units = {**STATION_VARIABLES, **CHANNEL_VARIABLES}[name]
            dims = (station, component)[: array.ndim]
            spec = ArraySpec.small(f"{name}{group.suffix}", dims, array, long_name=long_name, units=units)
            specs.append(spec)
            values[spec.name] = array
    return specs, values


def epochs(group: Group, inventory: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], Mapping[str, Any]]:
    """What StationXML says of each channel `(station, component)`: the first epoch that its data reach into."""
    end_ns = group.start_ns + round(group.seconds(group.samples) * NS_PER_S)
    found: dict[tuple[int, int], Mapping[str, Any]] = {}
    for entry in sorted(inventory, key=lambda entry: entry["start_ns"] or 0):
        begins, ends = entry["start_ns"], entry["end_ns"]
        if (begins is not None and begins >= end_ns) or (ends is not None and ends <= group.start_ns):
            continue
        for row, channels in enumerate(group.channels):
            if entry["channel"] in channels:
                found.setdefault((row, channels.index(entry["channel"])), entry)
    return found


def describe_groups(groups: Sequence[Group], pieces: Sequence[Piece], figures: Sequence[Mapping[str, Any]]) -> Any:
    """Per group its axis, arrays and channels; each channel with its statistics, gaps and overlaps."""
    return [
        {
            "rate_hz": group.rate_hz,
            "variable": group.waveform.name,
            "valid": group.valid.name,
            "start": group.start,
            "end": group.time(group.samples - 1),
            "samples": group.samples,
            "stations": len(group.stations),
            "components": list(group.components),
            "dtype": group.dtype,
            "channels": [
                _describe_channel(group, row, column, _merged(number, row, code, pieces, figures))
                for row in range(len(group.stations))
                for column, code in enumerate(group.components)
                if group.channels[row][column]
            ],
            "missing": [
                f"{station} {code}"
                for station, channels in zip(group.stations, group.channels, strict=True)
                for code, channel in zip(group.components, channels, strict=True)
                if not channel
            ],
        }
        for number, group in enumerate(groups)
    ]


def overall(channels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count, mean, std, rms, min and max of all samples of these channels."""
    total: dict[str, Any] = {}
    for channel in channels:
        if channel["count"]:
            part = {name: channel[name] for name in ("count", "mean", "min", "max", "at_min", "at_max")}
            total = _more(total, {**part, "squares": channel["std"] ** 2 * channel["count"]})
    if not total:
        return {"count": 0}
    variance = total["squares"] / total["count"]
    return {
        "count": total["count"],
        "mean": total["mean"],
        "std": math.sqrt(variance),
        "rms": math.sqrt(variance + total["mean"] ** 2),
        "min": total["min"],
        "max": total["max"],
    }


def suspicious(groups: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> list[str]:
    """Sentences on what should be looked at before the survey is used, the worst first."""
    channels = [(channel, group) for group in groups for channel in group["channels"]]
    found: list[tuple[float, str]] = []
    for channel, group in channels:
        name, count = channel["channel"], max(channel["count"], 1)
        if channel["undecoded"]:
            found.append((5, f"{name}: {channel['undecoded']} samples lie in records that do not decode"))
        if channel["count"] and channel["min"] == channel["max"]:
            found.append((4, f"{name} is dead: every sample is {channel['min']:g}"))
        elif channel["clipped"] > MANY_CLIPPED * count:
            ends = f"{channel['min']:g} and {channel['max']:g}"
            found.append((3, f"{name} is clipped: {channel['clipped']} samples stand in plateaus at {ends}"))
        if channel["conflicting"]:
            found.append((3, f"{name}: {channel['conflicting']} samples of overlaps conflict; the first were kept"))
        if channel["unusable"]:
            found.append((2, f"{name}: {channel['unusable']} samples are no numbers and count as missing"))
        days = max(group["samples"] / group["rate_hz"] / DAY_S, 1)
        if channel["gaps"] > MANY_GAPS_PER_DAY * days:
            found.append((2, f"{name} has {channel['gaps']} gaps, {channel['gaps'] / days:.0f} a day"))
        if channel["completeness"] < FEW:
            found.append((1, f"{name} covers {channel['completeness']:.1%} of the time axis"))
    for group in groups:
        if group["missing"]:
            some = ", ".join(group["missing"][:4]) + (" …" if len(group["missing"]) > 4 else "")
            found.append((0, f"{len(group['missing'])} components at {group['rate_hz']:g} Hz have no channel: {some}"))
    found.sort(key=lambda pair: -pair[0])
    return [sentence for _, sentence in found] + list(warnings)


def identity_of(digests: Sequence[str], groups: Sequence[Group]) -> str:
    """SHA-256 of all that decides a sample: bytes of the shards, axes and channels."""
    whole = hashlib.sha256(f"geobatch miniseed {NUMERICAL_VERSION}".encode())
    for digest in digests:
        whole.update(digest.encode())
    for group in groups:
        axes = (group.rate_hz, group.start_ns, group.samples, group.stations, group.components, group.channels)
        whole.update(repr(axes).encode())
    return whole.hexdigest()


def _describe_channel(group: Group, row: int, column: int, total: dict[str, Any]) -> dict[str, Any]:
    mine = group.placed[(group.placed["station"] == row) & (group.placed["component"] == column)]
    gaps, last = _gaps(mine, group.samples)
    count = total.get("count", 0)
    longest = max(gaps, key=lambda gap: gap[1] - gap[0], default=None)
    described: dict[str, Any] = {
        "channel": group.channels[row][column],
        "count": count,
        "mean": total.get("mean"),
        "std": math.sqrt(total["squares"] / count) if count else None,
        **{name: total.get(name) for name in ("min", "max")},
        **{name: total.get(name, 0) for name in ("at_min", "at_max", *COUNTS)},
        "clipped": total.get("at_min", 0) + total.get("at_max", 0),
        "completeness": count / group.samples,
        "first": group.time(max(int(mine["at"].min()), 0)),
        "last": group.time(last - 1),
        "gaps": len(gaps),
        "gap_s": sum(group.seconds(end - start) for start, end in gaps),
        "longest_gap": None,
    }
    if longest:
        described["longest_gap"] = {
            "start": group.time(longest[0]),
            "seconds": group.seconds(longest[1] - longest[0]),
        }
    return described


def _gaps(placed: npt.NDArray[Any], length: int) -> tuple[list[tuple[int, int]], int]:
    """First sample and end of every gap between a channel's stretches, and the end of the last stretch."""
    order = np.argsort(placed["at"], kind="stable")
    starts = np.maximum(placed["at"][order], 0)
    ends = np.minimum(np.maximum.accumulate((placed["at"] + placed["samples"])[order]), length)
    after = np.flatnonzero(starts[1:] > ends[:-1])
    return list(zip(ends[after].tolist(), starts[after + 1].tolist(), strict=True)), int(ends[-1])


def _merged(
    number: int, row: int, code: str, pieces: Sequence[Piece], figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for piece, told in zip(pieces, figures, strict=True):
        if (piece.group, piece.station) == (number, row) and code in told:
            total = _more(total, told[code])
    return total


def _more(total: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of two parts of a channel as those of both."""
    merged = {name: total.get(name, 0) + part.get(name, 0) for name in COUNTS}
    if not part["count"] or not total.get("count"):
        return {**(total if total.get("count") else part), **merged}
    count = total["count"] + part["count"]
    apart = part["mean"] - total["mean"]
    for name, pick in (("min", min), ("max", max)):
        merged[name] = pick(total[name], part[name])
        merged[f"at_{name}"] = sum(side[f"at_{name}"] for side in (total, part) if side[name] == merged[name])
    merged["count"] = count
    merged["mean"] = total["mean"] + apart * part["count"] / count
    merged["squares"] = total["squares"] + part["squares"] + apart**2 * total["count"] * part["count"] / count
    return merged


def _value(entry: Mapping[str, Any], name: str) -> float:
    value = entry[_ENTRY_KEYS.get(name, name)]
    return math.nan if value is None else float(value)
