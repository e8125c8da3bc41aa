"""Jobs: one YAML document, a strict schema, one way to run any of them, the same on a laptop and a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from geobatch.errors import UsageError
from geobatch.formats.spec import IngestJob
from geobatch.job_errors import explained, nearest
from geobatch.labels.spec import LabelJob
from geobatch.preprocess.spec import PreprocessJob
from geobatch.score.spec import ScoreJob
from geobatch.storage import open_storage, split_url
from geobatch.train.compare_spec import CompareJob
from geobatch.train.evaluate_spec import EvaluateJob
from geobatch.train.spec import TrainJob
from geobatch.train.tune_spec import TuneJob

Job = ScoreJob | TrainJob | CompareJob | TuneJob | EvaluateJob | IngestJob | LabelJob | PreprocessJob
JOBS: dict[str, type[Job]] = {
    "ingest": IngestJob,
    "label": LabelJob,
    "preprocess": PreprocessJob,
    "train": TrainJob,
    "compare": CompareJob,
    "tune": TuneJob,
    "score": ScoreJob,
    "evaluate": EvaluateJob,
}


def load_job(url: str, overrides: Sequence[str] = ()) -> Job:
    """The job in the YAML file at `url`, with `key=value` overrides applied, checked against its schema.

    Args:
        url: Path or URL of the file.
        overrides: Such as `output=s3://bucket/scored` or `resources.replicas=4`; values are YAML.

    Raises:
        UsageError: the file does not read, a key is unknown (the nearest known one is named) or a value is wrong.
    """
    root, name = split_url(url)
    try:
        document = yaml.safe_load(open_storage(root).get(name))
    except yaml.YAMLError as error:
        raise UsageError("job file is not YAML", where=url, measured=str(error).replace("\n", " ")) from error
    if not isinstance(document, dict):
        raise UsageError("job file holds no mapping", where=url, measured=type(document).__name__)
    return parse_job(with_overrides(document, overrides), url)


def with_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The document with each `key=value` set, dots in the key going down into mappings and lists.

    Raises:
        UsageError: an override does not read, or names no key that could be set.
    """
    for override in overrides:
        _override(document, override)
    return document


def parse_job(document: Mapping[str, Any], where: str = "job") -> Job:
    """A job from a mapping.

    Raises:
        UsageError: as `load_job`.
    """
    kind = document.get("job")
    if not isinstance(kind, str) or kind not in JOBS:
        near = nearest(str(kind), list(JOBS))
        raise UsageError("unknown job", where=where, measured=f"job: {kind}", limit=" or ".join(JOBS), remedy=near)
    schema = JOBS[kind]
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        raise explained(error, schema, where) from None


def job_schema() -> dict[str, Any]:
    """The JSON Schema of every job, so that editors complete job files."""
    definitions: dict[str, Any] = {}
    kinds = []
    for schema in JOBS.values():
        document = schema.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= document.pop("$defs", {})
        definitions[schema.__name__] = document
        kinds.append({"$ref": f"#/$defs/{schema.__name__}"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "oneOf": kinds, "$defs": definitions}


def run_job(
    job: Job, *, force: bool = False, on_progress: Callable[[int, int, str], None] = lambda done, total, news: None
) -> dict[str, Any]:
    """Run a job to its end and return its summary.

    Args:
        job: A job from `load_job` or `parse_job`.
        force: Score data of another kind than the bundle's.
        on_progress: Called with how much is done, of how much, and a line of news or an empty string.

    Raises:
        GeobatchError: see `geobatch.errors`.
    """
    if isinstance(job, ScoreJob):
        from geobatch.score.run import score

        return score(job, force=force, on_progress=lambda progress: on_progress(progress.done, progress.total, ""))
    if isinstance(job, IngestJob):
        from geobatch.formats import ingest_job

        return ingest_job(job, lambda done, total: on_progress(done, total, ""))
    if isinstance(job, LabelJob):
        from geobatch.labels import paint_labels

        return paint_labels(job, lambda done, total: on_progress(done, total, ""))
    if isinstance(job, PreprocessJob):
        from geobatch.preprocess.materialise import preprocess

        return preprocess(job, lambda done, total: on_progress(done, total, ""))
    if isinstance(job, CompareJob):
        from geobatch.report.comparing import write_comparison
        from geobatch.train.compare import compare

        compared = compare(job, lambda done, total: on_progress(done, total, ""))
        return {**compared, "page": write_comparison(job, compared)}
    if isinstance(job, EvaluateJob):
        from geobatch.report.evaluation import write_evaluation
        from geobatch.train.evaluate import evaluate_job, summary

        job = job.absolute()
        result = evaluate_job(job, lambda done, total: on_progress(done, total, ""))
        return {**summary(result), "page": write_evaluation(job, result)}
    if isinstance(job, TuneJob):
        from geobatch.report.tuning import write_tuning
        from geobatch.train.tune import tune

        return write_tuning(tune(job, on_progress))
    from geobatch.models.bundle import load_bundle
    from geobatch.report.training import write_training_report
    from geobatch.train.train import train

    bundle = load_bundle(train(job, on_progress)).spec
    figures = {key: value for key, value in bundle.metrics.items() if key != "history"}
    page = write_training_report(job.output)
    return {"bundle": job.output, "hash": bundle.hash, "halo": bundle.reach.halo, **figures, "page": page}


def forecast(job: Job, *, calibrate: int = 0, simulate: int = 0, preemptions_per_hour: float = 0.0) -> dict[str, Any]:
    """What a scoring job would do: blocks, patch, redundancy, bytes and memory; on request time and cost.

    Args:
        job: A scoring job.
        calibrate: So many of its blocks are scored, and thrown away, for the key `forecast`.
        simulate: Runs with up to so many replicas are imagined from that, for the key `scaling`.
        preemptions_per_hour: How often each of these replicas is taken away.

    Raises:
        UsageError: the job is no scoring job, memory cannot fit, or nothing was calibrated to simulate from.
    """
    from geobatch.score.planning import forecast_score

    if not isinstance(job, ScoreJob):
        raise UsageError("only scoring jobs can be planned", measured=f"job: {job.job}", limit="job: score")
    if simulate and not calibrate:
        raise UsageError("a simulation needs measured blocks", where="--simulate", remedy="Give --calibrate too.")
    told = forecast_score(job)
    if calibrate:
        from geobatch.score.calibrate import calibrate as run_calibration
        from geobatch.score.calibrate import forecast_run
        from geobatch.score.simulate import scaling

        inputs, calibration = run_calibration(job, calibrate)
        told["forecast"] = forecast_run(inputs, calibration)
        if simulate:
            told["scaling"] = scaling(calibration.work, simulate, preemptions_per_hour=preemptions_per_hour)
    return told


def _override(document: dict[str, Any], override: str) -> None:
    """Set the dotted key to the YAML value."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError("override is not key=value", where="--set", measured=override)
    *parents, last = key.split(".")
    place: Any = document
    for part in parents:
        place = place.setdefault(part, {}) if isinstance(place, dict) else _item(place, part, override)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError("override's value is not YAML", where="--set", measured=override) from error
    if isinstance(place, list):
        place[_index(place, last, override)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        raise UsageError("override goes into a key that holds no mapping", where="--set", measured=override)


def _item(place: Any, part: str, override: str) -> Any:
    if not isinstance(place, list):
        raise UsageError("override goes into a key that holds no mapping", where="--set", measured=override)
    return place[_index(place, part, override)]


def _index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise UsageError("override names no item of the list", where="--set", measured=override, limit=len(place))
    return int(part)
