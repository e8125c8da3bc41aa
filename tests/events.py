"""Event windows whose arrivals, amplitudes and magnitudes are known."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from geobatch.formats import windows
from geobatch.formats.spec import IngestRun

RATE_HZ = 50.0
SAMPLES = 1500
P_SAMPLE = 700
STATIONS = ("AA.ONE", "AA.TWO", "BB.ONE", "BB.TWO", "CC.ONE", "CC.TWO")


def write_events(folder: Path, *, each: int = 4, **changes: Any) -> str:
    """A survey of events: noise of deviation 1, from P on ringing that is the larger, the larger the magnitude.

    The largest amplitude A and S - P in s tell the magnitude, log10 A + 2 log10(S - P). Some records have one
    component alone. Events are recorded by two stations each.

    Args:
        folder: Where raw files and the survey go.
        each: Records of each station.
        changes: Columns of all rows, such as `trace_P_arrival_sample`; a function gets the row's number.
    """
    random = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "waveforms.hdf5", "w") as file:
        file["data_format/component_order"] = "ZNE"
        for number in range(each * len(STATIONS)):
            gap_s, amplitude = random.uniform(2, 8), 10 ** random.uniform(1.0, 2.5)
            data = random.standard_normal((3, SAMPLES))
            time = np.arange(SAMPLES - P_SAMPLE) / RATE_HZ
            ringing = np.sin(2 * np.pi * 5 * time + random.uniform(0, 6)) * np.exp(-time / 5)
            data[:, P_SAMPLE:] += amplitude * ringing
            data[:, P_SAMPLE + 20] = amplitude * 2 * np.array([1, -1, 1])
            if number % 5 == 0:
                data[1:] = 0
            file[f"data/w{number}"] = data.astype("f4")
            network, station = STATIONS[number % len(STATIONS)].split(".")
            row: dict[str, Any] = {
                "trace_name": f"w{number}",
                "station_network_code": network,
                "station_code": station,
                "trace_sampling_rate_hz": RATE_HZ,
                "trace_P_arrival_sample": P_SAMPLE,
                "trace_S_arrival_sample": P_SAMPLE + gap_s * RATE_HZ,
                "source_magnitude": np.log10(2 * amplitude) + 2 * np.log10(gap_s),
                "source_latitude_deg": number // 2,
                "source_longitude_deg": 0,
                "source_depth_km": 10,
            }
            rows.append(row | {k: value(number) if callable(value) else value for k, value in changes.items()})
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    survey = str(folder / "survey")
    windows.ingest_source(str(folder), survey, windows.Options(), IngestRun())
    return survey


def windows_data(survey: str, ask: str = "event", **changes: Any) -> dict[str, Any]:
    """The key `data` of a job on these windows; keys of `input` are changed beside their others."""
    own = {"form": "waveform", "window_s": 8.0, "components": ["E", "N", "Z"], **changes.pop("input", {})}
    return {"kind": "windows", "survey": survey, "ask": ask, "input": own, **changes}
