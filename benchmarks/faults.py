"""How small and how noisy a fault the demo's network still finds, on synthetic surveys that it has never seen.

    python benchmarks/faults.py demo-output/bundle

For each noise and largest throw, precision, recall and F1 of the fault class over several seeds; a cell counts as found
where one of the class lies within two cells. The network sees each survey in one piece, as scoring does by halo.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from common import record

from geobatch.interpretation.synthetic import FAULT_CLASS, SyntheticSurvey
from geobatch.models.bundle import Bundle, load_bundle
from geobatch.models.inference import for_inference
from geobatch.survey import VOLUME_AXES
from geobatch.train.evaluate_count import found_within

SHAPE = (96, 96, 160)
SEEDS = (9001, 9002, 9003)
NOISES = (0.05, 0.1, 0.25, 0.5, 1.0)
THROWS = (4.0, 8.0, 12.0, 20.0)
WITHIN = 2


def main() -> None:
    """Measure every noise and throw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundle = load_bundle(options.bundle)
    network = for_inference(bundle.network())
    figures: dict[str, Any] = {"within_cells": WITHIN, "seeds": len(SEEDS), "cells": list(SHAPE)}
    unseen = [SyntheticSurvey.varied(SHAPE, seed) for seed in SEEDS]
    figures["as_trained"] = _figures(bundle, network, unseen)
    print(json.dumps(figures["as_trained"]), flush=True)
    figures["table"] = []
    for throw in THROWS:
        for noise in NOISES:
            surveys = [SyntheticSurvey(SHAPE, seed, noise=noise, largest_throw=throw) for seed in SEEDS]
            row = {"largest_throw": throw, "noise": noise, **_figures(bundle, network, surveys)}
            figures["table"].append(row)
            print(json.dumps(row), flush=True)
    figures["trained_on"] = bundle.spec.provenance.get("run")
    record("faults", figures)


def _figures(bundle: Bundle, network: torch.nn.Module, surveys: list[SyntheticSurvey]) -> dict[str, float]:
    counts = np.zeros(4, np.int64)
    for survey in surveys:
        block = survey.block((slice(0, SHAPE[0]), slice(0, SHAPE[1]), slice(0, SHAPE[2])))
        given = _answer(bundle, network, block["amplitude"], survey.sample_interval_ms) == FAULT_CLASS
        counts += found_within(block["class_map"] == FAULT_CLASS, given, WITHIN)
    hit_given, all_given, hit_true, all_true = counts.tolist()
    precision, recall = hit_given / max(1, all_given), hit_true / max(1, all_true)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {"precision": round(precision, 3), "recall": round(recall, 3), "f1": round(f1, 3), "fault_cells": all_true}


@torch.inference_mode()
def _answer(
    bundle: Bundle, network: torch.nn.Module, amplitude: npt.NDArray[np.float32], interval_ms: float
) -> npt.NDArray[np.int64]:
    axes = {axis: np.arange(size, dtype=float) for axis, size in zip(VOLUME_AXES, amplitude.shape, strict=True)}
    axes["sample"] *= interval_ms
    volume = xr.DataArray(amplitude, dims=VOLUME_AXES, coords=axes, name="amplitude").chunk()
    prepared = bundle.spec.chain.fit(volume).apply(volume).compute().values
    found: npt.NDArray[np.int64] = network(torch.from_numpy(prepared)[None, None])[0].argmax(dim=0).numpy()
    return found


if __name__ == "__main__":
    main()
