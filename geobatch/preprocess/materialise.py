"""A chain over a whole survey, stored as a survey: what `job: preprocess` does.

open_source → fit (Dask reductions) → write_piece (tasks over shards, or columns of them) → finish

It stands above the rest of this package: it writes by `geobatch.formats.ingestion`, whose receipts let a run that ended
anywhere go on.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.fanout import open_fanout
from geobatch.formats.ingestion import Ingestion, Written, ingesting, store_shard
from geobatch.formats.segy_survey import MAP_CHUNK
from geobatch.moments import PartialMoments, figures, merge_moments, partial_moments
from geobatch.preprocess.chain import Chain, prepare, read_region
from geobatch.preprocess.grid import Crop
from geobatch.preprocess.sampling import sampling_of
from geobatch.preprocess.spec import PreprocessJob
from geobatch.shards import ArraySpec, Index, Region, clip_grid, shard_grid, shard_indices, shard_region
from geobatch.storage import absolute_url
from geobatch.survey import COMPLETE, SCHEMA, open_survey, require_complete, require_every_shard, survey_info

NUMERICAL_VERSION = 1
FITTED = "_geobatch/chain.json"
SMALL_BYTES = 64 * 2**20
COPIES = 6
"""Read, masked, prepared and resampled copies of a piece in float32, and two more for a moment."""
OF_THE_SOURCE = ("identity", "statistics", "faults", "evidence", "numerical_version")
"""What a survey's description says of itself alone."""


@dataclass(frozen=True)
class Target:
    """What a task needs to know to write a piece.

    Attributes:
        job: The job, its URLs absolute.
        identity: That of the source, which must not change meanwhile.
        chain: Fitted, without the crop.
        spec: The prepared array.
        live: Axes of the mask of live traces, none where the source has no such mask.
    """

    job: PreprocessJob
    identity: str
    chain: Chain
    spec: ArraySpec
    live: tuple[str, ...]


