"""Event windows as they come: what is known of each, and a file on a bucket that h5py reads like a local one."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.ingestion import Fault
from geobatch.formats.miniseed_scan import Source as Source

# Every column: dtype, and what stands where nothing is known.
COLUMNS: dict[str, tuple[str, Any]] = {
    "file": ("int64", 0),
    "place": ("U", ""),
    "length": ("int64", 0),
    "components": ("U", ""),
    "p_sample": ("float64", np.nan),
    "s_sample": ("float64", np.nan),
    "magnitude": ("float64", np.nan),
    "source_latitude": ("float64", np.nan),
    "source_longitude": ("float64", np.nan),
    "source_depth_km": ("float64", np.nan),
    "sampling_rate_hz": ("float64", np.nan),
    "start": ("int64", np.iinfo(np.int64).min),
    "station": ("U", ""),
    "split": ("U", ""),
}


@dataclass
class Table:
    """What is known of windows, one row each, and what was wrong with those that are left out.

    Attributes:
        columns: Arrays named as in `COLUMNS`: number of the file, place in it, samples, orientation codes in the order
            of the file, picks in samples, the source, samples per second, ns since 1970 UTC of the first sample.
        faults: One for each window or file that is left out.
        told: Facts of the data set, such as its unit.
    """

    columns: dict[str, npt.NDArray[Any]]
    faults: list[Fault] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["file"])

    @classmethod
    def of(cls, count: int, faults: list[Fault], told: dict[str, str] | None = None, **columns: Any) -> Table:
        """A table of `count` rows; columns that are not given hold what stands for nothing known."""
        found = {}
        for name, (dtype, nothing) in COLUMNS.items():
            given = columns.get(name)
            found[name] = np.full(count, nothing, None if dtype == "U" else dtype)
            if given is not None:
                found[name] = np.asarray(given, np.str_ if dtype == "U" else dtype)
        return cls(found, faults, told or {})

    def take(self, rows: npt.NDArray[Any]) -> Table:
        """Some of the rows; the faults stay."""
        return Table({name: values[rows] for name, values in self.columns.items()}, self.faults, self.told)


def join(tables: list[Table]) -> Table:
    """All rows and faults of several tables."""
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in COLUMNS}
    told: dict[str, str] = {}
    for table in reversed(tables):
        told |= table.told
    return Table(columns, [fault for table in tables for fault in table.faults], told)


def dump_table(table: Table) -> bytes:
    """The table as bytes."""
    sink = io.BytesIO()
    text = json.dumps({"faults": [vars(fault) for fault in table.faults], "told": table.told}).encode()
    columns: Any = {f"column_{name}": values for name, values in table.columns.items()}
    np.savez(sink, text=np.frombuffer(text, np.uint8), **columns)
    return sink.getvalue()


def load_table(data: bytes) -> Table:
    """The table again."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        text = json.loads(stored["text"].tobytes())
        columns = {name: stored[f"column_{name}"] for name in COLUMNS}
    return Table(columns, [Fault(**fault) for fault in text["faults"]], text["told"])


def times_ns(texts: list[str]) -> npt.NDArray[np.int64]:
    """Nanoseconds since 1970 UTC of texts such as `2007/01/01 01:42:45.08` or ISO 8601, NaT where there is none."""
    found = np.full(len(texts), np.datetime64("NaT", "ns"))
    for row, text in enumerate(texts):
        try:
            found[row] = np.datetime64(text.strip().replace("/", "-").removesuffix("Z").removesuffix("+00:00"), "ns")
        except ValueError:
            continue
    return found.astype(np.int64)
