"""Forms of SEG-Y files: sample formats, rev 2, traces of different length, cut files, several files, map units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segyio
import xarray as xr
from segy_files import KINDS, amplitudes, random_traces, raw_segy, write_segy

from geobatch.errors import FormatError, GeometryError, NotFoundError
from geobatch.formats import IngestJob, ingest, ingest_job
from geobatch.formats.ingestion import read_quality
from geobatch.formats.segy import open_segy
from geobatch.formats.segy_export import export_segy
from geobatch.formats.segy_several import find_files
from geobatch.inspect import inspect_survey
from geobatch.storage import open_storage
from geobatch.survey import open_survey, survey_info

GRID: Any = {"chunk": (8, 8, 8), "shard": (8, 16, 16)}
LINES: dict[int, Any] = {189: [1, 1, 1, 2, 2, 2], 193: [1, 2, 3, 1, 2, 3]}
REV1: dict[int, Any] = {3501: (0x0100, "u2")}
REV2: dict[int, Any] = {3501: (0x0200, "u2"), 3503: (1, "u2"), 3297: (0x01020304, "u4")}


def survey_of(path: Path, **options: Any) -> xr.Dataset:
    target = str(path.with_name("survey"))
    ingest(str(path), target, **GRID, **options)
    return open_survey(target)


def assert_comes_back(path: Path) -> None:
    again = path.with_name("again.sgy")
    export_segy(str(path.with_name("survey")), str(again), overwrite=True)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("code", sorted(KINDS))
def test_every_sample_format_is_read_as_segyio_does_and_comes_back(code: int, order: str, tmp_path: Path) -> None:
    values = random_traces(*[12] * 6)
    path = raw_segy(tmp_path / "a.sgy", values, code=code, order=order, fields=LINES)
    survey = survey_of(path)
    np.testing.assert_array_equal(survey["amplitude"].values.reshape(6, 12), np.array(values))
    with segyio.open(path, ignore_geometry=True, endian="big" if order == ">" else "little") as file:
        np.testing.assert_array_equal(survey["amplitude"].values.reshape(6, 12), file.trace.raw[:].astype(np.float32))
    assert_comes_back(path)


def test_doubles_beyond_float32_are_infinite_and_counted(tmp_path: Path) -> None:
    values = random_traces(*[12] * 6)
    values[2][5] = 1e300
    survey = survey_of(raw_segy(tmp_path / "a.sgy", values, code=6, fields=LINES))
    assert np.isposinf(survey["amplitude"].values[0, 2, 5])
    assert survey_info(survey)["statistics"]["non_finite"] == 1


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("binary", [{}, REV1], ids=["rev0", "rev1"])
def test_traces_of_different_length_end_in_nan(binary: dict[int, Any], order: str, tmp_path: Path) -> None:
    values = random_traces(10, 25, 7, 25, 1, 13)
    path = raw_segy(tmp_path / "a.sgy", values, order=order, fields=LINES, binary=binary)
    survey = survey_of(path)
    found = survey["amplitude"].values.reshape(6, 25)
    for trace, expected in zip(found, values, strict=True):
        np.testing.assert_array_equal(trace[: expected.size], expected)
        assert np.isnan(trace[expected.size :]).all()
    info = survey_info(survey)
    assert info["statistics"]["count"] == sum(trace.size for trace in values)
    assert info["statistics"]["non_finite_traces"] == 0
    assert any("differ in length: 1 to 25 samples" in warning for warning in info["warnings"])
    assert_comes_back(path)


def test_uneven_lengths_that_fill_the_file_by_chance_are_found(tmp_path: Path) -> None:
    values = random_traces(10, 5, 15, 10, 10, 10)
    first_differs = [values[1], values[0], *values[2:]]
    path = raw_segy(tmp_path / "a.sgy", first_differs, fields=LINES, binary=REV1 | {3221: (10, "u2")})
    assert survey_of(path)["amplitude"].shape == (2, 3, 15)
    path = raw_segy(tmp_path / "b.sgy", values, fields=LINES, binary=REV1)
    assert open_segy(str(path)).sample_count == 10
    assert any("--set lengths=varying" in sentence for sentence in inspect_survey(str(path))["suspicious"])
    assert survey_of(path, lengths="varying", overwrite=True)["amplitude"].shape == (2, 3, 15)
    assert_comes_back(path)


def test_single_traces_of_different_length_say_how_long_they_are(tmp_path: Path) -> None:
    values = random_traces(10, 25, 7)
    path = raw_segy(tmp_path / "a.sgy", values)
    survey = survey_of(path)
    assert survey["sample_count"].values.tolist() == [10, 25, 7]
    assert_comes_back(path)


def test_one_long_trace_among_short_ones_is_refused(tmp_path: Path) -> None:
    path = raw_segy(tmp_path / "a.sgy", random_traces(10_000, *[2] * 99))
    with pytest.raises(FormatError, match=r"differ too much in length.*4 times"):
        open_segy(str(path))


def test_cut_trace_is_refused_or_dropped(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((2, 3, 20)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(FormatError, match=r"5 traces and 290 bytes over.*truncated=drop"):
        survey_of(path)
    survey = survey_of(path, truncated="drop")
    assert np.isnan(survey["amplitude"].values[1, 2]).all()
    assert (survey["trace_index"].values >= 0).sum() == 5
    (fault,) = read_quality(str(tmp_path / "survey"))
    assert (fault.where, fault.fault, fault.action) == (f"{path} after trace 4", "290 bytes", "left out")
    export_segy(str(tmp_path / "survey"), str(tmp_path / "again.sgy"))
    assert (tmp_path / "again.sgy").read_bytes() == whole[: 3600 + 5 * 320]


def test_cut_file_of_uneven_traces_loses_its_last_on_demand(tmp_path: Path) -> None:
    path = raw_segy(tmp_path / "a.sgy", random_traces(10, 25, 7))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FormatError, match=r"2 traces of the lengths in bytes 115-116, then 265 bytes"):
        open_segy(str(path), lengths="varying")
    file = open_segy(str(path), lengths="varying", truncated="drop")
    assert (file.trace_count, file.sample_count, file.left_over) == (2, 25, 265)


def test_rev_2_says_samples_interval_first_trace_and_trailer(tmp_path: Path) -> None:
    values = random_traces(*[12] * 6)
    said = {3221: (0, "u2"), 3269: (12, "u4"), 3273: (1500.5, "f8"), 3521: (3600 + 1000, "u8"), 3529: (1, "i4")}
    path = raw_segy(
        tmp_path / "a.sgy",
        values,
        fields=LINES,
        binary=REV2 | said | {3513: (6, "u8")},
        before=bytes(1000),
        after=b"t" * 3200,
    )
    survey = survey_of(path)
    np.testing.assert_array_equal(survey["amplitude"].values.reshape(6, 12), np.array(values))
    assert survey_info(survey)["sample_interval"] == 1.5005
    assert survey["file_trailer"].values.tobytes() == b"t" * 3200
    assert_comes_back(path)


def test_trace_header_extensions_are_kept(tmp_path: Path) -> None:
    values = random_traces(*[12] * 6)
    path = raw_segy(tmp_path / "a.sgy", values, fields=LINES, binary=REV2 | {3507: (2, "u4")}, extra=2)
    survey = survey_of(path)
    assert survey["trace_header"].shape == (2, 3, 720)
    np.testing.assert_array_equal(survey["amplitude"].values.reshape(6, 12), np.array(values))
    assert_comes_back(path)


def test_number_of_traces_that_differs_from_the_header_is_suspicious(tmp_path: Path) -> None:
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[12] * 6), fields=LINES, binary=REV2 | {3513: (7, "u8")})
    assert any("gives 7 traces" in sentence for sentence in inspect_survey(str(path))["suspicious"])


def parts(folder: Path) -> tuple[np.ndarray, list[Path]]:
    values = amplitudes((6, 7, 20))
    folder.mkdir()
    paths = [
        write_segy(folder / f"line_{i}.sgy", values[2 * i : 2 * i + 2], first=(100 + 2 * i, 300)) for i in range(3)
    ]
    return values, paths


@pytest.mark.parametrize("form", ["raw", "raw/line_*.sgy", "raw/line_"])
def test_folder_prefix_and_pattern_make_one_survey(form: str, tmp_path: Path) -> None:
    values, paths = parts(tmp_path / "raw")
    (tmp_path / "raw/readme.txt").write_text("not a survey")
    job = {"job": "ingest", "format": "segy", "source": str(tmp_path / form), "output": str(tmp_path / "survey")}
    summary = ingest_job(IngestJob(**job))
    survey = open_survey(str(tmp_path / "survey"))
    np.testing.assert_array_equal(survey["amplitude"].values, values)
    assert [part["traces"] for part in summary["source"]["files"]] == [14, 14, 14]
    export_segy(str(tmp_path / "survey"), str(tmp_path / "again.sgy"))
    bodies = [path.read_bytes() for path in paths]
    assert (tmp_path / "again.sgy").read_bytes() == bodies[0] + b"".join(body[3600:] for body in bodies[1:])


def test_pattern_finds_objects_in_a_bucket(s3: str, tmp_path: Path) -> None:
    values, paths = parts(tmp_path / "raw")
    for path in paths:
        open_storage(s3).put(f"raw/{path.name}", path.read_bytes())
    for form in ("raw/", "raw/*.sgy", "raw/line"):
        assert [url.rpartition("/")[2] for url in find_files(f"{s3}/{form}".rstrip("/"))] == [p.name for p in paths]
    ingest(f"{s3}/raw", str(tmp_path / "survey"))
    np.testing.assert_array_equal(open_survey(str(tmp_path / "survey"))["amplitude"].values, values)


def test_files_of_uneven_traces_make_one_survey(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    one = raw_segy(tmp_path / "raw/a.sgy", random_traces(10, 25, 7), fields={189: [1, 1, 1], 193: [1, 2, 3]})
    two = raw_segy(tmp_path / "raw/b.sgy", random_traces(10, 3, 25, seed=1), fields={189: [2, 2, 2], 193: [1, 2, 3]})
    ingest(str(tmp_path / "raw"), str(tmp_path / "survey"))
    export_segy(str(tmp_path / "survey"), str(tmp_path / "again.sgy"))
    assert (tmp_path / "again.sgy").read_bytes() == one.read_bytes() + two.read_bytes()[3600:]


def test_traces_that_two_files_share_are_duplicates(tmp_path: Path) -> None:
    values, paths = parts(tmp_path / "raw")
    with segyio.open(paths[1], "r+", ignore_geometry=True) as file:
        file.header[0] = {189: 100, 193: 303}
    ingest(str(tmp_path / "raw"), str(tmp_path / "survey"))
    (fault,) = read_quality(str(tmp_path / "survey"))
    assert fault.where == "line_1.sgy trace 0 (inline 100, crossline 303)"
    assert fault.fault == "same place as line_0.sgy trace 3"
    np.testing.assert_array_equal(open_survey(str(tmp_path / "survey"))["amplitude"].values[0, 3], values[0, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 2000}, r"line_9\.sgy: files differ in interval.*found 2000.*4000"),
        ({"code": 5}, r"line_9\.sgy: files differ in format code"),
        ({"endian": "little"}, r"line_9\.sgy: files differ in byte order"),
        ({"delay": 8}, r"line_9\.sgy: files start at different times.*\(8, 0\)"),
    ],
)
def test_file_that_differs_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    parts(tmp_path / "raw")
    write_segy(tmp_path / "raw/line_9.sgy", amplitudes((2, 7, 20)), first=(106, 300), **change)
    with pytest.raises((FormatError, GeometryError), match=message):
        ingest(str(tmp_path / "raw"), str(tmp_path / "survey"))


def test_pattern_of_nothing_is_not_found(tmp_path: Path) -> None:
    parts(tmp_path / "raw")
    for form in ("raw/x*.sgy", "raw/none", "empty"):
        with pytest.raises(NotFoundError, match="no SEG-Y file there"):
            ingest(str(tmp_path / form), str(tmp_path / "survey"))


INLINES, CROSSLINES = (index.ravel() for index in np.indices((6, 7)))
NUMBERS = {189: INLINES.tolist(), 193: CROSSLINES.tolist()}


@pytest.mark.parametrize("code", [2, 3, 4])
def test_angles_become_degrees_with_spacing_in_metres(code: int, tmp_path: Path) -> None:
    longitude = -3.5 + 0.001 * CROSSLINES
    latitude = 60.25 + 0.0005 * INLINES

    def stored(degrees: np.ndarray) -> list[int]:
        if code == 4:
            size = np.rint(np.abs(degrees) * 360_000).astype(int)
            packed = size // 360_000 * 1_000_000 + size // 6000 % 60 * 10_000 + size % 6000
            return (np.sign(degrees).astype(int) * packed).tolist()
        return np.rint(degrees * (360_000 if code == 2 else 100_000)).astype(int).tolist()

    fields = {**NUMBERS, 181: stored(longitude), 185: stored(latitude), 71: -100 if code != 3 else -10_000, 89: code}
    if code == 3:
        fields |= {
            181: np.rint(longitude * 10_000).astype(int).tolist(),
            185: np.rint(latitude * 10_000).astype(int).tolist(),
        }
    survey = survey_of(raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields=fields))
    np.testing.assert_allclose(survey["cdp_x"].values.ravel(), longitude, atol=1e-5)
    np.testing.assert_allclose(survey["cdp_y"].values.ravel(), latitude, atol=1e-5)
    assert survey["cdp_x"].attrs["units"] == "degrees"
    grid = survey_info(survey)["bin_grid"]
    assert grid["inline_spacing_m"] == pytest.approx(0.0005 * 111_195, rel=0.02)
    assert grid["crossline_spacing_m"] == pytest.approx(0.001 * 111_195 * np.cos(np.radians(60.25)), rel=0.02)
    assert grid["affine"][2] == pytest.approx(0.001, rel=0.02)


def test_feet_stay_feet_and_spacing_is_in_metres(tmp_path: Path) -> None:
    fields = {**NUMBERS, 181: (100 * CROSSLINES).tolist(), 185: (200 * INLINES).tolist()}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[10] * 42), fields=fields, binary={3255: (2, "i2")})
    survey = survey_of(path)
    assert (survey["cdp_x"].values.max(), survey["cdp_x"].attrs["units"]) == (600, "ft")
    grid = survey_info(survey)["bin_grid"]
    assert (grid["crossline_spacing_m"], grid["inline_spacing_m"]) == pytest.approx((30.48, 60.96))
