"""What inspect says of surveys and files, against numbers known from their making."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from segy_files import amplitudes, write_segy

from geobatch.formats import ingest
from geobatch.formats.seismic_inspect import LEVELS
from geobatch.inspect import inspect_survey, render_text
from geobatch.shards import ArraySpec, create_arrays, finish_group
from geobatch.survey import VOLUME_AXES


@pytest.fixture
def survey(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A SEG-Y file, ingested, with a dead line, a dead trace and a missing one."""
    values = amplitudes((6, 7, 30))
    values[2], values[0, 3] = 0, 0
    keep = np.ones((6, 7), bool)
    keep[5, 6] = False
    path = write_segy(tmp_path / "a.sgy", values, keep=keep)
    ingest(str(path), str(tmp_path / "survey"), chunk=(4, 4, 8), shard=(4, 8, 16), crs="EPSG:23031")
    return path, values[keep & (values != 0).any(axis=2)]


def test_figures_are_those_of_the_live_samples(survey: tuple[Path, np.ndarray]) -> None:
    path, live = survey
    info = inspect_survey(str(path.with_name("survey")))
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert info["axes"]["inline"] == {"count": 6, "first": 100, "last": 105, "step": 1, "unit": ""}
    assert info["axes"]["sample"] == {"count": 30, "first": 0.0, "last": 116.0, "step": 4.0, "unit": "ms"}
    assert info["bin_grid"]["inline_spacing_m"] == pytest.approx(25, abs=0.05)
    found = info["distribution"]
    assert found["rms"] == pytest.approx(np.sqrt((live.astype(float) ** 2).mean()))
    np.testing.assert_allclose(list(found["percentiles"].values()), np.percentile(live.astype(float), LEVELS))
    assert info["traces"]["dead_traces"] == 8
    assert info["traces"]["missing_traces"] == 1
    assert info["traces"]["empty_inlines"] == [102]
    assert [100, 303] in info["traces"]["dead_examples"]


def test_file_is_described_as_its_survey_is(survey: tuple[Path, np.ndarray]) -> None:
    path, _ = survey
    of_file, of_survey = inspect_survey(str(path)), inspect_survey(str(path.with_name("survey")))
    json.dumps(of_file, allow_nan=False)
    for key in ("axes", "domain", "bin_grid", "quantity", "evidence", "suspicious"):
        assert of_file[key] == of_survey[key]


def test_suspicious_things_come_first_in_the_text(survey: tuple[Path, np.ndarray]) -> None:
    path, _ = survey
    info = inspect_survey(str(path.with_name("survey")))
    assert [s for s in info["suspicious"] if "8 of 41 traces are dead (19.5%)" in s]
    assert [s for s in info["suspicious"] if "1 of 42 positions have no trace" in s]
    lines = render_text(info).splitlines()
    assert all(line.startswith("! ") for line in lines[1 : 1 + len(info["suspicious"])])
    assert any(line.split() == ["crs", "EPSG:23031"] for line in lines)


def test_spike_and_coordinates_off_the_grid_are_suspicious(tmp_path: Path) -> None:
    values = amplitudes((6, 40, 200)) / 1000
    values[3, 3, 3] = 1e6
    path = write_segy(tmp_path / "a.sgy", values)
    raw = bytearray(path.read_bytes())
    for trace in range(0, 240, 2):
        raw[3600 + trace * 1040 + 183] ^= 0xFF
        raw[3600 + trace * 1040 + 182] ^= 0x0F
    path.write_bytes(raw)
    suspicious = inspect_survey(str(path))["suspicious"]
    assert any("times the standard deviation" in sentence for sentence in suspicious)
    assert any("leave a regular grid" in sentence for sentence in suspicious)


def test_classes_are_counted(tmp_path: Path) -> None:
    classes = np.array([0, 1, 1, 255], np.uint8).reshape(1, 2, 2)
    flags = {"flag_values": [0, 1, 255], "flag_meanings": "other fault invalid"}
    axes = {axis: np.arange(n) for axis, n in zip(VOLUME_AXES, classes.shape, strict=True)}
    specs = [ArraySpec("class_map", VOLUME_AXES, classes.shape, "uint8", (1, 1, 2), (1, 1, 2), 255, flags)]
    specs += [ArraySpec.small(axis, (axis,), values) for axis, values in axes.items()]
    create_arrays(str(tmp_path), specs, {"class_map": classes, **axes})
    finish_group(str(tmp_path), specs, {"geobatch": {"schema": 1, "kind": "labels", "state": "running"}})
    info = inspect_survey(str(tmp_path))
    assert info["classes"] == {"other": 1, "fault": 2, "invalid": 1}
    assert info["suspicious"] == ["state is running, not complete"]
    assert "2 voxels" in render_text(info)