def preprocess(
    job: PreprocessJob, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """A summary of the survey that a chain makes of another.

    Statistics are fitted to the whole survey first, and kept with what is unfinished: a run that goes on fits nothing.

    Args:
        job: The job.
        on_progress: Called with shards written and shards in all.

    Raises:
        UsageError: a step makes no sense with the survey, or another survey is at the output.
        DataError: the survey is not complete, or changes meanwhile.
    """
    job = job.model_copy(update={"survey": absolute_url(job.survey), "output": absolute_url(job.output)})
    if job.survey == job.output:
        raise UsageError("a survey cannot be prepared into itself", where=job.output, remedy="Give another output.")
    dataset, info, source = open_source(job)
    spec = _spec(job, source)
    decisive = {
        "format": "preprocess",
        "numerical_version": NUMERICAL_VERSION,
        "source": [job.survey, info.get("identity")],
        "chain": job.preprocess.model_dump(mode="json"),
        "resample": job.resample and job.resample.model_dump(mode="json"),
        "cut": [spec.chunks, spec.shards],
    }
    total = math.prod(shard_grid(spec))
    summary = {"url": job.output, "shape": list(spec.shape), "shards": total}
    with (
        ingesting(job.output, decisive, overwrite=job.overwrite) as work,
        open_fanout(small=math.prod(source.shape) * 4 <= SMALL_BYTES, num_cpus=job.num_cpus) as fanout,
    ):
        if work.done is not None:
            on_progress(total, total)
            return {**summary, **work.done}
        require_every_shard(dataset, job.survey)
        chain = _fitted(work, job.preprocess, source)
        live = tuple(map(str, source["live_mask"].dims)) if "live_mask" in source.coords else ()
        target = Target(job, str(info.get("identity")), chain, spec, live)
        pieces = _pieces(spec, chain, source)
        small, values = _small_arrays(source, live)
        work.create([spec, *small], values)
        told: list[int] = []

        def on_piece(piece: tuple[Index, ...]) -> None:
            told.append(len(piece))
            on_progress(sum(told), total)

        written = work.write(
            functools.partial(write_piece, target=target),
            pieces,
            fanout=fanout,
            task_bytes=_task_bytes(pieces[0], target, source, dataset),
            on_piece=on_piece,
        )
        _store_live_mask(work, small, values, [written_piece.figures for written_piece in written], pieces, target)
        described = _described(job, info, source, chain, written, work.digests())
        described = work.finish([spec, *small], described)
    return {**summary, **described}


def open_source(job: PreprocessJob) -> tuple[xr.Dataset, dict[str, Any], xr.DataArray]:
    """The survey, its description, and its main array cropped and resampled: lazy, with its maps as coordinates.

    Raises:
        MismatchError: it holds no array of numbers to prepare.
        DataError: it is not complete.
    """
    dataset = open_survey(job.survey)
    require_complete(dataset, job.survey)
    info = survey_info(dataset, job.survey)
    name = str(info.get("variable"))
    if info.get("kind") == "scored" or name not in dataset or dataset[name].dtype.kind not in "fiu":
        told = f"kind {info.get('kind')}, variable {name}"
        raise MismatchError("survey holds no array to prepare", where=job.survey, measured=told)
    array = dataset[name]
    maps = {
        str(key): values
        for key, values in dataset.variables.items()
        if key not in array.dims and key != name and values.dims and set(values.dims) < set(array.dims)
    }
    cropped = job.preprocess.crop(array.assign_coords(maps))
    return dataset, info, cropped if job.resample is None else job.resample.apply(cropped)


def write_piece(piece: tuple[Index, ...], target: Target) -> Written:
    """Prepare and store the shards of one piece; its figures are the moments of its samples and its live traces."""
    source = _reopened(target.job.model_dump_json(), target.identity)
    regions = [shard_region(target.spec, index) for index in piece]
    region = _hull(regions)
    values = prepare(read_region(source, target.chain, region), target.chain)
    objects = []
    for index, own in zip(piece, regions, strict=True):
        inside = tuple(slice(c.start - r.start, c.stop - r.start) for c, r in zip(own, region, strict=True))
        objects.append(store_shard(target.job.output, target.spec, index, values[inside]))
    figures: dict[str, Any] = {"moments": dataclasses.asdict(partial_moments(values))}
    if target.live:
        others = tuple(axis for axis, name in enumerate(target.spec.dims) if name not in target.live)
        figures["live"] = base64.b64encode(np.packbits(np.isfinite(values).any(axis=others)).tobytes()).decode()
    return Written(tuple(objects), figures=figures)


@functools.lru_cache(maxsize=2)
def _reopened(job: str, identity: str) -> xr.DataArray:
    """The source in a task, without coordinates that every read would load."""
    parsed = PreprocessJob.model_validate_json(job)
    _, info, source = open_source(parsed)
    if str(info.get("identity")) != identity:
        raise DataError(
            "survey changed while it was being prepared",
            where=parsed.survey,
            measured=f"identity {info.get('identity')}",
            limit=identity,
            remedy="Run the job again when nothing writes the survey.",
        )
    return source.drop_vars([name for name in source.coords if name not in (*source.dims, "live_mask")])


def _fitted(work: Ingestion, chain: Chain, source: xr.DataArray) -> Chain:
    """The chain fitted to the cropped and resampled survey; read from an earlier run when there was one."""
    stored = work.control.get_json(FITTED) if work.resumed else None
    if stored is not None:
        return Chain.model_validate(stored)
    fitted = _without_crop(chain).fit(source)
    work.control.put_json(FITTED, fitted.model_dump(mode="json"))
    return fitted


def _without_crop(chain: Chain) -> Chain:
    return Chain(steps=tuple(step for step in chain.steps if not isinstance(step, Crop)))


def _spec(job: PreprocessJob, source: xr.DataArray) -> ArraySpec:
    """The prepared array: float32, cut as the survey is unless the job says otherwise."""
    stored = source.encoding.get("chunks") or (64,) * source.ndim
    chunk = job.chunk or tuple(stored)
    shard = job.shard or (tuple(source.encoding.get("shards") or stored) if job.chunk is None else chunk)
    for name, given in (("chunk", chunk), ("shard", shard)):
        if len(given) != source.ndim or min(given) < 1 or any(s % c for s, c in zip(shard, chunk, strict=False)):
            raise UsageError(
                f"{name} does not cut the survey's axes",
                where=f"key {name}",
                measured=f"chunk {chunk}, shard {shard}",
                limit=f"{source.ndim} lengths for {', '.join(map(str, source.dims))}, shard a multiple of chunk",
            )
    chunks, shards = clip_grid(source.shape, chunk, shard)
    attributes: dict[str, Any] = {key: value for key, value in source.attrs.items() if _is_json(value)}
    for step in job.preprocess.steps:
        if step.makes is not None:
            quantity, unit = step.makes
            attributes |= {"long_name": quantity, **({"units": unit} if unit else {})}
    if "coordinates" in source.encoding:
        attributes["coordinates"] = source.encoding["coordinates"]
    dims = tuple(map(str, source.dims))
    return ArraySpec(str(source.name), dims, source.shape, "float32", chunks, shards, math.nan, attributes)


def _pieces(spec: ArraySpec, chain: Chain, source: xr.DataArray) -> list[tuple[Index, ...]]:
    """The shards that are made from one read: one, or all of a line along the axes that the chain needs whole."""
    whole = [axis for axis, name in enumerate(spec.dims) if name in chain.whole_axes]
    groups: dict[Index, list[Index]] = {}
    for index in shard_indices(spec):
        groups.setdefault(tuple(0 if axis in whole else i for axis, i in enumerate(index)), []).append(index)
    return [tuple(group) for group in groups.values()]


def _task_bytes(piece: tuple[Index, ...], target: Target, source: xr.DataArray, dataset: xr.Dataset) -> int:
    """Peak memory of one task: the piece and what the chain reads around it, and one shard while it is encoded."""
    region = _hull([shard_region(target.spec, index) for index in piece])
    reach = target.chain.reach(source.dims, source.shape)
    axes = zip(region, source.shape, reach, strict=True)
    read = math.prod(min(n, cells.stop - cells.start + before + after) for cells, n, (before, after) in axes)
    resample = target.job.resample
    if resample is not None:
        old, new = (sampling_of(x, resample.along) for x in (dataset[target.spec.name], source))
        read *= math.ceil(new.interval / old.interval) if old and new else 1
    return 4 * (COPIES * read + 4 * math.prod(target.spec.shards))


def _small_arrays(source: xr.DataArray, live: tuple[str, ...]) -> tuple[list[ArraySpec], dict[str, npt.NDArray[Any]]]:
    """Specs and values of axes and maps; the mask of live traces is stored when every piece has told its own."""
    values = {str(name): np.asarray(source[name].values) for name in source.coords}
    specs = []
    for name, given in values.items():
        coordinate = source[name]
        attributes = {str(key): value for key, value in coordinate.attrs.items() if _is_json(value)}
        if given.dtype.kind == "M":
            values[name] = given = given.astype("datetime64[ns]").astype(np.int64)
            attributes |= {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        spec = ArraySpec.small(name, tuple(map(str, coordinate.dims)), given, **attributes)
        chunks = tuple(min(MAP_CHUNK, n) for n in spec.chunks) if given.ndim > 1 else spec.chunks
        specs.append(dataclasses.replace(spec, chunks=chunks, shards=chunks))
    if live:
        values["live_mask"] = np.zeros([source.sizes[axis] for axis in live], bool)
    return specs, values


def _store_live_mask(
    work: Ingestion,
    small: Sequence[ArraySpec],
    values: dict[str, npt.NDArray[Any]],
    figures: Sequence[dict[str, Any]],
    pieces: Sequence[tuple[Index, ...]],
    target: Target,
) -> None:
    """Mark the traces that have a valid sample after the chain: it may have filled dead ones, or masked live ones."""
    if not target.live:
        return
    mask = values["live_mask"]
    axes = [target.spec.dims.index(name) for name in target.live]
    for piece, told in zip(pieces, figures, strict=True):
        region = _hull([shard_region(target.spec, index) for index in piece])
        part = mask[tuple(region[axis] for axis in axes)]
        bits = np.unpackbits(np.frombuffer(base64.b64decode(told["live"]), np.uint8), count=part.size)
        part |= bits.reshape(part.shape).astype(bool)
    (spec,) = (spec for spec in small if spec.name == "live_mask")
    work.create([spec], {"live_mask": mask})


def _described(
    job: PreprocessJob,
    info: dict[str, Any],
    source: xr.DataArray,
    chain: Chain,
    written: Sequence[Written],
    digests: Sequence[str],
) -> dict[str, Any]:
    """The `geobatch` attribute of the prepared survey."""
    parts = [PartialMoments(**piece.figures["moments"]) for piece in written]
    total = functools.reduce(merge_moments, parts, PartialMoments())
    identity = hashlib.sha256(f"geobatch preprocess {NUMERICAL_VERSION}".encode())
    for digest in digests:
        identity.update(digest.encode())
    for axis in source.dims:
        if axis in source.coords:
            identity.update(np.ascontiguousarray(source[axis].values).tobytes())
    described: dict[str, Any] = {
        **{key: value for key, value in info.items() if key not in OF_THE_SOURCE},
        "schema": SCHEMA,
        "kind": info["kind"],
        "variable": str(source.name),
        "statistics": figures(total),
        "source": {**dict(info.get("source", {})), "url": job.survey, "identity": info.get("identity")},
        "source_survey": info.get("source_survey", job.survey),
        "preprocess": chain.model_dump(mode="json")["steps"],
        "warnings": list(info.get("warnings", [])),
        "numerical_version": NUMERICAL_VERSION,
        "identity": identity.hexdigest(),
        "state": COMPLETE,
    }
    for step in chain.steps:
        if step.makes is not None:
            described["quantity"] = step.makes[0]
    crop = [step for step in job.preprocess.steps if isinstance(step, Crop)]
    described["preprocess"] = [step.model_dump(mode="json") for step in crop] + described["preprocess"]
    if job.resample is not None:
        described["resample"] = job.resample.model_dump(mode="json")
        found = sampling_of(source, job.resample.along)
        if found and "sample_interval" in info and job.resample.along == "sample":
            described["sample_interval"] = found.interval
    return described


def _hull(regions: Sequence[Region]) -> Region:
    return tuple(slice(min(c.start for c in axis), max(c.stop for c in axis)) for axis in zip(*regions, strict=True))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
