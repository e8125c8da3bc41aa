"""The learning rate of each step, and which epoch was the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from geobatch.train.spec import Training

_WARM_UP = 0.1
_PLATEAU_FACTOR = 0.5


def learning_rate(training: Training, step: int, history: Sequence[dict[str, Any]] = ()) -> float:
    """Return the rate of a step: linear warm-up, then a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Args:
        training: With the schedule; `constant` and `plateau` stay at the highest rate after the warm-up.
        step: From 0.
        history: Figures of the epochs before, by which `plateau` halves it.
    """
    total = training.steps_per_epoch * training.epochs
    warm_up = max(1, round(_WARM_UP * total))
    if step < warm_up:
        return training.learning_rate * (step + 1) / warm_up
    if training.schedule != "cosine":
        factor = plateau_factor(history, training.plateau_epochs) if training.schedule == "plateau" else 1.0
        return training.learning_rate * factor
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def monitored(figures: dict[str, Any]) -> float:
    """What tells whether an epoch is better: of what is held out mean class accuracy or minus the error, else the loss.

    A larger value is better.
    """
    validation = figures.get("validation") or {}
    if validation.get("mean_class_accuracy") is not None:
        return float(validation["mean_class_accuracy"])
    return -float(figures["loss"] if validation.get("rmse") is None else validation["rmse"])


def epochs_since_best(history: Sequence[dict[str, Any]]) -> int:
    """Epochs after the best one; 0 when the last is the best, or none was."""
    if not history:
        return 0
    values = [monitored(figures) for figures in history]
    return len(values) - 1 - values.index(max(values))


def plateau_factor(history: Sequence[dict[str, Any]], patience: int) -> float:
    """Factor of the learning rate: halved whenever `patience` epochs in turn were no better than the best before."""
    factor, best, waited = 1.0, float("-inf"), 0
    for figures in history:
        value = monitored(figures)
        if value > best:
            best, waited = value, 0
            continue
        waited += 1
        if waited >= patience:
            factor, waited = factor * _PLATEAU_FACTOR, 0
    return factor
