"""The page of inspect: what its pictures show is what is in the data, and it is one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniseed_files import counts, trace, write
from PIL import Image
from segy_files import amplitudes, random_traces, raw_segy, write_segy
from zarr.abc.store import RangeByteRequest

from geobatch import cli, sample
from geobatch.formats import ingest, ingest_job, seismic_inspect, waveform_sample
from geobatch.formats.spec import IngestJob, Inspected
from geobatch.formats.waveform_sample import read_availability
from geobatch.inspect import inspect_survey, look, render_text, write_page
from geobatch.report.figures import Panel
from geobatch.report.panels import TRACE_STYLES
from geobatch.report.quality import picture_groups
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.storage import open_storage
from geobatch.storage.chunks import VerifiedStore
from geobatch.survey import VOLUME_AXES

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def page_of(url: Path | str, folder: Path, **options: Any) -> str:
    found = look(str(url), **options)
    page = Path(write_page(found, str(folder / "page.html"))).read_text()
    assert_alone(page)
    return page


class Tags(HTMLParser):
    """The tags of a page and what their attributes hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attributes]


def assert_alone(page: str) -> None:
    """Nothing is loaded, nothing runs."""
    assert "default-src 'none'" in page
    found = Tags(page)
    assert not found.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "action", "data")]
    links = [value for name, value in found.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith("data:image/webp;base64,") for link in links)
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#nodata"} and "@import" not in page


def panels_of(found: Inspected) -> dict[str, Panel]:
    return {panel.title: panel for group in picture_groups(found) for panel in group.panels}


