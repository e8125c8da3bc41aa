"""C1 with steps that need whole axes: what blocks see of a prepared survey is the survey prepared in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surveys import CLASSES, random_volume, strong_network, write_survey

from geobatch.job import parse_job
from geobatch.models.bundle import DataDescription, load_bundle, make_bundle, save_bundle
from geobatch.online import regions
from geobatch.online.engine import Engine
from geobatch.online.memory import Budget
from geobatch.online.regions import RegionRequest, Regions
from geobatch.plan import GIB
from geobatch.preprocess import Chain, prepare, read_region
from geobatch.score.planning import forecast_score, make_plan, open_inputs
from geobatch.score.predictor import build_predictor
from geobatch.score.spec import ScoreJob
from geobatch.survey import VOLUME_AXES, open_survey, valid_volume

SHAPE = (40, 37, 90)
STEPS: list[dict[str, Any]] = [
    {"step": "fill", "method": "interpolate", "along": "crossline", "max_gap_traces": 2},
    {"step": "bandpass", "low_hz": 5, "high_hz": 60},
    {"step": "agc", "window_ms": 60},
    {"step": "scale", "method": "standard"},
]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    places = {name: str(tmp_path / name) for name in ("survey", "bundle", "output")}
    write_survey(places["survey"], random_volume(SHAPE))
    chain = Chain.model_validate(STEPS).fit(valid_volume(open_survey(places["survey"])))
    bundle = make_bundle(
        name="filtered",
        network=strong_network(),
        model={"name": "unet", "classes": len(CLASSES), "channels": 4, "levels": 2},
        axes=VOLUME_AXES,
        stride=(2, 2, 2),
        classes=CLASSES,
        chain=chain,
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    save_bundle(places["bundle"], bundle)
    return places


def job(places: dict[str, str], **keys: Any) -> ScoreJob:
    defaults = {"statistics": "bundle", "shard": [32, 32, 32], "chunk": [16, 16, 16], "probabilities": "uint8"}
    parsed = parse_job({"job": "score", **places, **defaults, **keys})
    assert isinstance(parsed, ScoreJob)
    return parsed


def test_blocks_of_a_filtered_survey_equal_the_whole(places: dict[str, str]) -> None:
    inputs = open_inputs(job(places))
    plan = make_plan(inputs)
    assert plan.grid.reach == ((0, 0), (2, 2), (90, 90))
    assert plan.grid.longest_read()[2] == 90
    assert any("reads sample whole for each of the 3 blocks" in warning for warning in inputs.warnings)
    volume, chain = inputs.volume, plan.chain
    whole = chain.apply(volume.chunk()).values
    predictor = build_predictor(plan, inputs.bundle.network())
    everything = predictor.predict(whole, plan.grid.patches(tuple(slice(0, n) for n in SHAPE)), (0, 0, 0)).class_map
    for index in plan.grid.indices():
        block = plan.grid.block(index)
        assert block.read[2] == slice(0, 90)
        seen = plan.grid.seen(block.write)
        values = prepare(read_region(volume, chain, seen), chain)
        np.testing.assert_array_equal(values.view("u4"), whole[seen].view("u4"))
        found = predictor.predict(values, plan.grid.patches(block.write), [cells.start for cells in seen]).class_map
        np.testing.assert_array_equal(found, everything[block.write])


def test_regions_served_online_are_read_in_pieces_that_memory_holds(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(load_bundle(places["bundle"]), Budget(70_000, 100_000), device="cpu", threads=1)
    request = RegionRequest(survey=places["survey"], inline=(120, 160), statistics="bundle")
    served = Regions(engine, [places["survey"]], max_voxels=10**6)
    whole = served.predict(served.plan(request, "none")).class_map
    monkeypatch.setattr(regions, "READ_CELLS", 70_000)
    monkeypatch.setattr(regions, "require_voxels", lambda *given: None)
    small = Regions(engine, [places["survey"]], max_voxels=70_000)
    work = small.plan(request, "none")
    assert len(work.pieces) > 1
    read = [read_region(work.cropped, work.chain, regions._hull([p.see for p in piece])) for piece in work.pieces]
    assert max(part.values.size for part in read) <= 70_000
    np.testing.assert_array_equal(small.predict(work).class_map, whole)


def test_memory_of_whole_axes_is_projected(places: dict[str, str]) -> None:
    told = forecast_score(job(places))
    grid = make_plan(open_inputs(job(places))).grid
    read = np.prod(grid.longest_read()) * 4 * 4
    assert told["memory_per_replica"]["by_cause"].startswith("worker")
    assert told["memory_per_replica"]["projected_gib"] > read / GIB
    assert f"prepared input {read / GIB:.2f}" in told["memory_per_replica"]["by_cause"]


def test_bundle_statistics_on_another_sample_interval_keep_hz_and_ms(places: dict[str, str], tmp_path: Path) -> None:
    fine = str(tmp_path / "fine")
    write_survey(fine, random_volume(SHAPE))
    survey = open_survey(fine)
    survey = survey.assign_coords(sample=survey["sample"] / 2)
    chain = load_bundle(places["bundle"]).spec.chain
    again = chain.sampled(valid_volume(survey))
    assert (chain.halo["sample"], again.halo["sample"]) == ((8, 8), (15, 15))
    assert again.steps[3] == chain.steps[3]
