"""MiniSEED archives to surveys: every sample that obspy reads, at its time, whatever the archive looks like."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from miniseed_files import START, counts, records, trace, write

from geobatch.earthquake import open_rates, open_waveforms, read_window, sampling, write_miniseed
from geobatch.errors import NotFoundError, TransientError, UsageError
from geobatch.formats import miniseed
from geobatch.formats.ingestion import read_quality, verify_ingested
from geobatch.formats.miniseed_layout import lay_out
from geobatch.formats.miniseed_piece import Piece, pieces, read_piece
from geobatch.formats.miniseed_records import read_records
from geobatch.formats.miniseed_scan import list_source, nominal_rates, parts_of, scan_part, stretches
from geobatch.formats.spec import IngestRun
from geobatch.inspect import inspect_survey, render_text
from geobatch.storage import open_storage
from geobatch.survey import open_survey


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cluster other tests have started, these archives are read here."""
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.fixture(autouse=True)
def one_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder stays between tests: starting it takes longer than they do."""
    monkeypatch.setattr(miniseed, "close_decoder", lambda: None)


def ingest(source: Path | str, target: Path | str, **options: Any) -> dict[str, Any]:
    return miniseed.ingest_source(str(source), str(target), miniseed.Options(**options), IngestRun())


def samples_of(survey: xr.Dataset, channel: str) -> np.ndarray:
    row, column = np.argwhere(survey["channel"].values == channel)[0]
    return survey["waveform"].values[row, column]


def assert_equals_obspy(survey_url: str, *files: Path) -> None:
    """Every sample of the merged stream stands in the survey at its time, and nothing else does."""
    stream = obspy.Stream()
    for file in files:
        stream += obspy.read(file, format="MSEED")
    stream.merge(method=0)
    survey = open_waveforms(survey_url)
    axis, seen = sampling(survey["waveform"]), 0
    values, valid = survey["waveform"].values, survey["valid"].values
    for merged in stream:
        row, column = np.argwhere(survey["channel"].values == merged.id)[0]
        data = np.ma.filled(merged.data.astype(np.float64), np.nan)
        first = round(axis.sample_at(np.datetime64(merged.stats.starttime.ns, "ns")))
        expected = np.full(survey.sizes["time"], np.nan)
        expected[first : first + len(data)] = data
        np.testing.assert_array_equal(values[row, column], expected)
        np.testing.assert_array_equal(valid[row, column], ~np.isnan(expected))
        seen += int(np.isfinite(data).sum())
    assert valid.sum() == seen


def test_continuous_record_equals_obspy(test_data: Path, tmp_path: Path) -> None:
    file = test_data / "earthquake/continuous_mseed/CEYT1.mseed"
    info = ingest(file, tmp_path / "s", chunk=2**14, shard=2**16)
    assert_equals_obspy(str(tmp_path / "s"), file)
    assert info["statistics"]["count"] == 720_003 and info["faults"] == {}
    assert verify_ingested(str(tmp_path / "s")).findings == ()


def test_folder_of_icequakes_equals_obspy(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "earthquake/iceland_icequake_mseed"
    info = ingest(folder, tmp_path / "s")
    assert_equals_obspy(str(tmp_path / "s"), *sorted(folder.glob("*.m")))
    assert info["faults"] == {"files left out": 7}
    survey = open_survey(str(tmp_path / "s"))
    assert survey.sizes["station"] == 12 and survey["waveform"].attrs["sampling_rate_hz"] == 500.0


def test_sds_tree_of_days_gaps_stations_and_missing_components(tmp_path: Path) -> None:
    folder = tmp_path / "sds"
    files = []
    for day in range(3):
        for station, channels in (("AAA", ("HHZ", "HHN", "HHE")), ("BBB", ("HHZ",)), ("CCC", ("HH1", "HH2", "HHZ"))):
            if (day, station) == (1, "BBB"):
                continue
            for channel in channels:
                place = folder / f"2024/GB/{station}/{channel}.D/GB.{station}.00.{channel}.D.2024.{61 + day:03d}"
                data = counts(6000, day + len(files))
                files.append(write(place, trace(data, 60.0 * day, channel=channel, station=station)))
    info = ingest(folder, tmp_path / "s", chunk=1024, shard=4096)
    assert_equals_obspy(str(tmp_path / "s"), *files)
    survey = open_survey(str(tmp_path / "s"))
    assert survey["station"].values.tolist() == ["GB.AAA.00.HH", "GB.BBB.00.HH", "GB.CCC.00.HH"]
    assert survey["component"].values.tolist() == ["Z", "N", "E"]
    assert survey["channel"].values[2].tolist() == ["GB.CCC.00.HHZ", "GB.CCC.00.HH1", "GB.CCC.00.HH2"]
    assert "time" not in survey.coords
    (rate,) = info["rates"]
    assert rate["missing"] == ["GB.BBB.00.HH N", "GB.BBB.00.HH E"]
    by_name = {channel["channel"]: channel for channel in rate["channels"]}
    gap = by_name["GB.BBB.00.HHZ"]
    assert (gap["gaps"], gap["gap_s"], gap["longest_gap"]["start"]) == (1, 60.0, "2024-03-01T00:01:00.000000Z")
    assert gap["completeness"] == pytest.approx(2 / 3)
    assert by_name["GB.AAA.00.HHZ"]["gaps"] == 0


def test_counts_beyond_float32_stay_exact(tmp_path: Path) -> None:
    data = np.array([2**24 + 1, -(2**30) - 7, 2**31 - 1, 0, 5], np.int32)
    write(tmp_path / "a.mseed", trace(data), encoding="INT32")
    ingest(tmp_path / "a.mseed", tmp_path / "s")
    assert open_survey(str(tmp_path / "s"))["waveform"].values[0, 0].tolist() == data.tolist()


@pytest.mark.parametrize(
    ("encoding", "dtype", "stored"),
    [
        ("STEIM1", "int32", "int32"),
        ("STEIM2", "int32", "int32"),
        ("INT16", "int16", "int32"),
        ("INT32", "int32", "int32"),
        ("FLOAT32", "float32", "float32"),
        ("FLOAT64", "float64", "float64"),
    ],
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_every_encoding_and_byte_order_equals_obspy(
    tmp_path: Path, encoding: str, dtype: str, stored: str, byteorder: str
) -> None:
    file = write(tmp_path / "a.mseed", trace(counts(3000).astype(dtype)), encoding=encoding, byteorder=byteorder)
    ingest(file, tmp_path / "s")
    assert_equals_obspy(str(tmp_path / "s"), file)
    assert open_survey(str(tmp_path / "s"))["waveform"].encoding["dtype"] == stored


def test_several_rates_become_several_sets_of_arrays(tmp_path: Path) -> None:
    fast, slow, long = counts(5000, 1), counts(500, 2), counts(50, 3)
    write(tmp_path / "a/fast", trace(fast))
    write(tmp_path / "a/slow", trace(slow, channel="BHZ", rate=20.0))
    write(tmp_path / "a/long", trace(long, channel="VHN", rate=0.1))
    url = str(tmp_path / "s")
    ingest(tmp_path / "a", url)
    assert set(open_survey(url).data_vars) >= {"waveform", "valid", "waveform_20hz", "valid_0_1hz"}
    for rate, channel, data in ((100.0, "HHZ", fast), (20.0, "BHZ", slow), (0.1, "VHN", long)):
        survey = open_waveforms(url, rate)
        assert survey["waveform"].dims == ("station", "component", "time")
        assert sampling(survey["waveform"]).rate_hz == rate
        np.testing.assert_array_equal(samples_of(survey, f"GB.STA.00.{channel}"), data)
    assert set(open_rates(url).children) == {"100hz", "20hz", "0.1hz"}
    with pytest.raises(UsageError, match=r"100, 20, 0\.1 Hz"):
        open_waveforms(url, 50.0)


def test_clock_off_the_grid_is_placed_on_the_nearest_sample_and_told(tmp_path: Path) -> None:
    write(tmp_path / "a/1", trace(counts(1000, 1)))
    write(tmp_path / "a/2", trace(counts(1000, 2), 5.0033, channel="HHN"))
    write(tmp_path / "a/3", trace(counts(1000, 3), 5.0004, channel="HHE"))
    ingest(tmp_path / "a", tmp_path / "s")
    survey = open_waveforms(str(tmp_path / "s"))
    np.testing.assert_array_equal(samples_of(survey, "GB.STA.00.HHN")[500:1500], counts(1000, 2))
    np.testing.assert_array_equal(samples_of(survey, "GB.STA.00.HHE")[500:1500], counts(1000, 3))
    (fault,) = read_quality(str(tmp_path / "s"))
    assert fault.where.startswith("GB.STA.00.HHN 2024-03-01T00:00:05.003300Z")
    assert fault.fault == "+0.330 samples off the grid of 100 Hz"


def test_drifting_clock_is_never_half_a_sample_off() -> None:
    headers = b"".join(
        records(trace(counts(400, n), n * 4.0 * (1 + 1e-5)), encoding="INT32", reclen=2048) for n in range(400)
    )
    found, _ = read_records(headers)
    rows = stretches(found, np.arange(len(found)), 0)
    at = rows["start_ns"] / 1e7 + rows["first"]
    told = found.start_ns[np.searchsorted(found.offset, rows["offset"])] / 1e7
    assert len(rows) > 2 and np.abs(at - told).max() <= 0.5


def test_overlaps_are_merged_healed_or_told(tmp_path: Path) -> None:
    data, other = counts(3000), counts(3000, 9)
    write(tmp_path / "a/1", trace(data[:1000]))
    write(tmp_path / "a/2", trace(data[900:2000], 9.0))
    write(tmp_path / "a/3", trace(np.concatenate(([7], data[2000:2500])).astype(np.int32), 19.99))
    write(tmp_path / "a/4", trace(other[:600], 24.0))
    info = ingest(tmp_path / "a", tmp_path / "s")
    expected = np.concatenate((data[:2500], other[100:600]))
    np.testing.assert_array_equal(samples_of(open_waveforms(str(tmp_path / "s")), "GB.STA.00.HHZ"), expected)
    channel = info["rates"][0]["channels"][0]
    assert (channel["identical"], channel["healed"]) == (100, 1)
    assert channel["conflicting"] == int((data[2400:2500] != other[:100]).sum())
    (fault,) = read_quality(str(tmp_path / "s"))
    assert fault.what == "overlap" and fault.where == "GB.STA.00.HHZ 2024-03-01T00:00:24.000000Z in 4"


def test_stationxml_gives_coordinates_and_sensitivity(tmp_path: Path) -> None:
    from obspy.core.inventory import Channel, InstrumentSensitivity, Inventory, Network, Response, Station

    gain = Response(instrument_sensitivity=InstrumentSensitivity(1.5e9, 1.0, "M/S", "COUNTS"))
    start = obspy.UTCDateTime("2020-01-01")
    old = Channel("HHZ", "00", 1.0, 2.0, 30.0, 0.0, start_date=start, end_date=start + 10)
    new = Channel("HHZ", "00", 38.5, 27.25, 410.0, 0.0, azimuth=0.0, dip=-90.0, start_date=start + 10, response=gain)
    station = Station("STA", 38.5, 27.25, 410.0, channels=[old, new])
    write(tmp_path / "a/1.mseed", trace(counts(1000)))
    Inventory([Network("GB", [station])], source="test").write(str(tmp_path / "a/s.xml"), format="STATIONXML")
    (tmp_path / "a/other.xml").write_text("<a/>")
    ingest(tmp_path / "a", tmp_path / "s")
    survey = open_survey(str(tmp_path / "s"))
    assert survey["latitude"].values.tolist() == [38.5] and survey["elevation"].values.tolist() == [410.0]
    assert survey["sensitivity"].values[0, 0] == 1.5e9 and np.isnan(survey["sensitivity"].values[0, 1])
    assert [fault.where for fault in read_quality(str(tmp_path / "s"))] == ["other.xml"]


def test_window_by_time_is_lazy_and_starts_where_it_says(tmp_path: Path) -> None:
    data = counts(6000)
    write(tmp_path / "a.mseed", trace(data))
    ingest(tmp_path / "a.mseed", tmp_path / "s", chunk=500, shard=1000)
    survey = open_waveforms(str(tmp_path / "s"))
    window = read_window(survey, "GB.STA", "2024-03-01T00:00:10.005Z", "2024-03-01T00:00:20")
    assert not isinstance(window.variable._data, np.ndarray)
    np.testing.assert_array_equal(window.sel(component="Z").values, data[1001:2000])
    assert window.attrs["start"] == "2024-03-01T00:00:10.010000000Z"
    assert window.sel(component="N").isnull().all()
    with pytest.raises(UsageError, match="outside"):
        read_window(survey, "GB.STA", "2025-03-01", "2025-03-02")
    with pytest.raises(UsageError, match="no such station"):
        read_window(survey, "GB.ST", START, START)


def test_span_cuts_the_axis(tmp_path: Path) -> None:
    data = counts(6000)
    write(tmp_path / "a/1", trace(data))
    write(tmp_path / "a/2", trace(data, "1980-01-06T00:00:00", channel="HHN"))
    ingest(tmp_path / "a", tmp_path / "s", start="2024-03-01T00:00:05", end="2024-03-01T00:00:30Z")
    survey = open_waveforms(str(tmp_path / "s"))
    np.testing.assert_array_equal(samples_of(survey, "GB.STA.00.HHZ"), data[500:3000])
    assert survey["waveform"].attrs["start"] == "2024-03-01T00:00:05.000000000Z"


def test_survey_written_as_miniseed_comes_back_the_same(tmp_path: Path) -> None:
    data = counts(5000)
    write(tmp_path / "a/1", trace(data[:2000]), trace(data[3000:], 30.0), trace(data, 1.0, channel="HHN"))
    ingest(tmp_path / "a", tmp_path / "s")
    assert write_miniseed(open_waveforms(str(tmp_path / "s")), str(tmp_path / "b.mseed")) == 3
    assert_equals_obspy(str(tmp_path / "s"), tmp_path / "b.mseed")


def test_result_does_not_depend_on_cut_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a/1", trace(counts(5000)), trace(counts(4000, 1), 55.5))
    first = ingest(tmp_path / "a", tmp_path / "s")
    small = ingest(tmp_path / "a", tmp_path / "t", chunk=100, shard=700)
    one, two = (open_survey(str(tmp_path / name))["waveform"].values for name in "st")
    np.testing.assert_array_equal(one, two)
    for ours, theirs in zip(first["rates"][0]["channels"], small["rates"][0]["channels"], strict=True):
        figures = [{k: v for k, v in side.items() if isinstance(v, float | int)} for side in (ours, theirs)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-9)
        assert ours["longest_gap"] == theirs["longest_gap"]
    before = {key: os.stat(tmp_path / "s" / key).st_mtime_ns for key, _ in open_storage(str(tmp_path / "s")).list()}
    assert ingest(tmp_path / "a", tmp_path / "s")["identity"] == first["identity"]
    after = {key: os.stat(tmp_path / "s" / key).st_mtime_ns for key, _ in open_storage(str(tmp_path / "s")).list()}
    assert {key: t for key, t in after.items() if "lease" not in key} == {
        key: t for key, t in before.items() if "lease" not in key
    }


def test_failed_ingest_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/1", trace(counts(5000)))
    whole = ingest(tmp_path / "a", tmp_path / "whole", chunk=500, shard=500)
    seen: list[int] = []

    def read(piece: Piece, *rest: Any) -> Any:
        seen.append(piece.column)
        if len(seen) == 4:
            raise TransientError("storage went away")
        return read_piece(piece, *rest)

    monkeypatch.setattr("geobatch.formats.miniseed_piece.read_piece", read)
    with pytest.raises(TransientError):
        ingest(tmp_path / "a", tmp_path / "s", chunk=500, shard=500)
    with pytest.raises(NotFoundError, match="not finished"):
        open_survey(str(tmp_path / "s"))
    monkeypatch.setattr(miniseed, "scan_part", lambda *part, **rest: pytest.fail("scanned again"))
    again = ingest(tmp_path / "a", tmp_path / "s", chunk=500, shard=500)
    assert again["identity"] == whole["identity"] and seen[3:] == [3, *range(3, 10)]


def test_records_decades_apart_leave_out_the_shards_between(tmp_path: Path) -> None:
    write(tmp_path / "a/1", trace(counts(300)), trace(counts(300), "1990-01-01T00:00:00"))
    info = ingest(tmp_path / "a", tmp_path / "s")
    assert info["sparse"] and info["rates"][0]["samples"] > 10**11
    assert len(list(open_storage(str(tmp_path / "s")).list("waveform/c"))) == 2
    survey = open_waveforms(str(tmp_path / "s"))
    window = read_window(survey, "GB.STA", "2024-02-29T23:59:59", "2024-03-01T00:00:01").sel(component="Z")
    assert np.isnan(window.values[:100]).all() and (window.values[100:] == counts(300)[:100]).all()
    assert verify_ingested(str(tmp_path / "s")).findings == ()


@pytest.mark.parametrize("place", ["empty", "nothing/there.mseed"])
def test_nothing_there_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no (such )?file"):
        ingest(tmp_path / place, tmp_path / "s")


@settings(max_examples=25)
@given(st.data())
def test_any_cut_of_a_signal_into_records_gives_the_signal_back(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder, signal = tmp_path_factory.mktemp("cut"), counts(3000)
    expected = np.full(3000, np.nan)
    for number in range(data.draw(st.integers(1, 4))):
        parts = data.draw(st.lists(st.tuples(st.integers(0, 2900), st.integers(1, 900)), min_size=1, max_size=4))
        traces = []
        for start, length in parts:
            part = signal[start : start + length]
            expected[start : start + len(part)] = part
            traces.append(trace(part, start / 100))
        write(folder / str(number), *traces, reclen=data.draw(st.sampled_from([256, 512, 4096])))
    cut = miniseed.Options(chunk=128, shard=data.draw(st.sampled_from([128, 512, 4096]))).cut
    source = list_source(str(folder))
    parts_ = parts_of(source, range(len(source.keys)))
    (group,) = lay_out(source, parts_, [scan_part(part, source) for part in parts_], cut).groups
    values = np.full(group.samples, np.nan)
    for piece in pieces([group]):
        canvas = read_piece(piece, source, group)
        own = np.where(canvas.valid[0], canvas.samples[0], np.nan)
        values[canvas.origin : canvas.origin + len(own)] = own
        assert not canvas.faults and not canvas.counts[:, 2:].any()
    held = np.flatnonzero(np.isfinite(expected))
    np.testing.assert_array_equal(values, expected[held[0] : held[-1] + 1])


def test_inspect_tells_the_suspicious_first(tmp_path: Path) -> None:
    clipped = np.clip(counts(5000) * 10, -500, 500).astype(np.int32)
    write(tmp_path / "a/1", trace(clipped), trace(np.full(5000, 3, np.int32), channel="HHN"))
    write(tmp_path / "a/2", trace(counts(100), 40.0, channel="HHE"))
    (tmp_path / "a/readme.txt").write_text("nothing here")
    told = miniseed.inspect_source(str(tmp_path / "a"), miniseed.Options()).told
    assert told["suspicious"][0] == "GB.STA.00.HHN is dead: every sample is 3"
    assert told["suspicious"][1].startswith("GB.STA.00.HHZ is clipped")
    assert told["suspicious"][2].startswith("GB.STA.00.HHE covers 2.0%")
    assert told["faults"]["examples"][0]["where"] == "readme.txt"
    ingest(tmp_path / "a", tmp_path / "s")
    warnings = open_survey(str(tmp_path / "s")).attrs["geobatch"]["warnings"]
    assert told["suspicious"][: len(warnings)] == warnings


def test_inspect_of_the_survey_and_of_a_raw_file_read_as_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mseed", trace(counts(2000)), trace(counts(2000), 30.0))
    ingest(file, tmp_path / "s")
    for url in (file, tmp_path / "s"):
        told = inspect_survey(str(url))
        text = render_text(told)
        assert "GB.STA.00.HHZ  80.0%, 1 gaps (10 s), longest 10 s from 2024-03-01T00:00:20.000000Z" in text
        assert text.splitlines()[1] == "! 2 components at 100 Hz have no channel: GB.STA.00.HH N, GB.STA.00.HH E"


@pytest.mark.usefixtures("ray_cluster")
def test_bucket_of_days_by_ray_tasks_equals_local_files(tmp_path: Path, s3: str) -> None:
    for day in range(3):
        write(tmp_path / f"a/day{day}/x", trace(counts(3000, day), 30.0 * day))
    storage = open_storage(f"{s3}/raw")
    for key, _ in open_storage(str(tmp_path / "a")).list():
        storage.put(key, (tmp_path / "a" / key).read_bytes())
    far = ingest(f"{s3}/raw", f"{s3}/survey", chunk=512, shard=1024)
    near = ingest(tmp_path / "a", tmp_path / "s", chunk=512, shard=1024)
    assert far["identity"] == near["identity"]
    assert_equals_obspy(f"{s3}/survey", *sorted((tmp_path / "a").rglob("x")))


@given(st.floats(0.001, 2000))
@example(1600.1640625)
def test_nominal_rate_is_near_and_stable(rate: float) -> None:
    nominal = nominal_rates(np.array([rate]))
    assert abs(nominal[0] - rate) <= 1.06e-4 * rate
    assert nominal_rates(nominal)[0] == pytest.approx(nominal[0], rel=1e-12)


@given(st.binary(max_size=3000))
def test_headers_of_anything_are_read(data: bytes) -> None:
    whole = records(trace(counts(400)))
    for body in (data, whole + data, whole[:64] + data + whole):
        found, unusable = read_records(body)
        assert (found.offset + found.length <= len(body)).all()
        assert all(0 <= part.start < part.end <= len(body) for part in unusable)
