"""How a survey is cut for a scoring job: shards, patches, halo and batch, within the memory there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from geobatch.blocks import Blend, Grid, Halo, covering_patch, rounded_up
from geobatch.errors import MismatchError, UsageError
from geobatch.models.bundle import BundleSpec, ReachInfo
from geobatch.plan import (
    GIB,
    Costs,
    Limits,
    Memory,
    activation_bytes_per_cell,
    choose_patch,
    free_device_bytes,
    free_memory_bytes,
    project_memory,
    require_memory,
)
from geobatch.preprocess import Chain, prepare, read_region
from geobatch.score.deviation import Values, precision_deviation, tolerated_halo
from geobatch.score.spec import PrecisionReport, ScoreJob, ScorePlan, ToleratedHalo
from geobatch.survey import VOLUME_AXES

PROBABILITY_BYTES = {"none": 0, "uint8": 1, "float32": 4}
GPU_BATCHES = (1, 2, 4, 8, 16)
SAMPLES = 2
PRECISION_PATCH = 64
RECOMPUTED_LIMIT = 1.5
BLOCK_CELLS = {"cpu": 2**25, "cuda": 2**28}


@dataclass(frozen=True)
class VolumeModel:
    """A bundle's network as one of volumes.

    Attributes:
        spec: The bundle's description.
        network: Takes `(batch, channel, inline, crossline, sample)`.
        reach: Its reach on these axes.
    """

    spec: BundleSpec
    network: nn.Module
    reach: ReachInfo


@dataclass(frozen=True)
class Layout:
    """How a survey is cut.

    Attributes:
        grid: Blocks and patches.
        chunk: Unit of reading of the output.
        batch: Patches per forward pass.
        memory: What a replica needs.
        warnings: What a user should know, with figures.
    """

    grid: Grid
    chunk: tuple[int, ...]
    batch: int
    memory: Memory
    warnings: tuple[str, ...]


def draw_layout(
    job: ScoreJob, model: VolumeModel, stored: ScorePlan | None, shape: tuple[int, ...], chain: Chain, halo: Halo
) -> Layout:
    """The layout of a job; patch and batch of a stored plan stay unless the job names others.

    Args:
        job: The job.
        model: The network.
        stored: The plan an earlier run stored.
        shape: Cells of the cropped survey.
        chain: The preprocessing, whose reach, or whole axes, are read around every patch.
        halo: The halo to use in halo mode.

    Raises:
        MismatchError: the network depends on whole patches, and the job says neither `whole` nor `mode: blend`.
        UsageError: memory cannot fit.
    """
    reach = model.reach
    whole = _whole_axes(job)
    blend = Blend(job.overlap, job.weights) if job.mode == "blend" else None
    if blend is None:
        _require_bounded(model, whole)
    chunk = tuple(min(c, 1 << max(n - 1, 0).bit_length()) for c, n in zip(job.chunk, shape, strict=True))
    most = tuple(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))
    around: Halo = chain.reach(VOLUME_AXES, shape)
    used: Halo = ((0, 0),) * len(shape) if blend else halo
    given = job.patch or (stored.grid.patch if stored else None)
    costs, limits = job_costs(job, model), _limits(job, stored, known=given is not None)

    def grid_of(shard: tuple[int, ...]) -> Grid:
        patch = given or (_blended_patch(model, shard) if blend else covering_patch(shape, shard, reach.stride, used))
        patch = tuple(
            rounded_up(n, s) if axis in whole else p if given else rounded_up(min(p, n), s)
            for axis, (p, n, s) in enumerate(zip(patch, shape, reach.stride, strict=True))
        )
        return Grid(shape, shard, patch, reach.stride, used, around, blend, whole)

    asked = job.shard or (stored.grid.shard if stored else None)
    if asked is None:
        whole_shards = [
            (m,) if axis in whole else _lengths(c, m) for axis, (c, m) in enumerate(zip(chunk, most, strict=True))
        ]
        shard = _fastest_shard(map(grid_of, itertools.product(*whole_shards)), costs, limits, job.resources.most)
    else:
        axes = enumerate(zip(asked, most, chunk, strict=True))
        shard = tuple(m if axis in whole else max(min(s, m) // c, 1) * c for axis, (s, m, c) in axes)
    grid, batch = _fitted(job, stored, grid_of(shard), costs, limits, free=given is None)
    return Layout(grid, chunk, batch, project_memory(grid, batch, costs), tuple(_warnings(job, grid, chain)))


def job_costs(job: ScoreJob, model: VolumeModel) -> Costs:
    """What cells cost in memory under a job."""
    spec = model.spec
    return Costs(
        activation_bytes_per_cell(model.network, spec.in_channels, model.reach.stride, job.precision),
        len(spec.classes),
        PROBABILITY_BYTES[job.probabilities],
        "cuda" if job.resources.gpus else "cpu",
        job.resources.overlaps,
    )


def known_halo(job: ScoreJob, model: VolumeModel, stored: ScorePlan | None) -> tuple[Halo, ToleratedHalo | None] | None:
    """The exact halo, or the one an earlier run measured; None when it is yet to be measured."""
    if isinstance(job.halo, str):
        return model.reach.halo, None
    if stored is None:
        return None
    deviation = stored.halo.deviation if stored.halo else 0.0
    return stored.grid.halo, ToleratedHalo(tolerance=job.halo.tolerance, deviation=deviation)


def measured_halo(
    model: VolumeModel, job: ScoreJob, cropped: xr.DataArray, chain: Chain | None
) -> tuple[Halo, ToleratedHalo | None]:
    """The smallest halo within the job's tolerance, on samples of the survey and on noise; without a chain on noise.

    Raises:
        MismatchError: the network depends on whole patches along an axis that the job does not see whole.
    """
    if isinstance(job.halo, str):
        return model.reach.halo, None
    reach, whole, tolerance = model.reach, _whole_axes(job), job.halo.tolerance
    _require_bounded(model, whole)
    exact = tuple((0, 0) if axis in whole else pair for axis, pair in enumerate(reach.halo))
    take = _sampler(cropped, chain, reach.stride)
    found = tolerated_halo(model.network, take, tuple(cropped.shape), reach.stride, exact, tolerance)
    return found.halo, ToleratedHalo(tolerance=tolerance, deviation=found.deviation)


def measured_precision(
    model: VolumeModel, job: ScoreJob, cropped: xr.DataArray, chain: Chain
) -> PrecisionReport | None:
    """What the job's precision changes on a patch of the survey; None in float32."""
    if job.precision == "float32":
        return None
    stride = model.reach.stride
    lengths = tuple(min(n, rounded_up(PRECISION_PATCH, s)) for n, s in zip(cropped.shape, stride, strict=True))
    sample = _sampler(cropped, chain, stride)(lengths)[0]
    deviation, changed = precision_deviation(model.network, sample, job.precision)
    return PrecisionReport(deviation=deviation, classes_changed=changed)


