"""How good a curve of a well is: coverage, range, constancy, spikes; the sentences a log analyst wants first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.logs_curves import CURVES

if TYPE_CHECKING:
    from geobatch.formats.logs_agree import Column

FIGURES = {
    "coverage": "part of the well's depth range with a value",
    "minimum": "least value",
    "maximum": "greatest value",
    "implausible": "part of the values outside the plausible range of such curves",
    "spikes": "part of the values that stand alone against both neighbours",
}
SPIKE_WIDTH = 9
# Robust standard deviations from the median of the window: a bed boundary is a step and never gets there.
SPIKE_LIMIT = 12.0
MANY_IMPLAUSIBLE = 0.01
MANY_SPIKES = 0.002
LITTLE_COVERAGE = 0.05
# Bits are changed seldom, and the path of a vertical well has one place.
MAY_BE_CONSTANT = ("BS", "X_LOC", "Y_LOC", "X", "Y")


def curve_figures(values: npt.NDArray[np.float64], column: Column, cells: slice) -> list[float]:
    """The figures of one curve of one well in the order of `FIGURES`; NaN where there is no value."""
    inside = values[cells]
    finite = inside[np.isfinite(inside)]
    if not finite.size:
        return [0.0, math.nan, math.nan, math.nan, math.nan]
    low, high = plausible_range(column)
    odd = float(((finite < low) | (finite > high)).mean())
    # Resistivities spread over decades: there a spike is one in the logarithm.
    judged = np.log10(finite[finite > 0]) if column.unit == "ohm.m" else finite
    alone = spikes(judged).mean() if judged.size >= SPIKE_WIDTH and not column.label else 0.0
    coverage = finite.size / max(inside.size, 1)
    return [coverage, float(finite.min()), float(finite.max()), odd, float(alone)]


def plausible_range(column: Column) -> tuple[float, float]:
    """Least and greatest plausible value; infinite for curves of no known type or in another unit."""
    kind = CURVES.get(column.name)
    return (kind.low, kind.high) if kind and kind.unit == column.unit else (-math.inf, math.inf)


def spikes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """True where one or two values stand alone: far from their window's median, in robust deviations (Hampel 1974)."""
    padded = np.pad(values, SPIKE_WIDTH // 2, mode="reflect")
    median = np.median(np.lib.stride_tricks.sliding_window_view(padded, SPIKE_WIDTH), axis=-1)
    rest = np.abs(values - median)
    scale = 1.4826 * float(np.median(rest[rest > 0])) if (rest > 0).any() else 0.0
    if not scale:
        return np.zeros(values.size, bool)
    far = np.pad(rest > SPIKE_LIMIT * scale, 2)
    # Of three and more in a row, something in the ground is likelier.
    long = far[:-4] & far[1:-3] | far[1:-3] & far[3:-1] | far[3:-1] & far[4:]
    return np.asarray(far[2:-2] & ~long)


def quality_sentences(
    wells: Sequence[str], columns: Sequence[Any], arrays: Mapping[str, npt.NDArray[Any]], limit: int = 100
) -> list[str]:
    """What is suspicious, worst first.

    Args:
        wells: Names.
        columns: Each with a `name` and a `label`.
        arrays: `FIGURES` as `(well, curve)`.
        limit: Most sentences.
    """
    found: list[tuple[float, str]] = []
    for k, column in enumerate(columns):
        coverage, low, high = (arrays[name][:, k] for name in ("coverage", "minimum", "maximum"))
        present = coverage > 0
        if not present.any():
            found.append((3.0, f"{column.name} holds no value in any well"))
            continue
        odd, alone = arrays["implausible"][:, k], arrays["spikes"][:, k]
        for w in np.flatnonzero(odd > MANY_IMPLAUSIBLE).tolist():
            text = f"{wells[w]}: {odd[w]:.1%} of {column.name} is implausible ({low[w]:g} to {high[w]:g})"
            found.append((2.0 + odd[w], text))
        for w in np.flatnonzero(present & (low == high) & (coverage > LITTLE_COVERAGE)).tolist():
            if not column.label and column.name.upper() not in MAY_BE_CONSTANT:
                found.append((2.0, f"{wells[w]}: {column.name} is {low[w]:g} everywhere"))
        if spiky := int((alone > MANY_SPIKES).sum()):
            w = int(np.nanargmax(alone))
            others = f", and fewer in {spiky - 1} other wells" if spiky > 1 else ""
            found.append((1.0 + alone[w], f"{wells[w]}: {alone[w]:.2%} of {column.name} are spikes{others}"))
        for w in np.flatnonzero(present & (coverage < LITTLE_COVERAGE)).tolist():
            found.append((0.5, f"{wells[w]}: {column.name} covers {coverage[w]:.1%} of the well"))
        missing = np.flatnonzero(~present).tolist()
        if missing and column.name in CURVES:
            named = ", ".join(wells[w] for w in missing[:5]) + (", …" if len(missing) > 5 else "")
            found.append(
                (
                    0.9 * len(missing) / len(wells),
                    f"{column.name} is missing in {len(missing)} of {len(wells)} wells: {named}",
                )
            )
    found.sort(key=lambda entry: -entry[0])
    sentences = [sentence for _, sentence in found]
    return sentences if len(sentences) <= limit else [*sentences[:limit], f"and {len(sentences) - limit} more"]
