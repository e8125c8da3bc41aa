"""What is in a SEG-Y file, from one pass over it and without ingesting it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.fanout import open_fanout
from geobatch.formats.findings import suspicious
from geobatch.formats.lazy import Key, lazy_array, small_variables
from geobatch.formats.segy_columns import Column, read_columns
from geobatch.formats.segy_describe import describe
from geobatch.formats.segy_file import SegyFile
from geobatch.formats.segy_ingest import SMALL_FILE_BYTES, scan
from geobatch.formats.segy_meaning import Meaning, judge
from geobatch.formats.segy_placement import Placement, arrange
from geobatch.formats.segy_several import open_source
from geobatch.formats.segy_survey import sample_axis, small_arrays, volume_specs
from geobatch.formats.seismic_inspect import axes_figures, sample_of, seismic_quality
from geobatch.formats.spec import Inspected

if TYPE_CHECKING:
    from geobatch.formats.segy_ingest import Options


def inspect_file(url: str, options: Options) -> Inspected:
    """The description of a SEG-Y file, or of several as one, from one pass over it; samples are read again on demand.

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
    info = describe(file, placement, meaning, options.crs, identity="")
    dataset = _as_survey(file, placement, meaning, samples, info)
    sampled = sample_of(dataset, info)
    described: dict[str, Any] = {
        "url": file.url,
        "kind": "segy",
        "makes": placement.kind,
        "axes": axes_figures(dataset, info),
        "domain": meaning.domain,
        "crs": options.crs,
        "source": info["source"],
        "text": file.text.splitlines(),
        **seismic_quality(dataset, info, sampled),
    }
    return Inspected({"suspicious": suspicious(described, info), **described}, dataset, sampled)


def _as_survey(
    file: SegyFile, placement: Placement, meaning: Meaning, samples: Any, info: dict[str, Any]
) -> xr.Dataset:
    """The data set that ingest would write, its samples read trace by trace from the file."""
    small, values = small_arrays(file, placement, meaning, samples, info["crs"])
    one = (1,) * len(placement.shape)
    volume, _ = volume_specs(file, placement, meaning, (1, 1, 1), (1, 1, 1))
    ordinals = values["trace_index"]

    def read(key: Key) -> npt.NDArray[np.float32]:
        wanted = ordinals[key[:-1]]
        ((traces, _),) = read_columns([Column((), np.atleast_1d(wanted))], file)
        found: npt.NDArray[np.float32] = traces.reshape(*wanted.shape, file.sample_count)[(..., key[-1])]
        return found

    cells = lazy_array(
        volume.dims, volume.shape, "float32", read, chunks=(*one, file.sample_count), **dict(volume.attributes)
    )
    return xr.Dataset({**small_variables(small, values), volume.name: cells}, attrs={"geobatch": info})
