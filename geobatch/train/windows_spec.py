"""Event windows as the key `data` of a training job."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from geobatch.preprocess.base import Frozen
from geobatch.preprocess.event_windows import WindowInput

Grouping = Literal["station", "network", "event"]
"""What two windows must not share when one trains and the other judges."""


class WindowsData(Frozen):
    """A survey of event windows, and what is asked of each.

    `event`: whether a window holds the P arrival or was cut from before it. Every record with a P pick gives both, each
    as often: the arrival at any place within `p_between`, and noise that ends `noise_margin_s` before it or sooner.
    Amplitudes are normalised per window. `magnitude`: the survey's magnitude, with amplitudes kept; the window holds
    the arrival within `p_between` where there is a pick, and lies anywhere in its record where there is none.

    Attributes:
        kind: `windows`.
        survey: URL of the survey.
        ask: `event` or `magnitude`, see above.
        input: What a network sees; nothing of it may be fitted.
        noise_margin_s: Between the end of noise and the P arrival, for picks that came late.
        p_between: Parts of a window between which its P arrival lies.
    """

    kind: Literal["windows"]
    survey: str = Field(min_length=1)
    ask: Literal["event", "magnitude"]
    input: WindowInput
    noise_margin_s: float = Field(default=1.0, ge=0)
    p_between: tuple[float, float] = (0.1, 0.8)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.p_between
        if not 0 <= low <= high <= 1:
            raise ValueError(f"p_between {low:g} to {high:g}: two parts of a window, the smaller first")
        if self.input.amplitude is not None or self.input.mean is not None or self.input.deviation is not None:
            raise ValueError("input: amplitude, mean and deviation follow from what is asked and from the data")
        return self

    @property
    def unfitted(self) -> WindowInput:
        """The input with the amplitudes that the question needs."""
        kept: Literal["normalised", "kept"] = "kept" if self.ask == "magnitude" else "normalised"
        return self.input.model_copy(update={"amplitude": kept})