def _whole_axes(job: ScoreJob) -> tuple[int, ...]:
    return tuple(axis for axis, name in enumerate(VOLUME_AXES) if name in job.whole)


def _require_bounded(model: VolumeModel, whole: Sequence[int]) -> None:
    axes = [VOLUME_AXES[axis] for axis in model.reach.unbounded if axis not in whole]
    if axes:
        raise MismatchError(
            f"network {model.spec.name} depends on its whole patch, so that halo mode cannot be exact",
            where=f"axes {', '.join(axes)}",
            measured="a reach without bound",
            limit="a bounded one",
            remedy=f"Set whole: [{', '.join([*(VOLUME_AXES[a] for a in whole), *axes])}] in the job, or mode: blend.",
        )


def _blended_patch(model: VolumeModel, shard: tuple[int, ...]) -> tuple[int, ...]:
    """The patch of the network's training, where it is known; otherwise a block."""
    trained: Any = model.spec.provenance.get("job", {}).get("patch")
    return tuple(trained) if trained and len(trained) == len(shard) else shard


def _limits(job: ScoreJob, stored: ScorePlan | None, known: bool) -> Limits:
    """The memory of a replica. An earlier run goes on with other resources: then only what the job names counts."""
    resources = job.resources
    if resources.memory_gib:
        host = int(resources.memory_gib * GIB)
    else:
        host = 2**62 if stored else free_memory_bytes(resources.most)
    if not resources.gpus:
        return Limits(host)
    if resources.gpu_memory_gib:
        return Limits(host, int(resources.gpu_memory_gib * GIB))
    device = free_device_bytes(resources.gpus)
    if device is None and not known:
        raise UsageError(
            "memory of the replicas' GPUs is unknown: this machine has none",
            where="resources",
            remedy="Give resources.gpu_memory_gib, or patch.",
        )
    return Limits(host, None if stored else device)


