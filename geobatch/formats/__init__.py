"""Raw formats: how each is found, what it may be told, and how it becomes a survey."""

from __future__ import annotations

import difflib
import importlib
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from geobatch.errors import UsageError
from geobatch.formats.spec import IngestJob, IngestOptions, IngestRun, Inspected

if TYPE_CHECKING:
    from geobatch.formats.segy_ingest import ingest


@dataclass(frozen=True)
class Format:
    """A raw format. Its module is imported when it is first needed, since field libraries take seconds to load.

    Attributes:
        module: Has `Options`, a subclass of `IngestOptions`; `ingest_source(src_url, dst_url, options, run)`, which
            returns a summary; and `inspect_source(src_url, options)`, which returns what it looked at.
        suffixes: Of its files, lower case; none for what only a name tells.
        unit: What its progress counts.
        about: What it is, in a few words.
    """

    module: str
    suffixes: tuple[str, ...]
    unit: str
    about: str

    @property
    def options(self) -> type[IngestOptions]:
        """The schema of its options."""
        schema: type[IngestOptions] = self._named("Options")
        return schema

    @property
    def ingest(self) -> Callable[[str, str, Any, IngestRun], dict[str, Any]]:
        """Makes a survey of a source."""
        function: Callable[[str, str, Any, IngestRun], dict[str, Any]] = self._named("ingest_source")
        return function

    @property
    def inspect(self) -> Callable[[str, Any], Inspected]:
        """Looks at a source without ingesting it."""
        function: Callable[[str, Any], Inspected] = self._named("inspect_source")
        return function

    def _named(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)


FORMATS: dict[str, Format] = {
    "segy": Format("geobatch.formats.segy_ingest", (".sgy", ".segy"), "traces", "SEG-Y rev 0, 1, 2"),
    "las": Format("geobatch.formats.las", (".las",), "files", "LAS 1.2 and 2.0 well logs, a file or a folder"),
    "logs": Format("geobatch.formats.logs", (), "files", "well logs as CSV, a file or a folder"),
    "arrays": Format(
        "geobatch.formats.arrays",
        (".npy", ".npz", ".zarr", ".nc", ".nc4", ".h5", ".hdf5"),
        "pieces",
        "NumPy, Zarr, NetCDF 4 and HDF5 arrays",
    ),
    "catalogue": Format(
        "geobatch.formats.catalogue", (".quakeml", ".qml"), "files", "earthquakes as CSV, aligned text or QuakeML"
    ),
    "raster": Format(
        "geobatch.formats.raster", (".tif", ".tiff", ".png"), "shards", "GeoTIFF, COG, PNG; a folder or a list of tiles"
    ),
    "miniseed": Format(
        "geobatch.formats.miniseed", (".mseed", ".miniseed", ".ms"), "files", "MiniSEED archives, with StationXML"
    ),
    "windows": Format(
        "geobatch.formats.windows", (), "windows", "event windows: SeisBench HDF5 with CSV, NPZ of PhaseNet"
    ),
}


def find_format(url: str, name: str | None = None) -> tuple[str, Format]:
    """The format called `name`, or the one that the suffix of `url` tells, with its name.

    Raises:
        UsageError: the name or the suffix is of no known format.
    """
    if name is not None:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            remedy = f"Did you mean {near[0]}?" if near else ""
            raise UsageError("unknown format", measured=name, limit=", ".join(FORMATS), remedy=remedy)
        return name, FORMATS[name]
    known = format_of(url)
    if known is not None:
        return known, FORMATS[known]
    suffix = PurePosixPath(url).suffix.lower()
    suffixes = sorted(suffix for format_ in FORMATS.values() for suffix in format_.suffixes)
    raise UsageError(
        "unknown file format",
        where=url,
        measured=suffix or "no suffix",
        limit=", ".join(suffixes),
        remedy=f"Name it with --format: {', '.join(FORMATS)}.",
    )


def format_of(url: str) -> str | None:
    """The name of the raw format that the suffix of `url` tells, or None."""
    suffix = PurePosixPath(url.rstrip("/")).suffix.lower()
    return next((name for name, format_ in FORMATS.items() if suffix in format_.suffixes), None)


def parse_options(name: str, given: Mapping[str, Any]) -> IngestOptions:
    """The options of a format from a mapping.

    Raises:
        UsageError: an option is unknown, the nearest known one is named, or its value is wrong.
    """
    schema = FORMATS[name].options
    unknown = [key for key in given if key not in schema.model_fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], schema.model_fields, n=1, cutoff=0.5)
        raise UsageError(
            f"{name} has no such option",
            measured=unknown[0],
            limit=f"one of {', '.join(sorted(schema.model_fields))}",
            remedy=f"Did you mean {near[0]}?" if near else "",
        )
    try:
        return schema.model_validate(dict(given))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise UsageError(
            f"{key}: {fault['msg']}", where=f"options of {name}", measured=repr(fault["input"])[:200]
        ) from None


def option_table(name: str) -> list[tuple[str, str]]:
    """Each option of a format with its default and what it says of it, from the docstrings of its schema."""
    schema = FORMATS[name].options
    told: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        _, _, attributes = (kind.__doc__ or "").partition("Attributes:\n")
        lines = textwrap.dedent(attributes).splitlines() if issubclass(kind, IngestOptions) else []
        option = ""
        for line in lines:
            if line and not line.startswith(" "):
                option, _, told[option] = line.partition(": ")
            elif option and line.strip():
                told[option] += f" {line.strip()}"
    return [(f"{key}={field.default}", told.get(key, "")) for key, field in schema.model_fields.items()]


def ingest_job(job: IngestJob, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """The summary of the survey that an ingest job writes.

    Raises:
        UsageError: the format is unknown, an option is wrong, or another survey is there already.
        DataError: the source is bad as a whole; what is bad in parts stands in the survey's quality table.
    """
    name, format_ = find_format(job.source, job.format)
    run = IngestRun(job.overwrite, job.num_cpus, on_progress)
    return format_.ingest(job.source, job.output, parse_options(name, job.options), run)


def __getattr__(name: str) -> Any:
    """SEG-Y's own `ingest`, imported when first used: every worker imports this package, whatever its format."""
    if name != "ingest":
        raise AttributeError(f"module 'geobatch.formats' has no attribute {name!r}")
    return FORMATS["segy"]._named(name)


__all__ = [
    "FORMATS",
    "Format",
    "IngestJob",
    "IngestOptions",
    "IngestRun",
    "find_format",
    "ingest",
    "ingest_job",
    "option_table",
    "parse_options",
]
