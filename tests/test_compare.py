"""Leaving one well out: nothing of the blind well is known, what is done is kept, and the figures are right."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from wells import DEPTHS, wells_data, write_wells

from geobatch.errors import UsageError
from geobatch.formats import IngestJob, ingest_job
from geobatch.job import load_job, parse_job
from geobatch.models.bundle import load_bundle
from geobatch.storage import open_storage
from geobatch.survey import open_survey
from geobatch.train.blind import Blind
from geobatch.train.compare import compare
from geobatch.train.compare_choice import choices, every_fold, gathered, parts_of
from geobatch.train.compare_spec import CompareJob
from geobatch.train.compare_wells import paired_bootstrap, well_measure
from geobatch.train.spec import TrainJob
from geobatch.train.train import train
from geobatch.train.wells import WellsTask

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> str:
    return write_wells(tmp_path_factory.mktemp("wells"))


def job(survey: str, output: str, **changes: Any) -> CompareJob:
    document = {
        "job": "compare",
        "data": wells_data(survey),
        "candidates": {
            "trees": {"model": {"name": "boosting", "iterations": 20, "around": 2}},
            "cnn": {"model": {"name": "cnn", "channels": 8, "stages": 2}, "seeds": 2},
            "both": {"mean_of": ["trees", "cnn"]},
        },
        "training": {"patch": [40], "batch": 8, "steps_per_epoch": 30, "epochs": 1, "learning_rate": 0.01},
        "output": output,
        "resources": {"workers": 2},
        **changes,
    }
    found = parse_job(document)
    assert isinstance(found, CompareJob)
    return found


def test_candidates_are_judged_by_wells_they_have_not_seen_and_what_is_done_is_kept(survey: str, s3: str) -> None:
    told: list[int] = []
    result = compare(job(survey, s3), lambda done, total: told.append(total))
    assert result["wells"] == ["A", "B", "C"] and result["classes"] == ["low", "high"]
    assert told == [9] * 9
    for figures in result["candidates"].values():
        assert figures["mean_accuracy"] == pytest.approx(np.mean(list(figures["wells"].values())), abs=1e-4)
        assert figures["mean_accuracy"] > 0.85, figures
    assert result["candidates"]["cnn"]["pooled"]["voxels"] == 3 * (DEPTHS - 2)
    stored = {key for key, _ in open_storage(s3).list("folds")}
    assert len(stored) == 9
    versions = {key: open_storage(s3).version(key) for key in stored}
    more = {
        **job(survey, s3).model_dump(exclude_unset=True)["candidates"],
        "rnn": {"model": {"name": "rnn", "hidden": 4}},
    }
    again = compare(job(survey, s3, candidates=more, wells=["A", "B", "C"]))
    assert {k: v for k, v in again["candidates"].items() if k != "rnn"} == result["candidates"]
    assert {key: open_storage(s3).version(key) for key in stored} == versions
    assert len({key for key, _ in open_storage(s3).list("folds")}) == 12


def test_nothing_of_a_blind_well_decides_how_it_is_prepared(survey: str, tmp_path: Path, ray_cluster: None) -> None:
    louder = write_wells(tmp_path / "louder", blind_factor=1000.0)
    fitted = [
        WellsTask(job(url, "x").fold("cnn", (well,), 0)).fit()["curves"]
        for url, well in ((survey, "C"), (louder, "C"), (louder, "A"))
    ]
    assert fitted[0] == fitted[1]
    assert fitted[1]["deviation"][0] < 0.1 * fitted[2]["deviation"][0]


def test_missing_curves_get_a_mask_or_drop_their_depths(survey: str) -> None:
    source = {}
    for missing in ("median", "regression", "zero", "drop"):
        fold = job(survey, "x", data=wells_data(survey, curves={"curves": ["GR", "LATE"], "missing": missing})).fold(
            "cnn", ("B",), 0
        )
        task = WellsTask(fold)
        fitted = task.fit()
        source[missing] = task.source(fitted)
        assert task.in_channels(fitted) == (2 if missing == "drop" else 3)
    well = {name: found.training[0] for name, found in source.items()}
    late = open_survey(survey)["LATE"].sel(well="A").values
    late = late[np.isfinite(open_survey(survey)["GR"].sel(well="A").values)]
    for missing in ("median", "regression", "zero"):
        np.testing.assert_array_equal(well[missing].values[2], np.isfinite(late))
    assert (well["zero"].values[1][~np.isfinite(late)] == 0).all()
    assert well["drop"].labels.size == np.isfinite(late).sum() < well["zero"].labels.size


def test_window_is_decided_by_its_key_and_short_wells_are_padded(survey: str) -> None:
    fold = job(survey, "x", training={"patch": [500], "augment": {"noise": 0, "gain": 0}}).fold("cnn", ("B",), 0)
    task = WellsTask(fold)
    source = task.source(task.fit())
    first, same, other = (source.draw((1, 2, 3, item)) for item in (4, 4, 5))
    np.testing.assert_array_equal(first.inputs, same.inputs)
    assert first.inputs.shape == (4, 500) and first.length == DEPTHS - 2 < 500
    assert (first.labels[first.length :] == 255).all() and (first.inputs[:, first.length :] == 0).all()
    assert not np.array_equal(first.inputs, other.inputs) or np.array_equal(first.labels, other.labels)


def test_curve_that_counts_as_missing_looks_as_if_it_were(survey: str) -> None:
    curves = {"curves": ["GR", "LATE"], "missing": "median"}
    training = {"patch": [40], "augment": {"noise": 0, "gain": 0, "missing": 0.5}}
    fold = job(survey, "x", data=wells_data(survey, curves=curves), training=training).fold("cnn", ("C",), 0)
    task = WellsTask(fold)
    fitted = task.fit()
    source = task.source(fitted)
    by_well = {well.name: well.values for well in source.training}
    unknown = by_well["A"][1][by_well["A"][2] == 0]
    assert unknown.size > 70 and np.ptp(unknown) == 0
    drawn = [source.draw((0, 0, item)).inputs for item in range(200)]
    gone = [inputs for inputs in drawn if not inputs[2].any()]
    assert 60 < len(gone) < 140
    for inputs in gone:
        np.testing.assert_allclose(inputs[1], unknown[0], rtol=1e-5)
        assert inputs[0].std() > 0


def test_training_on_wells_ends_in_a_bundle_that_knows_its_curves(survey: str, s3: str) -> None:
    document = {
        "job": "train",
        "data": [wells_data(survey)],
        "validation": {"wells": ["B"]},
        "model": {"name": "rnn", "hidden": 8, "layers": 1},
        "training": {"patch": [40], "batch": 8, "steps_per_epoch": 30, "epochs": 2, "learning_rate": 0.02},
        "output": s3,
    }
    spec = load_bundle(train(TrainJob.model_validate(document))).spec
    assert spec.axes == ("depth",) and spec.reach.unbounded == (0,)
    assert spec.curves is not None and spec.curves.masked == ("LATE",) and spec.window == 40
    assert spec.in_channels == 4
    assert spec.metrics["validation"]["pixel_accuracy"] > 0.8
    with pytest.raises(UsageError, match="another run"):
        train(TrainJob.model_validate({**document, "validation": {"wells": ["A"]}}))


def test_what_is_chosen_for_a_well_is_best_without_it(survey: str) -> None:
    wells = ["A", "B", "C", "D", "E", "F"]
    trees = {"model": {"name": "boosting"}}
    candidates = {"first": trees, "second": trees, "both": {"mean_of": ["first", "second"]}}
    candidates["best"] = {"choose_of": ["first", "second"]}
    asked = job(survey, "x", candidates=candidates, parts=3)
    folds = [(well,) for well in wells]
    assert parts_of(asked, folds) == [("A", "D"), ("B", "E"), ("C", "F")]
    models = every_fold(asked, folds)
    assert len(models) == 2 * (6 + 3)

    def answer(shares: dict[str, float], held_out: tuple[str, ...]) -> Blind:
        """Answers that are right for so large a share of the depths of each well, and the surer the more."""
        right = np.repeat([shares[well] for well in held_out], 100)
        given = np.where(np.tile(np.arange(100), len(held_out)) < 100 * right, 1, 0)
        sure = np.where(np.arange(2)[:, None] == given, 0.5 + right / 2, 0.5 - right / 2).astype(np.float32)
        places = np.tile(np.arange(100.0), len(held_out))
        return Blind(sure, np.ones(len(right), np.uint8), places, np.repeat(held_out, 100))

    def chosen(share: dict[str, dict[str, float]]) -> tuple[dict[str, str], dict[str, list[Blind]]]:
        found = {model: answer(share[model.candidate], model.held_out) for model in models}
        taken = choices(asked, folds, found, partial(well_measure, asked))
        return {fold[0]: name for fold, name in taken["best"].items()}, gathered(asked, folds, found, taken)

    # The second is better on every well but C and F, on which it is far worse.
    share = {"first": dict.fromkeys(wells, 0.6), "second": dict.fromkeys(wells, 0.7) | {"C": 0.1, "F": 0.1}}
    taken, answers = chosen(share)
    assert taken == {"A": "first", "B": "first", "C": "second", "D": "first", "E": "first", "F": "second"}
    assert [well_measure(asked, one) for one in answers["best"]] == [0.6, 0.6, 0.1, 0.6, 0.6, 0.1]
    # What the blind well says of itself is in no choice for it.
    for well in wells:
        other = {name: {**shares, well: 1 - shares[well]} for name, shares in share.items()}
        assert chosen(other)[0][well] == taken[well]


def test_choices_among_what_is_chosen_are_refused(survey: str) -> None:
    trees = {"model": {"name": "boosting"}}
    first = {"a": trees, "b": trees, "c": {"choose_of": ["a", "b"]}}
    for wrong in ({"choose_of": ["c"]}, {"choose_of": ["none"]}, {"mean_of": ["a"], "choose_of": ["a"]}):
        with pytest.raises(UsageError, match=r"candidates\."):
            job(survey, "x", candidates={**first, "d": wrong})


def test_paired_bootstrap_tells_a_steady_difference_from_chance() -> None:
    random = np.random.default_rng(1)
    base = random.random(20)
    steady = paired_bootstrap(base + 0.01, base)
    assert steady["difference"] == 0.01 and steady["interval"] == [0.01, 0.01] and steady["first_better"] == 1
    unsteady = paired_bootstrap(base + random.standard_normal(20), base)
    assert unsteady["interval"][0] < 0 < unsteady["interval"][1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"wells": ["D"]}, "no such well"),
        ({"data": {"curves": {"curves": ["GR", "SP"]}}}, "no such curve"),
        ({"data": {"labels": "NOISE"}}, "do not name their classes"),
        ({"data": {"labels": "Facies"}}, "no such classes"),
        ({"candidates": {"a": {"mean_of": ["b"]}}}, "is no candidate with a model"),
        ({"candidates": {"a": {"model": {"name": "cnn"}, "training": {"epoch": 3}}}}, "candidates.a"),
        ({"training": {"patch": [4, 4, 4]}}, "3 axes, of data with 1"),
    ],
)
def test_wrong_comparisons_are_refused(survey: str, s3: str, change: dict[str, Any], text: str) -> None:
    if "data" in change:
        change = {"data": wells_data(survey, **change["data"])}
    with pytest.raises(Exception, match=text) as raised:
        compare(job(survey, s3, **change))
    assert type(raised.value).__module__ == "geobatch.errors"


@pytest.mark.parametrize("name", ["compare_kansas", "compare_norway", "ingest_kansas", "ingest_norway"])
def test_job_files_are_valid(name: str) -> None:
    path = Path(__file__).parents[1] / "jobs" / f"{name}.yaml"
    assert load_job(str(path)).name == yaml.safe_load(path.read_text())["name"]


def test_kansas_job_files_run_on_the_wells_of_the_contest(test_data: Path, tmp_path: Path, ray_cluster: None) -> None:
    jobs = Path(__file__).parents[1] / "jobs"
    table = test_data / "subsurface/seg2016_contest/facies_vectors.csv"
    ingest = load_job(str(jobs / "ingest_kansas.yaml"), [f"source={table}", f"output={tmp_path}/kansas"])
    assert isinstance(ingest, IngestJob)
    ingest_job(ingest)
    changes = [f"data.survey={tmp_path}/kansas", f"output={tmp_path}/compared", "wells=[SHANKLE, NOLAN]"]
    changes += [f"candidates.{name}.seeds=1" for name in ("cnn", "rnn", "attention")]
    comparison = load_job(str(jobs / "compare_kansas.yaml"), changes)
    assert isinstance(comparison, CompareJob)
    result = compare(comparison)
    classes = open_survey(f"{tmp_path}/kansas")["Facies"].sel(well=["SHANKLE", "NOLAN"]).values
    commonest = np.mean([np.bincount(own[own != 255]).max() / (own != 255).sum() for own in classes])
    for name, figures in result["candidates"].items():
        assert figures["mean_accuracy"] > commonest + 0.1, name
