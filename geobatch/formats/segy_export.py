"""Survey to SEG-Y: traces in the order of the source file, its headers kept, in bounded memory.

source headers + order → slabs of the output, first trace to last → samples → bytes → one streamed object
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import GeometryError, MismatchError, UsageError
from geobatch.formats.segy_file import (
    DELAY,
    TIME_SCALAR,
    TRACE_INTERVAL,
    TRACE_SAMPLES,
    header_field,
    said_samples,
    set_header_field,
)
from geobatch.formats.segy_samples import CODE_IEEE, ByteOrder, encode_samples
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import INVALID_CLASS, VOLUME_AXES, class_names, open_survey, require_complete, survey_info

SLAB_BYTES = 512 * 2**20
BLOCK_BYTES = 8 * 2**20
TRACE_KINDS = ("volume", "gathers", "traces")
# Classes and probabilities are never negative, and most SEG-Y readers do not understand NaN.
INVALID_VALUE = -1.0


@dataclass(frozen=True)
class Traces:
    """Where the exported traces stand, in the order of the source file.

    Attributes:
        index: Position of each trace on every axis of the exported array but the samples'.
        source: The same in the source survey.
    """

    index: tuple[npt.NDArray[np.int64], ...]
    source: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return self.index[0].size

    def part(self, first: int, stop: int) -> Traces:
        """The traces from `first` to `stop`."""
        part = slice(first, stop)
        return Traces(tuple(index[part] for index in self.index), tuple(index[part] for index in self.source))


@dataclass(frozen=True)
class Form:
    """How samples and headers are written.

    Attributes:
        byte_order: Byte order of the source file.
        format_code: Sample format of the output.
        samples: Values of the vertical axis in the file's unit.
        changed_axis: True when the vertical axis differs from the source's, so that headers must say so.
        classes: True when the samples are classes, of which 255 is invalid.
        invalid_value: What stands for an invalid sample, or None to write samples as they are.
        uneven: True when each trace is as long as its header says.
    """

    byte_order: ByteOrder
    format_code: int
    samples: npt.NDArray[np.float64]
    changed_axis: bool
    classes: bool
    invalid_value: float | None
    uneven: bool = False


def export_segy(
    src_survey_url: str,
    dst_url: str,
    *,
    variable: str | None = None,
    overwrite: bool = False,
    slab_bytes: int = SLAB_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A summary of the SEG-Y file written to `dst_url` from a survey, or from one that was scored.

    File and trace headers are those of the source file. The ingested volume is written in the source's own sample
    format: the file equals the source byte for byte, except for words no writer produces (unnormalised IBM words, and
    IBM, 64-bit or 32-bit integer values that float32 cannot hold). Traces that ingest left out are not in it, and
    several source files become one, under the header of the first. Every other variable is written as IEEE floats,
    with -1 where it is invalid.

    Args:
        src_survey_url: Survey made by `ingest`, or a scored one, whose `source_survey` then gives headers and order.
        dst_url: The SEG-Y file; it appears only when it is whole.
        variable: What to write: `amplitude`, `class_map`, or `probability:NAME` for one class. By default the ingested
            volume or the class map.
        overwrite: Replace an existing file.
        slab_bytes: Memory for the samples of one slab of traces. A slab smaller than a row of chunks reads them anew.
        on_progress: Called with traces done and traces in all.

    Raises:
        UsageError: the file exists, or the variable does not.
        MismatchError: the survey has no SEG-Y headers, or its grid is not the source's.
        GeometryError: the start of a cropped axis does not fit the delay field of the trace header.
    """
    src_survey_url, dst_url = absolute_url(src_survey_url), absolute_url(dst_url)
    root, name = split_url(dst_url)
    if not overwrite and open_storage(root).exists(name):
        raise UsageError("a file is there already", where=dst_url, remedy="Give another output, or --overwrite.")
    scored = open_survey(src_survey_url)
    require_complete(scored, src_survey_url)
    volume, title = _select(scored, variable, src_survey_url)
    source = _source(scored, src_survey_url)
    info = survey_info(source)
    traces = _traces(volume, source, src_survey_url)
    own_format = volume.name == info["variable"] and "trace_header" in scored
    form = Form(
        byte_order=">" if info["source"]["byte_order"] == "big" else "<",
        format_code=info["source"]["format_code"] if own_format else CODE_IEEE,
        samples=volume["sample"].values.astype(np.float64) / info["source"]["unit_factor"],
        changed_axis=not np.array_equal(volume["sample"].values, source["sample"].values),
        classes=volume.dtype == np.uint8,
        # An amplitude may well be -1; a prepared survey has no trace where it is 0 throughout.
        invalid_value=None if own_format else 0.0 if survey_info(scored)["kind"] == "volume" else INVALID_VALUE,
        uneven=bool(info["source"].get("uneven")),
    )
    invalid = written = 0
    with open_storage(root).open_writer(name) as write:
        write(_file_header(source, form, own_format))
        for part in slabs_of(traces, volume, slab_bytes):
            for block, invalid_samples in encode_slab(part, volume, source, form):
                write(block)
                invalid += invalid_samples
            written += len(part)
            on_progress(written, len(traces))
        if "file_trailer" in source:
            write(source["file_trailer"].values.tobytes())
    return {
        "url": dst_url,
        "variable": title,
        "traces": written,
        "samples": form.samples.size,
        "format_code": form.format_code,
        "invalid_samples": invalid,
        "invalid_value": form.invalid_value,
        "bytes": open_storage(root).size(name),
    }


