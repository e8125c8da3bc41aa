"""What a model says of cells that it has not seen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import UsageError


@dataclass(frozen=True)
class Fold:
    """One model of one candidate and the groups it has not seen, such as a well or some stations."""

    candidate: str
    held_out: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Blind:
    """What a candidate says of groups it has not seen.

    Attributes:
        answers: `(class, cell)` float32 probabilities, or `(1, cell)` numbers.
        labels: `(cell,)` uint8, 255 unlabelled; or numbers float32.
        places: `(cell,)` float64 that tell the cells of a group apart: depths in m, or numbers of records.
        groups: `(cell,)` text: the group of each cell.
    """

    answers: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    places: npt.NDArray[np.float64]
    groups: npt.NDArray[np.str_]

    def dumped(self) -> bytes:
        """As NPZ."""
        body = io.BytesIO()
        np.savez(body, answers=self.answers, labels=self.labels, places=self.places, groups=self.groups)
        return body.getvalue()

    @classmethod
    def loaded(cls, body: bytes) -> Blind:
        """From NPZ."""
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            return cls(arrays["answers"], arrays["labels"], arrays["places"], arrays["groups"])

    @classmethod
    def mean(cls, several: Sequence[Blind]) -> Blind:
        """The mean of what several models say of the same cells.

        Raises:
            UsageError: the cells are others.
        """
        first = several[0]
        if any(not np.array_equal(other.places, first.places) for other in several):
            raise UsageError(
                "candidates count other cells, so they have no mean",
                remedy="Give them the same way with missing values.",
            )
        return replace(first, answers=np.mean([other.answers for other in several], axis=0))

    def of(self, groups: Sequence[str]) -> Blind:
        """What is said of some of the groups."""
        own = np.isin(self.groups, list(groups))
        return Blind(self.answers[:, own], self.labels[own], self.places[own], self.groups[own])
