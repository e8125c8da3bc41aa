"""Event windows to training sets: every sample and pick as h5py and NumPy read them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from geobatch.errors import NotFoundError
from geobatch.formats import windows
from geobatch.formats.ingestion import read_quality, verify_ingested
from geobatch.formats.spec import IngestRun
from geobatch.inspect import inspect_survey, render_text
from geobatch.storage import open_storage
from geobatch.storage.ranged import BLOCK_BYTES, RangedFile
from geobatch.survey import open_survey


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, these windows are read here."""
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setattr("ray.is_initialized", lambda: False)


def ingest(source: Path | str, target: Path | str, **options: Any) -> dict[str, Any]:
    return windows.ingest_source(str(source), str(target), windows.Options(**options), IngestRun())


def write_seisbench(folder: Path, traces: dict[str, np.ndarray], rows: list[dict[str, Any]], **told: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "waveforms.hdf5", "w") as file:
        for name, data in traces.items():
            file[f"data/{name}"] = data
        for name, value in told.items():
            file[f"data_format/{name}"] = value
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def components(survey: xr.Dataset, codes: str) -> np.ndarray:
    """The samples with components in this order."""
    return survey["waveform"].sel(component=list(codes)).values


def test_seisbench_chile_equals_h5py(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "earthquake/seisbench_cx"
    info = ingest(folder, tmp_path / "s", chunk=7, shard=21)
    survey = open_survey(str(tmp_path / "s"))
    with h5py.File(folder / "waveforms.hdf5") as file, (folder / "metadata.csv").open() as text:
        for number, row in enumerate(csv.DictReader(text)):
            bucket, _, place = row["trace_name"].partition("$")
            expected = file["data"][bucket][int(place.split(",")[0])]
            np.testing.assert_array_equal(components(survey, "ZNE")[number], expected)
            assert survey["magnitude"].values[number] == float(row["source_magnitude"])
            assert survey["source_depth_km"].values[number] == float(row["source_depth_km"])
            assert survey["start"].values[number] == np.datetime64(row["trace_start_time"].replace("/", "-"))
            assert survey["split"].values[number] == row["split"]
    assert survey["waveform"].attrs["sampling_rate_hz"] == 20.0
    assert set(survey["station"].values) == {"CX.PB01"} and np.isnan(survey["p_sample"].values).all()
    assert info["faults"] == {} and verify_ingested(str(tmp_path / "s")).findings == ()


def test_phasenet_windows_equal_numpy(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "earthquake/ncedc_phasenet"
    ingest(folder, tmp_path / "s", zeros_missing=False)
    survey = open_survey(str(tmp_path / "s"))
    values = components(survey, "ENZ")
    files = sorted(folder.glob("*.npz"))
    assert survey["name"].values.tolist() == [file.name for file in files]
    with (folder / "waveform.csv").open() as text:
        picks = {row["fname"]: row for row in csv.DictReader(text)}
    for number, file in enumerate(files):
        with np.load(file) as window:
            np.testing.assert_array_equal(values[number], window["data"].T.astype(np.float32))
        assert survey["p_sample"].values[number] == float(picks[file.name]["itp"])
        assert survey["s_sample"].values[number] == float(picks[file.name]["its"])
    assert survey["station"].values[0] == "BG.ACR"


def test_zeros_of_one_component_records_are_missing_by_default(test_data: Path, tmp_path: Path) -> None:
    for name in ("NC_GDXB_2008072815280414.npz", "NC_MTU_2014071807051236_02.npz"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / name).write_bytes((test_data / "earthquake/ncedc_phasenet" / name).read_bytes())
    info = ingest(tmp_path / "raw", tmp_path / "s")
    survey = open_survey(str(tmp_path / "s"))
    assert info["statistics"]["missing_components"] == 2
    assert np.isnan(components(survey, "EN")[1]).all() and np.isfinite(components(survey, "Z")).all()


def test_unequal_windows_keep_their_length_picks_and_orders(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    long, short = random.normal(size=(300, 3)).astype("f4"), random.normal(size=(100, 2)).astype("f4")
    rows = [
        {
            "trace_name": "a",
            "trace_P_arrival_sample": 40.5,
            "trace_Pn_arrival_sample": 30,
            "trace_S_arrival_sample": "",
        },
        {
            "trace_name": "b",
            "trace_component_order": "1Z",
            "trace_s_arrival_sample": 99,
            "trace_P_arrival_sample": 5000,
        },
        {"trace_name": "block$1,10:60,:2", "trace_sampling_rate_hz": 50},
    ]
    block = random.normal(size=(4, 100, 3)).astype("f4")
    told = {"dimension_order": "NWC", "component_order": "ENZ", "sampling_rate": 100}
    folder = write_seisbench(tmp_path / "raw", {"a": long, "b": short, "block": block}, rows, **told)
    info = ingest(folder / "waveforms.hdf5", tmp_path / "s")
    survey = open_survey(str(tmp_path / "s"))
    np.testing.assert_array_equal(components(survey, "ENZ")[0], long.T)
    np.testing.assert_array_equal(components(survey, "NZ")[1, :, :100], short.T)
    np.testing.assert_array_equal(components(survey, "EN")[2, :, :50], block[1, 10:60, :2].T)
    assert np.isnan(survey["waveform"].values[1, :, 100:]).all()
    assert survey["length"].values.tolist() == [300, 100, 50]
    np.testing.assert_array_equal(survey["p_sample"].values, [30, np.nan, np.nan])
    np.testing.assert_array_equal(survey["s_sample"].values, [np.nan, 99, np.nan])
    assert survey["sampling_rate_hz"].values.tolist() == [100, 100, 50]
    assert any("2 sampling rates" in sentence for sentence in info["warnings"])


def test_inspect_tells_what_ingest_finds(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "earthquake/seisbench_cx"
    told = windows.inspect_source(str(folder), windows.Options()).told
    info = ingest(folder, tmp_path / "s")
    assert told["suspicious"] == info["warnings"] == ["no window has a P pick"]
    assert told["statistics"] == pytest.approx(info["statistics"])
    assert told["ranges"]["magnitude"] == [1.154, 4.07]
    text = render_text(inspect_survey(str(tmp_path / "s")))
    assert "100 window x 3 component x 1200 sample" in text and "1.154 to 4.07" in text


@pytest.mark.usefixtures("ray_cluster")
def test_hdf5_in_a_bucket_is_read_by_ranges(tmp_path: Path, s3: str) -> None:
    data = np.random.default_rng(0).normal(size=(40, 3, 5000)).astype("f4")
    rows = [{"trace_name": f"bucket0${number},:3,:5000", "source_magnitude": number / 10} for number in range(40)]
    folder = write_seisbench(tmp_path / "raw", {"bucket0": data, "unused": np.zeros((3, 10**6))}, rows)
    storage = open_storage(f"{s3}/raw")
    for name in ("waveforms.hdf5", "metadata.csv"):
        storage.put(name, (folder / name).read_bytes())
    far = ingest(f"{s3}/raw", f"{s3}/survey", chunk=8, shard=16)
    near = ingest(folder, tmp_path / "s", chunk=8, shard=16)
    assert far["identity"] == near["identity"]
    np.testing.assert_array_equal(components(open_survey(f"{s3}/survey"), "ZNE"), data)


def test_ranged_file_reads_like_a_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 123)
    (tmp_path / "a").write_bytes(data)
    file = RangedFile(open_storage(str(tmp_path)), "a", len(data))
    for start, length in (
        (0, 10),
        (BLOCK_BYTES - 5, 10),
        (7, 2 * BLOCK_BYTES),
        (len(data) - 3, 99),
        (len(data) + 5, 1),
    ):
        file.seek(start)
        assert file.read(length) == data[start : start + length]


def test_waveforms_without_metadata_are_refused(tmp_path: Path) -> None:
    folder = write_seisbench(tmp_path / "raw", {"a": np.zeros((3, 5))}, [{"trace_name": "a"}])
    (folder / "metadata.csv").unlink()
    with pytest.raises(NotFoundError, match="no metadata file"):
        ingest(folder, tmp_path / "s")


def test_row_without_a_trace_is_in_the_quality_table(tmp_path: Path) -> None:
    rows = [{"trace_name": name} for name in ("a", "gone", "a$7,:3", "a b$$", "a")]
    ingest(write_seisbench(tmp_path / "raw", {"a": np.ones((3, 5), "f4")}, rows), tmp_path / "s")
    faults = [(fault.where, fault.fault) for fault in read_quality(str(tmp_path / "s"))]
    assert faults == [
        ("metadata.csv row 3 (gone)", "names a trace that the waveforms do not hold; gone"),
        ("metadata.csv row 4 (a$7,:3)", "names a row beyond its block; 7 of 3"),
        ("metadata.csv row 5 (a b$$)", "trace_name is malformed; a b$$"),
    ]
    assert open_survey(str(tmp_path / "s")).sizes["window"] == 2
