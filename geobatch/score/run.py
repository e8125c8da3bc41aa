"""A scoring run: plan, output, replicas, receipts, summary. What surrounds the straight line."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from geobatch import __version__, cluster
from geobatch.blocks import Grid
from geobatch.errors import IncompleteError, IntegrityError, MismatchError, UsageError
from geobatch.models.bundle import Bundle, load_bundle
from geobatch.plan import activation_bytes_per_cell, choose_patch, free_memory_bytes, memory_error, project_memory
from geobatch.preprocess import Chain, Crop
from geobatch.score.dispatch import Tally, dispatch, now
from geobatch.score.match import describe_data, prepared_quantiles, require_right_data
from geobatch.score.receipts import MANIFEST, Ledger, Receipt
from geobatch.score.spec import GridSpec, ScoreJob, ScorePlan
from geobatch.shards import ArraySpec, Index, Region, create_arrays, finish_group
from geobatch.storage import Storage, absolute_url, open_storage
from geobatch.survey import (
    COMPLETE,
    SCHEMA,
    VOLUME_AXES,
    block_coordinates,
    control_url,
    open_survey,
    require_complete,
    require_every_shard,
    survey_info,
    valid_volume,
)

PLAN = "plan.json"
JOB = "job.json"
SUMMARY = "run.json"
INCOMPLETE = "incomplete"
WRITING = "writing"


@dataclass(frozen=True)
class Progress:
    """What a run reports as it goes on."""

    done: int
    total: int
    receipt: Receipt | None = None


@dataclass(frozen=True)
class _Inputs:
    job: ScoreJob
    bundle: Bundle
    dataset: xr.Dataset
    info: dict[str, Any]
    warnings: list[str]


def score(
    job: ScoreJob, *, force: bool = False, on_progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Score a survey with a bundle; what an earlier run of the same job has written is kept.

    Args:
        job: The job.
        force: Score data of another quantity or axis than the bundle's; recorded in the summary.
        on_progress: Called as blocks are done.

    Returns:
        The run's summary, as stored in `_geobatch/run.json` beside the output.

    Raises:
        MismatchError: the data are not what the bundle needs, or the output was begun under another plan.
        UsageError: memory cannot fit.
        IncompleteError: dead letters remain; the summary is stored all the same.
    """
    inputs = _open_inputs(job)
    plan, stored = make_plan(inputs.job, inputs.bundle, inputs.dataset, force=force, warnings=inputs.warnings)
    grid = plan.grid.grid()
    volume = plan.chain.crop(valid_volume(inputs.dataset, job.survey))
    ledger = Ledger(inputs.job.output, plan.hash)
    done = set(ledger.load())
    wanted = list(grid.indices(region_cells(volume, inputs.job)))
    pending = [index for index in wanted if grid.block(index).key not in done]
    begin_output(inputs.job, plan, volume, inputs.info, begun=stored)
    on_progress(Progress(len(wanted) - len(pending), len(wanted)))
    started, clock = now(), time.perf_counter()
    tally = _run_blocks(inputs.job, plan, ledger, pending, grid, volume, len(wanted), on_progress)
    summary = _summary(inputs, plan, tally, wanted, pending, started, time.perf_counter() - clock)
    finish_output(inputs.job, plan, volume, inputs.info, ledger, tally, summary)
    if tally.dead:
        raise IncompleteError(
            f"{len(tally.dead)} of {len(wanted)} blocks could not be scored",
            where=inputs.job.output,
            measured=f"block {tally.dead[0].block}: {tally.dead[0].error}",
            remedy="Run the job again to try only those; geobatch report shows where they are.",
        )
    return summary


