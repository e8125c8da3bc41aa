"""Well logs of any format into a survey of wells `(well, depth)`: read every file once, agree on curves, write.

read (tasks over files, parsed wells kept beside the survey) → agree → write_group (tasks over groups of wells)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from geobatch.errors import DataError, FormatError, UsageError
from geobatch.fanout import open_fanout
from geobatch.formats.ingestion import Fault, Written, ingesting, store_shard
from geobatch.formats.logs_agree import Column, common_axis, common_columns, unique_names
from geobatch.formats.logs_quality import curve_figures, quality_sentences
from geobatch.formats.logs_resample import kept_places, nearest, resample
from geobatch.formats.logs_survey import (
    NUMERICAL_VERSION,
    Plan,
    curve_spec,
    describe,
    identity_arrays,
    merged_figures,
    well_cells,
)
from geobatch.formats.logs_well import Floats, Well, WellSummary, dump_summaries, load_arrays, load_summaries
from geobatch.formats.spec import IngestOptions, IngestRun
from geobatch.formats.tables import list_sources
from geobatch.moments import partial_moments
from geobatch.storage import absolute_url, open_storage
from geobatch.survey import INVALID_CLASS

SMALL_BYTES = 64 * 2**20
DEPTH_CHUNK = 2**16
GROUP_BYTES = 16 * 2**20
PARSED = "_geobatch/parsed"
Reader = Callable[[str], tuple[list[Well], list[Fault]]]


class LogOptions(IngestOptions):
    """Options of every format of well logs.

    Attributes:
        step_m: Step of the common depth axis in metres; the finest native step when not given.
        max_gap_m: Never interpolate between values further apart; 1.5 native steps when not given.
        depth_unit: Unit of depths, `m` or `ft`, where a file does not say.
        aliases: Other mnemonics per curve, such as `{GR: [GAMMA, GR_1]}`; they come before the built-in ones.
        units: Unit per curve where a file gives none, such as `{RHOB: kg/m3}`.
        classes: Class names per code of label curves, such as `{FACIES: {1: sandstone, 2: shale}}`; in that order.
        labels: More curves that hold codes, resampled by the nearest and never averaged.
        sentinels: Values that mean none, besides the file's own.
    """

    step_m: float | None = None
    max_gap_m: float | None = None
    depth_unit: Literal["m", "ft"] | None = None
    aliases: dict[str, tuple[str, ...]] = Field(default={})
    units: dict[str, str] = Field(default={})
    classes: dict[str, dict[int | str, str]] = Field(default={})
    labels: tuple[str, ...] = ()
    sentinels: tuple[float, ...] = (-999.25, -9999.0, -9999.25, -99999.0)


@dataclass(frozen=True)
class Group:
    """Wells whose curves share shards.

    Attributes:
        index: Position in the shard grid of wells.
        wells: Their positions among all wells.
    """

    index: int
    wells: tuple[int, ...]


def ingest_logs(
    name: str,
    src_url: str,
    dst_url: str,
    suffixes: Sequence[str],
    read: Reader,
    options: LogOptions,
    run: IngestRun,
) -> dict[str, Any]:
    """The summary of the survey of wells written to `dst_url`.

    Args:
        name: Of the format.
        src_url: A file or a folder.
        dst_url: Where the survey goes.
        suffixes: Of files in a folder.
        read: The wells of a file; runs in a task.
        options: What the user decided.
        run: How it runs.

    Raises:
        NotFoundError: no file is there.
        FormatError: no file can be read.
        UsageError: the common depth axis would be absurd.
    """
    dst_url = absolute_url(dst_url)
    sources = list_sources(src_url, suffixes)
    versions = [(url, version) for url, _, version in sources]
    decisive = {
        "format": name,
        "numerical_version": NUMERICAL_VERSION,
        "sources": [list(source) for source in sources],
        "options": options.decisive(),
    }
    total = sum(size for _, size, _ in sources)
    largest = max(size for _, size, _ in sources)
    with (
        ingesting(dst_url, decisive, overwrite=run.overwrite, sources=versions) as work,
        open_fanout(small=total <= SMALL_BYTES, num_cpus=run.num_cpus) as fanout,
    ):
        if work.done is not None:
            run.on_progress(len(sources), len(sources))
            return {"url": dst_url, **work.done}
        passed = iter(range(1, len(sources) + 1))
        scanned = work.remembered(
            "scan",
            functools.partial(scan_file, read=read, dst_url=dst_url, alone=len(sources) == 1),
            [url for url, _, _ in sources],
            dump=dump_summaries,
            load=load_summaries,
            fanout=fanout,
            task_bytes=8 * largest + 64 * 2**20,
            on_result=lambda _: run.on_progress(next(passed), len(sources)),
        )
        found = [well for wells, _ in scanned for well in wells]
        faults = [fault for _, some in scanned for fault in some]
        if not found:
            raise FormatError("no file holds a well", where=src_url, measured=faults[0].fault if faults else "")
        plan, more, warnings = make_plan(dst_url, found, options)
        work.report([*faults, *more])
        small, values = identity_arrays(plan)
        specs = [*plan.specs, *small]
        work.create(specs, values)
        groups = well_groups(plan)
        written = work.write(
            functools.partial(write_group, plan=plan), groups, fanout=fanout, task_bytes=_group_bytes(plan, groups)
        )
        quality, quality_values, statistics = merged_figures(plan, [part.figures for part in written])
        work.create(quality, quality_values)
        specs += quality
        info = describe(plan, sources, options, statistics, warnings, work.digests(), values)
        info["warnings"] += quality_sentences(
            [well.name for well in plan.wells], list(plan.columns), quality_values, limit=20
        )
        info = work.finish(specs, info)
    return {"url": dst_url, "wells": len(plan.wells), "depths": plan.axis.count, **info}


def scan_file(url: str, read: Reader, dst_url: str, alone: bool) -> tuple[list[tuple[str, WellSummary]], list[Fault]]:
    """The wells of one file, their values kept beside the survey; a bad file among others is a fault."""
    try:
        wells, faults = read(url)
    except (DataError, UsageError) as error:
        if alone or not isinstance(error, DataError):
            raise
        return [], [Fault("file", url, f"{error.what}; {error.measured}".strip("; "), "left out")]
    storage = open_storage(dst_url)
    found = []
    for number, well in enumerate(wells):
        key = f"{PARSED}/{hashlib.sha256(url.encode()).hexdigest()[:24]}-{number}.npz"
        storage.put(key, well.dump())
        found.append((key, well.summary()))
    return found, faults


def make_plan(
    url: str, found: Sequence[tuple[str, WellSummary]], options: LogOptions
) -> tuple[Plan, list[Fault], list[str]]:
    """What is written where, what was left out on the way, and what a user should know."""
    wells, faults = unique_names([well for _, well in found])
    columns, more, warnings = common_columns(wells, options.aliases, options.units, options.labels, options.classes)
    axis = common_axis(wells, options.step_m)
    chunk = min(axis.count, DEPTH_CHUNK)
    depth_shard = chunk * -(-axis.count // chunk)
    per_shard = max(1, min(len(wells), GROUP_BYTES // (4 * depth_shard)))
    specs = tuple(curve_spec(column, len(wells), axis.count, chunk, depth_shard, per_shard) for column in columns)
    keys = tuple(key for key, _ in found)
    plan = Plan(url, keys, tuple(wells), tuple(columns), specs, axis, options.max_gap_m)
    return plan, faults + more, warnings


def well_groups(plan: Plan) -> list[Group]:
    """Runs of wells, one per shard."""
    per_shard, count = plan.specs[0].shards[0], len(plan.wells)
    starts = range(0, count, per_shard)
    return [Group(i, tuple(range(start, min(start + per_shard, count)))) for i, start in enumerate(starts)]


def write_group(group: Group, plan: Plan) -> Written:
    """Store the shards of a group, one per curve; figures per curve and well, and the shift of each well."""
    storage = open_storage(plan.url)
    parsed = [load_arrays(storage.get(plan.keys[number])) for number in group.wells]
    objects, quality, moments = [], [], []
    faults: list[Fault] = []
    for k, (column, spec) in enumerate(zip(plan.columns, plan.specs, strict=True)):
        block = np.full((len(group.wells), plan.axis.count), spec.fill_value, spec.dtype)
        rows = []
        for row, (number, (depth, values)) in enumerate(zip(group.wells, parsed, strict=True)):
            on_axis = place_curve(plan, column, number, depth, values)
            faults += _unknown_codes(plan, column, number, values)
            if column.classes:
                block[row] = np.where(np.isfinite(on_axis), on_axis, INVALID_CLASS).astype(np.uint8)
            else:
                block[row] = on_axis.astype(np.float32)
            rows.append(curve_figures(on_axis, column, well_cells(plan, number)))
        objects.append(store_shard(plan.url, plan.specs[k], (group.index, 0), block))
        quality.append(rows)
        numbers = np.where(block == INVALID_CLASS, np.nan, block) if column.classes else block
        moments.append(dataclasses.asdict(partial_moments(numbers.astype(np.float32))))
    finite = [m if m["count"] else {"count": 0} for m in moments]
    return Written(tuple(objects), tuple(faults), {"quality": quality, "moments": finite})


def place_curve(plan: Plan, column: Column, number: int, depth: Floats, values: Floats) -> Floats:
    """One well's values of one variable on the common axis, float64."""
    source = column.sources.get(number)
    if source is None:
        return np.full(plan.axis.count, np.nan)
    track, scale = source
    own = values[track] if scale == 1.0 else values[track] * scale
    if column.codes:
        own = class_numbers(own, column.codes)
    kept = kept_places(depth, plan.wells[number].step_m, plan.axis)
    if kept is not None:
        out = np.full(plan.axis.count, np.nan)
        out[kept[0]] = own
        return out
    if column.label:
        return nearest(depth, own, plan.axis)
    return resample(depth, own, plan.axis, plan.max_gap_m)


def class_numbers(values: Floats, codes: Sequence[float]) -> Floats:
    """The position of each value among the codes, NaN for others."""
    found = np.full(values.shape, np.nan)
    for number, code in enumerate(codes):
        found[values == code] = number
    return found


def _unknown_codes(plan: Plan, column: Column, number: int, values: Floats) -> list[Fault]:
    source = column.sources.get(number)
    if source is None or not column.codes:
        return []
    own = values[source[0]]
    unknown = np.unique(own[np.isfinite(own) & ~np.isin(own, column.codes)])
    if not unknown.size:
        return []
    ails = f"codes without a class: {', '.join(f'{code:g}' for code in unknown[:10])}"
    return [Fault("curve", f"{plan.wells[number].source} curve {column.name}", ails, "cells left empty")]


def _group_bytes(plan: Plan, groups: Sequence[Group]) -> int:
    """Peak memory of one write task: the parsed wells of a group and a few copies of one curve's shard."""
    parsed = max(
        sum(8 * plan.wells[number].count * (len(plan.wells[number].tracks) + 4) for number in group.wells)
        for group in groups
    )
    return 2 * parsed + 64 * math.prod(plan.specs[0].shards) + 32 * 2**20
