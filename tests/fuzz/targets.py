"""What is fuzzed: readers of files that anyone may have made. Whatever the bytes are, only our own errors come out."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from label_files import GRID, painted
from miniseed_files import records, trace
from raster_files import field, tiled, write_tiff
from segy_files import random_traces, raw_segy, write_segy

from geobatch.errors import GeobatchError
from geobatch.formats import miniseed
from geobatch.formats.arrays_npy import open_npy, open_npz
from geobatch.formats.catalogue import Options as CatalogueOptions
from geobatch.formats.catalogue import read_events
from geobatch.formats.las import Options as LasOptions
from geobatch.formats.las import inspect_source as inspect_las
from geobatch.formats.logs import Options as LogTableOptions
from geobatch.formats.logs import read_csv
from geobatch.formats.miniseed_layout import lay_out
from geobatch.formats.miniseed_piece import pieces
from geobatch.formats.miniseed_scan import list_source, parts_of, scan_part
from geobatch.formats.raster import Options as RasterOptions
from geobatch.formats.raster import grid_of
from geobatch.formats.raster_header import read_tile
from geobatch.formats.raster_read import read_cells
from geobatch.formats.raster_source import find_source
from geobatch.formats.raster_survey import axes, describe_values, raster_specs
from geobatch.formats.raster_tiles import listed
from geobatch.formats.segy_ingest import Options as SegyOptions
from geobatch.formats.segy_inspect import inspect_file
from geobatch.formats.windows_npz import describe, read_npz
from geobatch.formats.windows_seisbench import read_metadata
from geobatch.job import load_job
from geobatch.labels import surfaces
from geobatch.labels.spec import FaultSticks, HorizonFile, Points, Polygons, Reflector
from geobatch.labels.surfaces import Depths

ROOT = Path(__file__).parents[2]
CORNER = 64


def read_segy(path: Path) -> None:
    """All of an ingest but its writing."""
    inspect_file(str(path), SegyOptions())


def read_miniseed(path: Path) -> None:
    """All of an ingest up to the samples, which are decoded in a process of their own."""
    source = list_source(str(path))
    parts = parts_of(source, [0])
    tables = [scan_part(part, source) for part in parts]
    layout = lay_out(source, parts, tables, miniseed.Options().cut)
    assert all(piece.placed["records"].sum() for piece in pieces(layout.groups))


def archived(body: bytes, name: str) -> bytes:
    """The body itself, or when it is an array an archive around it, whose checksum no change would get past."""
    if not body.startswith(b"\x93NUMPY"):
        return body
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body)
    return sink.getvalue()


def read_window(path: Path) -> None:
    """An NPZ window, its picks and its samples; also of an array alone."""
    body = archived(path.read_bytes(), "data.npy")
    if describe(body)["length"]:
        read_npz(body)


def read_metadata_rows(path: Path) -> None:
    """The metadata of a SeisBench data set."""
    read_metadata(path.read_bytes(), str(path))


def read_job(path: Path) -> None:
    """A job file up to its schema."""
    load_job(str(path))


def read_well(path: Path) -> None:
    """A LAS file up to its curves on a depth axis."""
    inspect_las(str(path), LasOptions())


def read_log_table(path: Path) -> None:
    """A table of logs up to its wells."""
    read_csv(str(path), LogTableOptions(depth_unit="m"))


def read_catalogue(path: Path) -> None:
    """A table or a QuakeML document up to its events."""
    read_events([(str(path), path.stat().st_size, "")], CatalogueOptions(), lambda done, total: None)


def read_npy(path: Path) -> None:
    """A NumPy file up to a corner of its array."""
    source = open_npy(str(path))
    source.read(tuple(slice(0, min(n, 3)) for n in source.shape))


def read_npz_member(path: Path) -> None:
    """An archive of arrays up to a corner of the only one; also around an array alone."""
    path.write_bytes(archived(path.read_bytes(), "cube.npy"))
    source = open_npz(str(path), None)
    source.read(tuple(slice(0, min(n, 3)) for n in source.shape))


def read_raster(path: Path) -> None:
    """A TIFF or PNG up to the cells of a corner, which GDAL decodes."""
    options = RasterOptions(transform=(1, 0, 0, 0, -1, 0))
    mosaic = grid_of([read_tile(find_source(str(path)))], options, str(path))
    raster_specs(mosaic, "values", describe_values(mosaic, "values", None), options.chunk, options.shard)
    axes(mosaic)
    read_cells(mosaic, slice(0, min(mosaic.height, CORNER)), slice(0, min(mosaic.width, CORNER)), "first")


def read_tile_list(path: Path) -> None:
    """A list of rasters up to their addresses, none of which is looked at."""
    listed(str(path), None)


def read_horizon_file(path: Path) -> None:
    """A horizon by lines and, where that is off the survey, by map coordinates, up to its cells."""
    with contextlib.suppress(GeobatchError):
        painted(Reflector(layer="horizon", label="a", horizon=str(path)))
    Depths(HorizonFile(url=str(path), columns="xyz"), GRID).values(slice(0, 18), slice(0, 14))


def read_horizon_array(path: Path) -> None:
    """A horizon in a NumPy array, up to its cells."""
    file = HorizonFile(url=str(path), inline=(100, 1), crossline=(300, 1))
    painted(Reflector(layer="horizon", label="a", horizon=file))


def read_sticks(path: Path) -> None:
    """Fault sticks up to their cells; with lower limits, since a surface at the limit takes seconds."""
    with patch.multiple(surfaces, LONGEST_STICK=2**13, LARGEST_SURFACE=2**16):
        painted(FaultSticks(layer="fault_sticks", label="a", url=str(path)))


def read_points(path: Path) -> None:
    """Points in a table up to their cells."""
    painted(Points(layer="points", label="a", url=str(path), z="z"))


def read_polygons(path: Path) -> None:
    """Polygons, which GDAL decodes, up to their cells."""
    painted(Polygons(layer="polygons", label="a", url=str(path)))


def _segy_seeds(folder: Path) -> Iterator[bytes]:
    values = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    for code in (1, 2, 3, 5, 8):
        yield write_segy(folder / f"{code}.sgy", values, code=code).read_bytes()
    lines = {189: [1, 1, 2, 2], 193: [1, 2, 1, 2]}
    yield raw_segy(folder / "uneven.sgy", random_traces(5, 9, 3, 1), fields=lines).read_bytes()
    yield raw_segy(folder / "lines.sgy", random_traces(*[5] * 4), fields={9: lines[189], 21: lines[193]}).read_bytes()
    gathers = {**lines, 189: [1, 1, 1, 1], 193: [1, 1, 2, 2], 37: [10, 20, 10, 20]}
    yield raw_segy(folder / "gathers.sgy", random_traces(*[5] * 4), fields=gathers, order="<", code=6).read_bytes()
    newest = {3501: (0x0200, "u2"), 3507: (1, "u4"), 3513: (4, "u8"), 3521: (3700, "u8"), 3529: (1, "i4")}
    yield raw_segy(
        folder / "newest.sgy",
        random_traces(*[5] * 4),
        fields=lines,
        binary=newest,
        before=bytes(100),
        after=bytes(3200),
        extra=1,
    ).read_bytes()


def _miniseed_seeds(folder: Path) -> Iterator[bytes]:
    values = np.random.default_rng(0).integers(-99, 99, 900).astype(np.int32)
    for encoding in ("STEIM1", "STEIM2", "INT32"):
        yield records(trace(values[:300]), trace(values[300:], 5.0, channel="BHN", rate=20.0), encoding=encoding)


def _window_seeds(folder: Path) -> Iterator[bytes]:
    np.savez(folder / "a.npz", data=np.ones((30, 3)), itp=3, its=np.array([5]), channels="HHE_HHN_HHZ")
    yield (folder / "a.npz").read_bytes()
    np.save(folder / "data.npy", np.ones((30, 3), ">i2"))
    yield (folder / "data.npy").read_bytes()
    np.savez_compressed(folder / "b.npz", data=np.ones((30, 3), "f4"))
    yield (folder / "b.npz").read_bytes()


def _metadata_seeds(folder: Path) -> Iterator[bytes]:
    yield b'trace_name,source_magnitude,trace_p_arrival_sample\n"bucket0$1,:3,:90",1.5,40\na,,\n'


def _job_seeds(folder: Path) -> Iterator[bytes]:
    for path in sorted((ROOT / "jobs").glob("*.yaml")):
        yield path.read_bytes()


LAS = (
    "~Version\nVERS. 2.0 : CWLS\nWRAP. NO :\n~Well\nSTRT.FT 100 :\nSTOP.FT 101 :\nSTEP.FT 0.5 :\nNULL. -999.25 :\n"
    "WELL. A-1 :\n~Curve\nDEPT.FT : depth\nGR.GAPI : gamma\nRHOB.K/M3 : density\n~Parameter\nEKB.FT 90 : kelly\n"
    "~A\n100.0 50.0 2400\n100.5 -999.25 2410\n101.0 52.0 2420\n"
)
TABLE = "time,latitude,longitude,depth,mag,magType,id\n2020-01-02T03:04:05.678Z,38.1,-117.9,8.2,3.4,ml,a\n"
LINES = "# inline crossline time\n100 300 40.5\n100 313 44\n117 300 60\n117 313 1e30\n108 306 nan\n110 306 52\n"
STICKS = "0 0 16 0 F1\n0 0 80 0 F1\n400 60 16 1 F1\nINLINE- 1 XLINE- 3 400 60 80 F1 1\n100,50,20,1\n"
EVENT = (
    b'<q:quakeml xmlns:q="http://quakeml.org/xmlns/quakeml/1.2" xmlns="http://quakeml.org/xmlns/bed/1.2"><eventParameters>'
    b'<event publicID="smi:local/1"><origin><time><value>2020-01-01T00:00:00Z</value></time><latitude><value>1</value>'
    b"</latitude><longitude><value>20</value></longitude></origin></event></eventParameters></q:quakeml>"
)


def _well_seeds(folder: Path) -> Iterator[bytes]:
    yield LAS.encode()
    yield LAS.replace("NO :", "YES :").replace(" 5", "\n5").encode()


def _log_table_seeds(folder: Path) -> Iterator[bytes]:
    yield b"Well Name,Depth,GR,Facies\nA,100.5,50,1\nA,101,51,2\nB,100,50,\n"
    yield b"depth [ft];RHOB (kg/m3)\n1;2400\n2;2410\n"


def _catalogue_seeds(folder: Path) -> Iterator[bytes]:
    yield TABLE.encode()
    yield b"year month day hour minute second lat lon depth ml\n2015 2 28 23 59 59.25 45.5 10.2 12 2.1\n"
    yield b"#EventID|Time|Latitude|Longitude|Depth/km\n1|1577934245.678|38.1|-117.9|8.2\n2|2020-01-02T23:59:60|1|2|3\n"


def _quakeml_seeds(folder: Path) -> Iterator[bytes]:
    yield EVENT


def _horizon_seeds(folder: Path) -> Iterator[bytes]:
    yield LINES.encode()
    yield b"! x y z\n0,0,40\n300,0,44\n0,150,48\n300,150,52\n"
    yield b"100 300 0 0 40\n101 301 30 9 44\n"


def _horizon_array_seeds(folder: Path) -> Iterator[bytes]:
    np.save(folder / "horizon.npy", np.where(np.eye(5) > 0, np.nan, 40.0))
    yield (folder / "horizon.npy").read_bytes()
    np.save(folder / "horizon.npy", np.full((3, 2), 17, np.int16))
    yield (folder / "horizon.npy").read_bytes()


def _stick_seeds(folder: Path) -> Iterator[bytes]:
    yield STICKS.encode()
    yield b"# x y z stick\n0 0 16 1\n300 0 16.5 2 fault two\n"


def _point_seeds(folder: Path) -> Iterator[bytes]:
    yield b"x,y,z\n0,0,16\n100.5,40,80\n,1,2\n"
    yield b'"x","y","z","name"\n30,9,16,"a ""b"""\n1e3,-4e1,80,c\n'


