"""Gradient boosting of decision trees on logs, depth by depth: what networks are compared with.

Ke et al. 2017 (LightGBM), as scikit-learn's `HistGradientBoostingClassifier` implements it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier

from geobatch.survey import INVALID_CLASS
from geobatch.train.networks import BoostingSpec
from geobatch.train.wells import WellLog


def boosted_probabilities(
    training: Sequence[WellLog], blind: Sequence[WellLog], spec: BoostingSpec, classes: int, seed: int
) -> list[npt.NDArray[np.float32]]:
    """Probabilities `(class, depth)` of each blind well, by trees grown on the wells of training.

    Args:
        training: With labels.
        blind: Whose labels are not looked at.
        spec: The trees.
        classes: Number of classes K.
        seed: Of the bins' subsample and of early choices.
    """
    features = np.concatenate([neighbourhood(well.values, spec.around) for well in training])
    labels = np.concatenate([well.labels for well in training])
    known = labels != INVALID_CLASS
    trees = HistGradientBoostingClassifier(
        max_iter=spec.iterations,
        learning_rate=spec.learning_rate,
        max_leaf_nodes=spec.leaves,
        l2_regularization=spec.regularisation,
        early_stopping=False,
        random_state=seed,
    ).fit(features[known], labels[known])
    found = []
    for well in blind:
        probabilities = np.zeros((classes, well.labels.size), np.float32)
        probabilities[trees.classes_] = trees.predict_proba(neighbourhood(well.values, spec.around)).T
        found.append(probabilities)
    return found


def neighbourhood(values: npt.NDArray[np.float32], around: int) -> npt.NDArray[np.float32]:
    """Rows `(depth, feature)` of channels `(channel, depth)` at each depth and `around` depths above and below it."""
    ends = np.pad(values, ((0, 0), (around, around)), mode="edge")
    depths = values.shape[1]
    return np.concatenate([ends[:, shift : shift + depths] for shift in range(2 * around + 1)]).T
