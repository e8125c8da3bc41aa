"""What the traces of a SEG-Y file become: a grid found by evidence, gathers, single traces, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from segy_files import random_traces, raw_segy

from geobatch.errors import GeometryError
from geobatch.formats import ingest
from geobatch.formats.ingestion import read_quality
from geobatch.formats.segy_export import export_segy
from geobatch.formats.segy_geometry import spare_traces
from geobatch.inspect import inspect_survey, render_text
from geobatch.survey import open_survey, survey_info

GRID: Any = {"chunk": (8, 8, 8), "shard": (8, 16, 16)}
SHAPE = (6, 7)
INLINES, CROSSLINES = (index.ravel() for index in np.indices(SHAPE))
EAST = (500_000 + 25 * INLINES + 12 * CROSSLINES).tolist()
NORTH = (6_000_000 - 20 * INLINES + 15 * CROSSLINES).tolist()
PLACES: dict[int, Any] = {181: EAST, 185: NORTH}


def survey_of(path: Path, **options: Any) -> xr.Dataset:
    target = str(path.with_name("survey"))
    ingest(str(path), target, **GRID, **options)
    return open_survey(target)


def assert_comes_back(path: Path) -> None:
    """Export gives the file again, byte for byte, and segyio reads the same traces from both."""
    again = path.with_name("again.sgy")
    export_segy(str(path.with_name("survey")), str(again), slab_bytes=200_000, overwrite=True)
    with segyio.open(path, ignore_geometry=True) as one, segyio.open(again, ignore_geometry=True) as two:
        assert one.tracecount == two.tracecount
        for trace in range(one.tracecount):
            np.testing.assert_array_equal(one.trace[trace], two.trace[trace])
            assert bytes(one.header[trace].buf) == bytes(two.header[trace].buf)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("pair", [(9, 21), (5, 21), (17, 21), (9, 13), (17, 13), (221, 225), (229, 237), (1, 197)])
def test_lines_are_found_in_other_header_bytes(pair: tuple[int, int], tmp_path: Path) -> None:
    numbers = {pair[0]: (100 + 2 * INLINES).tolist(), pair[1]: (300 + 3 * CROSSLINES).tolist()}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields={**PLACES, **numbers})
    survey = survey_of(path)
    info = survey_info(survey)
    assert survey["amplitude"].shape == (6, 7, 10)
    assert survey["inline"].values.tolist() == list(range(100, 112, 2))
    assert survey["crossline"].values.tolist() == list(range(300, 321, 3))
    assert (info["source"]["layout"]["inline"], info["source"]["layout"]["crossline"]) == pair
    (warning,) = [w for w in info["warnings"] if "were taken from header bytes" in w]
    assert f"bytes {pair[0]} and {pair[1]}" in warning and "because bytes 189 and 193" in warning
    assert_comes_back(path)


def test_two_ways_to_a_grid_are_an_error_that_lists_them(tmp_path: Path) -> None:
    turned = np.argsort((INLINES + 3 * CROSSLINES) % 42, kind="stable")
    fields = {9: INLINES.tolist(), 21: CROSSLINES.tolist(), 221: (turned // 7).tolist(), 225: (turned % 7).tolist()}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields=fields)
    with pytest.raises(GeometryError, match=r"several header positions.*bytes 9 and 21.*bytes 221 and 225"):
        survey_of(path)
    assert survey_of(path, inline_byte=9, crossline_byte=21)["amplitude"].shape == (6, 7, 10)


def test_numbers_that_coordinates_contradict_are_not_taken(tmp_path: Path) -> None:
    scattered = np.random.default_rng(0).permutation(42)
    fields = {181: (100 * scattered).tolist(), 185: (7 * scattered**2).tolist(), 9: INLINES.tolist()}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields={**fields, 21: CROSSLINES.tolist()})
    assert survey_info(survey_of(path))["kind"] == "traces"


def test_records_and_channels_without_coordinates_are_no_grid(tmp_path: Path) -> None:
    fields = {9: INLINES.tolist(), 13: CROSSLINES.tolist()}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields=fields)
    survey = survey_of(path)
    assert survey["amplitude"].dims == ("trace", "sample")
    assert_comes_back(path)
    with pytest.raises(GeometryError, match="every trace has the same inline"):
        survey_of(path, geometry="grid", overwrite=True)


def test_source_coordinates_stand_in_for_those_of_the_bin(tmp_path: Path) -> None:
    fields = {189: INLINES.tolist(), 193: CROSSLINES.tolist(), 73: EAST, 77: NORTH}
    survey = survey_of(raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields=fields))
    info = survey_info(survey)
    assert any("source coordinates in header bytes 73-80" in warning for warning in info["warnings"])
    assert info["bin_grid"]["inline_spacing_m"] == pytest.approx(np.hypot(25, 20))
    assert survey["cdp_x"].values.ravel().tolist() == EAST


@pytest.mark.parametrize("name", ["segy/viking_small.segy", "segy/volve10r12-full-twt-arb.sgy"])
def test_real_lines_and_shot_records_keep_their_traces(name: str, test_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sgy"
    path.write_bytes((test_data / "subsurface" / name).read_bytes())
    ingest(str(path), str(tmp_path / "survey"))
    survey = open_survey(str(tmp_path / "survey"))
    info = survey_info(survey)
    with segyio.open(path, ignore_geometry=True) as file:
        np.testing.assert_array_equal(survey["amplitude"].values, file.trace.raw[:])
        for variable, byte in (("cdp", 21), ("offset", 37), ("field_record", 9), ("channel", 13), ("shot_point", 17)):
            np.testing.assert_array_equal(survey[variable].values, file.attributes(byte)[:])
        divisor = np.where(file.attributes(71)[:] < 0, -file.attributes(71)[:].astype(float), 1)
        for variable, byte in (("cdp_x", 181), ("source_x", 73), ("source_y", 77), ("receiver_x", 81)):
            np.testing.assert_array_equal(survey[variable].values, file.attributes(byte)[:] / divisor)
    assert set(survey["amplitude"].coords) > {"cdp_x", "source_x", "offset"}
    assert info["kind"] == "traces"
    assert info["warnings"][0].startswith("kept as single traces, no grid: trace headers give no geometry")
    assert_comes_back(path)
    of_file, of_survey = inspect_survey(str(path)), inspect_survey(str(tmp_path / "survey"))
    for key in ("axes", "line", "quantity", "suspicious"):
        assert of_file.get(key) == of_survey.get(key)
    assert ("a trace every 13.36 m" in render_text(of_file)) == ("volve" in name)


def gather_fields(offsets: list[int]) -> dict[int, Any]:
    count = len(offsets)
    repeated = {byte: np.repeat(values, count).tolist() for byte, values in {**PLACES}.items()}
    lines = {189: np.repeat(INLINES, count).tolist(), 193: np.repeat(CROSSLINES, count).tolist()}
    return {**repeated, **lines, 37: offsets * 42}


def test_gathers_stand_on_inline_crossline_and_offset(tmp_path: Path) -> None:
    offsets = [-300, 100, 250]
    values = random_traces(*[10] * 126)
    values[5] = np.zeros(10)
    path = raw_segy(tmp_path / "a.sgy", values, fields=gather_fields(offsets))
    survey = survey_of(path)
    info = survey_info(survey)
    assert survey["amplitude"].dims == ("inline", "crossline", "offset", "sample")
    assert survey["offset"].values.tolist() == offsets
    np.testing.assert_array_equal(survey["amplitude"].values.reshape(126, 10), np.array(values))
    assert survey["live_mask"].dims == ("inline", "crossline", "offset")
    assert (~survey["live_mask"].values).sum() == 1 and not survey["live_mask"].values[0, 1, 2]
    assert (survey["fold"].values == 3).all()
    assert info["fold"] == {"min": 3, "median": 3.0, "max": 3, "empty_bins": 0}
    assert info["bin_grid"]["inline_spacing_m"] == pytest.approx(np.hypot(25, 20))
    assert [fault.where for fault in read_quality(str(tmp_path / "survey"))] == [
        "a.sgy trace 5 (inline 0, crossline 1)"
    ]
    assert_comes_back(path)
    of_file, of_survey = inspect_survey(str(path)), inspect_survey(str(tmp_path / "survey"))
    for key in ("axes", "bin_grid", "fold", "quantity", "suspicious"):
        assert of_file[key] == of_survey[key]


def test_gathers_are_found_in_other_header_bytes(tmp_path: Path) -> None:
    fields = gather_fields([100, 200])
    fields |= {9: fields.pop(189), 21: fields.pop(193)}
    survey = survey_of(raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 84), fields=fields))
    assert survey["amplitude"].shape == (6, 7, 2, 10)
    assert any("header bytes 9 and 21" in warning for warning in survey_info(survey)["warnings"])


def test_offsets_fall_into_bins_and_missing_ones_are_invalid(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    jitter = (np.tile([100, 200, 300], 42) + random.integers(-20, 20, 126)).tolist()
    kept = np.flatnonzero(random.random(126) > 0.1)
    fields = {
        byte: np.array(values)[kept].tolist() for byte, values in (gather_fields([0, 0, 0]) | {37: jitter}).items()
    }
    values = random_traces(*[10] * kept.size)
    path = raw_segy(tmp_path / "a.sgy", values, fields=fields)
    assert survey_info(survey_of(path))["kind"] == "traces"
    survey = survey_of(path, offset_bin=100, overwrite=True)
    assert survey["offset"].values.tolist() == [100, 200, 300]
    found = survey["amplitude"].values.reshape(126, 10)
    np.testing.assert_array_equal(found[kept], np.array(values))
    assert np.isnan(np.delete(found, kept, axis=0)).all()
    assert survey["fold"].values.sum() == kept.size
    assert any("fold varies from" in sentence for sentence in inspect_survey(str(tmp_path / "survey"))["suspicious"])


def test_angles_make_the_third_axis_from_a_byte_of_their_own(tmp_path: Path) -> None:
    fields = gather_fields([0, 0, 0]) | {229: [5, 15, 25] * 42}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 126), fields=fields)
    survey = survey_of(path, gather_axis="angle", offset_byte=229)
    assert survey["amplitude"].dims == ("inline", "crossline", "angle", "sample")
    assert survey["angle"].values.tolist() == [5, 15, 25]
    assert_comes_back(path)


def duplicated(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Traces 3 and 10 stand in one place, and so do 20 and 21, of which 20 is dead."""
    inline, crossline = INLINES.copy(), CROSSLINES.copy()
    inline[10], crossline[10] = inline[3], crossline[3]
    inline[21], crossline[21] = inline[20], crossline[20]
    values = random_traces(*[10] * 42)
    values[20] = np.zeros(10)
    fields = {**PLACES, 189: inline.tolist(), 193: crossline.tolist()}
    return raw_segy(tmp_path / "a.sgy", values, fields=fields), values


