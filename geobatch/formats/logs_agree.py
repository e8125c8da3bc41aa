"""What several wells agree on: names, curves with one unit each, and one depth axis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from geobatch.errors import FormatError, UsageError
from geobatch.formats.ingestion import Fault
from geobatch.formats.logs_curves import CURVES, LABELS, alias_ranks, factor, unit_of, variable_name
from geobatch.formats.logs_quality import FIGURES
from geobatch.formats.logs_resample import DepthAxis
from geobatch.formats.logs_well import WellSummary

FINEST_STEP_M = 1e-3
MOST_DEPTHS = 2**22
RESERVED = (
    *("well", "depth", "uwi", "source", "x", "y", "kb", "depth_start", "depth_stop", "native_step", "depth_shift"),
    *("curve", "zarr", "_geobatch", *FIGURES),
)


@dataclass(frozen=True)
class Column:
    """A variable of the survey.

    Attributes:
        name: Of the array.
        about: What it is.
        unit: Of all its values.
        label: It holds codes.
        classes: Names of the classes 0, 1, 2 … when the user gave them.
        codes: What the files write for each class.
        sources: Position of the track and factor of its unit, per well that has it.
    """

    name: str
    about: str
    unit: str
    label: bool
    classes: tuple[str, ...] = ()
    codes: tuple[float, ...] = ()
    sources: dict[int, tuple[int, float]] = field(default_factory=dict)


def unique_names(wells: Sequence[WellSummary]) -> tuple[list[WellSummary], list[Fault]]:
    """The wells, those of the same name told apart by a number."""
    seen: Counter[str] = Counter()
    found, faults = [], []
    for well in wells:
        seen[well.name] += 1
        if seen[well.name] > 1:
            name = f"{well.name} ({seen[well.name]})"
            faults.append(Fault("well", well.source, f"another file holds well {well.name} too", f"kept as {name}"))
            well = replace(well, name=name)
        found.append(well)
    return found, faults


def common_axis(wells: Sequence[WellSummary], step_m: float | None) -> DepthAxis:
    """The depth axis of all wells: it starts at the shallowest depth and has the finest native step, or the one given.

    Raises:
        UsageError: it would be finer or longer than any log.
    """
    steps = [well.step_m if math.isfinite(well.step_m) else well.median_step_m for well in wells]
    native = min((step for step in steps if math.isfinite(step)), default=1.0)
    step = native if step_m is None else step_m
    start, end = min(well.first_m for well in wells), max(well.last_m for well in wells)
    # A shift of half a step and the end of the last cell.
    count = math.floor((end - start) / step + 0.5) + 1 if step > 0 else 0
    if not step >= FINEST_STEP_M or count > MOST_DEPTHS:
        raise UsageError(
            "the common depth axis is too fine",
            where=f"wells from {start:g} to {end:g} m",
            measured=f"step {step:g} m, {count} depths",
            limit=f"at least {FINEST_STEP_M:g} m and at most {MOST_DEPTHS} depths",
            remedy="Give --set step_m=….",
        )
    return DepthAxis(start, step, count)


def common_columns(
    wells: Sequence[WellSummary],
    aliases: Mapping[str, Sequence[str]],
    units: Mapping[str, str],
    labels: Sequence[str],
    classes: Mapping[str, Mapping[int | str, str]],
) -> tuple[list[Column], list[Fault], list[str]]:
    """The variables, in the order of the table of curves and then of the files; what was left out; warnings.

    Raises:
        FormatError: no curve of any well holds a value.
    """
    ranks = alias_ranks(aliases)
    chosen: dict[str, dict[int, int]] = {}
    faults: list[Fault] = []
    for number, well in enumerate(wells):
        names, more = _names_of(well, ranks)
        faults += more
        for track, name in names.items():
            spelled = next((known for known in chosen if known.lower() == name.lower()), name)
            chosen.setdefault(spelled, {})[number] = track
    order = {name: rank for rank, name in enumerate(CURVES)}
    columns: list[Column] = []
    warnings: list[str] = []
    label_names = {name.upper() for name in (*LABELS, *labels, *classes)}
    for name in sorted(chosen, key=lambda name: order.get(name, len(order))):
        unit, sources, more, doubts = _one_unit(name, chosen[name], wells, units)
        faults += more
        warnings += doubts
        about = CURVES[name].about if name in CURVES else wells[min(sources)].tracks[sources[min(sources)][0]][0]
        table = next((table for key, table in classes.items() if key.upper() == name.upper()), {})
        label = name.upper() in label_names
        columns.append(Column(name, about, unit, label, tuple(table.values()), codes_of(table), sources))
    if not columns:
        raise FormatError("no curve of any well holds a value", where=wells[0].source)
    return columns, faults, warnings


def codes_of(table: Mapping[int | str, str]) -> tuple[float, ...]:
    """The codes of a table of classes; their positions when they are words, for which readers put the position."""
    try:
        return tuple(float(code) for code in table)
    except ValueError:
        return tuple(float(position) for position in range(len(table)))


def _names_of(well: WellSummary, ranks: Mapping[str, tuple[str, int]]) -> tuple[dict[int, str], list[Fault]]:
    """Variable name per track of one well; of several that mean the same, the best known mnemonic has it."""
    faults: list[Fault] = []
    wanted: dict[str, list[tuple[int, int]]] = {}
    names: dict[int, str] = {}
    for track, (mnemonic, _, count) in enumerate(well.tracks):
        if not count:
            faults.append(Fault("curve", f"{well.source} curve {mnemonic}", "holds no value", "left out"))
        elif mnemonic.upper() in ranks:
            canonical, rank = ranks[mnemonic.upper()]
            wanted.setdefault(canonical, []).append((rank, track))
        else:
            names[track] = variable_name(mnemonic, RESERVED)
    for canonical, candidates in wanted.items():
        candidates.sort()
        names[candidates[0][1]] = canonical
        for _, track in candidates[1:]:
            names[track] = variable_name(well.tracks[track][0], RESERVED)
    taken: set[str] = set()
    best = {min(candidates)[1] for candidates in wanted.values()}
    for track in sorted(names, key=lambda track: (track not in best, track)):
        base, number = names[track], 2
        while names[track].lower() in taken:
            names[track] = f"{base}_{number}"
            number += 1
        taken.add(names[track].lower())
        if names[track] != base:
            where = f"{well.source} curve {track + 1}"
            faults.append(Fault("curve", where, f"mnemonic {base} a second time", f"kept as {names[track]}"))
    return names, faults


def _one_unit(
    name: str, tracks: Mapping[int, int], wells: Sequence[WellSummary], given: Mapping[str, str]
) -> tuple[str, dict[int, tuple[int, float]], list[Fault], list[str]]:
    """The unit of a variable and each well's factor to it; wells whose unit cannot be converted lose the curve."""
    fallback = next((unit_of(unit) for key, unit in given.items() if key.upper() == name.upper()), "")
    told = {number: unit_of(wells[number].tracks[track][1]) or fallback for number, track in tracks.items()}
    named = Counter(unit for unit in told.values() if unit)
    target = named.most_common(1)[0][0] if named else ""
    if name in CURVES and (not named or any(factor(unit, CURVES[name].unit) for unit in named)):
        target = CURVES[name].unit
    sources: dict[int, tuple[int, float]] = {}
    faults: list[Fault] = []
    silent = [wells[number].name for number, unit in told.items() if not unit and target]
    for number, track in tracks.items():
        scale = factor(told[number] or target, target)
        if scale is None:
            where = f"{wells[number].source} curve {wells[number].tracks[track][0]}"
            faults.append(Fault("curve", where, f"unit {told[number]} cannot be converted to {target}", "left out"))
        else:
            sources[number] = (track, scale)
    doubts = []
    if silent and (named or name in CURVES):
        doubts.append(f"{name} has no unit in {len(silent)} wells, such as {silent[0]}: taken as {target}")
    return target, sources, faults, doubts
