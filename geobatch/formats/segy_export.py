"""Survey to SEG-Y: traces in the order of the source file, its headers kept, in bounded memory.

source headers + order → slabs of the output, first trace to last → samples → bytes → one streamed object
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import GeometryError, MismatchError, UsageError
from geobatch.formats.segy import (
    CODE_IEEE,
    DELAY,
    TIME_SCALAR,
    TRACE_INTERVAL,
    TRACE_SAMPLES,
    ByteOrder,
    encode_samples,
    header_field,
    set_header_field,
)
from geobatch.storage import absolute_url, open_storage, split_url
from geobatch.survey import INVALID_CLASS, VOLUME_AXES, class_names, open_survey, require_complete, survey_info

SLAB_BYTES = 512 * 2**20
BLOCK_BYTES = 8 * 2**20
# Classes and probabilities are never negative, and most SEG-Y readers do not understand NaN.
INVALID_VALUE = -1.0


@dataclass(frozen=True)
class Traces:
    """Where the exported traces stand, in the order of the source file.

    Attributes:
        inline_index: Position on the exported volume's inline axis.
        crossline_index: Position on its crossline axis.
        source_inline: Position on the source survey's inline axis.
        source_crossline: Position on its crossline axis.
    """

    inline_index: npt.NDArray[np.int64]
    crossline_index: npt.NDArray[np.int64]
    source_inline: npt.NDArray[np.int64]
    source_crossline: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self.inline_index.size

    def part(self, first: int, stop: int) -> Traces:
        """The traces from `first` to `stop`."""
        part = slice(first, stop)
        return Traces(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


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
    """

    byte_order: ByteOrder
    format_code: int
    samples: npt.NDArray[np.float64]
    changed_axis: bool
    classes: bool
    invalid_value: float | None


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
    IBM or 32-bit integer values that float32 cannot hold). Every other variable is written as IEEE floats, with -1
    where it is invalid.

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
    index = (traces.inline_index, traces.crossline_index)[slow]
    chunk = volume.encoding.get("chunks", volume.shape)[slow]
    edges = [0, *(np.flatnonzero(np.diff(index // chunk)) + 1).tolist(), len(traces)]
    for first, stop in itertools.pairwise(edges):
        yield from _fitting(traces.part(first, stop), volume.sizes["sample"] * 4, slab_bytes)


def _fitting(traces: Traces, trace_bytes: int, slab_bytes: int) -> Iterator[Traces]:
    """The run itself when its bounding box fits, or its halves."""
    cells = int(np.ptp(traces.inline_index) + 1) * int(np.ptp(traces.crossline_index) + 1)
    if cells * trace_bytes <= slab_bytes or len(traces) == 1:
        yield traces
        return
    middle = len(traces) // 2
    yield from _fitting(traces.part(0, middle), trace_bytes, slab_bytes)
    yield from _fitting(traces.part(middle, len(traces)), trace_bytes, slab_bytes)


def _slow_axis(traces: Traces) -> int:
    """The axis that changes less often from trace to trace: 0 for a file sorted by inline, 1 by crossline."""
    changes = [np.count_nonzero(np.diff(index)) for index in (traces.inline_index, traces.crossline_index)]
    return int(changes[1] < changes[0])


def _select(dataset: xr.Dataset, variable: str | None, where: str) -> tuple[xr.DataArray, str]:
    """The volume to export and its name for the summary."""
    info = survey_info(dataset)
    title = variable or (info.get("variable") if info["kind"] == "volume" else "class_map")
    name, _, chosen = str(title).partition(":")
    known = [str(n) for n, array in dataset.data_vars.items() if set(VOLUME_AXES) <= set(array.dims)]
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
    return volume.transpose(*VOLUME_AXES), str(title)


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
    for axis in VOLUME_AXES[:2]:
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
    ordinal = source["trace_index"].values[np.ix_(*places)]
    inline_index, crossline_index = np.nonzero(ordinal >= 0)
    order = np.argsort(ordinal[inline_index, crossline_index])
    inline_index, crossline_index = inline_index[order], crossline_index[order]
    if not order.size:
        raise MismatchError("no trace of the source lies in the volume", where=where)
    return Traces(inline_index, crossline_index, places[0][inline_index], places[1][crossline_index])


def encode_slab(traces: Traces, volume: xr.DataArray, source: xr.Dataset, form: Form) -> Iterator[tuple[bytes, int]]:
    """Blocks of traces as they stand in the file, and how many samples of each are invalid."""
    samples, corner = _box(volume, traces.inline_index, traces.crossline_index)
    headers, source_corner = _box(source["trace_header"], traces.source_inline, traces.source_crossline)
    step = max(1, BLOCK_BYTES // (4 * form.samples.size))
    for first in range(0, len(traces), step):
        part = traces.part(first, first + step)
        values = samples[part.inline_index - corner[0], part.crossline_index - corner[1]]
        raw_headers = headers[part.source_inline - source_corner[0], part.source_crossline - source_corner[1]]
        if form.changed_axis:
            _set_axis(raw_headers, form)
        missing = values == INVALID_CLASS if form.classes else ~np.isfinite(values)
        values = values.astype(np.float32)
        if form.invalid_value is not None:
            values[missing] = form.invalid_value
        raw = encode_samples(values, form.format_code, form.byte_order)
        yield np.concatenate([raw_headers, raw], axis=1).tobytes(), int(missing.sum())


def _box(
    array: xr.DataArray, inline_index: npt.NDArray[np.int64], crossline_index: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], tuple[int, int]]:
    """The smallest box of an array that holds all given positions, in memory, and its first position."""
    inline, crossline = int(inline_index.min()), int(crossline_index.min())
    box = array.isel(
        inline=slice(inline, int(inline_index.max()) + 1), crossline=slice(crossline, int(crossline_index.max()) + 1)
    )
    return np.asarray(box.values), (inline, crossline)


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
