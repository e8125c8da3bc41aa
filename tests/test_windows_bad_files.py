"""Bad files of event windows, by name: each a typed error or a documented recovery, quick, in bounded memory."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bounds import bounded

from geobatch.errors import DataError, FormatError, GeobatchError, NotFoundError
from geobatch.formats import windows
from geobatch.formats.ingestion import read_quality
from geobatch.formats.spec import IngestRun
from geobatch.survey import open_survey

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, these files are read here."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def hdf5(fill: Callable[[h5py.File], None] | None = None) -> bytes:
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file["data/bucket0"] = np.random.default_rng(0).normal(size=(4, 3, 500)).astype("f4")
        if fill:
            fill(file)
    return sink.getvalue()


def metadata(*names: str) -> bytes:
    return "\n".join(["trace_name", *(f'"{name}"' for name in names or rows())]).encode()


def rows() -> list[str]:
    return [f"bucket0${n},:3,:500" for n in range(4)]


def pair(data: bytes, text: bytes | None = None) -> Files:
    return {"waveforms.hdf5": data, "metadata.csv": metadata() if text is None else text}


def npz(**arrays: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def window(**arrays: Any) -> bytes:
    data = np.random.default_rng(0).normal(size=(500, 3))
    return npz(**{"data": data, "itp": 100, "its": 200, "channels": "HHE_HHN_HHZ", **arrays})


class Trap:
    """Unpickling it makes a file."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("unpickled",))


def trap() -> bytes:
    return npz(data=np.array([Trap()], dtype=object))


def raw_pickle() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("data.npy", pickle.dumps(Trap()))
    return sink.getvalue()


