"""What waiting for earlier trials costs a tuning: trials drawn and stopped by geobatch, none of them trained.

python benchmarks/tune.py [--seeds 10] [--trials 40]

busy      share of the places' time in which a trial runs; an epoch takes one to three times as long as another trial's
time      until the last trial ends, in epochs of the fastest
epochs    trained in all
best      figure of the best, whose parameters lie nearest to what was planted; between 0 and .95
deviation of `best` between seeds
"""

from __future__ import annotations

import argparse
import heapq
import warnings

import numpy as np
from common import record

from geobatch.train.search import Trial, draw, is_stopped
from geobatch.train.tune_spec import TuneJob

EPOCHS = 9
SEARCH = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-1]},
    "training.weight_decay": {"loguniform": [1e-4, 1e-1]},
    "training.augment.noise": {"uniform": [0, 1]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for places, together in ((1, 1), (2, 2), (2, 4), (2, 8), (4, 4), (4, 8), (4, 16)):
        found = np.array([simulated(together, places, seed, arguments.trials) for seed in range(arguments.seeds)])
        means = dict(zip(("time", "busy", "best", "epochs"), found.mean(axis=0).round(3).tolist(), strict=True))
        rows.append({"places": places, "together": together, **means, "deviation": round(float(found[:, 2].std()), 3)})
        print(rows[-1])
    record("tune", {"seeds": arguments.seeds, "trials": arguments.trials, "rows": rows})


def simulated(together: int, places: int, seed: int, count: int) -> tuple[float, float, float, int]:
    """Time, share of busy places, best figure and epochs of one tuning."""
    job = TuneJob.model_validate(
        {
            "train": {"data": [{"survey": "none", "labels": "none"}]},
            "search": SEARCH,
            "trials": count,
            "together": together,
            "seed": seed,
            "output": "none",
        }
    )
    trials: list[Trial] = []
    running: list[tuple[float, int]] = []
    ended: set[int] = set()
    now = busy = 0.0
    while True:
        number = len(trials)
        if number < count and len(running) < places and (number < together or number - together in ended):
            trials.append(draw(job, trials))
            # Its end is known at once: nothing that runs beside it has a say.
            took = run_out(job, trials, seed)
            busy += took
            heapq.heappush(running, (now + took, number))
        elif running:
            now, first = heapq.heappop(running)
            ended.add(first)
        else:
            break
    best = max(trial.worth(None, EPOCHS) or 0.0 for trial in trials if trial.state == "complete")
    return now, busy / (now * places), best, sum(len(trial.history) for trial in trials)


def run_out(job: TuneJob, trials: list[Trial], seed: int) -> float:
    """The time the last trial takes to its end; its history is filled."""
    trial = trials[-1]
    trial.state = "complete"
    for epoch in range(1, EPOCHS + 1):
        trial.history.append({"epoch": epoch, "validation": {"mean_class_accuracy": figure(trial, epoch, seed)}})
        if epoch < EPOCHS and is_stopped(job, trials, trial.number, epoch):
            trial.state = "stopped"
            break
    return float(np.random.default_rng([seed, trial.number]).uniform(1, 3) * len(trial.history))


def figure(trial: Trial, epoch: int, seed: int) -> float:
    """What an epoch reaches: less, the farther the parameters are from what was planted, and a little chance."""
    rate, decay, noise = (trial.values[key] for key in SEARCH)
    far = abs(np.log10(rate) + 2) + 0.5 * abs(np.log10(decay) + 3) + noise
    chance = np.random.default_rng([seed, trial.number, epoch]).normal(0, 0.02)
    return float((1 - np.exp(-epoch / 3)) / (1 + far) + chance)


if __name__ == "__main__":
    main()
