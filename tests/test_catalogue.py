"""Catalogues in and out: equal to pandas and obspy, whatever columns a table has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surveys import random_volume, write_survey

from geobatch.errors import MismatchError, UsageError
from geobatch.formats import catalogue, parse_options
from geobatch.formats.catalogue_export import export_catalogue
from geobatch.formats.ingestion import read_quality, verify_ingested
from geobatch.formats.spec import IngestRun
from geobatch.inspect import inspect_survey, render_text
from geobatch.storage import open_storage
from geobatch.survey import open_survey

RUN = IngestRun()
USGS = """time,latitude,longitude,depth,mag,magType,nst,gap,rms,id,type
2020-01-02T03:04:05.678Z,38.1,-117.9,8.2,3.4,ml,20,85,0.15,nn001,earthquake
2020-01-01T00:00:00.000Z,-5.25,181.5,10,,mb,,,,us002,earthquake
"""
SCEDC = """#YYY/MM/DD HH:mm:SS.ss ET GT MAG  M    LAT     LON     DEPTH Q  EVID NPH NGRM
2019/01/01 00:12:17.43 eq  l 1.00 l  33.496 -116.508    4.6 A 38245496  40 1035
2019/01/01 00:31:60.00 qb  l 1.45 l  34.623 -116.631   -0.9 A 37450399  27  732
"""
ISC = """DATA_TYPE EVENT_CATALOGUE
ISC Bulletin
EVENTID,TYPE,AUTHOR   ,DATE      ,TIME       ,LAT     ,LON      ,DEPTH,DEPFIX,AUTHOR   ,TYPE  ,MAG
  16957810,ke,ISC      ,2000-01-01,05:24:37.18, 36.8704,  69.9496,  33.0,TRUE  ,ISC      ,mb    ,4.5
