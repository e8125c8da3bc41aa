"""Wells whose classes are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from geobatch.formats import IngestJob, ingest_job

WELLS = ("A", "B", "C", "PSEUDO")
DEPTHS = 160


def write_wells(folder: Path, *, blind_factor: float = 1.0) -> str:
    """Wells whose class is told by the sign of a smooth curve two depths above; its mean is another in each well."""
    random = np.random.default_rng(5)
    rows = ["Well,Depth,GR,NOISE,LATE,Class"]
    for number, well in enumerate(WELLS):
        told = np.convolve(random.standard_normal(DEPTHS + 20), np.ones(6) / 2.4, "same")[10:-10]
        labels = np.roll(told > 0, 2) + 1
        noise = random.standard_normal(DEPTHS)
        for k in range(2, DEPTHS):
            factor = blind_factor if well == "C" else 1.0
            late = "" if number == 0 and k % 2 else f"{random.random():.3f}"
            rows.append(f"{well},{1000 + 0.5 * k},{factor * told[k]:.4f},{noise[k]:.4f},{late},{labels[k]}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wells.csv").write_text("\n".join([*rows, ""]))
    options = {"depth_unit": "m", "classes": {"Class": {1: "low", 2: "high"}}}
    survey = str(folder / "survey")
    ingest_job(IngestJob(job="ingest", source=str(folder / "wells.csv"), output=survey, format="logs", options=options))
    return survey


def wells_data(survey: str, **changes: Any) -> dict[str, Any]:
    """The key `data` of a job on these wells."""
    return {
        "kind": "wells",
        "survey": survey,
        "labels": "Class",
        "curves": {"curves": ["GR", "NOISE", "LATE"]},
        "training_only": ["PSEUDO"],
        **changes,
    }
