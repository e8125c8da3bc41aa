"""From a scoring job to its plan: the right data, the grid that fits in memory, the statistics of the survey."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from pydantic import ValidationError

from geobatch import cluster
from geobatch.errors import IntegrityError, MismatchError, NotFoundError
from geobatch.models.bundle import Bundle, load_bundle
from geobatch.models.sections import resolve_sections, volume_network
from geobatch.plan import GIB
from geobatch.preprocess import Chain, Crop
from geobatch.score.layout import VolumeModel, draw_layout, job_costs, known_halo, measured_halo, measured_precision
from geobatch.score.match import describe_data, prepared_quantiles, require_right_data
from geobatch.score.region import require_domain, wanted_blocks
from geobatch.score.spec import ScoreJob, ScorePlan
from geobatch.storage import absolute_url, open_storage
from geobatch.survey import (
    open_survey,
    require_complete,
    require_every_shard,
    survey_info,
    valid_volume,
)

PLAN = "_geobatch/plan.json"


@dataclass
class Inputs:
    """A job with its places made absolute, and what it names, opened.

    Attributes:
        job: The job.
        bundle: The bundle, its hashes checked.
        model: Its network as one of volumes.
        volume: The whole survey's volume, lazy.
        info: The survey's own description.
        stored: The plan an earlier run of this output stored.
        warnings: What a user should know, with figures.
    """

    job: ScoreJob
    bundle: Bundle
    model: VolumeModel
    volume: xr.DataArray
    info: dict[str, Any]
    stored: ScorePlan | None
    warnings: list[str] = field(default_factory=list)


def open_inputs(job: ScoreJob, force: bool = False) -> Inputs:
    """Open what the job names, and refuse data the bundle was not made for.

    Raises:
        MismatchError: the data are of another kind than the bundle's.
        DataError: the survey is incomplete or lacks stored objects.
        NotFoundError: survey or bundle are not there.
    """
    job = job.model_copy(update={key: absolute_url(getattr(job, key)) for key in ("survey", "bundle", "output")})
    bundle = load_bundle(job.bundle)
    sections = resolve_sections(bundle.spec.axes, job.sections)
    job = job.model_copy(update={"sections": sections, "region": job.region.absolute()})
    model = VolumeModel(bundle.spec, *volume_network(bundle, job.sections, job.combine))
    dataset = open_survey(job.survey)
    require_complete(dataset, job.survey)
    info = survey_info(dataset, job.survey)
    require_domain(job.region, str(info.get("domain")))
    warnings = require_right_data(bundle.spec, describe_data(info, ()), job.survey, force)
    stored = None
    with contextlib.suppress(NotFoundError):
        stored = stored_plan(job.output)
    if stored is None:
        require_every_shard(dataset, job.survey)
    volume = valid_volume(dataset, job.survey)
    if job.region.polygon is not None:
        volume = _map_coordinates(volume, dataset)
    return Inputs(job, bundle, model, volume, info, stored, warnings)


def stored_plan(output_url: str) -> ScorePlan:
    """The plan that an output was begun under.

    Raises:
        NotFoundError: no scoring run is there.
        IntegrityError: the plan does not read.
    """
    try:
        return ScorePlan.model_validate_json(open_storage(output_url).get(PLAN))
    except NotFoundError:
        raise NotFoundError(
            "no scoring run there", where=output_url, remedy="Give the URL of a scored survey."
        ) from None
    except ValidationError as error:
        raise IntegrityError(
            "plan.json of the output does not read",
            where=output_url,
            measured=str(error).splitlines()[0],
            remedy="Restore it, or give another output.",
        ) from error


def make_plan(inputs: Inputs) -> ScorePlan:
    """The plan of a job. Of a stored one, the fitted statistics, patch, batch and threads are kept.

    The statistics are Dask reductions over the whole survey on the Ray cluster.

    Raises:
        MismatchError: what decides voxels differs from the stored plan.
        UsageError: memory cannot fit.
    """
    job, bundle, stored = inputs.job, inputs.bundle, inputs.stored
    chain = _chain(job, bundle).sampled(inputs.volume)
    shape = tuple(chain.crop(inputs.volume).shape)
    known = known_halo(job, inputs.model, stored)
    if known:
        # What memory cannot hold is refused before anything is read; a halo that is yet to be measured must wait.
        draw_layout(job, inputs.model, stored, shape, chain, known[0])
    if stored is not None:
        chain = stored.chain
    elif job.statistics == "survey":
        cluster.connect(cpus=math.ceil(job.resources.cpus * job.resources.most))
        chain = chain.fit(inputs.volume)
    cropped = chain.crop(inputs.volume)
    halo, tolerated = known or measured_halo(inputs.model, job, cropped, chain)
    layout = draw_layout(job, inputs.model, stored, shape, chain, halo)
    plan = ScorePlan(
        survey=job.survey,
        survey_identity=str(inputs.info.get("identity")),
        bundle=job.bundle,
        bundle_hash=bundle.spec.hash,
        sections=job.sections,
        combine=(job.combine or "mean") if len(job.sections) > 1 else None,
        statistics=job.statistics,
        crop=job.crop,
        chain=chain,
        grid=layout.grid,
        chunk=layout.chunk,
        batch=layout.batch,
        threads=stored.threads if stored else job.resources.threads,
        device="cuda" if job.resources.gpus else "cpu",
        halo=tolerated,
        precision=job.precision,
        precision_report=stored.precision_report if stored else measured_precision(inputs.model, job, cropped, chain),
        probabilities=job.probabilities,
        classes=bundle.spec.classes,
    )
    if stored is not None and stored.hash != plan.hash:
        raise MismatchError(
            "output was begun under another plan",
            where=job.output,
            measured="; ".join(plan.differences(stored)[:5]),
            remedy="Use the earlier settings, or another output.",
        )
    if stored is None:
        quantiles = prepared_quantiles(cropped, chain)
        inputs.warnings[:] = require_right_data(
            bundle.spec, describe_data(inputs.info, quantiles), job.survey, force=True
        )
    inputs.warnings += [*layout.warnings, *plan.deviations()]
    return plan


def forecast_score(job: ScoreJob) -> dict[str, Any]:
    """What scoring would do, without doing it: nothing is read but metadata."""
    inputs = open_inputs(job)
    chain = _chain(inputs.job, inputs.bundle).sampled(inputs.volume)
    job, cropped = inputs.job, chain.crop(inputs.volume)
    known = known_halo(job, inputs.model, inputs.stored)
    halo, _ = known or measured_halo(inputs.model, job, cropped, None)
    layout = draw_layout(job, inputs.model, inputs.stored, tuple(cropped.shape), chain, halo)
    grid, memory, output_bytes = layout.grid, layout.memory, job_costs(job, inputs.model).output_bytes
    wanted = wanted_blocks(grid, cropped, job.region)
    edges = zip(np.unravel_index(wanted, grid.counts), grid.shape, grid.shard, strict=True)
    if not known:
        inputs.warnings.append("halo was measured on noise; the run measures it on the survey, and may find another")
    return {
        "blocks": len(wanted),
        "voxels": int(np.prod([np.minimum(b, n - i * b) for i, n, b in edges], axis=0).sum()),
        "redundancy": round(grid.redundancy(), 3),
        "grid": dataclasses.asdict(grid),
        "batch": layout.batch,
        "survey_bytes": math.prod(grid.shape) * 4,
        "output_bytes_before_compression": math.prod(grid.shape) * output_bytes,
        "memory_per_replica": {
            "projected_gib": round(memory.host / GIB, 3),
            "projected_gpu_gib": round(memory.device / GIB, 3),
            "by_cause": str(memory),
        },
        "replicas": job.resources.most,
        "resumes": inputs.stored is not None,
        "warnings": [*inputs.warnings, *layout.warnings],
    }


def _chain(job: ScoreJob, bundle: Bundle) -> Chain:
    """The bundle's preprocessing after the job's own crop; a crop of the training data is left out."""
    steps = [step for step in bundle.spec.chain.steps if not isinstance(step, Crop)]
    return Chain(steps=(Crop(**job.crop.model_dump()), *steps) if job.crop else tuple(steps))


def _map_coordinates(volume: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """The volume with the traces' places on the map, as far as the survey has them, not yet read."""
    return volume.assign_coords({name: dataset[name] for name in ("cdp_x", "cdp_y") if name in dataset})
