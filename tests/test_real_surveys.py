"""Real files through the whole line with the bundle that the demo trains (tests/data/synthetic_bundle)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import segyio

from geobatch.errors import MismatchError
from geobatch.formats import ingest
from geobatch.formats.segy_export import export_segy
from geobatch.job import load_job, run_job
from geobatch.report import write_report
from geobatch.survey import open_survey

BUNDLE = Path(__file__).parent / "data" / "synthetic_bundle"
JOB = Path(__file__).parent.parent / "jobs" / "score_synthetic.yaml"


def score_real(raw: Path, folder: Path) -> None:
    ingest(str(raw), str(folder / "survey"))
    places = {"survey": folder / "survey", "bundle": BUNDLE, "output": folder / "scored"}
    overrides = [f"{key}={value}" for key, value in places.items()]
    run_job(load_job(str(JOB), [*overrides, "resources.replicas=1", "resources.cpus=0.5"]))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("segy/f3.sgy", (23, 18, 75)),
        ("segy/f3-ebcidctest.sgy", (2, 100, 463)),
        ("penobscot/penobscot_xl1155.sgy", (601, 1, 1501)),
    ],
)
def test_real_survey_is_scored_exported_and_pictured(
    test_data: Path, tmp_path: Path, name: str, shape: tuple[int, int, int]
) -> None:
    raw = test_data / "subsurface" / name
    score_real(raw, tmp_path)
    scored = open_survey(str(tmp_path / "scored"))
    assert scored["class_map"].shape == shape
    live = open_survey(str(tmp_path / "survey"))["live_mask"].values
    np.testing.assert_array_equal((scored["class_map"].values != 255).any(axis=2), live)
    export_segy(str(tmp_path / "scored"), str(tmp_path / "faults.sgy"), variable="probability:fault")
    with (
        segyio.open(tmp_path / "faults.sgy", ignore_geometry=True) as exported,
        segyio.open(raw, ignore_geometry=True) as source,
    ):
        assert exported.tracecount == source.tracecount
        fault = scored["probability"].sel({"class": 3}).values
        indices = open_survey(str(tmp_path / "survey"))["trace_index"].values
        for trace in range(0, source.tracecount, 37):
            (inline,), (crossline,) = np.nonzero(indices == trace)
            expected = np.nan_to_num(fault[inline, crossline], nan=-1)
            np.testing.assert_allclose(exported.trace[trace], expected, atol=1e-6)
            assert exported.header[trace][189] == source.header[trace][189]
    page = Path(write_report(str(tmp_path / "scored"), tmp_path / "report.html")).read_text()
    assert page.count("<svg") >= 1


@pytest.mark.usefixtures("ray_cluster")
def test_velocity_cube_in_depth_is_refused_with_the_reason(test_data: Path, tmp_path: Path) -> None:
    raw = test_data / "subsurface" / "segy" / "volve10-migvel-depth-sub3d.sgy"
    with pytest.raises(MismatchError, match=r"found velocity in depth \(m\); expected amplitude in time \(ms\)"):
        score_real(raw, tmp_path)
    info = open_survey(str(tmp_path / "survey")).attrs["geobatch"]
    assert (info["quantity"], info["domain"], info["sample_interval"], info["sample_unit"]) == (
        "velocity",
        "depth",
        20.0,
        "m",
    )
    assert not (tmp_path / "scored").exists()