def forecast_score(job: ScoreJob) -> dict[str, Any]:
    """What scoring would do, without doing it."""
    inputs = _open_inputs(job)
    plan, stored = make_plan(inputs.job, inputs.bundle, inputs.dataset, warnings=inputs.warnings)
    grid = plan.grid.grid()
    volume = plan.chain.crop(valid_volume(inputs.dataset, job.survey))
    wanted = list(grid.indices(region_cells(volume, inputs.job)))
    per_cell = _output_bytes(inputs.job, inputs.bundle)
    network = inputs.bundle.network()
    bytes_per_cell = activation_bytes_per_cell(network, inputs.bundle.spec.in_channels, grid.stride)
    memory = project_memory(grid, plan.batch, bytes_per_cell, per_cell)
    return {
        "blocks": len(wanted),
        "voxels": sum(math.prod(c.stop - c.start for c in grid.block(index).write) for index in wanted),
        "redundancy": round(grid.redundancy(), 3),
        "grid": plan.grid.model_dump(),
        "batch": plan.batch,
        "survey_bytes": math.prod(grid.shape) * 4,
        "output_bytes_before_compression": math.prod(grid.shape) * per_cell,
        "memory_per_replica": {"projected_gib": round(memory.total / 2**30, 3), "by_cause": str(memory)},
        "replicas": job.resources.replicas,
        "resumes": stored,
        "warnings": inputs.warnings,
    }


def make_plan(
    job: ScoreJob, bundle: Bundle, dataset: xr.Dataset, *, force: bool = False, warnings: list[str] | None = None
) -> tuple[ScorePlan, bool]:
    """The plan of a job, and whether an earlier run stored it.

    A stored plan's fitted statistics are kept, and its patch, batch and threads unless the job names others.

    Raises:
        MismatchError: what decides voxels differs from the stored plan, or the data are not what the bundle needs.
        UsageError: memory cannot fit.
    """
    info = survey_info(dataset, job.survey)
    data = describe_data(info, ())
    found = require_right_data(bundle.spec, data, job.survey, force)
    stored = _stored_plan(job.output)
    volume = valid_volume(dataset, job.survey)
    if stored is None:
        require_every_shard(dataset, job.survey)
    chain = stored.chain if stored else _chain(job, bundle, volume)
    plan = _draw_plan(job, bundle, info, chain, chain.crop(volume), stored)
    if stored is not None and stored.hash != plan.hash:
        raise MismatchError(
            "output was begun under another plan",
            where=job.output,
            measured="; ".join(plan.differences(stored)[:5]),
            remedy="Use the earlier settings, or another output.",
        )
    if stored is None:
        quantiles = prepared_quantiles(chain.crop(volume), chain)
        found = require_right_data(bundle.spec, describe_data(info, quantiles), job.survey, force)
    if warnings is not None:
        warnings.extend(found)
    return plan, stored is not None


def _chain(job: ScoreJob, bundle: Bundle, volume: xr.DataArray) -> Chain:
    """The bundle's preprocessing after the job's crop, fitted to this survey when the job says so."""
    steps = bundle.spec.chain.steps
    chain = Chain(steps=(Crop(**job.crop.model_dump()), *steps)) if job.crop else Chain(steps=steps)
    return chain.fit(volume) if job.statistics == "survey" else chain


