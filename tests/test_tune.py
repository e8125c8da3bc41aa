"""Tuning: what decides trials, that nothing is trained twice, and that the best is what a plain training gives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from ray.tune.schedulers import ASHAScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from wells import wells_data, write_wells

from geobatch.errors import UsageError
from geobatch.job import job_schema, load_job, parse_job, run_job
from geobatch.models.bundle import load_bundle
from geobatch.report.tuning import render_tuning, trial_table
from geobatch.storage import open_storage
from geobatch.train.search import Trial, draw, is_stopped
from geobatch.train.train import train
from geobatch.train.tune import _Driver, tune
from geobatch.train.tune_spec import TuneJob

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning:ray", "ignore::FutureWarning"
)

EPOCHS = 3
GOOD, BAD = 0.02, 1e-6


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> str:
    return write_wells(tmp_path_factory.mktemp("wells"))


def document(survey: str, output: str, **changes: Any) -> dict[str, Any]:
    return {
        "job": "tune",
        "train": {
            "data": [wells_data(survey)],
            "validation": {"wells": ["C"]},
            "model": {"name": "cnn", "channels": 4, "stages": 2},
            "training": {"patch": [40], "batch": 4, "steps_per_epoch": 12, "epochs": EPOCHS},
        },
        "search": {
            "training.learning_rate": {"choice": [BAD, GOOD]},
            "model": {
                "choice": [
                    {"name": "cnn", "channels": {"integer": [4, 6]}, "stages": 2},
                    {"name": "attention", "width": 6, "heads": {"choice": [3, 4]}, "layers": 1},
                ]
            },
        },
        "trials": 8,
        "together": 2,
        "seed": 4,
        "output": output,
        **changes,
    }


def job(survey: str, output: str, **changes: Any) -> TuneJob:
    found = parse_job(document(survey, output, **changes))
    assert isinstance(found, TuneJob)
    return found


def without_times(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result["trials"]]


@pytest.fixture(scope="module")
def found(survey: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one job that nothing interrupted."""
    return run_job(job(survey, str(tmp_path_factory.mktemp("tuned"))))


def test_the_better_of_two_planted_choices_wins_and_the_table_is_sorted(found: dict[str, Any]) -> None:
    complete = [row["figure"] for row in found["trials"] if row["state"] == "complete"]
    assert complete == sorted(complete, reverse=True) and len(complete) > 2
    assert found["trials"][0]["searched"]["training.learning_rate"] == GOOD
    assert found["best"]["training"]["learning_rate"] == GOOD
    assert found["metric"] == "mean_class_accuracy" and found["trials"][0]["figure"] > 0.65
    states = [row["state"] for row in found["trials"]]
    assert states == sorted(states, key=["complete", "stopped", "failed"].index)


def test_a_trial_that_is_behind_ends_before_its_last_epoch(found: dict[str, Any]) -> None:
    stopped = [row for row in found["trials"] if row["state"] == "stopped"]
    assert stopped and {row["searched"]["training.learning_rate"] for row in stopped} == {BAD}
    assert all(row["epochs"] < EPOCHS and len(row["figures"]) == row["epochs"] for row in stopped)


def test_an_impossible_combination_is_a_failed_trial_that_says_why(found: dict[str, Any]) -> None:
    failed = [row for row in found["trials"] if row["state"] == "failed"]
    assert failed
    for row in failed:
        assert row["searched"]["model.attention.heads"] == 4 and "width 6 for 4 heads" in row["error"]
        assert row["figure"] is None and row["figures"] == []


def test_the_best_has_the_bits_of_a_plain_training(found: dict[str, Any], tmp_path: Path) -> None:
    best = load_bundle(found["bundle"]).spec
    assert best.hash == found["hash"]
    plain = load_job(f"{found['bundle']}/best.yaml", [f"output={tmp_path}/plain"])
    again = load_bundle(train(plain)).spec  # type: ignore[arg-type]
    assert again.weights_sha256 == best.weights_sha256 and again.metrics == best.metrics
    assert again.provenance["run"] == best.provenance["run"]
    assert plain.model_dump(exclude={"output"}) == parse_job(found["best"]).model_dump(exclude={"output"})


def test_the_same_job_again_trains_nothing_and_more_trials_go_on(survey: str, found: dict[str, Any]) -> None:
    storage = open_storage(found["bundle"])
    versions = {key: storage.version(key) for key, _ in storage.list() if key != "tune.html"}
    again = run_job(job(survey, found["bundle"]))
    assert again == found
    # `put` makes a new object, whatever its bytes: of trials none was stored anew.
    kept = {key for key in versions if key.startswith(("trials/", "_geobatch/")) or key == "bundle.json"}
    assert len(kept) > 8 and {key: storage.version(key) for key in kept} == {key: versions[key] for key in kept}
    more = tune(job(survey, found["bundle"], trials=10))
    assert sorted(row["number"] for row in more["trials"]) == list(range(10))
    first = [row for row in without_times(more) if row["number"] < 8]
    assert first == without_times(found)