@pytest.mark.parametrize(("rule", "kept", "left_out"), [("first", (3, 21), [10, 20]), ("last", (10, 21), [3, 20])])
def test_one_live_trace_of_each_place_is_kept(
    rule: str, kept: tuple[int, int], left_out: list[int], tmp_path: Path
) -> None:
    path, values = duplicated(tmp_path)
    survey = survey_of(path, duplicates=rule)
    found = survey["amplitude"].values
    np.testing.assert_array_equal(found[0, 3], values[kept[0]])
    np.testing.assert_array_equal(found[2, 6], values[kept[1]])
    assert survey["trace_index"].values[0, 3] == kept[0]
    rows = [fault for fault in read_quality(str(tmp_path / "survey")) if fault.action == "left out"]
    assert [int(row.where.split()[2]) for row in rows] == left_out
    assert rows[1].fault == "same place as a.sgy trace 21"
    info = survey_info(survey)
    assert (info["statistics"]["duplicate_traces"], info["statistics"]["missing_traces"]) == (2, 2)
    assert any("2 traces stand in the place of another" in w for w in info["warnings"])


def test_duplicates_are_refused_on_demand_and_when_they_are_many(tmp_path: Path) -> None:
    path, _ = duplicated(tmp_path)
    with pytest.raises(GeometryError, match=r"several traces share.*geometry=gathers"):
        survey_of(path, geometry="grid", duplicates="refuse")
    twice = {byte: [*values, *values] for byte, values in PLACES.items()}
    lines = {189: INLINES.tolist() * 2, 193: CROSSLINES.tolist() * 2}
    path = raw_segy(tmp_path / "b.sgy", random_traces(*[10] * 84), fields={**twice, **lines})
    with pytest.raises(GeometryError, match=r"42 had to be left out.*at most 5%"):
        survey_of(path, geometry="grid")
    survey = survey_of(path)
    assert survey["amplitude"].shape == (84, 10)
    assert "no grid: several traces share" in survey_info(survey)["warnings"][0]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30), st.sampled_from(["first", "last"])
)
def test_every_place_keeps_exactly_one_trace_and_a_live_one_if_it_has_one(
    traces: list[tuple[int, bool]], rule: Any
) -> None:
    cell, live = (np.array(part) for part in zip(*traces, strict=True))
    spare = spare_traces(cell.astype(np.int64), 6, live, rule)
    kept = np.ones(len(traces), bool) if spare is None else spare.kept
    for place in np.unique(cell):
        here = np.flatnonzero(cell == place)
        (chosen,) = here[kept[here]]
        best = here[live[here]] if live[here].any() else here
        assert chosen == (best[0] if rule == "first" else best[-1])
    if spare is not None:
        assert (cell[spare.left_out] == cell[spare.instead]).all() and kept[spare.instead].all()


