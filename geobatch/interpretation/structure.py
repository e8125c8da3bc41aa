"""Folds and faults as closed functions of position, undone from the youngest to the oldest.

Positions are in cells: inline and crossline indices, samples downwards. Both kinds of deformation move points along the
sample axis only, so a position's stratigraphic level is found without solving for anything.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from geobatch.interpretation.hashing import between, uniform

Region = tuple[slice, slice, slice]
Samples = NDArray[np.float64]

_WAVES, _WAVE, _PRESENT, _FAULT = 11, 12, 13, 14
_LABEL_HALF_WIDTH = 1.5
_LABEL_LEAST_THROW = 2.0
_LARGEST_RADIUS = 110.0
_DEPTH_CELL = 128


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
            phase = float(between(0.0, 2 * math.pi, self.seed, _WAVES, wave, 3))
            wavenumber = 2 * math.pi / wavelength
            # sin(u + v) from one-dimensional tables: exact to the bit for any cut, which vectorised sines do not promise.
            sin_u, cos_u = _sin_cos(inlines * (wavenumber * math.cos(azimuth)) + phase)
            sin_v, cos_v = _sin_cos(crosslines * (wavenumber * math.sin(azimuth)))
            total += slope / wavenumber * (sin_u[:, None] * cos_v + cos_u[:, None] * sin_v)
        return total


def _sin_cos(angles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
        lateral = self.length + self.reach / math.sin(self.dip) + self._heave()
        lower = [math.floor(c - r) for c, r in zip(self.centre, (lateral, lateral, self.height), strict=True)]
        upper = [math.ceil(c + r) + 1 for c, r in zip(self.centre, (lateral, lateral, self.height), strict=True)]
        # Younger faults have moved the points that are looked up here: 64 samples is more than they do.
        return slice(lower[0], upper[0]), slice(lower[1], upper[1]), slice(lower[2] - 64, upper[2] + 64)

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
    largest_throw: float = 18.0

    def undo(
        self, inlines: NDArray[np.int64], crosslines: NDArray[np.int64], samples: Samples
    ) -> tuple[Samples, NDArray[np.bool_]]:
        """Return sample positions (I, X, S) before all faults, and a mask of the fault surfaces.

        Args:
            inlines: consecutive inline indices (I,).
            crosslines: consecutive crossline indices (X,).
            samples: consecutive sample positions (S,).
        """
        positions = np.broadcast_to(samples, (inlines.size, crosslines.size, samples.size)).copy()
        labels = np.zeros(positions.shape, bool)
        region = tuple(slice(int(a[0]), int(a[-1]) + 1) for a in (inlines, crosslines, np.floor(samples)))
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
        margins = (3.5 * _LARGEST_RADIUS, 3.5 * _LARGEST_RADIUS, _LARGEST_RADIUS + 64)
        ranges = [
            range(math.floor((axis.start - margin) / size), math.floor((axis.stop + margin) / size) + 1)
            for axis, size, margin in zip(region, sizes, margins, strict=True)
        ]
        for cell in product(*ranges):
            if uniform(self.seed, _PRESENT, *cell) < 0.6:
                yield self._fault(cell)

    def _fault(self, cell: tuple[int, ...]) -> Fault:
        def draw(low: float, high: float, stream: int) -> float:
            return float(between(low, high, self.seed, _FAULT, *cell, stream))

        azimuth = float(between(0.0, 2 * math.pi, self.seed, _FAULT)) + draw(-0.5, 0.5, 0)
        if draw(0.0, 1.0, 1) < 0.4:
            azimuth += math.pi
        throw = draw(0.3, 1.0, 2) * self.largest_throw
        return Fault(
            centre=(
                (cell[0] + draw(0.0, 1.0, 3)) * self.spacing,
                (cell[1] + draw(0.0, 1.0, 4)) * self.spacing,
                (cell[2] + draw(0.0, 1.0, 5)) * _DEPTH_CELL,
            ),
            strike=(math.cos(azimuth), math.sin(azimuth)),
            dip=math.radians(draw(55.0, 82.0, 6)),
            curvature=draw(-0.0005, 0.0015, 7),
            throw=-throw if draw(0.0, 1.0, 8) < 0.15 else throw,
            length=draw(50.0, _LARGEST_RADIUS, 9),
            height=draw(60.0, _LARGEST_RADIUS, 10),
            reach=draw(35.0, 70.0, 11),
        )


def _overlap(bound: slice, extent: slice) -> slice:
    """Return the part of `bound` inside `extent`, counted from the start of `extent`."""
    return slice(max(bound.start, extent.start) - extent.start, min(bound.stop, extent.stop) - extent.start)