def test_page_and_table_show_every_trial(found: dict[str, Any]) -> None:
    page = Path(found["page"]).read_text()
    assert page.count("<figure>") == 5 and "learning_rate" in page and "<script" not in page
    header, rows = trial_table(found)
    assert len(rows) == 8 and all(len(row) == len(header) for row in rows)
    assert rows[0][:2] == ["1", str(found["trials"][0]["number"])] and "width 6 for 4 heads" in rows[-1][4]
    hostile = {**found, "name": "<script>alert(1)</script>"}
    assert "<script" not in render_tuning(hostile)


def started(output: str, records: int) -> dict[str, bytes]:
    """The records under an output, as soon as there are so many with an epoch."""
    storage = open_storage(output)
    until = time.monotonic() + 240
    while time.monotonic() < until:
        stored = {key: storage.get(key) for key, _ in storage.list("trials")}
        if sum(bool(json.loads(body)["history"]) for body in stored.values()) >= records:
            return stored
        time.sleep(0.05)
    raise AssertionError("no trial began")


def seconds(body: bytes) -> list[float]:
    told: list[float] = json.loads(body)["seconds"]
    return told


def test_a_killed_job_run_again_trains_what_is_missing_and_comes_to_the_same_end(
    survey: str, found: dict[str, Any], s3: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document(survey, s3)))
    command = [sys.executable, "-m", "geobatch.cli", "run", str(tmp_path / "job.yaml")]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        started(s3, 2)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            member.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(family, timeout=20)
    before = started(s3, 2)
    assert len(before) < len({row["record"] for row in found["trials"]})
    with pytest.raises(UsageError, match="no bundle there"):
        load_bundle(s3)
    result = tune(job(survey, s3))
    assert without_times(result) == without_times(found)
    assert load_bundle(s3).spec.weights_sha256 == load_bundle(found["bundle"]).spec.weights_sha256
    for key, body in before.items():
        # An epoch that is trained again would have taken another time.
        assert seconds(open_storage(s3).get(key))[: len(seconds(body))] == seconds(body)


def test_a_killed_worker_goes_on_from_the_last_epoch_of_its_trial(survey: str, tmp_path: Path) -> None:
    single = {"search": {"training.learning_rate": {"choice": [GOOD]}}, "trials": 1}
    changed = document(survey, str(tmp_path / "killed"), **single)
    changed["train"]["training"]["epochs"] = 12
    before: dict[str, bytes] = {}

    def kill() -> None:
        before.update(started(changed["output"], 1))
        for process in psutil.Process().children(recursive=True):
            if "ImplicitFunc" in " ".join(process.cmdline()):
                process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    killed = tune(TuneJob.model_validate(changed))
    thread.join()
    whole = tune(TuneJob.model_validate({**changed, "output": str(tmp_path / "whole")}))
    assert without_times(killed) == without_times(whole)
    weights = {load_bundle(result["bundle"]).spec.weights_sha256 for result in (killed, whole)}
    assert len(weights) == 1
    ((key, body),) = before.items()
    assert 0 < len(seconds(body)) < 12
    assert seconds(open_storage(changed["output"]).get(key))[: len(seconds(body))] == seconds(body)


def test_neither_the_order_of_ends_nor_what_runs_beside_decides_anything(survey: str, tmp_path: Path) -> None:
    space = {"training.learning_rate": {"loguniform": [1e-4, 1e-1]}, "training.batch": {"integer": [2, 9]}}
    tuning = job(survey, str(tmp_path / "t"), search=space, trials=20, together=3)

    def figures(trial: Trial, epoch: int) -> dict[str, Any]:
        assert trial.job is not None
        far = abs(np.log10(trial.job.training.learning_rate) + 2)
        return {"epoch": epoch, "loss": 1.0, "validation": {"mean_class_accuracy": float(epoch / 4 / (1 + far))}}

    ends = []
    for order in range(3):
        chance, driver, running = random.Random(order), _Driver(tuning, lambda done, total, line: None), list[int]()
        while True:
            if len(running) < 1 + order and driver.next() is not None:
                running.append(len(driver.trials) - 1)
                continue
            if not running:
                break
            number = chance.choice(running)
            trial = driver.trials[number]
            if driver.hear(number, figures(trial, len(trial.history) + 1), 0.0):
                running.remove(number)
        ends.append([(trial.searched, trial.state, len(trial.history)) for trial in driver.trials])
    assert ends[0] == ends[1] == ends[2] and len(ends[0]) == 20
    assert {state for _, state, _ in ends[0]} == {"complete", "stopped"}
    late = [np.log10(searched["training.learning_rate"]) for searched, _, _ in ends[0][12:]]
    early = [np.log10(searched["training.learning_rate"]) for searched, _, _ in ends[0][:10]]
    assert np.mean(np.abs(np.array(late) + 2)) < np.mean(np.abs(np.array(early) + 2))


