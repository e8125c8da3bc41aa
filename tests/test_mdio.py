"""MDIO groups as surveys and surveys as MDIO groups, against what mdio itself wrote and reads."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio
import xarray as xr
import zarr
import zarr.storage
from segy_files import amplitudes, random_traces, raw_segy, write_segy
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import UnstableSpecificationWarning

from geobatch.errors import FormatError, NotFoundError, UsageError
from geobatch.formats import ingest
from geobatch.formats.mdio import export_mdio
from geobatch.formats.mdio_headers import FIELDS, encode_headers, header_metadata
from geobatch.inspect import inspect_survey
from geobatch.survey import open_survey, require_every_shard, survey_info, valid_volume

RECORDED = Path(__file__).parent / "data" / "mdio" / "volume.zip"
SHAPE = (4, 5, 12)
MISSING = (2, 3)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """What mdio 1.1.3 made of the file that `data/mdio/make.py` writes."""
    with zipfile.ZipFile(RECORDED) as packed:
        packed.extractall(tmp_path / "volume.mdio")
    return tmp_path / "volume.mdio"


def made() -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    values = (100 * i + 10 * j + k).astype(np.float32)
    values[MISSING] = np.nan
    return values


def assert_is_recorded(survey: xr.Dataset) -> None:
    info = survey_info(survey)
    np.testing.assert_array_equal(survey["amplitude"].values, made())
    assert survey["amplitude"].dims == ("inline", "crossline", "sample")
    assert survey["inline"].values.tolist() == [10, 12, 14, 16]
    assert survey["sample"].values.tolist() == [4.0 * k for k in range(12)]
    assert (info["domain"], info["sample_interval"], info["sample_unit"]) == ("time", 4.0, "ms")
    assert np.argwhere(~survey["live_mask"].values).tolist() == [list(MISSING)]
    assert survey["cdp_x"].values[1, 1] == 500_025


def test_volume_of_mdio_opens_as_a_survey(recorded: Path) -> None:
    survey = open_survey(str(recorded))
    assert not survey["amplitude"].variable._in_memory
    assert_is_recorded(survey)
    statistics, live = survey_info(survey)["statistics"], made()[np.isfinite(made()) & (made() != 0)]
    assert statistics["count"] == live.size
    assert statistics["std"] == pytest.approx(live.std(), rel=1e-6)
    assert valid_volume(survey).shape == SHAPE
    require_every_shard(survey, str(recorded))


def test_group_of_zarr_2_opens_too(recorded: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "old.mdio")
    source = xr.open_zarr(recorded, consolidated=False, chunks=None).load()
    for variable in source.variables.values():
        variable.encoding.clear()
    source.attrs = json.loads((recorded / "zarr.json").read_text())["attributes"]
    source.to_zarr(target, zarr_format=2, consolidated=True)
    assert_is_recorded(open_survey(target))


def test_inspect_tells_bins_and_traces_of_an_mdio_group(recorded: Path) -> None:
    info = inspect_survey(str(recorded))
    json.dumps(info, allow_nan=False)
    assert info["bin_grid"]["inline_spacing_m"] == pytest.approx(25)
    assert info["bin_grid"]["crossline_spacing_m"] == pytest.approx(12)
    assert info["traces"] == {"traces": 19, "missing_traces": 1}
    assert info["distribution"]["percentiles"]["50.0"] == np.nanmedian(made().astype(np.float64))


def test_group_that_no_survey_is_like_is_refused(recorded: Path, tmp_path: Path) -> None:
    path = recorded / "zarr.json"
    group = json.loads(path.read_text())
    group["attributes"]["attributes"]["defaultVariableName"] = "trace_mask"
    path.write_text(json.dumps(group))
    with pytest.raises(FormatError, match=r"dimensions that no survey has.*inline, crossline"):
        open_survey(str(recorded))
    group["attributes"]["attributes"]["defaultVariableName"] = "porosity"
    path.write_text(json.dumps(group))
    with pytest.raises(FormatError, match=r"lacks its variable.*porosity"):
        open_survey(str(recorded))
    path.unlink()
    with pytest.raises(NotFoundError):
        open_survey(str(recorded))


def survey_and_group(folder: Path, kind: str) -> tuple[xr.Dataset, Path]:
    """A survey with a dead trace and what it was exported to."""
    path, options = folder / "a.sgy", {}
    if kind == "gathers":
        lines = {189: np.repeat([1, 2], 6).tolist(), 193: [5, 5, 6, 6, 7, 7] * 2, 37: [100, 200] * 6}
        raw_segy(path, random_traces(*[20] * 12), fields=lines)
    else:
        values = amplitudes((9, 11, 37))
        values[3, 4] = 0
        keep = np.ones((9, 11), bool)
        keep[8, 10] = False
        write_segy(path, values, keep=keep, delay=8, text="in depth PSDM" if kind == "depth" else "")
        options = {"domain": "depth"} if kind == "depth" else {}
    ingest(str(path), str(folder / "survey"), chunk=(4, 4, 8), shard=(4, 8, 16), **options)
    export_mdio(str(folder / "survey"), str(folder / "out.mdio"))
    return open_survey(str(folder / "survey")), folder / "out.mdio"


@pytest.mark.parametrize("kind", ["volume", "depth", "gathers"])
def test_exported_survey_opens_again_as_it_was(kind: str, tmp_path: Path) -> None:
    survey, group = survey_and_group(tmp_path, kind)
    again = open_survey(str(group))
    live = survey["live_mask"].values
    np.testing.assert_array_equal(again["amplitude"].values[live], survey["amplitude"].values[live])
    assert np.isnan(again["amplitude"].values[~live]).all()
    np.testing.assert_array_equal(again["live_mask"].values, live)
    for name in survey["amplitude"].dims:
        np.testing.assert_array_equal(again[name].values, survey[name].values)
    np.testing.assert_array_equal(again["cdp_x"].values, survey["cdp_x"].values)
    for name in ("kind", "domain", "sample_interval", "sample_unit"):
        assert survey_info(again)[name] == survey_info(survey)[name]
    statistics, own = survey_info(again)["statistics"], survey_info(survey)["statistics"]
    for name in statistics:
        assert statistics[name] == pytest.approx(own[name])


@pytest.mark.parametrize("kind", ["volume", "depth", "gathers"])
def test_exported_headers_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    survey, group = survey_and_group(tmp_path, kind)
    with warnings.catch_warnings():
        # Zarr's own specification has no records yet.
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        arrays = zarr.open_group(str(group), mode="r", use_consolidated=True)
        headers = arrays["headers"][...]
        metadata = arrays["headers"].metadata
    assert metadata.dimension_names == survey["amplitude"].dims[:-1]
    assert headers.dtype.itemsize == 232 and headers.dtype.names[:2] == ("trace_seq_num_line", "trace_seq_num_reel")
    order = survey["trace_index"].values
    assert headers.shape == order.shape
    with segyio.open(str(tmp_path / "a.sgy"), ignore_geometry=True) as file:
        for place, trace in np.ndenumerate(order):
            own = dict(file.header[trace]) if trace >= 0 else {}
            told = {headers.dtype.fields[name][1] + 1: int(headers[place][name]) for name in headers.dtype.names}
            assert told == {byte: own.get(byte, 0) for byte in told}
    live = survey["trace_index"].values >= 0
    lines = np.broadcast_to(survey["inline"].values.reshape(-1, *[1] * (order.ndim - 1)), order.shape)
    np.testing.assert_array_equal(headers["inline"][live], lines[live])


@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_of_either_byte_order_become_the_same_records(order: str) -> None:
    numbers = np.arange(3 * len(FIELDS)).reshape(3, -1) * 7 - 1000
    raw = np.zeros((3, 240), np.uint8)
    own = np.zeros(3, [(name, order + kind) for name, kind in FIELDS])
    for k, (name, _) in enumerate(FIELDS):
        own[name] = numbers[:, k]
    raw[:, :232] = own[:, None].view(np.uint8)
    store = zarr.storage.MemoryStore()
    metadata = json.dumps(header_metadata(("trace",), (3,), (4,))).encode()
    prototype = default_buffer_prototype()
    for key, body in (("zarr.json", metadata), ("c/0", encode_headers(raw, order, (4,)))):
        sync(store.set(key, prototype.buffer.from_bytes(body)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        read = zarr.open_array(store, mode="r")[...]
    assert [list(record) for record in read.tolist()] == numbers.tolist()


def test_export_replaces_only_mdio_and_only_on_demand(tmp_path: Path) -> None:
    _, group = survey_and_group(tmp_path, "volume")
    survey = str(tmp_path / "survey")
    with pytest.raises(UsageError, match="there already"):
        export_mdio(survey, str(group))
    export_mdio(survey, str(group), overwrite=True)
    with pytest.raises(UsageError, match="there already"):
        export_mdio(survey, survey, overwrite=True)
    ingest(str(raw_segy(tmp_path / "b.sgy", random_traces(*[5] * 4))), str(tmp_path / "traces"))
    with pytest.raises(UsageError, match=r"volumes and gathers.*kind traces"):
        export_mdio(str(tmp_path / "traces"), str(tmp_path / "b.mdio"))


@pytest.mark.parametrize("kind", ["volume", "depth", "gathers"])
def test_mdio_reads_what_was_exported(kind: str, tmp_path: Path) -> None:
    python = os.environ.get("GEOBATCH_TEST_MDIO", "")
    if not python:
        pytest.skip("GEOBATCH_TEST_MDIO names no Python of an environment with multidimio")
    survey, group = survey_and_group(tmp_path, kind)
    script = (
        "import sys, numpy; from mdio import open_mdio; d = open_mdio(sys.argv[1])\n"
        "numpy.savez(sys.argv[2], values=d['amplitude'].values, mask=d['trace_mask'].values, x=d['cdp_x'].values,"
        " headers=d['headers'].values,"
        " dims=list(d['amplitude'].dims), name=d.attrs['name'], variable=d.attrs['attributes']['defaultVariableName'])"
    )
    subprocess.run([python, "-c", script, str(group), str(tmp_path / "read.npz")], check=True)
    with np.load(tmp_path / "read.npz") as read:
        found: dict[str, Any] = {name: read[name] for name in read.files}
    live = survey["live_mask"].values
    np.testing.assert_array_equal(found["values"][live], survey["amplitude"].values[live])
    np.testing.assert_array_equal(found["mask"], live)
    assert found["headers"].dtype.names == tuple(name for name, _ in FIELDS)
    recorded = survey["trace_index"].values >= 0
    lines = np.broadcast_to(survey["inline"].values.reshape(-1, *[1] * (recorded.ndim - 1)), recorded.shape)
    np.testing.assert_array_equal(found["headers"]["inline"], np.where(recorded, lines, 0))
    np.testing.assert_array_equal(found["x"], survey["cdp_x"].values)
    assert found["dims"].tolist()[-1] == ("depth" if kind == "depth" else "time")
    assert str(found["variable"]) == "amplitude"
