"""The evaluating job as a frozen schema."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from geobatch.preprocess.base import Frozen
from geobatch.score.region import AxisRanges
from geobatch.storage import absolute_url


class EvaluateJob(Frozen):
    """`job: evaluate`: how far a scored survey agrees with labels, with what uncertainty, and where not.

    Attributes:
        scored: URL of a scored survey, or of any label survey.
        labels: URL of the truth; where its grid is larger or smaller, the common lines and samples count.
        variable: the volume to compare.
        region: part of the survey that is judged; all of it without.
        learnt: part of the labels that training has seen: what its most frequent class, and its most frequent class at
            each time or depth, would score in `region` stands beside the network's figures.
        by: errors are told by this line, and resampled by it.
        neighbours: so many lines in turn are resampled together, since one is much like the next.
        tolerance: cells; a cell of a class also counts as found where one lies within so many cells of it.
        output: folder of `evaluate.json` and `evaluate.html`.
    """

    job: Literal["evaluate"]
    name: str = "evaluate"
    scored: str = Field(min_length=1)
    labels: str = Field(min_length=1)
    variable: str = "class_map"
    region: AxisRanges = AxisRanges()
    learnt: AxisRanges | None = None
    by: Literal["inline", "crossline"] = "inline"
    neighbours: int = Field(default=8, ge=1)
    tolerance: int = Field(default=2, ge=0, le=16)
    output: str = Field(min_length=1)

    def absolute(self) -> Self:
        """The job with plain paths made absolute: tasks run in folders of their own."""
        urls = {key: absolute_url(getattr(self, key)) for key in ("scored", "labels", "output")}
        return self.model_copy(update=urls)
