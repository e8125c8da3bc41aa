"""Folds and faults as closed functions of position, undone from the youngest to the oldest.

Positions are in cells: inline and crossline indices, samples downwards. Both kinds of deformation move points along the
sample axis only, so a position's stratigraphic level is found without solving for anything.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geobatch.interpretation.hashing import between

Region = tuple[slice, slice, slice]
Samples = NDArray[np.float64]

_WAVE, _AZIMUTH, _FAULT = 11, 12, 13
_LABEL_HALF_WIDTH = 1.5
_LABEL_LEAST_THROW = 3.0
_DEPTH_CELL = 128
_DIPS_DEG = (55.0, 82.0)
_CURVATURES = (-0.0005, 0.0015)
_LENGTHS = (50.0, 110.0)
_HEIGHTS = (60.0, 110.0)
_REACHES = (35.0, 70.0)
# Younger faults have moved the points that an older one is asked about, by less than this many samples.
_MOVED = 32
_FARTHEST = (
    _LENGTHS[1]
    + _REACHES[1] / math.sin(math.radians(_DIPS_DEG[0]))
    + _HEIGHTS[1] / math.tan(math.radians(_DIPS_DEG[0]))
    + _HEIGHTS[1] ** 2 * _CURVATURES[1]
)


@dataclass(frozen=True)
class Folds:
    """Plane waves of vertical shift: two long ones that read as regional dip, four short ones that read as folds.

    Args:
        seed: the survey's seed.
        strength: factor on every slope.
    """

    seed: int
    strength: float = 1.0

    def level(self, inlines: NDArray[np.int64], crosslines: NDArray[np.int64], samples: Samples) -> Samples:
        """Return the stratigraphic level (samples) of points, the shift growing with depth.

        Args:
            inlines: inline indices (I,).
            crosslines: crossline indices (X,).
            samples: sample positions (I, X, S) after undoing the faults.
        """
        shift = self._shift(inlines, crosslines)[:, :, None]
        growth = 0.5 + 0.5 * np.maximum(samples, 0.0) / (np.maximum(samples, 0.0) + 128.0)
        return samples - shift * growth

    def _shift(self, inlines: NDArray[np.int64], crosslines: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros((inlines.size, crosslines.size))
        for wave in range(6):
            wavelengths = (500.0, 1200.0) if wave < 2 else (70.0, 220.0)
            wavelength = float(between(*wavelengths, self.seed, _WAVE, wave, 0))
            slope = self.strength * float(between(0.03, 0.12, self.seed, _WAVE, wave, 1))
            azimuth = float(between(0.0, 2 * math.pi, self.seed, _WAVE, wave, 2))
            phase = float(between(0.0, 2 * math.pi, self.seed, _WAVE, wave, 3))
            wavenumber = 2 * math.pi / wavelength
            # sin(u + v) from tables per axis: exact to the bit for any cut, which vectorised sines do not promise.
            sin_u, cos_u = _sin_cos(inlines * (wavenumber * math.cos(azimuth)) + phase)
            sin_v, cos_v = _sin_cos(crosslines * (wavenumber * math.sin(azimuth)))
            total += slope / wavenumber * (sin_u[:, None] * cos_v + cos_u[:, None] * sin_v)
        return total


def _sin_cos(angles: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([math.sin(a) for a in angles]), np.array([math.cos(a) for a in angles])


@dataclass(frozen=True)
class Fault:
    """One fault: an elliptic patch of a dipping, gently curved surface, with displacement that dies out at its rim.

    The displacement is largest at the centre and zero at the tip line (Walsh & Watterson 1988,
    doi:10.1016/0191-8141(88)90057-0); half of it moves each side, dying out with the distance from the surface.

    Args:
        centre: inline, crossline and sample position.
        strike: unit vector (inline, crossline) along the surface; its normal points to the hanging wall.
        dip: angle from the horizontal in radians, cells taken as cubes.
        curvature: change of the horizontal distance with the square of depth, 1/cell; positive is listric.
        throw: largest vertical displacement, samples; negative for a reverse fault.
        length: half length along strike, cells.
        height: half height, samples.
        reach: distance from the surface at which the displacement has died out, cells.
    """

    centre: tuple[float, float, float]
    strike: tuple[float, float]
    dip: float
    curvature: float
    throw: float
    length: float
    height: float
    reach: float

    def bounds(self) -> Region:
        """Return the region outside which the fault moves nothing."""
        along, across = self.length, self.reach / math.sin(self.dip) + self._heave()
        inline, crossline = (abs(component) for component in self.strike)
        radii = (inline * along + crossline * across, crossline * along + inline * across, self.height + _MOVED)
        inlines, crosslines, samples = (
            slice(math.floor(centre - radius), math.ceil(centre + radius) + 1)
            for centre, radius in zip(self.centre, radii, strict=True)
        )
        return inlines, crosslines, samples

    def undo(
        self, inlines: NDArray[np.int64], crosslines: NDArray[np.int64], samples: Samples
    ) -> tuple[Samples, NDArray[np.bool_]]:
        """Return sample positions before this fault moved, and where the fault surface is (three cells thick).

        Args:
            inlines: inline indices (I,).
            crosslines: crossline indices (X,).
            samples: sample positions (I, X, S).
        """
        along_inline, along_crossline = self.strike
        inline_offset = (inlines - self.centre[0])[:, None]
        crossline_offset = (crosslines - self.centre[1])[None, :]
        along = (inline_offset * along_inline + crossline_offset * along_crossline)[:, :, None]
        across = (crossline_offset * along_inline - inline_offset * along_crossline)[:, :, None]
        depth = samples - self.centre[2]
        surface = depth * (1.0 / math.tan(self.dip)) + depth * depth * self.curvature
        distance = (across - surface) * math.sin(self.dip)
        radius = (along / self.length) ** 2 + (depth / self.height) ** 2
        throw = self.throw * np.maximum(1.0 - radius * radius, 0.0)
        decay = np.maximum(1.0 - (distance / self.reach) ** 2, 0.0)
        moved = 0.5 * throw * decay * decay
        on_surface = (np.abs(distance) <= _LABEL_HALF_WIDTH) & (np.abs(throw) >= _LABEL_LEAST_THROW)
        return samples - np.where(distance > 0, moved, -moved), on_surface

    def _heave(self) -> float:
        return self.height / math.tan(self.dip) + self.height**2 * abs(self.curvature)


@dataclass(frozen=True)
class FaultNetwork:
    """Faults scattered over a lattice, so that a block needs to know only those near it.

    Args:
        seed: the survey's seed.
        spacing: lateral size of a lattice cell; each holds at most one fault per 128 samples of depth.
        largest_throw: samples.
    """

    seed: int
    spacing: int = 64
    largest_throw: float = 20.0

    def undo(
        self, inlines: NDArray[np.int64], crosslines: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> tuple[Samples, NDArray[np.bool_]]:
        """Return sample positions (I, X, S) before all faults, and a mask of the fault surfaces.

        Args:
            inlines: consecutive inline indices (I,).
            crosslines: consecutive crossline indices (X,).
            samples: consecutive sample indices (S,).
        """
        positions = np.tile(samples.astype(np.float64), (inlines.size, crosslines.size, 1))
        labels = np.zeros(positions.shape, bool)
        region = tuple(slice(int(a[0]), int(a[-1]) + 1) for a in (inlines, crosslines, samples))
        for fault in self._near((region[0], region[1], region[2])):
            part = tuple(_overlap(bound, extent) for bound, extent in zip(fault.bounds(), region, strict=True))
            if any(axis.stop <= axis.start for axis in part):
                continue
            before, on_surface = fault.undo(inlines[part[0]], crosslines[part[1]], positions[part])
            positions[part] = before
            labels[part] |= on_surface
        return positions, labels

    def _near(self, region: Region) -> Iterator[Fault]:
        sizes = (self.spacing, self.spacing, _DEPTH_CELL)
        margins = (_FARTHEST, _FARTHEST, _HEIGHTS[1] + _MOVED)
        ranges = [
            range(math.floor((axis.start - margin) / size), math.floor((axis.stop + margin) / size) + 1)
            for axis, size, margin in zip(region, sizes, margins, strict=True)
        ]
        for cell in product(*ranges):
            fault = _fault_in_cell(self, cell)
            if fault is not None:
                yield fault


@lru_cache(maxsize=16384)
def _fault_in_cell(network: FaultNetwork, cell: tuple[int, ...]) -> Fault | None:
    def draw(low: float, high: float, stream: int) -> float:
        return float(between(low, high, network.seed, _FAULT, *cell, stream))

    if draw(0.0, 1.0, 0) > 0.6:
        return None
    # Faults of a survey share an orientation, give or take, and dip to both sides.
    azimuth = float(between(0.0, 2 * math.pi, network.seed, _AZIMUTH)) + draw(-0.5, 0.5, 1)
    if draw(0.0, 1.0, 2) < 0.4:
        azimuth += math.pi
    throw = draw(0.5, 1.0, 3) * network.largest_throw
    return Fault(
        centre=(
            (cell[0] + draw(0.0, 1.0, 4)) * network.spacing,
            (cell[1] + draw(0.0, 1.0, 5)) * network.spacing,
            (cell[2] + draw(0.0, 1.0, 6)) * _DEPTH_CELL,
        ),
        strike=(math.cos(azimuth), math.sin(azimuth)),
        dip=math.radians(draw(*_DIPS_DEG, 7)),
        curvature=draw(*_CURVATURES, 8),
        throw=-throw if draw(0.0, 1.0, 9) < 0.15 else throw,
        length=draw(*_LENGTHS, 10),
        height=draw(*_HEIGHTS, 11),
        reach=draw(*_REACHES, 12),
    )


def _overlap(bound: slice, extent: slice) -> slice:
    """Return the part of `bound` inside `extent`, counted from the start of `extent`."""
    return slice(max(bound.start, extent.start) - extent.start, min(bound.stop, extent.stop) - extent.start)
