"""Losses, each a sum over the labelled cells alone, divided by what they weigh.

Tensor axes: B batch, C channel, K class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from geobatch.survey import INVALID_CLASS

CellLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss `(batch, *axes)` of logits `(batch, class, *axes)` and labels `(batch, *axes)`, 255 as any class."""


def segmentation_loss(
    logits_BK: Tensor,
    labels_B: Tensor,
    weights_K: Tensor,
    weight: Tensor | None = None,
    cell_loss: CellLoss | None = None,
) -> Tensor:
    """Return the loss of the labelled cells, weighted by class; 255 is unlabelled, and without labels it is 0.

    Args:
        logits_BK: `(batch, class, *axes)`.
        labels_B: `(batch, *axes)`.
        weights_K: Of the classes.
        weight: What the sum is divided by, by default what the labels weigh.
        cell_loss: Cross-entropy by default.
    """
    weight = label_weight(labels_B, weights_K) if weight is None else weight
    if cell_loss is None:
        total = nn.functional.cross_entropy(
            logits_BK, labels_B, weight=weights_K, ignore_index=INVALID_CLASS, reduction="sum"
        )
    else:
        labelled_B = labels_B != INVALID_CLASS
        known_B = labels_B.where(labelled_B, 0)
        total = (cell_loss(logits_BK, known_B) * weights_K[known_B] * labelled_B).sum()
    return total / weight.clamp(min=1e-6)


def label_weight(labels_B: Tensor, weights_K: Tensor) -> Tensor:
    """Return the sum over labelled cells of the weight of their class."""
    return weights_K[labels_B[labels_B != INVALID_CLASS]].sum()


def focal_loss(gamma: float) -> CellLoss:
    """The focal loss, which counts what is already right the less (Lin et al. 2017, arXiv 1708.02002).

    Args:
        gamma: 0 is cross-entropy.
    """

    def loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        entropy_B = nn.functional.cross_entropy(logits_BK, labels_B, reduction="none")
        return (1 - torch.exp(-entropy_B)).clamp(min=1e-6) ** gamma * entropy_B

    return loss


def binary_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The binary cross-entropy `(batch, *axes)` of the one logit of class 1 `(batch, 1, *axes)`."""
    return nn.functional.binary_cross_entropy_with_logits(
        logits_BK[:, 0], labels_B.to(logits_BK.dtype), reduction="none"
    )


def penalty_loss(costs_KK: Sequence[Sequence[float]]) -> CellLoss:
    """The cost to be expected of each answer, beside cross-entropy, without which wrong certainty has no gradient.

    Args:
        costs_KK: Cost of giving a class (column) for another (row).
    """

    def loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        costs = torch.tensor(costs_KK, dtype=logits_BK.dtype, device=logits_BK.device)
        expected_B = (costs[labels_B].movedim(-1, 1) * logits_BK.softmax(dim=1)).sum(dim=1)
        return expected_B + nn.functional.cross_entropy(logits_BK, labels_B, reduction="none")

    return loss


def dice_loss(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the soft Dice loss of the labelled cells (Milletari et al. 2016, doi:10.1109/3DV.2016.79)."""
    valid = labels_B != INVALID_CLASS
    probability_BK = logits_BK.softmax(dim=1) * valid.unsqueeze(1)
    truth_BK = nn.functional.one_hot(labels_B.where(valid, 0), logits_BK.shape[1]).movedim(-1, 1)
    truth_BK = truth_BK * valid.unsqueeze(1)
    axes = (0, *range(2, logits_BK.ndim))
    shared_K = (probability_BK * truth_BK).sum(axes)
    either_K = probability_BK.sum(axes) + truth_BK.sum(axes)
    return 1 - ((2 * shared_K + 1) / (either_K + 1)).mean()


def class_weights(counts: Sequence[int], kind: str) -> tuple[float, ...]:
    """Return loss weights per class with a mean of 1 over the labelled voxels.

    Args:
        counts: labelled voxels per class.
        kind: `none`, `sqrt` or `inverse`; a class without voxels weighs 1.
    """
    share = np.asarray(counts, float) / max(1, sum(counts))
    exponent = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}[kind]
    raw = np.where(share > 0, np.maximum(share, 1e-12) ** -exponent, 0.0)
    weights = np.where(share > 0, raw / max(float((raw * share).sum()), 1e-12), 1.0)
    return tuple(weights.tolist())
