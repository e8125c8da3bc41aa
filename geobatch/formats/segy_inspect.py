"""What is in a SEG-Y file, from one pass over it and without ingesting it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from geobatch.fanout import open_fanout
from geobatch.formats.findings import axis_figures, quality, suspicious
from geobatch.formats.segy_describe import describe
from geobatch.formats.segy_file import SegyFile
from geobatch.formats.segy_ingest import SMALL_FILE_BYTES, scan
from geobatch.formats.segy_meaning import Meaning, judge
from geobatch.formats.segy_placement import Placement, arrange
from geobatch.formats.segy_several import open_source
from geobatch.formats.segy_survey import sample_axis

if TYPE_CHECKING:
    from geobatch.formats.segy_ingest import Options


def inspect_file(url: str, options: Options) -> dict[str, Any]:
    """The description of a SEG-Y file, or of several as one.

    Raises:
        NotFoundError: no such file.
        DataError: it is damaged, or its traces do not make what was asked for.
    """
    file = open_source(url, truncated=options.truncated, lengths=options.lengths)
    with open_fanout(small=file.size_bytes <= SMALL_FILE_BYTES) as fanout:
        table = scan(file, options.layout, fanout)
    meaning = judge(file, table, **options.meaning)
    samples = sample_axis(file, table, meaning, options.sample_start)
    placement = arrange(table, options.layout, file.url, options.arrangement)
    return describe_file(file, placement, meaning, samples, options.crs)


def describe_file(
    file: SegyFile, placement: Placement, meaning: Meaning, samples: Any, crs: str | None
) -> dict[str, Any]:
    """The description of a scanned file, as `geobatch.inspect` describes the survey made of it."""
    info = describe(file, placement, meaning, crs, identity="")
    axes: dict[str, Any] = {**placement.axes, "sample": samples}
    if placement.kind == "traces":
        axes = {"trace": np.arange(file.trace_count), "sample": samples}
    units: dict[str, str] = {"sample": meaning.sample_unit}
    described: dict[str, Any] = {
        "url": file.url,
        "kind": "segy",
        "makes": placement.kind,
        "axes": {axis: axis_figures(values, units.get(axis, "")) for axis, values in axes.items()},
        "domain": meaning.domain,
        **{name: info[name] for name in ("bin_grid", "fold", "line") if name in info},
        "crs": crs,
        "source": info["source"],
        "text": file.text.splitlines(),
        **quality(info, meaning.units),
    }
    return {"suspicious": suspicious(described, info), **described}
