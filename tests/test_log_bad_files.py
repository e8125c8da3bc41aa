"""Named bad files of logs, catalogues and arrays: each a typed error or a documented recovery, quick and small."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded

from geobatch.errors import DataError, GeobatchError, UsageError
from geobatch.formats import FORMATS, arrays, catalogue, las, logs, parse_options
from geobatch.formats.ingestion import read_quality
from geobatch.formats.spec import IngestRun
from geobatch.survey import open_survey

V = "~Version\nVERS. 2.0 :\nWRAP. NO :\n"
W = "~Well\nSTRT.m 100 :\nSTOP.m 101 :\nSTEP.m 0.5 :\nNULL. -999.25 :\nWELL. A-1 :\n"
C = "~Curve\nDEPT.m : depth\nGR.gAPI : gamma\nRHOB.g/cc : density\n"
ROWS = "~A\n100.0 50.0 2.40\n100.5 51.0 2.41\n101.0 52.0 2.42\n"
GOOD_LAS = V + W + C + ROWS
TABLE = "time,latitude,longitude,depth,magnitude\n2020-01-01T00:00:00,10,20,5,3.5\n"
QUAKEML = (
    '<?xml version="1.0"?>{doctype}<q:quakeml xmlns:q="http://quakeml.org/xmlns/quakeml/1.2" '
    'xmlns="http://quakeml.org/xmlns/bed/1.2"><eventParameters publicID="smi:local/a">{events}</eventParameters>'
    "</q:quakeml>"
)
EVENT = (
    '<event publicID="smi:local/{n}"><origin publicID="smi:local/{n}/o">'
    "<time><value>2020-01-0{n}T00:00:00Z</value></time>"
    "<latitude><value>{lat}</value></latitude><longitude><value>20</value></longitude></origin></event>"
)
LAUGHS = (
    "<!DOCTYPE q [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{k} '{f'&a{k - 1};' * 10}'>" for k in range(1, 10)) + "]>"
)
FETCH = '<!DOCTYPE q SYSTEM "http://192.0.2.1/never.dtd">'


def npy(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def npz(**members: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **members)
    return sink.getvalue()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """A .npy file whose header claims that shape, with 64 bytes of values."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


def wrapped() -> str:
    rows = "~A\n100.0\n50.0\n2.40\n100.5\n51.0 2.41\n101.0\n52.0 2.42\n"
    return V.replace("NO", "YES") + W + C + rows


def events(*latitudes: float, doctype: str = "") -> str:
    body = "".join(EVENT.format(n=n, lat=lat) for n, lat in enumerate(latitudes, 1))
    return QUAKEML.format(doctype=doctype, events=body)


def pickled() -> bytes:
    return npy(np.array([{"a": 1}, None], object))


def broken_zip() -> bytes:
    body = bytearray(npz(a=np.arange(2000)))
    body[60:90] = b"\0" * 30
    return bytes(body)


def broken_deflate() -> bytes:
    """Compressed samples of which a part is noise."""
    sink = io.BytesIO()
    np.savez_compressed(sink, a=np.random.default_rng(0).integers(0, 9, (50, 20, 20)))
    body = bytearray(sink.getvalue())
    body[200:260] = b"\xff" * 60
    return bytes(body)


