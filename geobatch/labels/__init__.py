"""Interpretations as labels: horizons, fault sticks, polygons, points and class rasters on the grid of a survey."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from geobatch.fanout import open_fanout
from geobatch.formats.ingestion import Written, ingesting, store_shard
from geobatch.formats.raster_labels import label_files
from geobatch.formats.versions import versions_of
from geobatch.labels import spec
from geobatch.labels.grid import LabelGrid
from geobatch.labels.layers import LayerStack, shape_files
from geobatch.labels.spec import LabelJob
from geobatch.shards import ArraySpec, Index, clip_grid, shard_indices, shard_region
from geobatch.storage import absolute_url, join_url, split_url
from geobatch.survey import COMPLETE, INVALID_CLASS, SCHEMA, class_attributes, open_survey, survey_info

NUMERICAL_VERSION = 1
VOLUME_SHARD, VOLUME_CHUNK = (128, 128, 128), (64, 64, 64)
RASTER_SHARD, RASTER_CHUNK = (2048, 2048), (512, 512)
SMALL_CELLS = 2**26


def paint_labels(job: LabelJob, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """The summary of the label survey that a job writes: voxels per class.

    Args:
        job: The job.
        on_progress: Called with shards written and shards in all.

    Raises:
        UsageError: a layer does not fit the survey, or other labels are there.
        DataError: an interpretation file is bad, or lies off the survey.
    """
    survey_url = absolute_url(job.survey)
    survey = open_survey(survey_url)
    info, grid = survey_info(survey), LabelGrid.of(survey, survey_url)
    class_map = _class_map(job, grid)
    indices = list(shard_indices(class_map))
    urls = sorted({absolute_url(url) for layer in job.layers for url in _files(layer)})
    files = list(zip(urls, versions_of(urls), strict=True))
    decisive: dict[str, Any] = {
        "format": "labels",
        "numerical_version": NUMERICAL_VERSION,
        "survey": [survey_url, info.get("identity")],
        "job": job.model_dump(mode="json", include={"classes", "layers"}),
        "files": files,
    }
    # Bad files are told before anything is written.
    LayerStack.of(job, grid)
    done = 0

    def count(_: Index) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(indices))

    with (
        ingesting(absolute_url(job.output), decisive, overwrite=job.overwrite, sources=files) as work,
        open_fanout(small=math.prod(grid.shape) <= SMALL_CELLS, num_cpus=job.num_cpus) as fanout,
    ):
        if work.done is not None:
            return {"url": work.url, **work.done}
        values, small = _coordinates(survey, grid)
        work.create([class_map, *small], values)
        write = functools.partial(_write_shard, job_json=job.model_dump_json(), spec=class_map, url=work.url)
        task_bytes = 24 * math.prod(class_map.shards) + 2**28
        written = work.write(write, indices, fanout=fanout, task_bytes=task_bytes, on_piece=count)
        counts = np.sum([part.figures["counts"] for part in written], axis=0)
        names = [one.name for one in job.classes]
        description = {
            "schema": SCHEMA,
            "kind": "labels",
            "variable": "class_map",
            **{
                key: info.get(key)
                for key in ("domain", "sample_interval", "sample_unit", "bin_grid", "crs", "transform")
            },
            "labels": {name: int(counts[number]) for number, name in enumerate(names)},
            "unlabelled": int(counts[INVALID_CLASS]),
            "source": {"survey": survey_url, **decisive["job"]},
            "numerical_version": NUMERICAL_VERSION,
            "identity": hashlib.sha256("".join(work.digests()).encode()).hexdigest(),
            "state": COMPLETE,
        }
        return {"url": work.url, **work.finish([class_map, *small], description)}


def _class_map(job: LabelJob, grid: LabelGrid) -> ArraySpec:
    flags = class_attributes([one.name for one in job.classes], [one.color for one in job.classes])
    if len(grid.dims) == 3:
        chunks, shards = clip_grid(grid.shape, VOLUME_CHUNK, VOLUME_SHARD)
    else:
        chunks, shards = clip_grid(grid.shape, RASTER_CHUNK, RASTER_SHARD)
        flags.pop("coordinates")
    return ArraySpec("class_map", grid.dims, grid.shape, "uint8", chunks, shards, INVALID_CLASS, flags)


def _coordinates(survey: xr.Dataset, grid: LabelGrid) -> tuple[dict[str, Any], list[ArraySpec]]:
    """Axes and map coordinates as the survey has them."""
    names = [*grid.dims, *(("cdp_x", "cdp_y") if grid.maps is not None else ())]
    values = {name: survey[name].values for name in names}
    specs = []
    for name in names:
        kept = {key: value for key, value in survey[name].attrs.items() if isinstance(value, str | int | float)}
        specs.append(ArraySpec.small(name, tuple(map(str, survey[name].dims)), values[name], **kept))
    return values, specs


def _write_shard(index: Index, job_json: str, spec: ArraySpec, url: str) -> Written:
    class_map = _layers(job_json).paint(shard_region(spec, index))
    counts = np.bincount(class_map.ravel(), minlength=256)
    return Written((store_shard(url, spec, index, class_map),), figures={"counts": counts.tolist()})


@functools.lru_cache(maxsize=2)
def _layers(job_json: str) -> LayerStack:
    """The layers of a job, once per process."""
    job = LabelJob.model_validate_json(job_json)
    return LayerStack.of(job, LabelGrid.of(open_survey(absolute_url(job.survey)), job.survey))


def _files(layer: spec.Layer) -> Iterator[str]:
    """Every file that a layer reads."""
    if isinstance(layer, spec.ClassRaster):
        yield from label_files(layer.url)
    elif isinstance(layer, spec.Polygons):
        yield from (join_url(split_url(layer.url)[0], name) for name in shape_files(layer.url))
        yield from _horizons(layer)
    elif isinstance(layer, spec.Points | spec.FaultSticks):
        yield layer.url
    else:
        yield from _horizons(layer)


def _horizons(layer: spec.Layer) -> Iterator[str]:
    """The files of the surfaces that bound a layer."""
    for name in ("top", "base", "horizon"):
        surface = getattr(layer, name, None)
        if isinstance(surface, spec.HorizonFile | str):
            yield surface if isinstance(surface, str) else surface.url


__all__ = ["LabelJob", "paint_labels", "spec"]