def _polygon_seeds(folder: Path) -> Iterator[bytes]:
    shape = {"type": "Polygon", "coordinates": [[[0, 0], [200, 0], [200, 90], [0, 90], [0, 0]]]}
    feature = {"type": "Feature", "properties": {"kind": "salt"}, "geometry": shape}
    yield json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()


def _raster_seeds(folder: Path) -> Iterator[bytes]:
    path = folder / "seed.tif"
    yield write_tiff(path, field((2, 70, 70), "int16"), nodata=7, names=("a", "b"), **tiled()).read_bytes()
    yield write_tiff(
        path, field((30, 40)), mask=field((30, 40), "uint8") > 60, scales=(0.5,), offsets=(1.0,)
    ).read_bytes()
    palette = {1: (9, 9, 9, 255), 2: (0, 99, 0, 255)}
    yield write_tiff(path, field((20, 20), "uint8"), colormap=palette, compress="lzw", crs=None).read_bytes()
    yield write_tiff(path, field((20, 20), "uint16"), BIGTIFF="YES", ENDIANNESS="BIG").read_bytes()
    import rasterio

    shape = {"width": 20, "height": 20, "count": 4, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(folder / "seed.png", "w", driver="PNG", **shape) as file:
            file.write(field((4, 20, 20), "uint8"))
    yield (folder / "seed.png").read_bytes()


def _list_seeds(folder: Path) -> Iterator[bytes]:
    yield b'["./a.tif", "/data/b.tif"]'
    item = {"id": "x", "assets": {"data": {"href": "a.tif"}}}
    yield json.dumps({"type": "FeatureCollection", "features": [item, {"href": "a.tif"}]}).encode()


def _npz_seeds(folder: Path) -> Iterator[bytes]:
    np.save(folder / "cube.npy", np.ones((2, 3, 4), np.uint8))
    yield (folder / "cube.npy").read_bytes()
    for save in (np.savez, np.savez_compressed):
        save(folder / "a.npz", cube=np.arange(24.0).reshape(2, 3, 4))
        yield (folder / "a.npz").read_bytes()


def _npy_seeds(folder: Path) -> Iterator[bytes]:
    for number, array in enumerate((np.zeros((2, 3, 4), np.float32), np.asfortranarray(np.ones((3, 2), ">i2")))):
        np.save(folder / f"{number}.npy", array)
        yield (folder / f"{number}.npy").read_bytes()


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: Reads a file.
        seeds: Sound files, made in a folder.
        name: Of the file, where its suffix decides how it is read.
    """

    read: Callable[[Path], None]
    seeds: Callable[[Path], Iterator[bytes]]
    name: str = "fuzzed"


TARGETS = {
    "segy": Target(read_segy, _segy_seeds),
    "miniseed": Target(read_miniseed, _miniseed_seeds),
    "window": Target(read_window, _window_seeds),
    "metadata": Target(read_metadata_rows, _metadata_seeds),
    "job": Target(read_job, _job_seeds),
    "las": Target(read_well, _well_seeds),
    "logs": Target(read_log_table, _log_table_seeds),
    "catalogue": Target(read_catalogue, _catalogue_seeds),
    "quakeml": Target(read_catalogue, _quakeml_seeds),
    "npy": Target(read_npy, _npy_seeds),
    "npz": Target(read_npz_member, _npz_seeds),
    "raster": Target(read_raster, _raster_seeds),
    "tile_list": Target(read_tile_list, _list_seeds),
    "horizon": Target(read_horizon_file, _horizon_seeds),
    "horizon_array": Target(read_horizon_array, _horizon_array_seeds, "fuzzed.npy"),
    "sticks": Target(read_sticks, _stick_seeds),
    "points": Target(read_points, _point_seeds),
    "polygons": Target(read_polygons, _polygon_seeds),
}


def execute(target: str, data: bytes, folder: Path) -> None:
    """Let the target read these bytes; raises what is no error of ours."""
    path = folder / TARGETS[target].name
    path.write_bytes(data)
    with contextlib.suppress(GeobatchError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TARGETS[target].read(path)