# Name, suffix, body, and the words of the error.
REFUSED: list[tuple[str, str, str | bytes, str]] = [
    ("LAS of zero bytes", "las", b"", "file is empty"),
    ("LAS that is binary garbage", "las", bytes(range(256)) * 40, "file is binary"),
    ("LAS that is text of another kind", "las", "hello\nworld\n" * 50, "no ~A section"),
    ("LAS without curves", "las", V + W + "~Curve\n" + ROWS, "no curves"),
    ("LAS with an index alone", "las", V + W + "~Curve\nDEPT.m :\n~A\n1\n2\n", "no curves but the index"),
    ("LAS without a curve section", "las", V + W + ROWS, "no ~Curve section"),
    ("LAS without ~A", "las", V + W + C, "no ~A section"),
    ("LAS without a version", "las", W + C + ROWS, "no ~Version section"),
    ("LAS that ends after ~A", "las", V + W + C + "~A", "no data rows"),
    ("LAS with every depth NULL", "las", V + W + C + "~A\n-999.25 1 2\n-999.25 3 4\n", "no row has a depth"),
    ("LAS with text for every row", "las", V + W + C + "~A\nabc\ndef\n", "no row has a depth"),
    ("LAS with no value but NULL", "las", V + W + C + "~A\n1 -999.25 -999.25\n2 -999.25 -999.25\n", "holds a value"),
    (
        "LAS with a curve line of nonsense",
        "las",
        GOOD_LAS.replace("GR.gAPI : gamma", "GR"),
        "line of ~Curve does not read",
    ),
    ("LAS 3", "las", GOOD_LAS.replace("2.0 :", "3.0 :"), "LAS 3 is not read"),
    ("LAS indexed by time", "las", GOOD_LAS.replace("DEPT.m", "TIME.s").replace("STRT.m", "STRT.s"), "index is time"),
    ("LAS with two units of depth", "las", GOOD_LAS.replace("DEPT.m", "DEPT.ft"), "unit of depth is not certain"),
    ("LAS with a header without end", "las", V + W + C + "X. 1 : x\n" * 200_000, "no ~A section"),
    ("LAS with a long header before ~A", "las", V + W + C + "X. 1 : x\n" * 200_000 + ROWS, "header is too long"),
    ("LAS with a mile of a line", "las", V + "A" * 500_000 + ".." * 200_000 + "\n" + W + C + "~A\n", "no data rows"),
    ("LAS far apart and fine", "las", V + W + C + "~A\n0 1 2\n0.00001 1 2\n9000 1 2\n", "axis is too fine"),
    ("CSV logs without a header", "logs.csv", "1,2,3\n4,5,6\n", "no header"),
    ("CSV logs without a unit of depth", "logs.csv", "well,depth,GR\nA,1,2\n", "unit of depth is not stated"),
    ("CSV logs of words alone", "logs.csv", "well,depth (m),GR\nA,1,x\nA,2,y\n", "no column of numbers"),
    ("CSV logs with a header alone", "logs.csv", "well,depth (m),GR\n", "no data rows"),
    ("CSV logs of zero bytes", "logs.csv", b"", "file is empty"),
    ("catalogue of zero bytes", "csv", b"", "file is empty"),
    ("catalogue with a header alone", "csv", TABLE.splitlines()[0] + "\n", "no event in the catalogue"),
    ("catalogue without a header", "csv", "2020-01-01,1,2,3\n2020-01-02,1,2,3\n", "no header"),
    ("catalogue without magnitudes or times", "csv", "latitude,longitude\n1,2\n", "no column of time"),
    ("catalogue that is binary", "csv", b"PK\3\4\0\0\0" * 100, "file is binary"),
    ("catalogue whose every row is off the Earth", "csv", TABLE.replace(",10,", ",95,"), "no event in the catalogue"),
    ("QuakeML cut off", "xml", events(1, 2, 3)[:-200], "not well-formed or cut off"),
    ("QuakeML cut off in its head", "xml", events(1)[:60], "no XML"),
    ("QuakeML with a billion laughs", "xml", events(1, doctype=LAUGHS).replace("smi:local/a", "&a9;"), "is refused"),
    ("QuakeML that wants a DTD from afar", "xml", events(1, doctype=FETCH), "is refused"),
    (
        "QuakeML that wants a local file",
        "xml",
        events(1, doctype='<!DOCTYPE q [<!ENTITY x SYSTEM "/etc/passwd">]>'),
        "refused",
    ),
    ("QuakeML without events", "xml", events(), "no event in the catalogue"),
    ("XML of another kind", "xml", "<?xml version='1.0'?><kml><Document/></kml>", "is no QuakeML"),
    ("npy of zero bytes", "npy", b"", "no NumPy array"),
    ("npy of pickled objects", "npy", pickled(), "holds Python objects"),
    ("npy that is a pickle", "npy", pickle.dumps([1, 2]), "no NumPy array"),
    ("npy of records", "npy", npy(np.zeros(3, [("a", "f4")])), "no plain numbers"),
    ("npy of complex numbers", "npy", npy(np.zeros((2, 2, 2), complex)), "no plain numbers"),
    ("npy cut short", "npy", npy(np.zeros((4, 5, 6)))[:-9], "shorter than its shape"),
    ("npy that claims 10^9 samples", "npy", header("(1000, 1000, 1000)"), "shorter than its shape"),
    ("npy that claims 10^30 samples", "npy", header("(10**10, 10**10)"), "header of the array does not read"),
    ("npy with a shape below zero", "npy", header("(-4, -4, 1)"), "array is empty"),
    ("npy with a program for a header", "npy", header("__import__('os').getcwd()"), "does not read"),
    ("npy cut in its header", "npy", header("(2, 2, 4)")[:40], "does not read"),
    ("npy without an axis", "npy", npy(np.float32(3)), "array is empty"),
    ("npz without the member", "npz", npz(a=np.zeros((2, 2, 2)), b=np.zeros(2)), "no such member"),
    ("npz that is no archive", "npz", b"PK" + bytes(100), "archive does not read"),
    ("npz with a broken member", "npz", broken_zip(), "does not read|no NumPy array"),
    ("npz with a broken member in deflate", "npz", broken_deflate(), "does not read|does not inflate"),
    (
        "npz with a broken member that says it is encrypted",
        "npz",
        npz(a=np.zeros(3)).replace(b"PK\1\2-\3-\0\0\0", b"PK\1\2-\3-\0\1\0"),
        "not read",
    ),
    ("NetCDF that is none", "nc", b"CDF\x01" + bytes(100), "no NetCDF 4"),
    ("HDF5 cut short", "h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "does not read"),
]


def read(suffix: str, path: Path, target: Path) -> Any:
    """What ingest makes of it."""
    if suffix == "las":
        las.ingest_source(str(path), str(target), las.Options(), IngestRun())
    elif suffix == "logs.csv":
        logs.ingest_source(str(path), str(target), logs.Options(), IngestRun())
    elif suffix in ("csv", "xml"):
        catalogue.ingest_source(str(path), str(target), catalogue.Options(), IngestRun())
    else:
        given: dict[str, Any] = {"axes": {"sample": {"unit": "ms"}}, "variable": "cube"}
        if suffix in ("npy", "h5", "nc") or "broken" in path.name:
            del given["variable"]
        options: Any = parse_options("arrays", given)
        arrays.ingest_source(str(path), str(target), options, IngestRun())
    return open_survey(str(target))


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first call imports is no allocation of a bad file."""
    folder = tmp_path_factory.mktemp("good")
    good = {"las": GOOD_LAS, "logs.csv": "depth (m),GR\n1,2\n2,3\n", "csv": TABLE, "xml": events(1, 2)}
    bodies: dict[str, str | bytes] = {**good, "npy": npy(np.zeros((2, 2, 2)))}
    for suffix, body in bodies.items():
        path = folder / f"a.{suffix}"
        path.write_bytes(body.encode() if isinstance(body, str) else body)
        read(suffix, path, folder / f"{suffix}-survey")
    with pytest.raises(GeobatchError):
        arrays.open_array(str(folder / "a.h5"), None)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def stored(tmp_path: Path, name: str, suffix: str, body: str | bytes) -> Path:
    path = tmp_path / f"{'broken' if 'broken' in name else 'a'}.{suffix}"
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return path


@pytest.mark.parametrize(("name", "suffix", "body", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_is_refused_by_name(name: str, suffix: str, body: str | bytes, words: str, tmp_path: Path) -> None:
    path = stored(tmp_path, name, suffix, body)

    def refused() -> None:
        with pytest.raises((DataError, UsageError), match=words):
            read(suffix, path, tmp_path / "survey")

    bounded(refused, path.stat().st_size)
    assert not (tmp_path / "survey/zarr.json").exists()


GR = [50.0, 51.0, 52.0]
TEXT_NULL = (V + W + C).replace("-999.25", "NaN") + "~A\n1 NaN 2\n2 7 NaN\n"
UNEVEN = GOOD_LAS + "101.5 1\n102 5 2 9\n102.5 53 2.4\n"
LATIN_TABLE = TABLE.replace("\n", ",place\n", 1).replace("3.5\n", "3.5,Jølster\n").encode("latin-1")
LATE = events(1, 2).replace("2020-01-02", "4040-01-01")
NONSENSE = events(1, 2).replace("<value>2</value>", "<value>x</value>")
FORTRAN = npy(np.asfortranarray(np.arange(8.0).reshape(2, 2, 2)))
# Name, suffix, body, a variable, its values, and words of the quality table.
RECOVERED: list[tuple[str, str, str | bytes, str, list[float], str]] = [
    ("LAS whose NULL is text", "las", TEXT_NULL, "GR", [np.nan, 7], ""),
    ("LAS with an unknown word", "las", V + W + C + "~A\n1 oops 2\n2 7 2\n", "GR", [np.nan, 7], "hold no number"),
    ("LAS cut inside a row", "las", GOOD_LAS[:-8], "GR", [50, 51], "ends inside it"),
    ("LAS cut inside a number", "las", GOOD_LAS[:-2], "GR", [50, 51], "the file ends inside it"),
    ("LAS with uneven rows", "las", UNEVEN, "GR", [*GR, np.nan, np.nan, 53], "of 3 values"),
    ("LAS that claims 10^9 rows", "las", GOOD_LAS.replace("STOP.m 101", "STOP.m 500000000"), "GR", GR, ""),
    ("LAS with STEP 0", "las", GOOD_LAS.replace("STEP.m 0.5", "STEP.m 0"), "GR", GR, "depths believed"),
    ("LAS with a wrong STEP", "las", GOOD_LAS.replace("STEP.m 0.5", "STEP.m 7"), "GR", GR, "depths believed"),
    ("LAS wrapped", "las", wrapped(), "GR", GR, ""),
    ("LAS wrapped with a row cut", "las", wrapped() + "101.5\n102\n54 2.4\n", "GR", [*GR, np.nan, 54], "1 of 3 values"),
    ("LAS with a curve twice", "las", GOOD_LAS.replace("RHOB.g/cc", "GR.gAPI"), "GR", GR, "second time"),
    ("LAS with a curve declared only", "las", GOOD_LAS.replace("~A", "X.m : none\n~A"), "GR", GR, "declared, but"),
    ("LAS with a column too many", "las", GOOD_LAS.replace("RHOB.g/cc : density\n", ""), "GR", GR, "declares 2"),
    ("LAS in Latin-1", "las", GOOD_LAS.replace("A-1", "Bjørn").encode("latin-1"), "GR", GR, "not UTF-8"),
    ("LAS in UTF-16", "las", GOOD_LAS.encode("utf-16"), "GR", GR, ""),
    ("LAS with the ends of lines of old Macs", "las", GOOD_LAS.replace("\n", "\r"), "GR", GR, ""),
    ("LAS with commas for points", "las", V + W + C + ROWS[:3] + ROWS[3:].replace(".", ","), "GR", GR, ""),
    ("LAS between commas", "las", V + W + C + "~A\n100,50,2\n100.5,51,2\n101,52,2\n", "GR", GR, ""),
    ("LAS with numbers run together", "las", V + W + C + "~A\n1 5 2\n2 6-999.25\n", "GR", [5, 6], "run together"),
    ("LAS with a header line of nonsense", "las", GOOD_LAS.replace("~Curve", "nonsense\n~Curve"), "GR", GR, "not read"),
    ("LAS downside up", "las", V + W + C + "~A\n3 3 1\n2 2 1\n1 1 1\n", "GR", [1, 2, 3], ""),
    ("LAS with a depth twice", "las", V + W + C + "~A\n1 1 1\n2 2 1\n2 9 1\n3 3 1\n", "GR", [1, 2, 3], "a second time"),
    ("LAS with a depth on the moon", "las", GOOD_LAS + "384400000 1 1\n", "GR", GR, "beyond 20 km"),
    ("LAS with a depth missing", "las", GOOD_LAS + "-999.25 1 1\n", "GR", GR, "is missing"),
    ("LAS with infinite values", "las", V + W + C + "~A\n1 inf 2\n2 1e999 2\n3 4 2\n", "GR", [np.nan, np.nan, 4], ""),
    ("LAS with another section behind", "las", GOOD_LAS + "~Other\nnothing\n", "GR", GR, ""),
    ("CSV logs with uneven rows", "logs.csv", "depth (m),GR\n1,5\n2\n3,6,7\n2,8\n", "GR", [5, 8], "1 of 2 columns"),
    ("CSV logs with words in cells", "logs.csv", "depth (m),GR\n1,5\n2,x\n3,6\n", "GR", [5, np.nan, 6], "no number"),
    ("catalogue with a NaN time", "csv", TABLE + "NaN,1,2,3,4\n", "magnitude", [3.5], "no origin time"),
    ("catalogue with latitude 95", "csv", TABLE + "2020-01-02,95,2,3,4\n", "magnitude", [3.5], "latitude 95"),
    ("catalogue with longitude 400", "csv", TABLE + "2020-01-02,1,400,3,4\n", "magnitude", [3.5], "longitude 400"),
    ("catalogue with a magnitude of words", "csv", TABLE + "2020-01-02,1,2,3,big\n", "magnitude", [3.5, np.nan], "big"),
    ("catalogue with uneven rows", "csv", TABLE + "2020-01-02,1\n", "magnitude", [3.5], "2 of 5 columns"),
    ("catalogue in Latin-1", "csv", LATIN_TABLE, "magnitude", [3.5], ""),
    ("catalogue with 30 February", "csv", TABLE + "2020-02-30,1,2,3,4\n", "magnitude", [3.5], "no origin time"),
    ("catalogue of the year 9999", "csv", TABLE + "9999-01-01,1,2,3,4\n", "magnitude", [3.5], "no origin time"),
    ("QuakeML with an event off the Earth", "xml", events(1, 95, 3), "latitude", [1, 3], "latitude 95"),
    ("QuakeML with an event of the year 4040", "xml", LATE, "latitude", [1], "no origin time"),
    ("QuakeML with an event of nonsense", "xml", NONSENSE, "latitude", [1], ""),
    ("npy in Fortran order", "npy", FORTRAN, "amplitude", list(range(8)), ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "suffix", "body", "variable", "values", "told"), RECOVERED, ids=[row[0] for row in RECOVERED]
)
def test_is_recovered_and_told(
    name: str, suffix: str, body: str | bytes, variable: str, values: list[float], told: str, tmp_path: Path
) -> None:
    path = stored(tmp_path, name, suffix, body)
    survey = bounded(lambda: read(suffix, path, tmp_path / "survey"), path.stat().st_size)
    np.testing.assert_array_equal(np.ravel(survey[variable].values), np.array(values, survey[variable].dtype))
    faults = read_quality(str(tmp_path / "survey"))
    assert any(told in fault.fault or told in fault.action for fault in faults) if told else True


def test_a_bad_file_in_a_folder_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.las").write_text(GOOD_LAS)
    (tmp_path / "in/b.las").write_bytes(bytes(range(256)))
    (tmp_path / "in/c.las").write_text(GOOD_LAS.replace("2.0 :", "3.0 :"))
    las.ingest_source(str(tmp_path / "in"), str(tmp_path / "survey"), las.Options(), IngestRun())
    assert open_survey(str(tmp_path / "survey")).sizes["well"] == 1
    assert [fault.action for fault in read_quality(str(tmp_path / "survey"))] == ["left out"] * 2
    assert las.inspect_source(str(tmp_path / "in"), las.Options()).told["wells"][0]["name"] == "A-1"


def test_a_large_log_takes_less_than_four_times_its_file(test_data: Path) -> None:
    path = test_data / "subsurface/force2020_las/35_11-7.las"
    wells, _ = bounded(lambda: las.read_las(str(path), las.Options()), path.stat().st_size)
    assert wells[0].depth.size > 15_000


def test_a_small_archive_of_many_zeros_is_not_inflated_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cube.npy", npy(np.zeros((64, 512, 512), np.float32)))
    source = arrays.open_array(str(tmp_path / "a.npz"), "cube")
    part = bounded(lambda: source.read((slice(0, 2), slice(0, 8), slice(0, 8))), (tmp_path / "a.npz").stat().st_size)
    assert part.shape == (2, 8, 8)


def test_every_format_here_is_registered_with_its_options() -> None:
    for name in ("las", "logs", "catalogue", "arrays"):
        assert FORMATS[name].options.model_fields and FORMATS[name].about
