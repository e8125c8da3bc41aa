from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_benchmark_of_training_tells_its_figures(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "train", raising=False)
    import train

    figures = train.measure(s3, (96, 80, 80), steps=2, rounds=1, patch=[16, 16, 16])
    assert figures["s3_over_memory"] > 0.05 and figures["two_worker_speedup"] > 0.05
    (from_s3,), (in_memory,) = figures["trainings"]["s3"], figures["trainings"]["memory"]
    assert from_s3[0]["weights"] == in_memory[0]["weights"]
    assert from_s3[0]["steps"] == 4 and 0 < from_s3[0]["waiting_s"] < from_s3[0]["seconds"]
