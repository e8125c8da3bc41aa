"""Synthetic surveys with known facies and faults, and their labels, on which the jobs of synthetic data train.

    python jobs/make_synthetic.py data/synthetic

Writes `survey-1` to `survey-4` with `labels-1` to `labels-4`, and `unseen` with `unseen-labels`, as in `geobatch demo`.
"""

from __future__ import annotations

import sys

from geobatch.demo import SHAPE, TRAINING_SEEDS, UNSEEN_SEED, UNSEEN_SHAPE
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_labels, write_survey


def main(folder: str) -> None:
    """Write the surveys."""
    places = [(f"survey-{k}", f"labels-{k}", SHAPE, seed) for k, seed in enumerate(TRAINING_SEEDS, 1)]
    for survey, labels, shape, seed in [*places, ("unseen", "unseen-labels", UNSEEN_SHAPE, UNSEEN_SEED)]:
        synthetic = SyntheticSurvey.varied(shape, seed)
        write_survey(synthetic, f"{folder}/{survey}")
        write_labels(synthetic, f"{folder}/{labels}")


if __name__ == "__main__":
    main(*sys.argv[1:])