def test_trials_are_stopped_as_rays_scheduler_stops_them_one_after_the_other(survey: str) -> None:
    tuning = job(survey, "x", together=1, stopping={"grace_epochs": 2, "reduction": 2})
    scheduler = ASHAScheduler(metric="m", mode="max", max_t=9, grace_period=2, reduction_factor=2)
    chance, trials, ends = np.random.default_rng(0), list[Trial](), []
    for number in range(40):
        trial = Trial(number, {}, {}, {}, {})
        trials.append(trial)
        ray_trial = type("RayTrial", (), {"trial_id": str(number)})()
        scheduler.on_trial_add(None, ray_trial)
        for epoch in range(1, 9):
            value = float(chance.random())
            trial.history.append({"epoch": epoch, "validation": {"mean_class_accuracy": value}})
            action = scheduler.on_trial_result(None, ray_trial, {"training_iteration": epoch, "m": value})
            assert is_stopped(tuning, trials, number, epoch) == (action == TrialScheduler.STOP)
            if action == TrialScheduler.STOP:
                break
        ends.append(len(trial.history))
    assert set(ends) == {2, 4, 8}


def test_a_draw_is_decided_by_the_seed_its_number_and_the_trials_before(survey: str) -> None:
    first = draw(job(survey, "x"), [])
    assert draw(job(survey, "x"), []).searched == first.searched
    assert len({str(draw(job(survey, "x", seed=seed), []).searched) for seed in range(12)}) > 4
    for number in range(12):
        searched = draw(job(survey, "x", seed=number), []).searched
        inner = {key for key in searched if key.startswith("model.")}
        assert inner == {{"cnn": "model.cnn.channels", "attention": "model.attention.heads"}[searched["model"]]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"search": {"training.learning_rat": {"uniform": [0.1, 0.2]}}}, "Did you mean learning_rate"),
        ({"search": {"trainin.learning_rate": {"uniform": [0.1, 0.2]}}}, "Did you mean training"),
        ({"search": {"data.1.curves.missing": {"choice": ["zero"]}}}, "unknown key; found 1"),
        ({"search": {"data.0.curves.missin": {"choice": ["zero"]}}}, "Did you mean missing"),
        ({"search": {"model": {"choice": [{"name": "cnnn"}]}}}, "Did you mean cnn"),
        ({"search": {"model": {"choice": [{"name": "cnn", "chanels": 4}]}}}, "Did you mean channels"),
        (
            {"search": {"model": {"choice": [{"name": "cnn", "channels": {"integer": [0, 4]}}]}}},
            "greater than or equal",
        ),
        ({"search": {"training.learning_rate": {"uniform": [0.1, 2]}}}, "less than or equal to 1"),
        ({"search": {"training.learning_rate": {"uniform": [0.2, 0.1]}}}, "the first end is not below"),
        ({"search": {"training.learning_rate": {"loguniform": [0, 0.1]}}}, "numbers above 0"),
        ({"search": {"training.batch": {"integer": [1.5, 3]}}}, "integer"),
        ({"search": {"training.batch": {"integer": [1]}}}, "integer"),
        ({"search": {"training.batch": {"normal": [1, 2]}}}, "choice, uniform, loguniform, integer"),
        ({"search": {"training.batch": {"choice": []}}}, "at least 1 item"),
        ({"search": {}}, "at least 1 item"),
        ({"search": {"validation.fraction": {"uniform": [0.1, 0.2]}}}, "cannot be searched"),
        ({"search": {"data.0.survey": {"choice": ["a", "b"]}}}, "cannot be searched"),
        (
            {"search": {"model": {"choice": [{"name": "cnn"}]}, "model.channels": {"integer": [1, 4]}}},
            "inside the choices of model",
        ),
        ({"together": 0}, "greater than or equal to 1"),
        ({"metric": "accuracy"}, "mean_class_accuracy"),
    ],
)
def test_wrong_tunings_are_refused_before_anything_runs(survey: str, change: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse_job(document(survey, "x", **change))


@pytest.mark.parametrize("validation", [{"fraction": 0}, {"wells": []}])
def test_a_tuning_without_anything_held_out_is_refused(survey: str, validation: dict[str, Any]) -> None:
    changed = document(survey, "x")
    changed["train"]["validation"] = validation
    with pytest.raises(UsageError, match="needs a part of the data held out"):
        parse_job(changed)


def test_what_cannot_begin_is_told_before_any_trial(survey: str, tmp_path: Path, found: dict[str, Any]) -> None:
    changed = document(survey, str(tmp_path / "t"))
    changed["train"]["validation"] = {"wells": ["D"]}
    with pytest.raises(UsageError, match="no such well"):
        tune(TuneJob.model_validate(changed))
    assert not (tmp_path / "t").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("bundle.json", "model.safetensors"):
        (foreign / name).write_bytes((Path(found["bundle"]) / name).read_bytes())
    with pytest.raises(UsageError, match="bundle of another job"):
        tune(job(survey, str(foreign)))
    only_bad = {"model": {"choice": [{"name": "attention", "width": 6, "heads": 4}]}}
    with pytest.raises(UsageError, match=r"no trial came to its end.*width 6 for 4 heads"):
        tune(job(survey, str(tmp_path / "none"), search=only_bad, trials=2))


def test_schema_names_the_keys_of_a_tuning() -> None:
    assert set(TuneJob.model_fields) == set(job_schema()["$defs"]["TuneJob"]["properties"])
