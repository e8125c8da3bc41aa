"""NPZ event windows as PhaseNet's NCEDC data set has them: one file a window with `data`, `itp`, `its` and `channels`.

Arrays are read by their headers; one that holds Python objects is refused before anything is unpickled.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError
from geobatch.formats.ingestion import Fault
from geobatch.formats.windows_source import Source, Table
from geobatch.storage import open_storage

DEFAULT_COMPONENTS = "ENZ"
LARGEST_ARRAY_BYTES = 256 * 2**20
_HEADERS: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def scan_npz(files: Sequence[int], source: Source, rate_hz: float) -> Table:
    """One row per window of these files."""
    storage = open_storage(source.url)
    rows: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for file in files:
        key = source.keys[file]
        try:
            rows.append({"file": file, **describe(storage.get(key))})
        except FormatError as error:
            faults.append(Fault("file", key, f"{error.what}; {error.measured}".removesuffix("; "), "left out"))
            continue
        network, _, rest = key.rpartition("/")[2].partition("_")
        rows[-1]["station"] = f"{network}.{rest.partition('_')[0]}" if rest else ""
        rows[-1]["place"] = key
    columns: Any = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return Table.of(len(rows), faults, sampling_rate_hz=[rate_hz] * len(rows), **columns)


def describe(body: bytes) -> dict[str, Any]:
    """Length, components and picks of one window.

    Raises:
        FormatError: it is no NPZ file of a window.
    """
    found = read_arrays(body, ("data", "itp", "its", "channels"))
    if "data" not in found:
        raise FormatError("NPZ file has no array data", measured=", ".join(found) or "none of data, itp, its, channels")
    data = found["data"]
    if data.ndim != 2 or not len(data) or data.dtype.kind not in "fiu" or not 1 <= data.shape[1] <= 9:
        raise FormatError("data is no window (sample, component)", measured=f"{data.shape} {data.dtype}")
    channels = [
        str(name) for text in np.atleast_1d(found.get("channels", np.array(""))) for name in str(text).split("_")
    ]
    codes = "".join(name[-1:] for name in channels)
    if len(codes) != data.shape[1] or len(set(codes)) != len(codes):
        codes = DEFAULT_COMPONENTS if data.shape[1] == len(DEFAULT_COMPONENTS) else "Z123456789"[: data.shape[1]]
    return {
        "length": data.shape[0],
        "components": codes,
        "p_sample": _pick(found.get("itp"), len(data)),
        "s_sample": _pick(found.get("its"), len(data)),
    }


def read_npz(body: bytes) -> npt.NDArray[Any]:
    """The samples of one window, `(component, sample)`.

    Raises:
        FormatError: it is damaged.
    """
    return np.asarray(read_arrays(body, ("data",))["data"]).T


def read_arrays(body: bytes, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of the named arrays that an NPZ file holds.

    Raises:
        FormatError: it is no NPZ file, is damaged, or an array holds Python objects.
    """
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            held = {entry.filename: entry for entry in archive.infolist()}
            for name in names:
                if entry := held.get(f"{name}.npy"):
                    if entry.file_size > LARGEST_ARRAY_BYTES:
                        raise FormatError("array is too large for a window", where=name, measured=entry.file_size)
                    found[name] = _array(archive.read(entry), name)
    except FormatError:
        raise
    except Exception as error:  # zipfile and its decompressors raise many kinds over damaged bytes.
        raise FormatError("no NPZ file, or a damaged one", measured=str(error)) from error
    return found


def event_rows(body: bytes) -> dict[str, dict[str, str]]:
    """The rows of `waveform.csv` by file name."""
    text = io.StringIO(body.decode("utf-8", "replace"))
    return {row["fname"]: row for row in csv.DictReader(text) if row.get("fname")}


def _array(body: bytes, name: str) -> npt.NDArray[Any]:
    file = io.BytesIO(body)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # NumPy's parser of the header raises many kinds.
        raise FormatError("array has no valid header", where=name, measured=str(error)[:200]) from error
    if dtype.hasobject:
        raise FormatError("array holds pickled Python objects, which are never read", where=name, measured=str(dtype))
    count = int(np.prod(shape, dtype=object))
    if count < 0 or count * dtype.itemsize > len(body) - file.tell():
        raise FormatError("array claims more than its file holds", where=name, measured=f"shape {shape}")
    return np.frombuffer(body, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")


def _pick(value: npt.NDArray[Any] | None, length: int) -> float:
    """The first sample number that lies in the window, NaN when none does."""
    if value is None or value.dtype.kind not in "fiu":
        return np.nan
    inside = [float(sample) for sample in value.ravel() if 0 <= sample < length]
    return inside[0] if inside else np.nan
