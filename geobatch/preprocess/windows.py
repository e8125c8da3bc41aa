"""The length of a sliding window, in ms or in cells."""

from __future__ import annotations

from typing import Self

import xarray as xr
from pydantic import Field, model_validator

from geobatch.preprocess.base import Halo
from geobatch.preprocess.sampling import SampledStep


class WindowedStep(SampledStep):
    """A step whose samples depend on a window centred on each.

    Attributes:
        window_ms: Length of the window; it spans the odd number of cells whose half comes nearest.
        window_cells: Its length in cells instead, odd, on an axis of any unit.
    """

    window_ms: float | None = Field(default=None, gt=0)
    window_cells: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.window_ms is None) == (self.window_cells is None):
            raise ValueError("a window needs either `window_ms` or `window_cells`")
        if self.window_cells is not None and self.window_cells % 2 == 0:
            raise ValueError(f"window_cells {self.window_cells} is even: a window is centred on its sample")
        return self

    @property
    def fitted(self) -> bool:
        """True when the window's length in cells is known."""
        return self.window_cells is not None or self.sampling is not None

    @property
    def half(self) -> int:
        """Cells of the window on each side of its centre.

        Raises:
            UsageError: the window is in ms and the sample interval is not known, or is none of time.
        """
        if self.window_cells is not None:
            return self.window_cells // 2
        return max(1, round(0.5e-3 * (self.window_ms or 0) / self.seconds()))

    @property
    def halo(self) -> Halo:
        """Half the window on both sides."""
        return {self.along: (self.half, self.half)}

    def sampled(self, x: xr.DataArray) -> Self:
        """The step with the sample interval of `x`; itself when its window is in cells."""
        return self if self.window_cells is not None else super().sampled(x)

    def require_possible(self) -> None:
        """Raise UsageError on an axis that is no time."""
        self.seconds()

    def checked_half(self, x: xr.DataArray) -> int:
        """Cells on each side, after a look that `x` has the interval the step was fitted to."""
        if self.window_cells is None:
            self.known_sampling(x)
        return self.half
