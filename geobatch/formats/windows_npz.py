"""NPZ event windows as PhaseNet's NCEDC data set has them: one file a window with `data`, `itp`, `its` and `channels`.

Arrays are read by their headers; one that holds Python objects is refused before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError
from geobatch.formats.arrays_npy import open_member
from geobatch.formats.ingestion import Fault
from geobatch.formats.windows_source import Source, Table
from geobatch.storage import open_storage

DEFAULT_COMPONENTS = "ENZ"
MEMBERS = ("data", "itp", "its", "channels")
LARGEST_ARRAY_BYTES = 256 * 2**20
MOST_ABOUT_BYTES = 2**16
PIECE_BYTES = 2**16
# Noise packs to a half, whole numbers held as float64 to a sixth, and two of three components may be zeros.
MOST_PACKED = 32
# A dead trace of zeros packs a thousandfold: what is small may.
SMALL_BYTES = 4 * 2**20
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
    """Length, components and picks of one window; its samples are read once, piece by piece, against their checksum.

    Raises:
        FormatError: it is no NPZ file of a window.
    """
    with _members(body) as (archive, held):
        if "data" not in held:
            raise FormatError("NPZ file has no array data", measured=", ".join(held) or f"none of {', '.join(MEMBERS)}")
        shape, dtype = _look(archive, held["data"], "data")
        about = {name: _read(archive, held[name], name, MOST_ABOUT_BYTES) for name in held if name != "data"}
    if len(shape) != 2 or not shape[0] or dtype.kind not in "fiu" or not 1 <= shape[1] <= 9:
        raise FormatError("data is no window (sample, component)", measured=f"{shape} {dtype}")
    channels = [
        str(name) for text in np.atleast_1d(about.get("channels", np.array(""))) for name in str(text).split("_")
    ]
    codes = "".join(name[-1:] for name in channels)
    if len(codes) != shape[1] or len(set(codes)) != len(codes):
        codes = DEFAULT_COMPONENTS if shape[1] == len(DEFAULT_COMPONENTS) else "Z123456789"[: shape[1]]
    return {
        "length": shape[0],
        "components": codes,
        "p_sample": _pick(about.get("itp"), shape[0]),
        "s_sample": _pick(about.get("its"), shape[0]),
    }


def read_npz(body: bytes) -> npt.NDArray[Any]:
    """The samples of one window, `(component, sample)`.

    Raises:
        FormatError: it is damaged.
    """
    with _members(body) as (archive, held):
        return _read(archive, held["data"], "data", LARGEST_ARRAY_BYTES).T


@contextlib.contextmanager
def _members(body: bytes) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """The archive and its arrays by name; none is larger than a window, or grows as a bomb does when it is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            every = {entry.filename: entry for entry in archive.infolist()}
            held = {name: every[f"{name}.npy"] for name in MEMBERS if f"{name}.npy" in every}
            if bomb := next(
                (e for e in held.values() if e.file_size > max(SMALL_BYTES, MOST_PACKED * len(body))), None
            ):
                raise FormatError(
                    "array is packed more densely than samples can be",
                    where=bomb.filename,
                    measured=f"{bomb.file_size} bytes in a file of {len(body)}",
                    limit=f"{MOST_PACKED} times the file",
                )
            yield archive, held
    except FormatError:
        raise
    except Exception as error:  # zipfile and its decompressors raise many kinds over damaged bytes.
        raise FormatError("no NPZ file, or a damaged one", measured=str(error)) from error


def event_rows(body: bytes) -> dict[str, dict[str, str]]:
    """The rows of `waveform.csv` by file name."""
    text = io.StringIO(body.decode("utf-8", "replace"))
    return {row["fname"]: row for row in csv.DictReader(text) if row.get("fname")}


def _look(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array whose bytes are all there and hold to their checksum; none of them is kept."""
    with open_member(archive, entry) as stream:
        shape, _, dtype, _ = _header(stream.read(PIECE_BYTES), name, entry.file_size)
        while stream.read(PIECE_BYTES):
            pass
    return shape, dtype


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, most_bytes: int) -> npt.NDArray[Any]:
    if entry.file_size > most_bytes:
        raise FormatError("array is too large for a window", where=name, measured=entry.file_size, limit=most_bytes)
    with open_member(archive, entry) as stream:
        # A bare read() would inflate whatever is there, not what the archive says.
        body = stream.read(entry.file_size)
    shape, fortran, dtype, start = _header(body, name, len(body))
    return np.frombuffer(body, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")


def _header(body: bytes, name: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type and first byte of an array of `size` bytes, from its beginning."""
    file = io.BytesIO(body)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # NumPy's parser of the header raises many kinds.
        raise FormatError("array has no valid header", where=name, measured=str(error)[:200]) from error
    if dtype.hasobject:
        raise FormatError("array holds pickled Python objects, which are never read", where=name, measured=str(dtype))
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise FormatError("array claims more than its file holds", where=name, measured=f"shape {shape}")
    return shape, fortran, dtype, file.tell()


def _pick(value: npt.NDArray[Any] | None, length: int) -> float:
    """The first sample number that lies in the window, NaN when none does."""
    if value is None or value.dtype.kind not in "fiu":
        return np.nan
    inside = [float(sample) for sample in value.ravel() if 0 <= sample < length]
    return inside[0] if inside else np.nan
