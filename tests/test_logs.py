"""Well logs, LAS and CSV: equal to lasio and pandas where nothing is resampled, and right where something is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geobatch.errors import TransientError, UsageError
from geobatch.formats import las, logs, logs_ingest, parse_options
from geobatch.formats.ingestion import read_quality, verify_ingested
from geobatch.formats.logs_curves import CURVES, factor, unit_of
from geobatch.formats.logs_resample import DepthAxis, nearest, resample
from geobatch.formats.logs_well import native_grid
from geobatch.formats.spec import IngestRun
from geobatch.inspect import inspect_survey, render_text
from geobatch.survey import open_survey

RUN = IngestRun()


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setattr("ray.is_initialized", lambda: False)


def write_las(path: Path, curves: dict[str, tuple[str, Any]], *, well: str = "A-1", null: str = "-999.25") -> str:
    """A LAS 2 file; the first curve is the index."""
    names = list(curves)
    columns = [np.asarray(values, float) for _, values in curves.values()]
    unit = curves[names[0]][0]
    step = columns[0][1] - columns[0][0] if len(columns[0]) > 1 else 0
    head = ["~Version", "VERS. 2.0 :", "WRAP. NO :", "~Well"]
    head += [f"STRT.{unit} {columns[0][0]} :", f"STOP.{unit} {columns[0][-1]} :", f"STEP.{unit} {step} :"]
    head += [f"NULL. {null} :", f"WELL. {well} : WELL", "UWI. 001 : UWI", "~Curve"]
    head += [f"{name} .{unit} : {name}" for name, (unit, _) in curves.items()]
    rows = [" ".join(repr(float(v)) if np.isfinite(v) else null for v in row) for row in zip(*columns, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*head, "~A", *rows, ""]))
    return str(path)


def ingest_las(source: str, target: Path, **options: Any) -> Any:
    las.ingest_source(source, str(target), las.Options(**options), RUN)
    return open_survey(str(target))


def lasio_columns(path: Path) -> dict[str, Any]:
    import lasio

    file = lasio.read(str(path), mnemonic_case="preserve")
    return {curve.original_mnemonic: curve.data for curve in file.curves}


def test_force_wells_equal_lasio_at_every_native_depth(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "subsurface/force2020_las"
    survey = ingest_las(str(folder), tmp_path / "wells")
    files = sorted(folder.glob("*.las"))
    assert survey.sizes["well"] == len(files) == 12
    assert [Path(str(s)).name for s in survey["source"].values] == [f.name for f in files]
    assert np.abs(survey["depth_shift"].values).max() <= 0.076 + 1e-9
    for number, file in enumerate(files):
        columns = lasio_columns(file)
        well = survey.isel(well=number).load()
        depth = columns.pop("DEPT")
        cells = np.rint((depth - float(well["depth_shift"]) - float(survey["depth"][0])) / 0.152).astype(int)
        np.testing.assert_allclose(survey["depth"].values[cells] + float(well["depth_shift"]), depth, atol=2e-3)
        for name, values in columns.items():
            ours = well[name].values
            np.testing.assert_array_equal(ours[cells], values.astype(np.float32), err_msg=name)
            assert np.isfinite(ours).sum() == np.isfinite(values).sum()


def test_penobscot_well_in_feet_equals_lasio(test_data: Path, tmp_path: Path) -> None:
    path = test_data / "subsurface/penobscot/L-30.las"
    survey = ingest_las(str(path), tmp_path / "wells")
    columns = lasio_columns(path)
    np.testing.assert_allclose(survey["depth"].values, columns["DEPTH"] * 0.3048, atol=1e-6)
    for ours, theirs in {"DTC": "DT", "GR": "GRD", "GRS": "GRS", "RDEP": "ILD", "RHOB": "RHOB", "SP": "SP"}.items():
        np.testing.assert_array_equal(survey[ours].values[0], columns[theirs].astype(np.float32), err_msg=ours)
    assert float(survey["kb"][0]) == pytest.approx(99 * 0.3048)


def test_contest_table_equals_pandas(test_data: Path, tmp_path: Path) -> None:
    import pandas

    path = test_data / "subsurface/seg2016_contest/facies_vectors.csv"
    names = ["SS", "CSiS", "FSiS", "SiSh", "MS", "WS", "D", "PS", "BS"]
    options = parse_options("logs", {"depth_unit": "ft", "classes": {"Facies": dict(enumerate(names, 1))}})
    logs.ingest_source(str(path), str(tmp_path / "wells"), options, RUN)  # type: ignore[arg-type]
    survey, table = open_survey(str(tmp_path / "wells")), pandas.read_csv(path)
    assert [str(w) for w in survey["well"].values] == list(table["Well Name"].unique())
    # Three rows repeat a depth of their well; the first of each counts.
    table = table.drop_duplicates(["Well Name", "Depth"])
    assert len(table) == 4146
    for number, (_, rows) in enumerate(table.groupby("Well Name", sort=False)):
        well = survey.isel(well=number)
        assert np.isfinite(well["GR"].values).sum() == len(rows)
        assert float(well["native_step"]) == 0.1524
        true = survey["depth"].values + float(well["depth_shift"])
        cells = np.searchsorted(true, rows["Depth"].to_numpy() * 0.3048 - 1e-6)
        np.testing.assert_array_equal(well["GR"].values[cells], rows["GR"].to_numpy(np.float32))
        np.testing.assert_array_equal(well["PEF"].values[cells], rows["PE"].to_numpy(np.float32))
        np.testing.assert_array_equal(well["Facies"].values[cells], rows["Facies"].to_numpy() - 1)
    assert survey["Facies"].dtype == np.uint8 and survey["Facies"].attrs["flag_meanings"].split() == names
    assert int((survey["Facies"] != 255).sum()) == len(table)
    assert "Formation" not in survey


def test_units_are_converted_and_never_mixed(tmp_path: Path) -> None:
    depth = np.arange(100, 110, 0.5)
    curves: dict[str, Any] = {"DEPT": ("M", depth), "DEN": ("K/M3", np.full(20, 2450.0)), "ODD": ("furlong", depth)}
    write_las(tmp_path / "in/a.las", curves, well="A")
    feet: dict[str, Any] = {
        "DEPT": ("FT", depth / 0.3048),
        "RHOB": ("G/CC", np.full(20, 2.45)),
        "ODD": ("stone", depth),
    }
    write_las(tmp_path / "in/b.las", feet, well="B")
    survey = ingest_las(str(tmp_path / "in"), tmp_path / "wells")
    assert survey["RHOB"].attrs["units"] == "g/cm3"
    np.testing.assert_allclose(survey["RHOB"].values, 2.45, rtol=1e-6)
    assert np.isnan(survey["ODD"].values[1]).all() and np.isfinite(survey["ODD"].values[0]).all()
    assert [(f.what, f.action) for f in read_quality(str(tmp_path / "wells"))] == [("curve", "left out")]


def test_depth_without_unit_is_refused_and_the_option_helps(tmp_path: Path) -> None:
    source = write_las(tmp_path / "a.las", {"DEPT": ("", np.arange(5.0)), "GR": ("API", np.arange(5.0))})
    with pytest.raises(UsageError, match="unit of depth is not stated"):
        ingest_las(source, tmp_path / "no")
    assert float(ingest_las(source, tmp_path / "yes", depth_unit="ft")["depth"][-1]) == pytest.approx(4 * 0.3048)


def test_order_duplicates_and_mnemonics_are_put_right(tmp_path: Path) -> None:
    depth = [10.0, 10.5, 10.5, 11.5, 11.0, 12.0]
    values = {"DEPT": ("m", depth), "GR": ("API", [1, 2, 99, 4, 3, 5]), "GAMMA": ("API", [5] * 6)}
    survey = ingest_las(write_las(tmp_path / "a.las", values), tmp_path / "wells")
    np.testing.assert_array_equal(survey["depth"].values, [10, 10.5, 11, 11.5, 12])
    np.testing.assert_array_equal(survey["GR"].values[0], [1, 2, 3, 4, 5])
    assert "GAMMA" in survey
    told = [fault.action for fault in read_quality(str(tmp_path / "wells"))]
    assert told == ["sorted in", "left out"]
    back = {"DEPT": ("m", [12.0, 11.5, 11.0]), "GR": ("API", [3, 2, 1]), "GR ": ("API", [7, 8, 9])}
    survey = ingest_las(write_las(tmp_path / "b.las", back), tmp_path / "back")
    np.testing.assert_array_equal(survey["GR"].values[0], [1, 2, 3])
    assert "GR_2" in survey


def test_own_aliases_come_first(tmp_path: Path) -> None:
    values = {"DEPT": ("m", [1.0, 2.0]), "GR": ("API", [1, 2]), "X9": ("API", [3, 4])}
    survey = ingest_las(write_las(tmp_path / "a.las", values), tmp_path / "wells", aliases={"GR": ("X9",)})
    np.testing.assert_array_equal(survey["GR"].values[0], [3, 4])


def test_coarser_axis_is_anti_aliased_and_keeps_slow_curves(tmp_path: Path) -> None:
    depth = np.arange(0, 200, 0.1)
    slow, fast = np.sin(2 * np.pi * depth / 40), np.sin(2 * np.pi * depth / 1.02)
    values = {"DEPT": ("m", depth), "GR": ("API", slow), "SP": ("mV", fast)}
    survey = ingest_las(write_las(tmp_path / "a.las", values), tmp_path / "wells", step_m=1.0)
    inner = slice(5, -5)
    true = np.sin(2 * np.pi * survey["depth"].values / 40)
    assert np.abs(survey["GR"].values[0] - true)[inner].max() < 0.02
    assert np.abs(survey["SP"].values[0])[inner].max() < 0.05
    assert np.isnan(survey["depth_shift"].values[0])


def test_labels_keep_their_codes_and_gaps_stay_gaps(tmp_path: Path) -> None:
    depth = np.delete(np.arange(0, 20, 0.5), np.arange(12, 20))
    codes = np.where(depth < 5, 30000, 65000)
    values = {"DEPT": ("m", depth), "LITHOLOGY": ("", codes), "GR": ("API", depth)}
    source = write_las(tmp_path / "a.las", values)
    survey = ingest_las(source, tmp_path / "wells", step_m=0.3, max_gap_m=0.8)
    assert set(np.unique(survey["LITHOLOGY"].values[np.isfinite(survey["LITHOLOGY"].values)])) == {30000, 65000}
    inside = (survey["depth"].values > 5.8) & (survey["depth"].values < 9.7)
    assert np.isnan(survey["GR"].values[0][inside]).all()
    classes = {"LITHOLOGY": {30000: "sand stone", 65000: "shale"}}
    survey = ingest_las(source, tmp_path / "classes", classes=classes)
    assert set(np.unique(survey["LITHOLOGY"].values)) == {0, 1, 255}
    assert survey["LITHOLOGY"].attrs["flag_meanings"] == "sand_stone shale"


def test_inspection_tells_the_suspicious_first(tmp_path: Path) -> None:
    depth = np.arange(0, 100, 0.5)
    noise = np.random.default_rng(0).normal(60, 1, 200)
    spiky = noise.copy()
    spiky[[50, 120]] = 400
    write_las(tmp_path / "in/a.las", {"DEPT": ("m", depth), "GR": ("API", spiky), "CALI": ("in", np.full(200, 8.5))})
    write_las(tmp_path / "in/b.las", {"DEPT": ("m", depth), "RHOB": ("g/cc", noise)}, well="B")
    raw = las.inspect_source(str(tmp_path / "in"), las.Options()).told
    ingest_las(str(tmp_path / "in"), tmp_path / "wells")
    for told in (raw, inspect_survey(str(tmp_path / "wells"))):
        assert told["suspicious"][0].startswith("B: 100.0% of RHOB is implausible")
        assert "A-1: CALI is 8.5 everywhere" in told["suspicious"]
        assert "well B" in render_text(told)
        assert "A-1: 1.00% of GR are spikes" in told["suspicious"]
        assert any(sentence.startswith("GR is missing in 1 of 2 wells: B") for sentence in told["suspicious"])


def test_an_ingest_that_failed_reads_no_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = np.arange(0, 30, 0.5)
    for k in range(3):
        write_las(tmp_path / f"in/{k}.las", {"DEPT": ("m", depth + k), "GR": ("API", depth * k + 1)}, well=f"W{k}")
    whole = las.ingest_source(str(tmp_path / "in"), str(tmp_path / "whole"), las.Options(), RUN)
    with monkeypatch.context() as patch, pytest.raises(TransientError):
        patch.setattr(logs_ingest, "place_curve", _storage_goes_away)
        ingest_las(str(tmp_path / "in"), tmp_path / "wells")
    with monkeypatch.context() as patch:
        patch.setattr(las, "read_rows", lambda *args: pytest.fail("read again"))
        again = las.ingest_source(str(tmp_path / "in"), str(tmp_path / "wells"), las.Options(), RUN)
    assert again["identity"] == whole["identity"]
    assert not [path for path in (tmp_path / "wells/_geobatch").iterdir() if path.is_dir() and any(path.iterdir())]


def _storage_goes_away(*args: Any) -> None:
    raise TransientError("storage went away")


@pytest.mark.usefixtures("ray_cluster")
def test_folder_in_a_bucket_on_a_cluster_equals_the_folder_here(s3: str, tmp_path: Path) -> None:
    from geobatch.storage import open_storage

    depth = np.arange(0, 30, 0.5)
    for k in range(3):
        path = tmp_path / f"in/{k}.las"
        write_las(path, {"DEPT": ("m", depth + k), "GR": ("API", depth * k + 1)}, well=f"W{k}")
        open_storage(f"{s3}/raw").put(f"{k}.las", path.read_bytes())
    las.ingest_source(f"{s3}/raw", f"{s3}/wells", las.Options(), RUN)
    here = ingest_las(str(tmp_path / "in"), tmp_path / "wells")
    there = open_survey(f"{s3}/wells")
    np.testing.assert_array_equal(there["GR"].values, here["GR"].values)
    assert verify_ingested(f"{s3}/wells").findings == ()
    again = las.ingest_source(f"{s3}/raw", f"{s3}/wells", las.Options(), RUN)
    assert again["identity"] == there.attrs["geobatch"]["identity"]


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40),
    st.floats(0.05, 2.0),
    st.floats(0.0, 5.0),
)
def test_resampling_stays_within_the_values_and_their_depths(values: list[float], step: float, start: float) -> None:
    depth = start + 0.5 * np.arange(len(values))
    axis = DepthAxis(start - 1.0, step, int(60 / step))
    known = np.array(values)
    out = resample(depth, known, axis, None)
    finite = np.isfinite(out)
    assert finite.any() or step > 0.5
    slack = 1e-6 * max(1.0, np.abs(known).max())
    assert (out[finite] >= known.min() - slack).all() and (out[finite] <= known.max() + slack).all()
    reach = max(step, 0.5)
    assert (np.abs(axis.values[finite][:, None] - depth).min(axis=1) <= reach).all()
    codes = nearest(depth, np.arange(len(values), dtype=float), axis)
    assert set(codes[np.isfinite(codes)]) <= set(np.arange(len(values), dtype=float))


@given(st.floats(0.01, 2.0), st.lists(st.integers(1, 4), min_size=2, max_size=50), st.floats(0, 3000))
def test_a_printed_regular_axis_with_gaps_is_regular(step: float, gaps: list[int], start: float) -> None:
    places = np.concatenate([[0, 1], 1 + np.cumsum(gaps)])
    grid = native_grid(start + places * step, step)
    assert grid is not None and grid[0] == pytest.approx(step, rel=1e-6)
    np.testing.assert_array_equal(grid[1], places)


def test_units_by_any_spelling() -> None:
    assert unit_of("G/CC") == unit_of("gm/cm3".replace("gm", "g")) == "g/cm3"
    assert unit_of("US/F") == "us/ft" and unit_of("[OHMM]") == "ohm.m" and unit_of("_") == ""
    assert factor("us/m", "us/ft") == 0.3048 and factor("ohm.m", "m") is None
    aliases = [alias for kind in CURVES.values() for alias in kind.aliases]
    assert len(aliases) == len(set(aliases)) and not set(aliases) & set(CURVES)