"""
CALENDAR = """year;month;day;hour;minute;second;lat;lon;depth_m;ml
2015;2;28;23;59;59.25;45.5;10.25;12300;2.1
2015;2;29;00;00;00.00;45.5;10.25;12300;2.1
"""


def ingest(tmp_path: Path, body: str, name: str = "a.csv", **options: Any) -> Any:
    source, target = tmp_path / name, tmp_path / f"{name}-{len(options)}-survey"
    source.write_text(body)
    catalogue.ingest_source(str(source), str(target), catalogue.Options(**options), RUN)
    return open_survey(str(target))


def words(array: Any) -> list[str]:
    return [str(word) for word in array.values]


def faults(survey_url: Path) -> list[tuple[str, str]]:
    return [(fault.fault, fault.action) for fault in read_quality(str(survey_url))]


def test_columns_of_like_names_keep_their_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,latitude,longitude,a b,ab\n2020-01-01,1,2,3,4\n")
    catalogue.ingest_source(str(tmp_path / "a.csv"), str(tmp_path / "survey"), catalogue.Options(), RUN)
    survey = open_survey(str(tmp_path / "survey"))
    assert (survey["a_b"].values[0], survey["ab"].values[0]) == (3, 4)


def test_san_jacinto_catalogue_equals_pandas_and_comes_out_again(test_data: Path, tmp_path: Path) -> None:
    import pandas

    source = test_data / "earthquake/catalogs/SanJac_catalog.csv"
    summary = catalogue.ingest_source(str(source), str(tmp_path / "survey"), catalogue.Options(), RUN)
    table = pandas.read_csv(source)
    table["time"] = pandas.to_datetime(table["time"], format="ISO8601")
    table = table.sort_values("time", kind="stable")
    survey = open_survey(str(tmp_path / "survey"))
    assert summary["events"] == survey.sizes["event"] == len(table) == 21291
    np.testing.assert_array_equal(survey["time"].values, table["time"].to_numpy("datetime64[ns]"))
    for name in ("latitude", "longitude", "magnitude", "x", "y"):
        np.testing.assert_array_equal(survey[name].values, table[name].to_numpy())
    assert words(survey["event_id"]) == table["index"].astype(str).tolist()
    assert np.isnan(survey["depth_km"].values).all()
    assert verify_ingested(str(tmp_path / "survey")).findings == ()
    told = inspect_survey(str(tmp_path / "survey"))
    assert told["suspicious"][0] == "no event has a depth" and told["magnitude_of_completeness"] == 1.0
    assert "no event has a depth" in render_text(told) and "complete above  magnitude 1" in render_text(told)

    for suffix, read in (("parquet", pandas.read_parquet), ("csv", pandas.read_csv)):
        target = tmp_path / f"out.{suffix}"
        export_catalogue(str(tmp_path / "survey"), str(target))
        out = read(target)
        times = pandas.to_datetime(out["time"], utc=True).dt.tz_localize(None).to_numpy("datetime64[ns]")
        np.testing.assert_array_equal(times, survey["time"].values)
        for name in ("latitude", "longitude", "magnitude", "x"):
            np.testing.assert_array_equal(out[name].to_numpy(), survey[name].values)
    with pytest.raises(UsageError, match="there already"):
        export_catalogue(str(tmp_path / "survey"), str(tmp_path / "out.csv"))


def test_usgs_table(tmp_path: Path) -> None:
    survey = ingest(tmp_path, USGS)
    np.testing.assert_array_equal(survey["time"].values[0], np.datetime64("2020-01-01T00:00:00", "ns"))
    assert words(survey["event_id"]) == ["us002", "nn001"]
    assert survey["longitude"].values.tolist() == [-178.5, -117.9]
    assert np.isnan(survey["magnitude"].values[0]) and words(survey["magnitude_type"])[1] == "ml"
    assert survey["azimuthal_gap_deg"].values[1] == 85 and survey["nst"].values[1] == 20
    assert any("longitudes above 180" in warning for warning in survey.attrs["geobatch"]["warnings"])


def test_aligned_scedc_table_with_second_sixty(tmp_path: Path) -> None:
    survey = ingest(tmp_path, SCEDC, "a.txt")
    assert survey["time"].values[1] == np.datetime64("2019-01-01T00:32:00", "ns")
    assert survey["depth_km"].values.tolist() == [4.6, -0.9] and survey["magnitude"].values.tolist() == [1.0, 1.45]
    assert words(survey["event_type"]) == ["eq", "qb"]
    assert faults(tmp_path / "a.txt-0-survey") == [
        ("second 60 in '2019/01/01 00:31:60.00'", "taken as the next second")
    ]


def test_isc_table_with_preamble_and_calendar_columns(tmp_path: Path) -> None:
    survey = ingest(tmp_path, ISC)
    assert survey["time"].values[0] == np.datetime64("2000-01-01T05:24:37.180", "ns")
    assert survey["magnitude"].values[0] == 4.5 and words(survey["event_id"])[0] == "16957810"
    survey = ingest(tmp_path, CALENDAR, "b.csv")
    assert survey["time"].values == np.datetime64("2015-02-28T23:59:59.250", "ns")
    assert survey["depth_km"].values == pytest.approx(12.3)
    assert faults(tmp_path / "b.csv-0-survey") == [("no origin time", "left out")]


def test_mapped_columns_offsets_and_epoch_seconds(tmp_path: Path) -> None:
    body = "OT,B,L,size\n2020-01-01T01:00:00+02:00,1,2,3\n"
    survey = ingest(tmp_path, body, columns={"time": "OT", "latitude": "B", "longitude": "L", "magnitude": "size"})
    assert survey["time"].values[0] == np.datetime64("2019-12-31T23:00:00", "ns")
    mixed = "time,lat,lon\n2020-01-01,1,2\n2020-01-02T00:00:00.123456789,1,2\n2020-01-01T00:00:00.5,1,2\n"
    times = ingest(tmp_path, mixed, "m.csv")["time"].values
    assert times[2] == np.datetime64("2020-01-02T00:00:00.123456789", "ns")
    with pytest.raises(UsageError, match="no column of longitude"):
        ingest(tmp_path, "time,lat,mag\n2020-01-01,1,2\n", "b.csv")
    with pytest.raises(UsageError, match="no such column"):
        ingest(tmp_path, body, "c.csv", columns={"time": "OTT", "latitude": "B", "longitude": "L"})
    survey = ingest(tmp_path, "time,lat,lon,mag\n1577836800.123456789,1,2,3\n", "d.csv")
    assert survey["time"].values[0] == np.datetime64("2020-01-01T00:00:00.123456789", "ns")


def test_duplicates_are_told_and_dropped_only_on_request(tmp_path: Path) -> None:
    body = "time,lat,lon,mag,id\n" + "2020-01-01T00:00:00,1,2,3,a\n" * 2 + "2020-01-02T00:00:00,1,2,3,b\n"
    assert ingest(tmp_path, body).sizes["event"] == 3
    assert [action for _, action in faults(tmp_path / "a.csv-0-survey")] == ["kept"]
    assert ingest(tmp_path, body, duplicates="drop").sizes["event"] == 2
    assert ingest(tmp_path, body, magnitude_type="ml", duplicates="drop")["magnitude_type"].values[0] == "ml"


def test_quakeml_goes_out_and_in_and_obspy_reads_the_same(tmp_path: Path) -> None:
    import obspy

    survey = ingest(tmp_path, USGS + "2020-05-05T05:05:05.123456Z,1.5,2.5,700.25,6.1,Mw,,,,x/ü 1,explosion\n")
    export_catalogue(str(tmp_path / "a.csv-0-survey"), str(tmp_path / "out.xml"))
    events = obspy.read_events(str(tmp_path / "out.xml"))
    assert len(events) == 3
    for number, event in enumerate(events):
        origin = event.preferred_origin()
        assert origin.time._ns == survey["time"].values[number].astype(np.int64)
        assert (origin.latitude, origin.longitude) == (
            survey["latitude"].values[number],
            survey["longitude"].values[number],
        )
        assert origin.depth == pytest.approx(survey["depth_km"].values[number] * 1e3)
    assert events[0].preferred_magnitude() is None and events[2].preferred_magnitude().mag == 6.1
    assert events[2].event_type == "explosion"
    catalogue.ingest_source(str(tmp_path / "out.xml"), str(tmp_path / "again"), catalogue.Options(), RUN)
    again = open_survey(str(tmp_path / "again"))
    np.testing.assert_array_equal(again["time"].values, survey["time"].values)
    for name in ("latitude", "longitude", "depth_km", "magnitude", "azimuthal_gap_deg", "rms_s"):
        np.testing.assert_allclose(again[name].values, survey[name].values, rtol=1e-12)
    export_catalogue(str(tmp_path / "again"), str(tmp_path / "twice.xml"))
    ids = [event.resource_id.id for event in obspy.read_events(str(tmp_path / "twice.xml"))]
    assert ids == [event.resource_id.id for event in events]


def test_obspys_own_examples_read_as_obspy_reads_them(tmp_path: Path) -> None:
    import obspy

    example = obspy.read_events()
    example.write(str(tmp_path / "a.xml"), format="QUAKEML")
    catalogue.ingest_source(str(tmp_path / "a.xml"), str(tmp_path / "survey"), catalogue.Options(), RUN)
    survey = open_survey(str(tmp_path / "survey"))
    ours = {str(name): n for n, name in enumerate(survey["event_id"].values)}
    assert len(ours) == len(example)
    for event in example:
        origin = event.preferred_origin() or event.origins[0]
        row = survey.isel(event=ours[event.resource_id.id])
        assert int(row["time"].values.astype("datetime64[ns]").astype(np.int64)) == origin.time._ns
        assert float(row["latitude"]) == origin.latitude
        assert float(row["magnitude"]) == (event.preferred_magnitude() or event.magnitudes[0]).mag


def test_catalogue_in_a_bucket(s3: str) -> None:
    open_storage(s3).put("raw/a.csv", USGS.encode())
    options = parse_options("catalogue", {})
    summary = catalogue.ingest_source(f"{s3}/raw/a.csv", f"{s3}/survey", options, RUN)  # type: ignore[arg-type]
    assert summary["events"] == 2
    assert export_catalogue(f"{s3}/survey", f"{s3}/out.parquet")["events"] == 2
    again = catalogue.ingest_source(f"{s3}/raw/a.csv", f"{s3}/survey", options, RUN)  # type: ignore[arg-type]
    assert again["identity"] == summary["identity"]


def test_other_kinds_and_suffixes_are_refused(tmp_path: Path) -> None:
    ingest(tmp_path, USGS)
    with pytest.raises(UsageError, match="not written as that"):
        export_catalogue(str(tmp_path / "a.csv-0-survey"), str(tmp_path / "a.shp"))
    write_survey(str(tmp_path / "volume"), random_volume((4, 4, 8)))
    with pytest.raises(MismatchError, match="no catalogue"):
        export_catalogue(str(tmp_path / "volume"), str(tmp_path / "a.parquet"))