def test_quality_lists_runs_of_dead_and_non_finite_traces(tmp_path: Path) -> None:
    values = random_traces(*[10] * 42)
    for trace in (*range(5, 15), 30):
        values[trace] = np.zeros(10)
    values[20][3], values[21][:] = np.nan, np.inf
    fields = {**PLACES, 189: INLINES.tolist(), 193: CROSSLINES.tolist()}
    survey = survey_of(raw_segy(tmp_path / "a.sgy", values, fields=fields))
    rows = [(fault.where, fault.fault, fault.action) for fault in read_quality(str(tmp_path / "survey"))]
    run = "a.sgy trace 5 (inline 0, crossline 5) to a.sgy trace 14 (inline 2, crossline 0): 10 traces"
    assert rows == [
        (run, "dead: zero or coded dead", "masked"),
        ("a.sgy trace 30 (inline 4, crossline 2)", "dead: zero or coded dead", "masked"),
        ("a.sgy trace 21 (inline 3, crossline 0)", "dead: no finite sample", "masked"),
        ("a.sgy trace 20 (inline 2, crossline 6)", "samples not finite", "kept"),
    ]
    info = survey_info(survey)
    assert info["faults"] == {"traces masked": 3, "traces kept": 1}
    assert (info["statistics"]["dead_traces"], info["statistics"]["non_finite_traces"]) == (12, 2)


def test_clipped_traces_are_counted(tmp_path: Path) -> None:
    values = random_traces(*[40] * 42)
    for trace in (3, 17, 40):
        values[trace][5:9] = 127
    values[8][7] = 127
    values[9][1:4] = -500
    fields = {**PLACES, 189: INLINES.tolist(), 193: CROSSLINES.tolist()}
    path = raw_segy(tmp_path / "a.sgy", values, fields=fields)
    assert survey_info(survey_of(path))["statistics"]["clipped_traces"] == 3
    assert any("3 traces stay at the largest" in sentence for sentence in inspect_survey(str(path))["suspicious"])