def pixels(panel: Panel) -> np.ndarray:
    """The cells of a panel, `(row, column, rgba)`."""
    raw = base64.b64decode(panel.picture.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGBA"))


def color_of(name: str) -> list[int]:
    (style,) = [style for style in TRACE_STYLES if style.name == name]
    return [*bytes.fromhex(style.color[1:]), 255]


def rectangles(panel: Panel, color: str) -> np.ndarray:
    """Left, bottom, right and top of the areas of one colour, in view units."""
    paths = [mark.path for mark in panel.marks if mark.filled and mark.color == color]
    number = r"(-?[\d.]+)"
    found = [re.findall(rf"M{number} {number}H{number}V{number}H", path) for path in paths]
    return np.array([part for parts in found for part in parts], float).reshape(-1, 4)


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A SEG-Y file with a dead line, a dead trace, a missing one and two clipped ones; which are dead and missing."""
    values = amplitudes((12, 9, 60))
    values[4], values[0, 3] = 0, 0
    for place in ((7, 2), (9, 5)):
        limit = np.abs(values[place]).max() / 2
        values[place] = np.clip(values[place], -limit, limit)
        values[place][10:14] = limit
    keep = np.ones((12, 9), bool)
    keep[11, 8] = False
    path = write_segy(tmp_path / "a.sgy", values, keep=keep)
    return path, (values == 0).all(axis=2), ~keep


@pytest.mark.parametrize("ingested", [False, True])
def test_map_shows_dead_missing_and_clipped_traces_where_they_are(
    damaged: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, ingested: bool
) -> None:
    path, dead, missing = damaged
    if ingested:
        ingest(str(path), str(tmp_path / "survey"), chunk=(4, 4, 8), shard=(4, 8, 16))
        path = tmp_path / "survey"
    found = look(str(path))
    panel = panels_of(found)["Traces"]
    # Inlines grow upwards.
    shown = pixels(panel)[::-1]
    np.testing.assert_array_equal((shown == color_of("dead")).all(axis=2), dead)
    np.testing.assert_array_equal(shown[..., 3] == 0, missing)
    np.testing.assert_array_equal((shown == color_of("live")).all(axis=2), ~dead & ~missing)
    assert found.told["sample"] == {"traces": 97, "of": 97, "text": "all 97 live traces", "clipped": 2}
    (dots,) = panel.marks
    places = [tuple(map(float, place)) for place in re.findall(r"M([\d.]+) ([\d.]+)h0", dots.path)]
    frame = panel.frame
    cells = [((x - frame.left) / frame.width * 9, 12 - (y - frame.top) / frame.height * 12) for x, y in places]
    assert sorted((int(inline), int(crossline)) for crossline, inline in cells) == [(7, 2), (9, 5)]
    assert "2 of them clipped at their own extreme" in render_text(found.told)
    page = page_of(path, tmp_path)
    assert page.index("10 of 107 traces are dead (9.3%)") < page.index("What is in it") < page.index("<h3>Traces</h3>")


def test_sections_hold_the_amplitudes_and_hatch_what_is_dead(
    damaged: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    path, dead, missing = damaged
    panels = panels_of(look(str(path)))
    assert {"Inline 106", "Crossline 304", "Time slice at 120 ms"} <= set(panels)
    crossline = pixels(panels["Crossline 304"])
    assert crossline.shape[:2] == (60, 12)
    np.testing.assert_array_equal((crossline[..., 3] == 0).all(axis=0), dead[:, 4])
    time_slice = pixels(panels["Time slice at 120 ms"])[::-1]
    np.testing.assert_array_equal(time_slice[..., 3] == 0, dead | missing)


def test_spectrum_of_a_known_sine_stands_in_figures_and_picture(tmp_path: Path) -> None:
    time = np.arange(500) * 0.004
    values = np.sin(2 * np.pi * 30 * time) + 0.05 * np.random.default_rng(0).normal(size=(5, 6, 500))
    path = write_segy(tmp_path / "a.sgy", values.astype(np.float32), code=5)
    found = look(str(path))
    assert found.told["spectrum"]["dominant"] == pytest.approx(30, abs=0.5)
    assert "dominant 30" in render_text(found.told)
    panel = panels_of(found)["Mean spectrum"]
    (curve,) = [mark for mark in panel.marks if mark.path.startswith("M") and "L" in mark.path]
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", curve.path), float)
    peak = points[points[:, 1].argmin(), 0]
    assert (peak - panel.frame.left) / panel.frame.width * 125 == pytest.approx(30, abs=0.5)


def test_hum_is_suspicious_in_a_page(tmp_path: Path) -> None:
    time = np.arange(1000) * 0.004
    generator = np.random.default_rng(0)
    smooth = np.cumsum(generator.normal(size=(4, 5, 1000)), axis=2)
    values = smooth - smooth.mean(axis=2, keepdims=True) + 5 * np.sin(2 * np.pi * 50 * time)
    page = page_of(write_segy(tmp_path / "a.sgy", values.astype(np.float32), code=5), tmp_path)
    assert page.index("a narrow peak at 50 Hz: mains hum?") < page.index("What is in it")


def test_gathers_show_their_fold(tmp_path: Path) -> None:
    inline, crossline = np.repeat([1, 2, 3, 4], 12), np.tile(np.repeat([5, 6, 7], 4), 4)
    offset = np.tile([100, 200, 300, 400], 12)
    keep = ~((inline == 2) & (crossline == 6) & (offset > 100))
    fields = {
        189: inline[keep],
        193: crossline[keep],
        37: offset[keep],
        181: 100 * inline[keep],
        185: 50 * crossline[keep],
    }
    path = raw_segy(
        tmp_path / "a.sgy", random_traces(*[40] * int(keep.sum())), fields={k: v.tolist() for k, v in fields.items()}
    )
    found = look(str(path))
    assert found.told["fold"] == {"min": 1, "median": 4.0, "max": 4, "empty_bins": 0}
    panels = panels_of(found)
    fold = pixels(panels["Fold"])[::-1]
    odd = np.argwhere((fold != fold[0, 0]).any(axis=2))
    assert odd.tolist() == [[1, 1]]
    assert (panels["Fold"].bar.first, panels["Fold"].bar.last) == ("1", "4")  # type: ignore[union-attr]
    assert any(title.startswith("Gather at inline") for title in panels)
    page_of(path, tmp_path)


def test_single_traces_show_their_places_and_fold(tmp_path: Path) -> None:
    count = 24
    fields = {21: np.repeat(np.arange(8), 3).tolist(), 73: [100 * i for i in range(count)], 77: [7] * count}
    path = raw_segy(tmp_path / "a.sgy", random_traces(*[40] * count), fields=fields)
    found = look(str(path), options={"geometry": "traces"})
    assert found.told["ensembles"] == {"count": 8, "min": 3, "median": 3.0, "max": 3}
    panels = panels_of(found)
    (dots,) = panels["Positions"].marks
    assert dots.path.count("M") == count
    assert pixels(panels["Traces in their order"]).shape[:2] == (40, count)


@pytest.mark.parametrize("ingested", [False, True])
def test_gap_of_known_length_is_tabled_and_drawn(tmp_path: Path, ingested: bool) -> None:
    # 20 s, a gap of 10 s, 20 s; and a whole channel.
    write(tmp_path / "in/a", trace(counts(2000)), trace(counts(2000, 1), 30.0), trace(counts(5000, 2), channel="HHN"))
    url = tmp_path / "in"
    if ingested:
        ingest_job(
            IngestJob(
                job="ingest", source=str(url), output=str(tmp_path / "s"), format="miniseed", options={"chunk": 256}
            )
        )
        url = tmp_path / "s"
    found = look(str(url), format_name=None if ingested else "miniseed")
    (rate,) = found.told["rates"]
    availability = read_availability(found.dataset, rate, 0, 1)
    assert availability.exact and [gaps.tolist() for gaps in availability.gaps] == [[[2000, 3000]], [], [[0, 5000]]]
    text = render_text(found.told)
    assert "1 gaps (10 s), longest 10 s" in text
    panel = panels_of(found)["Availability"]
    drawn = rectangles(panel, "#d1495b")
    across = (drawn[:, [0, 2]] - panel.frame.left) / panel.frame.width
    np.testing.assert_allclose(across, np.tile([0.4, 0.6], (len(across), 1)), atol=0.001)
    # The first row, and no other.
    assert (drawn[:, 1] < panel.frame.top + panel.frame.height / 2).all()
    page = page_of(url, tmp_path, format_name=None if ingested else "miniseed")
    assert "1 gaps (10 s), longest 10 s" in page


def test_gaps_of_a_long_archive_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Recorded, missing and recorded thirds; 90 chunks, of which eight are read.
    write(tmp_path / "in/a", trace(counts(3000)), trace(counts(3000, 1), 60.0))
    found = look(str(tmp_path / "in"), format_name="miniseed", options={"chunk": 100, "shard": 100})
    monkeypatch.setattr(waveform_sample, "MOST_VALID_CHUNKS", 9)
    availability = read_availability(found.dataset, found.told["rates"][0], 0, 1)
    assert not availability.exact
    assert availability.gaps[0].tolist() == [[3000, 6000]]
    page = Path(write_page(found, str(tmp_path / "page.html"))).read_text()
    assert "One chunk stands for each part of the axis" in page


def test_hum_and_offset_of_waveforms_are_told_once_for_all_channels(tmp_path: Path) -> None:
    seconds = np.arange(20_000) / 200
    quiet = np.cumsum(np.random.default_rng(0).normal(size=20_000)) + 400 * np.sin(2 * np.pi * 50 * seconds) + 50_000
    channels = [trace(quiet.astype(np.int32), channel=name, rate=200.0) for name in ("HHZ", "HHN", "HHE")]
    write(tmp_path / "in/a", *channels)
    told = inspect_survey(str(tmp_path / "in"), format_name="miniseed")
    assert sum("mains hum" in sentence for sentence in told["suspicious"]) == 1
    assert sum("DC offset; likewise 2 more channels" in sentence for sentence in told["suspicious"]) == 1
    assert told["rates"][0]["channels"][0]["spectrum"]["dominant"] == pytest.approx(50, abs=0.1)


def test_raw_waveforms_open_as_the_survey_that_ingest_makes(tmp_path: Path) -> None:
    from geobatch.survey import open_survey

    write(
        tmp_path / "in/a", trace(counts(2000)), trace(counts(999, 1), 30.0), trace(counts(400, 2), 1.5, station="STB")
    )
    ingest_job(
        IngestJob(
            job="ingest",
            source=str(tmp_path / "in"),
            output=str(tmp_path / "s"),
            format="miniseed",
            options={"chunk": 300, "shard": 1200},
        )
    )
    raw, survey = (
        look(str(tmp_path / "in"), format_name="miniseed", options={"chunk": 300, "shard": 1200}).dataset,
        open_survey(str(tmp_path / "s")),
    )
    for name in ("waveform", "valid", "channel"):
        np.testing.assert_array_equal(raw[name].values, survey[name].values)
    np.testing.assert_array_equal(raw["waveform"][1, 0, 100:700:7].values, survey["waveform"][1, 0, 100:700:7].values)


@pytest.mark.parametrize("kind", ["volume", "gathers", "traces"])
def test_raw_segy_opens_as_the_survey_that_ingest_makes(tmp_path: Path, kind: str) -> None:
    from geobatch.survey import open_survey

    if kind == "volume":
        keep = np.random.default_rng(0).random((6, 7)) > 0.2
        path = write_segy(tmp_path / "a.sgy", amplitudes((6, 7, 30)), keep=keep, order="random")
    else:
        lines = {189: np.repeat([1, 2], 6).tolist(), 193: [5, 5, 6, 6, 7, 7] * 2, 37: [100, 200] * 6}
        path = raw_segy(tmp_path / "a.sgy", random_traces(*[20] * 12), fields=lines)
    options = {"geometry": "traces"} if kind == "traces" else {}
    ingest(str(path), str(tmp_path / "survey"), **options)
    raw, survey = look(str(path), options=options).dataset, open_survey(str(tmp_path / "survey"))
    assert survey.attrs["geobatch"]["kind"] == kind
    for name in ("amplitude", "live_mask", "cdp_x", "sample", "trace_index"):
        np.testing.assert_array_equal(raw[name].values, survey[name].values)
    np.testing.assert_array_equal(raw["amplitude"][..., 3:17:5].values, survey["amplitude"][..., 3:17:5].values)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((4, 5, 20)), text=HOSTILE)
    page = page_of(path, tmp_path, options={"crs": HOSTILE, "attribution": f"Somebody {HOSTILE}"})
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(1)") >= 3 and "<p>Somebody &lt;script&gt;" in page
    (tmp_path / "wells.csv").write_text(
        "well,depth (m),GR (gAPI)\n"
        + "".join(f"{HOSTILE},{1000 + i},{i}\n{HOSTILE[::-1]},{1000 + i},{i}\n" for i in range(20))
    )
    page = page_of(tmp_path / "wells.csv", tmp_path, format_name="logs")
    assert HOSTILE not in page and "&lt;script&gt;" in page


def test_hostile_colors_and_classes_are_text(tmp_path: Path) -> None:
    classes = np.zeros((3, 4, 5), np.uint8)
    classes[1], classes[2] = 1, 255
    flags = {"flag_values": [0, 1], "flag_meanings": "none </svg><script>x", "flag_colors": "#d9d9d9 url(https://evil)"}
    axes = {axis: np.arange(n) for axis, n in zip(VOLUME_AXES, classes.shape, strict=True)}
    specs = [ArraySpec("class_map", VOLUME_AXES, classes.shape, "uint8", (1, 2, 5), (1, 2, 5), 255, flags)]
    specs += [ArraySpec.small(axis, (axis,), values) for axis, values in axes.items()]
    create_arrays(str(tmp_path / "labels"), specs, {"class_map": classes, **axes})
    from geobatch.shards import encode_shard, shard_indices, shard_key, shard_region

    storage = open_storage(str(tmp_path / "labels"))
    for index in shard_indices(specs[0]):
        storage.put(shard_key(specs[0], index), encode_shard(specs[0], classes[shard_region(specs[0], index)]))
    finish_group(str(tmp_path / "labels"), specs, {"geobatch": {"schema": 1, "kind": "labels", "state": "complete"}})
    page = page_of(tmp_path / "labels", tmp_path)
    assert "evil" not in page and "&lt;/svg&gt;&lt;script&gt;" in page
    panel = panels_of(look(str(tmp_path / "labels")))["Crossline 2"]
    shown = pixels(panel)
    assert (shown[:, 2, 3] == 0).all() and (shown[:, 0] == [0xD9, 0xD9, 0xD9, 255]).all()


def test_command_writes_the_page_into_a_bucket(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = write_segy(tmp_path / "a.sgy", amplitudes((4, 5, 20)))
    # It must not end the test session's cluster.
    monkeypatch.setattr("geobatch.cluster.disconnect", lambda: None)
    monkeypatch.setattr(sys, "argv", ["geobatch", "inspect", str(path), "--html", f"{s3}/pages/a.html", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["sample"]["traces"] == 20
    page = open_storage(f"{s3}/pages").get("a.html").decode()
    assert_alone(page)
    assert "<h3>Mean spectrum</h3>" in page


REAL: dict[str, tuple[str, str | None, dict[str, Any], set[str]]] = {
    "volume": ("subsurface/segy/f3.sgy", None, {}, {"Traces", "Positions", "Inline 122", "Mean spectrum"}),
    "shots": ("subsurface/segy/viking_small.segy", None, {}, {"Positions", "Traces in their order"}),
    "line": ("subsurface/segy/volve10r12-full-twt-arb.sgy", None, {}, {"Positions", "Distribution"}),
    "depth": ("subsurface/segy/volve10-migvel-depth-sub3d.sgy", None, {}, {"Depth slice at 2260 m"}),
    "waveforms": ("earthquake/continuous_mseed/CEYT1.mseed", None, {}, {"Availability", "KO.CEYT..HHZ", "Spectra"}),
    "hdf5 windows": ("earthquake/seisbench_cx", "windows", {}, {"Magnitude", "Source depth"}),
    "npz windows": ("earthquake/ncedc_phasenet", "windows", {}, {"Time from P to S"}),
    "catalogue": ("earthquake/catalogs/SanJac_catalog.csv", "catalogue", {}, {"Epicentres", "Magnitude and frequency"}),
    "raster": ("landform/ecuador_landslides/ta.tif", None, {}, {"Band 4: elev"}),
    "classes": ("landform/zion_dem_nlcd/nlcd.tif", None, {}, {"Band 1: levels"}),
    "logs": ("subsurface/force2020_las", "las", {}, {"Curves of each well", "Wells on the map", "32/2-1"}),
    "array": ("subsurface/penobscot/Penobscot_Seabed.npy", None, {}, {"values", "Distribution"}),
}


@pytest.mark.parametrize("kind", REAL)
def test_real_source_makes_a_page(kind: str, test_data: Path, tmp_path: Path) -> None:
    place, format_name, options, titles = REAL[kind]
    page = page_of(test_data / place, tmp_path, format_name=format_name, options=options)
    assert titles <= {unescape(title) for title in re.findall(r"<h3>(.*?)</h3>", page)}
    assert len(page) < 2**20


@pytest.mark.parametrize("kind", ["volume", "hdf5 windows", "catalogue", "classes", "logs", "array"])
def test_survey_of_a_real_source_makes_the_page_of_its_source(kind: str, test_data: Path, tmp_path: Path) -> None:
    place, format_name, options, titles = REAL[kind]
    if kind == "array":
        options, titles = (
            {"dims": ["inline", "crossline"], "axes": {"sample": {"unit": "ms"}}},
            {"Traces", "Time slice at 0 ms"},
        )
    job = IngestJob(
        job="ingest", source=str(test_data / place), output=str(tmp_path / "s"), format=format_name, options=options
    )
    ingest_job(job)
    page = page_of(tmp_path / "s", tmp_path)
    assert titles <= {unescape(title) for title in re.findall(r"<h3>(.*?)</h3>", page)}


def test_text_of_a_survey_states_its_sample(damaged: tuple[Path, np.ndarray, np.ndarray]) -> None:
    told = inspect_survey(str(damaged[0]))
    assert told["distribution"]["percentiles_of"] == "all 97 live traces"
    assert "sampled" in render_text(told)


def test_page_of_a_survey_reads_few_chunks_whatever_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    ingest(
        str(write_segy(tmp_path / "a.sgy", values, code=5)), str(tmp_path / "s"), chunk=(8, 8, 8), shard=(16, 16, 16)
    )
    read: list[tuple[str, Any]] = []
    get = VerifiedStore.get

    async def counted(self: VerifiedStore, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await get(self, key, prototype, byte_range)
        # Ranges from the end are the index of a shard; all others are one chunk each.
        if key.startswith("amplitude/c/"):
            read.append((key, byte_range))
        return found

    monkeypatch.setattr(VerifiedStore, "get", counted)
    monkeypatch.setattr(seismic_inspect, "EXACT_BYTES", 0)
    for name, value in {"SMALL_BYTES": 0, "SAMPLE_BYTES": 0, "MOST_TRACES": 64, "PLANE_CHUNKS": 16}.items():
        monkeypatch.setattr(sample, name, value)
    found = look(str(tmp_path / "s"))
    assert found.told["sample"]["traces"] == 64
    assert "64 of 4,096 live traces" in found.told["distribution"]["percentiles_of"]
    # Four columns of eight chunks each, of 512 chunks in all.
    chunks = [part for part in read if isinstance(part[1], RangeByteRequest)]
    assert len(chunks) == 4 * 8
    write_page(found, str(tmp_path / "page.html"))
    chunks = [part for part in read if isinstance(part[1], RangeByteRequest)]
    assert len(chunks) <= 4 * 8 + 3 * 16
    assert len({key for key, _ in read}) <= 4 * 4 + 3 * 16