def claims(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(
            "data.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 80
        )
    return sink.getvalue()


def outside(file: h5py.File) -> None:
    file["data/linked"] = h5py.ExternalLink("/etc/passwd", "/x")
    file.create_dataset("data/outside", (3, 40), "u1", external=[("/etc/passwd", 0, 120)])


def huge(file: h5py.File) -> None:
    file.create_dataset("data/huge", (3, 10**12), "f4", chunks=(3, 1000))


def text_data(file: h5py.File) -> None:
    file["data/text"] = np.array([[b"a", b"b"]])


BAD: dict[str, tuple[Callable[[], Files], Any]] = {
    "HDF5 truncated": (lambda: pair(hdf5()[:-5000]), FormatError),
    "HDF5 cut to its signature": (lambda: pair(hdf5()[:8]), FormatError),
    "HDF5 of zero bytes": (lambda: pair(b""), FormatError),
    "HDF5 that is text": (lambda: pair(b"no HDF5 at all" * 100), FormatError),
    "HDF5 with damaged headers": (lambda: pair(hdf5()[:96] + b"\xff" * 600 + hdf5()[696:]), FormatError),
    "HDF5 without group data": (
        lambda: pair(hdf5(lambda file: file.move("data", "other"))),
        FormatError,
    ),
    "unknown dimension order": (
        lambda: pair(hdf5(lambda file: file.__setitem__("data_format/dimension_order", "XYZ"))),
        FormatError,
    ),
    "metadata without trace_name": (lambda: pair(hdf5(), b"name,magnitude\na,1\n"), FormatError),
    "metadata of zero bytes": (lambda: pair(hdf5(), b""), FormatError),
    "metadata without rows": (lambda: pair(hdf5(), b"trace_name\n"), FormatError),
    "metadata with rows of several lengths": (lambda: pair(hdf5(), b"trace_name,a\nx,1,2,3\ny\n"), FormatError),
    "metadata that are not there": (lambda: {"waveforms.hdf5": hdf5()}, NotFoundError),
    "metadata row that names a missing trace": (
        lambda: pair(hdf5(), metadata(*rows(), "bucket9$0,:3,:500")),
        ["names a trace that the waveforms do not hold"],
    ),
    "every metadata row names a missing trace": (lambda: pair(hdf5(), metadata("x", "y")), FormatError),
    "trace name that reaches out of its group": (
        lambda: pair(hdf5(), metadata(*rows(), "../data_format")),
        ["names a trace"],
    ),
    "trace name with code in it": (
        lambda: pair(hdf5(), metadata(*rows(), "bucket0$__import__('os'),:3")),
        ["trace_name is malformed"],
    ),
    "links and data outside the file": (
        lambda: pair(hdf5(outside), metadata(*rows(), "linked", "outside")),
        ["is no trace of two axes", "is no trace of two axes"],
    ),
    "HDF5 that claims 10^12 samples": (
        lambda: pair(hdf5(huge), metadata(*rows(), "huge")),
        ["is no trace of two axes"],
    ),
    "data set of text": (lambda: pair(hdf5(text_data), metadata(*rows(), "text")), ["is no trace of two axes"]),
    "NPZ without data": (lambda: {"a.npz": npz(itp=3), "b.npz": window()}, ["NPZ file has no array data"]),
    "NPZ without data, alone": (lambda: {"a.npz": npz(itp=3)}, FormatError),
    "NPZ with pickled objects": (lambda: {"a.npz": trap(), "b.npz": window()}, ["array holds pickled Python objects"]),
    "NPZ with pickled objects, alone": (lambda: {"a.npz": trap()}, FormatError),
    "NPZ whose array is a pickle": (lambda: {"a.npz": raw_pickle(), "b.npz": window()}, ["array has no valid header"]),
    "NPZ truncated": (lambda: {"a.npz": window()[:-500], "b.npz": window()}, ["no NPZ file, or a damaged one"]),
    "NPZ of zero bytes": (lambda: {"a.npz": b"", "b.npz": window()}, ["no NPZ file, or a damaged one"]),
    "NPZ with a flipped byte": (
        lambda: {"a.npz": window()[:3000] + b"\xaa\x55\xaa" + window()[3003:], "b.npz": window()},
        ["no NPZ file, or a damaged one"],
    ),
    "NPZ that claims 10^9 samples": (
        lambda: {"a.npz": claims("(1000000000, 3)"), "b.npz": window()},
        ["array claims more than its file holds"],
    ),
    "NPZ of a negative shape": (lambda: {"a.npz": claims("(-5, 3)"), "b.npz": window()}, ["array claims more"]),
    "NPZ of one axis": (lambda: {"a.npz": window(data=np.zeros(9)), "b.npz": window()}, ["data is no window"]),
    "NPZ of text": (lambda: {"a.npz": window(data=np.array([["a"]])), "b.npz": window()}, ["data is no window"]),
    "NPZ without samples": (lambda: {"a.npz": window(data=np.zeros((0, 3))), "b.npz": window()}, ["data is no window"]),
    "picks outside the window": (lambda: {"a.npz": window(itp=-5, its=10**6)}, []),
    "NaN and infinity": (lambda: {"a.npz": window(data=np.full((50, 3), np.inf))}, []),
    "all zero": (lambda: {"a.npz": window(data=np.zeros((50, 3)))}, []),
    "CSV row that names a missing file": (
        lambda: {"a.npz": window(), "waveform.csv": b"fname,itp\nb.npz,5\na.npz,3\n"},
        ["names a file that is not there"],
    ),
    "neither HDF5 nor NPZ": (lambda: {"readme.txt": b"x"}, FormatError),
}


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first files import is no allocation of bad ones."""
    for name, files in {"hdf5": pair(hdf5()), "npz": {"a.npz": window()}}.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "raw").mkdir()
        for file, data in files.items():
            (folder / "raw" / file).write_bytes(data)
        windows.ingest_source(str(folder / "raw"), str(folder / "s"), windows.Options(), IngestRun())


@pytest.mark.parametrize("name", BAD)
def test_bad_windows_are_an_error_or_a_recovery(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, expected = BAD[name]
    monkeypatch.chdir(tmp_path)
    files, folder = make(), tmp_path / "raw"
    folder.mkdir()
    for file, data in files.items():
        (folder / file).write_bytes(data)
    size = sum(map(len, files.values()))

    def run() -> None:
        windows.ingest_source(str(folder), str(tmp_path / "s"), windows.Options(), IngestRun())

    if isinstance(expected, type):
        with pytest.raises(expected) as caught:
            bounded(run, size)
        assert isinstance(caught.value, GeobatchError)
    else:
        bounded(run, size)
    assert not (tmp_path / "unpickled").exists()
    if not isinstance(expected, type):
        found = [fault.fault for fault in read_quality(str(tmp_path / "s"))]
        assert len(found) == len(expected), found
        assert all(fault.startswith(begins) for fault, begins in zip(found, expected, strict=True)), found
        survey = open_survey(str(tmp_path / "s"))
        assert survey.sizes["window"] == (4 if "metadata.csv" in files else 1)


def test_damaged_block_costs_its_windows_only(tmp_path: Path) -> None:
    def compressed(file: h5py.File) -> None:
        values = np.random.default_rng(1).integers(0, 9, (4, 3, 500)).astype("f4")
        file.create_dataset("data/packed", data=values, chunks=(1, 3, 500), compression="gzip")

    data = hdf5(compressed)
    with h5py.File(io.BytesIO(data)) as file:
        offset = file["data/packed"].id.get_chunk_info(2).byte_offset
    data = data[: offset + 20] + b"\xff" * 40 + data[offset + 60 :]
    (tmp_path / "raw").mkdir()
    for name, body in pair(data, metadata(*(f"packed${n}" for n in range(4)))).items():
        (tmp_path / "raw" / name).write_bytes(body)
    info = windows.ingest_source(str(tmp_path / "raw"), str(tmp_path / "s"), windows.Options(), IngestRun())
    missing = np.isnan(open_survey(str(tmp_path / "s"))["waveform"].values).all(axis=(1, 2))
    assert missing.tolist() == [False, False, True, False]
    assert info["warnings"][0] == "1 of 4 windows did not read and are missing"
    (fault,) = read_quality(str(tmp_path / "s"))
    assert fault.where == "waveforms.hdf5 packed$2"
    assert issubclass(FormatError, DataError)
