"""Where traces lie on the map: coordinates in lengths or angles, and what they are in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.formats.segy_detect import RECEIVER_X, RECEIVER_Y, SOURCE_X, SOURCE_Y
from geobatch.formats.segy_file import SegyFile
from geobatch.formats.segy_geometry import coordinates, fit_bin_grid
from geobatch.formats.segy_placement import Placement

FEET_TO_M = 0.3048
FULL_CIRCLE = 360.0
EARTH_RADIUS_M = 6371008.8
# Trace header bytes 89-90.
LENGTH, ARC_SECONDS, DEGREES, DEGREES_MINUTES_SECONDS = 1, 2, 3, 4

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MapUnit:
    """What the coordinates of a file are.

    Attributes:
        code: Of bytes 89-90; 1 where it is unset.
        name: Unit of cdp_x and cdp_y in the survey: `m`, `ft` or `degrees`.
        metres: Length of one unit, for lengths.
    """

    code: int
    name: str
    metres: float

    @property
    def is_angle(self) -> bool:
        """True when coordinates are longitude and latitude."""
        return self.name == "degrees"

    def values(self, x: Values, y: Values) -> tuple[Values, Values]:
        """Coordinates as the survey holds them: lengths as they are, angles in decimal degrees."""
        return (_degrees(x, self.code), _degrees(y, self.code)) if self.is_angle else (x, y)

    def in_metres(self, x: Values, y: Values) -> tuple[Values, Values]:
        """The survey's coordinates in metres; of angles, on the sphere about the middle of the survey."""
        if not self.is_angle:
            return x * self.metres, y * self.metres
        radius = math.radians(1) * EARTH_RADIUS_M
        return x * radius * math.cos(math.radians(float(y.mean()))), y * radius


def map_unit(file: SegyFile, placement: Placement) -> MapUnit:
    """The unit of a file's coordinates: the largest code of its live traces.

    Codes that no standard has count as length, and so do angles beyond the full circle.
    """
    code = placement.table.fields["coordinate_units"][1]
    if code in (ARC_SECONDS, DEGREES, DEGREES_MINUTES_SECONDS):
        pairs = [(None, None), (SOURCE_X, SOURCE_Y), (RECEIVER_X, RECEIVER_Y)]
        values = [_degrees(v, code) for pair in pairs for v in coordinates(placement.table, *pair)]
        if max(float(np.abs(v).max()) for v in values) <= FULL_CIRCLE:
            return MapUnit(code, "degrees", math.nan)
    return MapUnit(LENGTH, "ft", FEET_TO_M) if file.in_feet else MapUnit(LENGTH, "m", 1.0)


def map_coordinates(
    file: SegyFile, placement: Placement, x_byte: int | None = None, y_byte: int | None = None
) -> tuple[Values, Values]:
    """Coordinates of each trace as the survey holds them; see `segy_geometry.coordinates` for the positions."""
    return map_unit(file, placement).values(*coordinates(placement.table, x_byte, y_byte))


def bin_grid(file: SegyFile, placement: Placement) -> dict[str, Any] | None:
    """The affine bin grid: its map in the survey's own coordinates, spacing and residual in metres. None for traces."""
    if placement.bins is None:
        return None
    unit = map_unit(file, placement)
    x, y = map_coordinates(file, placement)
    fitted = fit_bin_grid(placement.bins, x, y)
    if fitted is None or unit.name == "m":
        return fitted
    measured = fit_bin_grid(placement.bins, *unit.in_metres(x, y))
    return fitted if measured is None else measured | {"affine": fitted["affine"]}


def line_figures(file: SegyFile, placement: Placement) -> dict[str, float] | None:
    """Length of a line of traces and the spacing along it, in metres; None when coordinates do not vary."""
    x, y = map_unit(file, placement).in_metres(*map_coordinates(file, placement))
    if x.size < 2 or not (np.ptp(x) or np.ptp(y)):
        return None
    steps = np.hypot(np.diff(x), np.diff(y))
    moved = steps[steps > 0]
    return {
        "length_m": float(steps.sum()),
        "spacing_median_m": float(np.median(moved)),
        "spacing_min_m": float(moved.min()),
        "spacing_max_m": float(moved.max()),
        "end_to_end_m": float(np.hypot(x[-1] - x[0], y[-1] - y[0])),
    }


def _degrees(values: Values, code: int) -> Values:
    """Decimal degrees from seconds of arc, degrees, or DDDMMSS.ss."""
    if code == ARC_SECONDS:
        return values / 3600
    if code == DEGREES:
        return values
    size = np.abs(values)
    degrees, minutes = np.floor(size / 10000), np.floor(size / 100) % 100
    return np.asarray(np.copysign(degrees + minutes / 60 + size % 100 / 3600, values), np.float64)