def _draw_plan(
    job: ScoreJob, bundle: Bundle, info: dict[str, Any], chain: Chain, cropped: xr.DataArray, stored: ScorePlan | None
) -> ScorePlan:
    spec = bundle.spec
    shape, stride, halo = tuple(cropped.shape), spec.reach.stride, spec.reach.halo
    reach = tuple(chain.halo.get(axis, (0, 0)) for axis in VOLUME_AXES)
    chunk = tuple(min(c, _up_to_power_of_two(n)) for c, n in zip(job.chunk, shape, strict=True))
    shard = tuple(max(s // c, 1) * c for s, c in zip(job.shard, chunk, strict=True))
    batch = job.batch or (stored.batch if stored else 1)
    threads = stored.threads if stored else job.resources.threads
    bytes_per_cell = activation_bytes_per_cell(bundle.network(), spec.in_channels, stride)
    limit = (
        int(job.resources.memory_gib * 2**30) if job.resources.memory_gib else free_memory_bytes(job.resources.replicas)
    )
    output_bytes = _output_bytes(job, bundle)
    patch = job.patch or (stored.grid.patch if stored else None)
    if patch is None:
        patch = choose_patch(
            shape=shape,
            shard=shard,
            stride=stride,
            halo=halo,
            reach=reach,
            batch=batch,
            bytes_per_cell=bytes_per_cell,
            output_bytes_per_cell=output_bytes,
            limit_bytes=limit,
        )
    grid = Grid(shape, shard, tuple(patch), stride, halo, reach)
    memory = project_memory(grid, batch, bytes_per_cell, output_bytes)
    if memory.total > limit:
        raise memory_error(grid, memory, limit)
    return ScorePlan(
        survey=job.survey,
        survey_identity=str(info.get("identity")),
        bundle=job.bundle,
        bundle_hash=spec.hash,
        statistics=job.statistics,
        crop=job.crop,
        chain=chain,
        grid=GridSpec(shape=shape, shard=shard, patch=tuple(patch), stride=stride, halo=halo, reach=reach),
        chunk=chunk,
        batch=batch,
        threads=threads,
        device="cuda" if job.resources.gpus else "cpu",
        probabilities=job.probabilities,
        classes=spec.classes,
    )


def _output_bytes(job: ScoreJob, bundle: Bundle) -> int:
    """Bytes written per cell before compression."""
    return 1 + {"none": 0, "uint8": 1, "float32": 4}[job.probabilities] * len(bundle.spec.classes)


def region_cells(cropped: xr.DataArray, job: ScoreJob) -> Region:
    """The job's region in cells of the cropped survey.

    Raises:
        UsageError: it holds no cell.
    """
    cells = []
    for axis in VOLUME_AXES:
        ends = getattr(job.region, axis)
        numbers = np.asarray(cropped[axis].values, dtype=np.float64)
        inside = (
            np.arange(numbers.size) if ends is None else np.flatnonzero((numbers >= ends[0]) & (numbers <= ends[1]))
        )
        if inside.size == 0:
            raise UsageError(
                f"region holds no {axis} of the survey",
                where=f"region.{axis}",
                measured=list(ends),
                limit=f"{numbers.min():g} to {numbers.max():g}",
            )
        cells.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(cells)


def begin_output(job: ScoreJob, plan: ScorePlan, volume: xr.DataArray, info: dict[str, Any], *, begun: bool) -> None:
    """Store plan and job, and create the arrays, before any block is written."""
    output = open_storage(job.output)
    if not begun and output.exists("zarr.json"):
        raise UsageError(
            "output exists and is no scoring run of this job",
            where=job.output,
            remedy="Give another output; nothing was changed.",
        )
    control = open_storage(control_url(job.output))
    if not begun:
        specs, values = _coordinate_arrays(volume, plan)
        create_arrays(job.output, [*plan.arrays(), *specs], values)
    control.put(JOB, _json(job.model_dump(mode="json")))
    finish_group(job.output, _all_specs(volume, plan), _group_attributes(job, plan, info, WRITING))
    # The plan comes last: while it is missing, a later run begins anew.
    if not control.put_if_absent(PLAN, plan.model_dump_json(indent=2).encode()) and not begun:
        raise UsageError("another run began this output just now", where=job.output, remedy="Run the job again.")


def finish_output(
    job: ScoreJob,
    plan: ScorePlan,
    volume: xr.DataArray,
    info: dict[str, Any],
    ledger: Ledger,
    tally: Tally,
    summary: dict[str, Any],
) -> None:
    """Store manifest, dead letters and summary, and mark the output complete or incomplete: its last write."""
    ledger.write_dead_letters(tally.dead)
    ledger.write_manifest()
    open_storage(control_url(job.output)).put(SUMMARY, _json(summary))
    state = INCOMPLETE if tally.dead else COMPLETE
    finish_group(job.output, _all_specs(volume, plan), _group_attributes(job, plan, info, state))


def _open_inputs(job: ScoreJob) -> _Inputs:
    job = job.model_copy(update={key: absolute_url(getattr(job, key)) for key in ("survey", "bundle", "output")})
    bundle = load_bundle(job.bundle)
    dataset = open_survey(job.survey)
    require_complete(dataset, job.survey)
    return _Inputs(job, bundle, dataset, survey_info(dataset, job.survey), [])


def _stored_plan(output_url: str) -> ScorePlan | None:
    control: Storage = open_storage(control_url(output_url))
    if not control.exists(PLAN):
        return None
    try:
        return ScorePlan.model_validate_json(control.get(PLAN))
    except ValueError as error:
        raise IntegrityError(
            "plan.json of the output does not read",
            where=control.url,
            measured=str(error).splitlines()[0],
            remedy="Give another output.",
        ) from error


def _run_blocks(
    job: ScoreJob,
    plan: ScorePlan,
    ledger: Ledger,
    pending: list[Index],
    grid: Grid,
    volume: xr.DataArray,
    total: int,
    on_progress: Callable[[Progress], None],
) -> Tally:
    """Deploy the replicas and dispatch what is missing; a complete output starts nothing."""
    if not pending:
        return Tally()
    from geobatch.score.deployment import REQUESTS_PER_REPLICA, deployed

    finished = total - len(pending)

    def count(receipt: Receipt) -> None:
        nonlocal finished
        finished += 1
        on_progress(Progress(finished, total, receipt))

    replicas = min(job.resources.replicas, len(pending))
    resources = job.resources.model_copy(update={"replicas": replicas})
    cluster.connect(cpus=math.ceil(job.resources.cpus * replicas))
    with deployed(f"score-{uuid.uuid4().hex[:12]}", plan, job.output, resources) as score_one:
        return dispatch(
            pending,
            score_one,
            ledger,
            window=replicas * REQUESTS_PER_REPLICA,
            attempts=job.attempts,
            describe=lambda index: block_coordinates(volume, grid.block(index).write),
            on_receipt=count,
        )


def _coordinate_arrays(volume: xr.DataArray, plan: ScorePlan) -> tuple[list[ArraySpec], dict[str, Any]]:
    """The coordinates of the output: those of the survey, and the class numbers."""
    specs, values = [], {}
    for name, coordinate in volume.coords.items():
        data = np.asarray(coordinate.values)
        attributes = {k: v for k, v in coordinate.attrs.items() if isinstance(v, str | int | float)}
        specs.append(ArraySpec.small(str(name), tuple(map(str, coordinate.dims)), data, **attributes))
        values[str(name)] = data
    if plan.probabilities != "none":
        classes = np.arange(len(plan.classes), dtype=np.int32)
        names = " ".join(c.name.replace(" ", "_") for c in plan.classes)
        specs.append(ArraySpec.small("class", ("class",), classes, flag_meanings=names))
        values["class"] = classes
    return specs, values


def _all_specs(volume: xr.DataArray, plan: ScorePlan) -> list[ArraySpec]:
    return [*plan.arrays(), *_coordinate_arrays(volume, plan)[0]]


def _group_attributes(job: ScoreJob, plan: ScorePlan, info: dict[str, Any], state: str) -> dict[str, Any]:
    inherited = ("domain", "sample_interval", "sample_unit", "crs", "bin_grid", "attribution", "quantity")
    description = {
        "schema": SCHEMA,
        "kind": "scored",
        "variable": "class_map",
        "state": state,
        "source_survey": job.survey,
        "survey_identity": plan.survey_identity,
        "bundle": job.bundle,
        "bundle_hash": plan.bundle_hash,
        "plan_hash": plan.hash,
        **{key: info[key] for key in inherited if key in info},
    }
    return {"geobatch": description}


def _summary(
    inputs: _Inputs,
    plan: ScorePlan,
    tally: Tally,
    wanted: list[Index],
    pending: list[Index],
    started: str,
    seconds: float,
) -> dict[str, Any]:
    """The figures of this run."""
    voxels = sum(receipt.voxels for receipt in tally.receipts)
    stages: dict[str, float] = {}
    for receipt in tally.receipts:
        for stage, spent in receipt.seconds.items():
            stages[stage] = round(stages.get(stage, 0.0) + spent, 3)
    return {
        "name": inputs.job.name,
        "started": started,
        "finished": now(),
        "seconds": round(seconds, 3),
        "blocks": {
            "wanted": len(wanted),
            "kept": len(wanted) - len(pending),
            "scored": len(tally.receipts),
            "dead": len(tally.dead),
            "adopted": sum(receipt.adopted for receipt in tally.receipts),
        },
        "voxels": voxels,
        "voxels_per_s": round(voxels / seconds) if seconds else 0,
        "bytes_written": sum(shard.size for receipt in tally.receipts for shard in receipt.shards),
        "bytes_read": sum(receipt.bytes_read for receipt in tally.receipts),
        "stage_seconds": stages,
        "retries": dict(tally.retries),
        "replicas": inputs.job.resources.replicas,
        "workers": sorted({receipt.worker for receipt in tally.receipts}),
        "redundancy": round(plan.grid.grid().redundancy(), 3),
        "warnings": inputs.warnings,
        "manifest": MANIFEST,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of geobatch, Python and the packages that compute."""
    packages = ("ray", "torch", "dask", "xarray", "zarr", "numpy")
    own = {"geobatch": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}


def _up_to_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=2).encode()
