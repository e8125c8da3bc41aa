"""What a network is asked: classes, of cells or of whole windows, or a number.

Tensor axes: B batch, K class.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from geobatch.errors import MismatchError
from geobatch.preprocess.base import Frozen
from geobatch.train.losses import (
    CellLoss,
    binary_loss,
    class_weights,
    dice_loss,
    focal_loss,
    label_weight,
    penalty_loss,
    segmentation_loss,
)
from geobatch.train.metrics import confusion_matrix, load_penalty, number_scores, scores
from geobatch.train.spec import Training

Tally = npt.NDArray[np.float64]
"""What is counted of held-out examples; tallies of different workers add up."""


class Classes(Frozen):
    """One class per cell, or per window.

    Attributes:
        names: Of the classes, in the order of the network's outputs.
        weights: Of each class in the loss.
        loss: As `Training` documents it.
        focal_gamma: See there.
        dice: See there.
        costs: Cost of giving a class (column) for another (row), of `penalty`.
    """

    kind: Literal["classes"] = "classes"
    names: tuple[str, ...]
    weights: tuple[float, ...]
    loss: Literal["cross_entropy", "focal", "bce", "penalty"] = "cross_entropy"
    focal_gamma: float = 2.0
    dice: float = 0.0
    costs: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, names: tuple[str, ...], counts: npt.NDArray[np.int64], training: Training) -> Classes:
        """The classes of a training.

        Args:
            names: See above.
            counts: Labelled cells per class.
            training: How; its matrix of costs is read.

        Raises:
            NotFoundError, DataError: as `load_penalty`.
            MismatchError: the matrix is of another number of classes.
        """
        costs = np.zeros((0, 0)) if training.penalty is None else load_penalty(training.penalty)
        if training.penalty is not None and len(costs) != len(names):
            raise MismatchError(
                "the penalty is of another number of classes",
                where=training.penalty,
                measured=len(costs),
                limit=len(names),
            )
        return cls(
            names=names,
            weights=class_weights(counts.tolist(), training.class_weights),
            loss=training.loss,
            focal_gamma=training.focal_gamma,
            dice=training.dice,
            costs=tuple(map(tuple, costs.tolist())),
        )

    @property
    def outputs(self) -> int:
        """Of the network: one per class, or one that stands for the second of two."""
        return 1 if self.loss == "bce" else len(self.names)

    def weight(self, labels_B: Tensor) -> Tensor:
        """What the labels of a batch weigh."""
        return label_weight(labels_B, self._weights(labels_B))

    def value(self, logits_BK: Tensor, labels_B: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
        """The loss of a batch.

        Args:
            logits_BK: `(batch, class, *axes)`, or `(batch, class)` of windows.
            labels_B: `(batch, *axes)` int64, 255 unlabelled.
            weight: What sums over cells are divided by.
            share: Factor of losses that are means by themselves.
        """
        loss = segmentation_loss(logits_BK, labels_B, self._weights(labels_B), weight, self._cell_loss())
        return loss + share * self.dice * dice_loss(logits_BK, labels_B) if self.dice else loss

    def answer(self, logits_BK: Tensor) -> Tensor:
        """Probabilities `(batch, class, *axes)` of logits."""
        if self.loss == "bce":
            second_BK = logits_BK.sigmoid()
            return torch.cat([1 - second_BK, second_BK], dim=1)
        return logits_BK.softmax(dim=1)

    def tally(self) -> Tally:
        """Of nothing yet: cells `(true class, given class)`."""
        return np.zeros((len(self.names), len(self.names)))

    def count(self, answer_K: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> Tally:
        """Of one example: `(class, *axes)` probabilities and `(*axes)` labels."""
        return confusion_matrix(labels, answer_K.argmax(axis=0), len(self.names)).astype(float)

    def figures(self, tally: Tally) -> dict[str, Any]:
        """What `metrics.scores` documents."""
        return scores(tally.astype(np.int64), self.names)

    def _weights(self, labels_B: Tensor) -> Tensor:
        return torch.tensor(self.weights, device=labels_B.device)

    def _cell_loss(self) -> CellLoss | None:
        made: dict[str, CellLoss | None] = {
            "cross_entropy": None,
            "focal": focal_loss(self.focal_gamma),
            "bce": binary_loss,
            "penalty": penalty_loss(self.costs),
        }
        return made[self.loss]


class Number(Frozen):
    """One number per window, such as a magnitude, learnt as its distance from the mean over its deviation.

    Attributes:
        name: Of the number.
        mean: Of those of training.
        deviation: Of those of training.
        huber: Distance, in deviations, from which errors count as such and not squared (Huber 1964,
            doi:10.1214/aoms/1177703732).
    """

    kind: Literal["number"] = "number"
    name: str
    mean: float
    deviation: float = Field(gt=0)
    huber: float = Field(default=1.0, gt=0)

    @property
    def outputs(self) -> int:
        """Of the network."""
        return 1

    def weight(self, labels_B: Tensor) -> Tensor:
        """How many numbers of a batch are known; NaN is not."""
        return labels_B.isfinite().sum().float()

    def value(self, outputs_BK: Tensor, labels_B: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
        """The loss of a batch: `(batch, 1)` outputs and `(batch,)` float32 numbers; see `Classes.value`."""
        known_B = labels_B.isfinite()
        aim_B = (labels_B[known_B] - self.mean) / self.deviation
        total = nn.functional.huber_loss(outputs_BK[:, 0][known_B], aim_B, reduction="sum", delta=self.huber)
        return total / weight.clamp(min=1e-6)

    def answer(self, outputs_BK: Tensor) -> Tensor:
        """The number in its own unit, `(batch, 1)`."""
        return outputs_BK * self.deviation + self.mean

    def tally(self) -> Tally:
        """Of nothing yet: count, sums of error, its size and square, and of the truth and its square."""
        return np.zeros(6)

    def count(self, answer_K: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> Tally:
        """Of one example: `(1,)` and its truth `()`."""
        truth = float(labels)
        if not math.isfinite(truth):
            return self.tally()
        error = float(answer_K[0]) - truth
        return np.array([1, error, abs(error), error**2, truth, truth**2])

    def figures(self, tally: Tally) -> dict[str, Any]:
        """What `metrics.number_scores` documents."""
        return number_scores(tally)


Objective = Classes | Number
AnyObjective = Annotated[Objective, Field(discriminator="kind")]