def _fitted(
    job: ScoreJob, stored: ScorePlan | None, grid: Grid, costs: Costs, limits: Limits, *, free: bool
) -> tuple[Grid, int]:
    """Grid and batch within memory; the patch is chosen when it is free."""
    batch = job.batch or (stored.batch if stored else None)
    batches = (batch,) if batch else GPU_BATCHES if costs.device == "cuda" else (1,)
    if free:
        return choose_patch(grid, costs, limits, batches)
    for most in reversed(batches[1:]):
        memory = project_memory(grid, most, costs)
        if memory.host <= limits.host and memory.device <= (limits.device or math.inf):
            return grid, most
    require_memory(grid, batches[0], costs, limits)
    return grid, batches[0]


def _lengths(chunk: int, most: int) -> list[int]:
    """Shard lengths to choose from along one axis: multiples of the chunk that halve the axis again and again."""
    lengths = {most, *(chunk * k for k in (1, 2, 3, 4, 6, 8) if chunk * k < most)}
    return sorted(lengths | {-(-most // (chunk * parts)) * chunk for parts in (2, 3, 4)})


def _fastest_shard(grids: Iterable[Grid], costs: Costs, limits: Limits, replicas: int) -> tuple[int, ...]:
    """The shard under which the fewest cells are computed per replica, among blocks of one patch that fit in memory.

    A block is what a kill can cost and what the last replica is waited for, so that it stays within `BLOCK_CELLS`. Of
    equals, the smaller one. Where nothing fits, the smallest, whose patches are chosen within it.
    """
    timed = []
    for grid in grids:
        memory = project_memory(grid, 1, costs)
        fits = memory.host <= limits.host and memory.device <= (limits.device or math.inf)
        cells = math.prod(grid.shard)
        rounds = -(-grid.total // replicas) * replicas / grid.total
        time = grid.redundancy() * rounds if fits and cells <= BLOCK_CELLS[costs.device] else math.inf
        timed.append(((time, cells), grid.shard))
    return min(timed)[1]


def _warnings(job: ScoreJob, grid: Grid, chain: Chain) -> list[str]:
    warnings = [
        f"shard along {VOLUME_AXES[axis]} is {grid.shard[axis]} instead of {job.shard[axis]}: whole names this axis"
        for axis in grid.whole
        if job.shard and grid.shard[axis] > job.shard[axis]
    ]
    reread = [axis for axis, name in enumerate(VOLUME_AXES) if name in chain.whole_axes and grid.counts[axis] > 1]
    warnings += [
        f"preprocessing reads {VOLUME_AXES[axis]} whole for each of the {grid.counts[axis]} blocks along it: set shard "
        f"there to {grid.shape[axis]}, or materialise the chain once by job: preprocess"
        for axis in reread
    ]
    if grid.blend:
        once = replace(grid, shard=grid.shape).redundancy()
        if grid.redundancy() > RECOMPUTED_LIMIT * once:
            warnings.append(
                f"blend computes {grid.redundancy():.1f} voxels per voxel written, {once:.1f} if no patch met two "
                f"blocks: raise shard from {grid.shard}, or lower patch from {grid.patch}"
            )
    return warnings


def _sampler(
    cropped: xr.DataArray, chain: Chain | None, stride: tuple[int, ...]
) -> Callable[[tuple[int, ...]], list[Values]]:
    """Samples of the prepared survey, those with most valid cells, and noise of their spread after them."""

    def take(lengths: tuple[int, ...]) -> list[Values]:
        spread, samples = 1.0, []
        if chain is not None:
            parts = [prepare(read_region(cropped, chain, region), chain) for region in _places(lengths)]
            parts = sorted(parts, key=lambda part: -np.count_nonzero(np.isfinite(part)))
            samples = [np.nan_to_num(part, posinf=0, neginf=0) for part in parts[:SAMPLES]]
            spread = max(float(np.std(samples[0])), 1e-6)
        noise = np.random.default_rng(0).normal(0, spread, lengths).astype(np.float32)
        return [*samples, noise]

    def _places(lengths: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """The middle of the survey and halfway from it to its corners, from stride-aligned cells."""
        spans = []
        for n, length, s in zip(cropped.shape, lengths, stride, strict=True):
            starts = [int((n - length) * part) // s * s for part in (0.5, 0.25, 0.75)]
            spans.append([slice(start, start + length) for start in starts])
        return list(zip(*spans, strict=True))

    return take