def slabs_of(traces: Traces, volume: xr.DataArray, slab_bytes: int) -> Iterator[Traces]:
    """Runs of traces whose bounding box on the grid takes at most `slab_bytes`, or single traces.

    Runs end where a row of chunks ends on the slower axis, so that each chunk is read once when memory allows it.
    """
    slow = _slow_axis(traces)
    index = traces.index[slow]
    chunk = volume.encoding.get("chunks", volume.shape)[slow]
    edges = [0, *(np.flatnonzero(np.diff(index // chunk)) + 1).tolist(), len(traces)]
    for first, stop in itertools.pairwise(edges):
        yield from _fitting(traces.part(first, stop), volume.sizes["sample"] * 4, slab_bytes)


def _fitting(traces: Traces, trace_bytes: int, slab_bytes: int) -> Iterator[Traces]:
    """The run itself when its bounding box fits, or its halves."""
    cells = math.prod(int(np.ptp(index)) + 1 for index in traces.index)
    if cells * trace_bytes <= slab_bytes or len(traces) == 1:
        yield traces
        return
    middle = len(traces) // 2
    yield from _fitting(traces.part(0, middle), trace_bytes, slab_bytes)
    yield from _fitting(traces.part(middle, len(traces)), trace_bytes, slab_bytes)


def _slow_axis(traces: Traces) -> int:
    """The axis that changes least often from trace to trace: 0 for a file sorted by inline, 1 by crossline."""
    return int(np.argmin([np.count_nonzero(np.diff(index)) for index in traces.index]))


def _select(dataset: xr.Dataset, variable: str | None, where: str) -> tuple[xr.DataArray, str]:
    """The volume to export and its name for the summary."""
    info = survey_info(dataset)
    title = variable or (info.get("variable") if info["kind"] in TRACE_KINDS else "class_map")
    name, _, chosen = str(title).partition(":")
    axes = (*dataset["trace_index"].dims, "sample") if info["kind"] in TRACE_KINDS else VOLUME_AXES
    known = [str(n) for n, array in dataset.data_vars.items() if set(axes) <= set(array.dims)]
    if name not in known:
        raise UsageError(
            "no such volume in the survey", where=where, measured=name, limit=", ".join(known) or "a survey with one"
        )
    volume = dataset[name]
    if "class" in volume.dims:
        names = list(class_names(dataset["class_map"]).values())
        if chosen not in names:
            raise UsageError(
                "no such class", where=where, measured=chosen or "none", limit=", ".join(f"{name}:{c}" for c in names)
            )
        chunks = volume.encoding.get("chunks")
        volume = volume.isel({"class": names.index(chosen)})
        if chunks is not None:
            volume.encoding["chunks"] = chunks[1:]
    return volume.transpose(*axes), str(title)


def _source(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """The survey that holds the SEG-Y headers: this one, or the one it was scored from."""
    if "trace_header" in dataset and "file_header" in dataset:
        return dataset
    url = survey_info(dataset).get("source_survey")
    if not url:
        raise MismatchError(
            "survey has no SEG-Y headers and names no survey that has",
            where=where,
            remedy="Export needs a survey made by geobatch ingest, or one scored from it.",
        )
    source = open_survey(url)
    if "trace_header" not in source or "file_header" not in source:
        raise MismatchError("the survey it was scored from has no SEG-Y headers", where=where, measured=url)
    return source


def _traces(volume: xr.DataArray, source: xr.Dataset, where: str) -> Traces:
    """The recorded traces inside the volume, in source order; the volume's lines must be lines of the source."""
    places = []
    for axis in map(str, volume.dims[:-1]):
        if axis not in source.coords:
            # Single traces have no numbers of their own: a survey of them is exported whole.
            places.append(np.arange(volume.sizes[axis]))
            continue
        numbers, own = source[axis].values, volume[axis].values
        place = np.searchsorted(numbers, own).clip(0, numbers.size - 1)
        if not np.array_equal(numbers[place], own):
            raise MismatchError(
                f"{axis} numbers are not those of the source survey",
                where=where,
                measured=f"{own[0]} to {own[-1]}",
                limit=f"{numbers[0]} to {numbers[-1]}",
            )
        places.append(place)
    if source["trace_index"].ndim != len(places):
        raise MismatchError(
            "axes are not those of the source survey",
            where=where,
            measured=", ".join(map(str, volume.dims)),
            limit=", ".join(map(str, source["trace_index"].dims)),
        )
    ordinal = source["trace_index"].values[np.ix_(*places)]
    index = np.nonzero(ordinal >= 0)
    order = np.argsort(ordinal[index])
    index = tuple(each[order] for each in index)
    if not order.size:
        raise MismatchError("no trace of the source lies in the volume", where=where)
    return Traces(index, tuple(place[each] for place, each in zip(places, index, strict=True)))


def encode_slab(traces: Traces, volume: xr.DataArray, source: xr.Dataset, form: Form) -> Iterator[tuple[bytes, int]]:
    """Blocks of traces as they stand in the file, and how many samples of each are invalid."""
    samples, corner = _box(volume, traces.index)
    headers, source_corner = _box(source["trace_header"], traces.source)
    step = max(1, BLOCK_BYTES // (4 * form.samples.size))
    for first in range(0, len(traces), step):
        part = traces.part(first, first + step)
        values = samples[tuple(index - start for index, start in zip(part.index, corner, strict=True))]
        raw_headers = headers[tuple(index - start for index, start in zip(part.source, source_corner, strict=True))]
        if form.changed_axis:
            _set_axis(raw_headers, form)
        missing = values == INVALID_CLASS if form.classes else ~np.isfinite(values)
        values = values.astype(np.float32)
        if form.invalid_value is not None:
            values[missing] = form.invalid_value
        raw = encode_samples(values, form.format_code, form.byte_order)
        if form.uneven and not form.changed_axis:
            yield _as_long(raw_headers, raw, source, form), int(missing.sum())
        else:
            yield np.concatenate([raw_headers, raw], axis=1).tobytes(), int(missing.sum())


def _as_long(headers: npt.NDArray[np.uint8], raw: npt.NDArray[np.uint8], source: xr.Dataset, form: Form) -> bytes:
    """Traces one after another, each as long as its header says."""
    said = header_field(headers, *TRACE_SAMPLES, form.byte_order).astype(np.int64)
    usual = said_samples(
        source["file_header"].values.tobytes(), form.byte_order, survey_info(source)["source"]["revision"]
    )
    lengths = np.where(said == 0, usual, said) * (raw.shape[1] // form.samples.size)
    return b"".join(
        header.tobytes() + trace[:length].tobytes()
        for header, trace, length in zip(headers, raw, lengths.tolist(), strict=True)
    )


def _box(array: xr.DataArray, places: tuple[npt.NDArray[np.int64], ...]) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
    """The smallest box of an array that holds all given positions, in memory, and its first position."""
    corner = tuple(int(index.min()) for index in places)
    box = array[tuple(slice(first, int(index.max()) + 1) for first, index in zip(corner, places, strict=True))]
    return np.asarray(box.values), corner


def _set_axis(headers: npt.NDArray[np.uint8], form: Form) -> None:
    """Number of samples, interval and delay of a cropped or resampled axis, in place."""
    set_header_field(headers, *TRACE_SAMPLES, form.byte_order, form.samples.size)
    set_header_field(headers, *TRACE_INTERVAL, form.byte_order, _interval(form))
    for scalar in np.unique(header_field(headers, *TIME_SCALAR, form.byte_order)):
        delay = form.samples[0] * -float(scalar) if scalar < 0 else form.samples[0] / (float(scalar) or 1.0)
        if abs(delay - round(delay)) > 1e-6 or not -(2**15) <= delay < 2**15:
            raise GeometryError(
                "start of the cropped axis does not fit the delay field of the trace header",
                measured=f"{form.samples[0]:g} with time scalar {scalar}",
                limit="a whole number of 2 bytes after the scalar",
                remedy="Crop at another sample.",
            )
        rows = header_field(headers, *TIME_SCALAR, form.byte_order) == scalar
        part = headers[rows]
        set_header_field(part, *DELAY, form.byte_order, round(delay))
        headers[rows] = part


def _interval(form: Form) -> int:
    step = form.samples[1] - form.samples[0] if form.samples.size > 1 else 0.0
    return round(1000 * step)


def _file_header(source: xr.Dataset, form: Form, own_format: bool) -> bytes:
    """The source's file header with sample format, count and interval as they are now."""
    header = np.array(source["file_header"].values, np.uint8)[None, :]
    if not own_format:
        set_header_field(header, 3225, "i2", form.byte_order, form.format_code)
    if form.changed_axis:
        set_header_field(header, 3221, "u2", form.byte_order, form.samples.size)
        set_header_field(header, 3217, "u2", form.byte_order, _interval(form))
        if survey_info(source)["source"]["revision"] >= 2:
            set_header_field(header, 3269, "u4", form.byte_order, form.samples.size)
            set_header_field(header, 3273, "f8", form.byte_order, _interval(form))
    return header.tobytes()
