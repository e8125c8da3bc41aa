"""The tables of a report: verdict, run, classes, metrics, provenance; as text, ready to be escaped."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from pydantic import TypeAdapter

from geobatch.blocks import Grid
from geobatch.report.figures import ClassStyle
from geobatch.report.record import RunRecord, dictionary
from geobatch.report.sections import ScoredSurvey, Section
from geobatch.survey import COMPLETE, INVALID_CLASS

Row = tuple[str, str]


@dataclass(frozen=True)
class Verdict:
    """What became of the run: `good`, `bad` or `open`, in a few words."""

    kind: str
    text: str


@dataclass(frozen=True)
class ClassRow:
    """One class: its share of the valid cells of each section, in percent."""

    style: ClassStyle
    shares: list[str]


@dataclass(frozen=True)
class Metrics:
    """Agreement with the labels over the labelled cells of the sections shown."""

    accuracy: str
    cells: str
    rows: list[tuple[ClassStyle, list[str]]]


def verdict(survey: ScoredSurvey, record: RunRecord) -> Verdict:
    """Complete, so many dead blocks, or so many blocks still to come."""
    dead = len(record.dead_letters)
    if dead:
        return Verdict("bad", f"{dead} dead block{'s' if dead > 1 else ''}")
    if survey.info.get("state") == COMPLETE:
        return Verdict("good", "Complete")
    missing = (record.blocks_planned or 0) - len(record.receipts)
    return Verdict("open", f"{missing:,} blocks not yet scored" if missing > 0 else "Not marked complete")


def run_rows(record: RunRecord) -> list[Row]:
    """The run in figures; what was not recorded is left out."""
    blocks = dictionary(record.run.get("blocks"))
    voxels, valid = record.total("voxels"), record.total("valid")
    share = f" ({100 * valid / voxels:.1f} % valid)" if voxels and valid is not None else ""
    planned = f" of {record.blocks_planned:,}" if record.blocks_planned else ""
    speed = record.run.get("voxels_per_s")
    rows: list[tuple[str, str | None]] = [
        ("Blocks scored", f"{len(record.receipts):,}{planned}"),
        ("Kept from an earlier run", _count(blocks, "kept")),
        ("Voxels", f"{voxels:,}{share}" if voxels else None),
        ("Speed", f"{speed / 1e6:.3g} Mvoxel/s" if isinstance(speed, int | float) and speed else None),
        ("Last run", _duration(record.run.get("seconds"))),
        ("Replicas", _text(record.run.get("replicas"))),
        ("Stored", _bytes(record.bytes_stored())),
        ("Input read, uncompressed", _bytes(record.total("bytes_read"))),
        ("Retries", _pairs(record.run.get("retries"))),
        ("Started", _text(record.run.get("started"))),
        ("Finished", _text(record.run.get("finished"))),
    ]
    return [(name, value) for name, value in rows if value]


def plan_rows(record: RunRecord) -> list[Row]:
    """The plan: what was cut how."""
    grid = record.plan.get("grid")
    if not isinstance(grid, dict):
        return []
    redundancy = record.run.get("redundancy") or _redundancy(grid)
    rows: list[tuple[str, str | None]] = [
        ("Survey, cells", _cells(grid.get("shape"))),
        ("Block = shard", _cells(grid.get("shard"))),
        ("Chunk", _cells(record.plan.get("chunk"))),
        ("Patch", _cells(grid.get("patch"))),
        ("Halo, before/after", _halo(grid.get("halo"))),
        ("Preprocessing halo", _halo(grid.get("reach"))),
        ("Total stride", _cells(grid.get("stride"))),
        ("Redundancy", f"{redundancy:.2f} voxels computed per voxel written" if redundancy else None),
        ("Batch", _text(record.plan.get("batch"))),
        ("Device, precision", " ".join(str(record.plan[k]) for k in ("device", "precision") if k in record.plan)),
        ("Preprocessing", _steps(record.plan.get("chain"))),
    ]
    return [(name, value) for name, value in rows if value]


def stage_rows(record: RunRecord) -> list[tuple[str, str, float]]:
    """Time per stage over all blocks: name, duration, share in percent."""
    stages = record.stage_seconds()
    total = sum(stages.values()) or 1.0
    return [(name, _duration(seconds) or "0 s", 100 * seconds / total) for name, seconds in stages.items()]


def class_rows(survey: ScoredSurvey, sections: list[Section]) -> list[ClassRow]:
    """Class shares of each section."""
    rows = []
    for style in survey.styles:
        shares = []
        for section in sections:
            valid = int((section.classes != INVALID_CLASS).sum())
            shares.append(f"{100 * (section.classes == style.value).sum() / valid:.2f} %" if valid else "–")
        rows.append(ClassRow(style, shares))
    return rows


def metrics(survey: ScoredSurvey, sections: list[Section]) -> Metrics | None:
    """Precision, recall, F1 and IoU per class against the labels; nothing without labels."""
    pairs = [(s.classes.ravel(), s.truth.ravel()) for s in sections if s.truth is not None]
    if not pairs:
        return None
    predicted, truth = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = (truth != INVALID_CLASS) & (predicted != INVALID_CLASS)
    predicted, truth = predicted[known], truth[known]
    rows = []
    for style in survey.styles:
        ours, theirs = predicted == style.value, truth == style.value
        both = int((ours & theirs).sum())
        figures = [
            _ratio(both, int(ours.sum())),
            _ratio(both, int(theirs.sum())),
            _ratio(2 * both, int(ours.sum() + theirs.sum())),
            _ratio(both, int((ours | theirs).sum())),
            f"{int(theirs.sum()):,}",
        ]
        rows.append((style, figures))
    return Metrics(_ratio(int((predicted == truth).sum()), truth.size), f"{truth.size:,}", rows)


def failure_rows(record: RunRecord) -> list[dict[str, str]]:
    """The failed blocks: where, how often tried, why."""
    rows = []
    for letter in record.dead_letters:
        where = ", ".join(f"{axis} {_ends(ends)}" for axis, ends in dictionary(letter.get("region")).items())
        rows.append(
            {
                "block": str(letter.get("block", "?")),
                "where": where,
                "attempts": str(letter.get("attempts", "")),
                "error": str(letter.get("error", "no reason recorded")),
                "traceback": str(letter.get("traceback", "")),
            }
        )
    return rows


def provenance_rows(survey: ScoredSurvey, record: RunRecord, output_url: str) -> list[Row]:
    """Where everything came from."""
    info, plan = survey.info, record.plan
    versions = record.run.get("versions")
    rows: list[tuple[str, str | None]] = [
        ("Scored survey", output_url),
        ("Source survey", _text(info.get("source_survey"))),
        ("Survey identity", _text(info.get("survey_identity") or plan.get("survey_identity"))),
        ("Coordinate system", _text(info.get("crs") or survey.source_info.get("crs"))),
        ("Bundle", _text(info.get("bundle") or plan.get("bundle"))),
        ("Bundle hash", _text(info.get("bundle_hash") or plan.get("bundle_hash"))),
        ("Plan hash", _text(info.get("plan_hash"))),
        ("Versions", _pairs(versions)),
    ]
    return [(name, value) for name, value in rows if value]


def textual_header(source: xr.Dataset | None) -> str:
    """The 40 lines of the SEG-Y textual header, decoded; empty where the source has none.

    The header is EBCDIC (code page 037) or ASCII, 3200 bytes (SEG-Y rev 1, section 4); whichever makes more
    letters and blanks of the bytes is taken.
    """
    if source is None or "file_header" not in source:
        return ""
    raw = np.asarray(source["file_header"].values[:3200], dtype=np.uint8).tobytes()
    texts = [raw.decode("cp037"), raw.decode("latin-1")]
    text = max(texts, key=lambda t: sum(c.isascii() and (c.isalnum() or c == " ") for c in t))
    lines = [text[start : start + 80] for start in range(0, len(text), 80)]
    return "\n".join("".join(c if c.isprintable() else " " for c in line).rstrip() for line in lines).strip("\n")


def _redundancy(grid: dict[str, Any]) -> float | None:
    try:
        return TypeAdapter(Grid).validate_python(grid).redundancy()
    except ValueError:
        return None


def _steps(chain: Any) -> str | None:
    steps = chain.get("steps") if isinstance(chain, dict) else None
    return " → ".join(" ".join(_step_words(step)) for step in steps if isinstance(step, dict)) if steps else None


def _step_words(step: dict[str, Any]) -> Iterator[str]:
    yield str(step.get("step", "?"))
    for key in ("method", "percentile", "lower", "upper"):
        if step.get(key) is not None:
            yield str(step[key])


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def _ends(ends: Any) -> str:
    pair = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    return f"{ends[0]:g}–{ends[1]:g}" if pair else str(ends)


def _count(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    return f"{value:,}" if isinstance(value, int) and value else None


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _pairs(value: Any) -> str | None:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else None


def _cells(value: Any) -> str | None:
    return " × ".join(map(str, value)) if isinstance(value, list) and value else None


def _halo(value: Any) -> str | None:
    pairs = isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return ", ".join(f"{before}/{after}" for before, after in value) if pairs else None


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
