"""Whether a survey is the data that a bundle was trained on (C8)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr

from geobatch.errors import MismatchError
from geobatch.models.bundle import QUANTILES, BundleSpec, DataDescription
from geobatch.preprocess import Chain, prepare, read_region

SAMPLED_PER_AXIS = 3
SAMPLE_CELLS = 32
SHIFT_LIMIT = 0.5
INTERVAL_LIMIT = 0.1


def describe_data(info: dict[str, object], quantiles: Sequence[float]) -> DataDescription:
    """A survey's own description as a bundle records it."""
    return DataDescription(
        quantity=str(info.get("quantity")),
        domain=str(info.get("domain")),
        sample_unit=str(info.get("sample_unit")),
        sample_interval=float(str(info.get("sample_interval"))),
        polarity=str(info.get("polarity", "unknown")),
        quantiles=tuple(quantiles),
    )


def prepared_quantiles(cropped: xr.DataArray, chain: Chain) -> tuple[float, ...]:
    """Values at `QUANTILES` of the prepared survey, from up to 27 small regions spread evenly over it.

    Empty when none of them holds a valid sample.
    """
    spans = []
    for n in cropped.shape:
        count = min(SAMPLED_PER_AXIS, n)
        starts = {int(s) for s in np.linspace(0, max(0, n - SAMPLE_CELLS), count)}
        spans.append([slice(s, min(n, s + SAMPLE_CELLS)) for s in sorted(starts)])
    parts = [prepare(read_region(cropped, chain, region), chain).ravel() for region in itertools.product(*spans)]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    return tuple(float(v) for v in np.quantile(values, QUANTILES)) if values.size else ()


def require_right_data(spec: BundleSpec, found: DataDescription, where: str, force: bool) -> list[str]:
    """Warnings with figures when the data are unlike those of training.

    Raises:
        MismatchError: quantity, domain or sample unit is another, unless forced.
    """
    trained = spec.data
    problems = [
        f"{name} {ours} instead of {theirs}"
        for name, ours, theirs in (
            ("quantity", found.quantity, trained.quantity),
            ("domain", found.domain, trained.domain),
            ("sample unit", found.sample_unit, trained.sample_unit),
        )
        if ours != theirs
    ]
    if problems and not force:
        raise MismatchError(
            f"bundle {spec.name} was trained on other data",
            where=where,
            measured=f"{found.quantity} in {found.domain} ({found.sample_unit})",
            limit=f"{trained.quantity} in {trained.domain} ({trained.sample_unit})",
            remedy="Score another survey, or use a bundle trained on such data. --force scores it all the same.",
        )
    warnings = [f"forced: {problem}" for problem in problems]
    if abs(found.sample_interval - trained.sample_interval) > INTERVAL_LIMIT * trained.sample_interval:
        warnings.append(
            f"sample interval {found.sample_interval:g} {found.sample_unit}, "
            f"the bundle was trained at {trained.sample_interval:g} {trained.sample_unit}"
        )
    return warnings + _distribution_warning(found.quantiles, trained.quantiles)


def _distribution_warning(found: Sequence[float], trained: Sequence[float]) -> list[str]:
    if not found or not trained:
        return []
    spread = max(trained[-1] - trained[0], 1e-12)
    shifts = [abs(f - t) / spread for f, t in zip(found, trained, strict=True)]
    worst = int(np.argmax(shifts))
    if shifts[worst] <= SHIFT_LIMIT:
        return []
    return [
        f"prepared values are far from those of training: {QUANTILES[worst]:.0%} quantile {found[worst]:.3g}, "
        f"in training {trained[worst]:.3g} (shift {shifts[worst]:.2f} of the 1–99 % range, limit {SHIFT_LIMIT})"
    ]
