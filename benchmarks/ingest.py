"""Ingest: geobatch against MDIO on the same SEG-Y file, against itself from and to S3, and its memory as files grow.

    python benchmarks/ingest.py [--shape 640 640 512] [--rivals .rivals] [--allow-missing]

Every peer is a process of its own with the same number of CPUs, over the same file (IBM float), which is read once
before each peer is timed. Repetitions are interleaved; figures are medians.

    over_mdio       MDIO's time over geobatch's on a Ray cluster that stands, MDIO told to pack as geobatch does. Beside
                    it: MDIO as it packs by itself, and geobatch with the start of its cluster counted.
    s3_over_local   geobatch's time from and to an S3 server over its time on the disk, both on half of the CPUs; the
                    server, a slow one in Python, has the other half to itself.
    over_obspy      obspy's plain loop over a MiniSEED archive of day files, which reads, merges and stores, over
                    geobatch's ingest of it; `over_obspy_read` compares with reading alone, nothing kept.
    memory_growth   peak resident memory of geobatch's largest process for files of 4 and 16 times the size over that
                    for one, so 1 when it does not grow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import HERE, ROOT, record
from running import Run, run_peer

from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_segy
from geobatch.local_s3 import environment, local_s3
from geobatch.storage import open_storage

BUCKET = "raw"
SIZES = (1, 4, 16)
SMALLEST = (128, 128, 256)

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Order:
    """What a peer is asked to do."""

    source: str
    output: str
    format: str = "segy"
    codec: str = "geobatch"
    cpus: int = os.cpu_count() or 1
    threads: int = 1

    def write(self, path: str) -> str:
        """Store the order as JSON; the path."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)))
        return path


@dataclasses.dataclass(frozen=True)
class Peer:
    """Who is measured: a script, the Python it runs in, where it reads and writes, how it packs, and on which cores."""

    script: Path
    python: Path
    place: str = "local"
    codec: str = "geobatch"
    format: str = "segy"
    cores: tuple[int, ...] = ()


def main() -> None:
    """Measure, store the figures; exit 1 when a rival's environment is missing."""
    options = _options()
    own, mdio = Path(sys.executable), options.rivals / "mdio" / "bin" / "python"
    if not mdio.exists() and not options.allow_missing:
        sys.exit("the environment of mdio is missing. Make it with benchmarks/rivals/setup.sh.")
    script, (near, _) = HERE / "peers" / "ingest.py", _halves()
    peers = {
        "geobatch": Peer(script, own),
        "geobatch_on_half": Peer(script, own, cores=near),
        "geobatch_s3_on_half": Peer(script, own, place="s3", cores=near),
    }
    if mdio.exists():
        peers["mdio"] = Peer(HERE / "rivals" / "mdio_ingest.py", mdio)
        peers["mdio_packed_by_itself"] = Peer(HERE / "rivals" / "mdio_ingest.py", mdio, codec="mdio")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "raw.sgy"
        write_segy(SyntheticSurvey(tuple(options.shape), 5), str(path))
        megabytes = path.stat().st_size / 1e6
        runs = _measure(peers, path, options.repetitions)
        growth = _growth(Path(folder))
        archive = _write_archive(Path(folder) / "archive", options.days)
        waveforms = _measure(_waveform_peers(own), archive, options.repetitions)
    seconds = {name: _median(own) for name, own in runs.items()}
    whole = statistics.median(run.figures["seconds_with_cluster"] for run in runs["geobatch"])
    figures = {
        "over_mdio": _ratio(seconds.get("mdio"), seconds["geobatch"]),
        "over_obspy": _ratio(_median(waveforms["obspy"]), _median(waveforms["geobatch"])),
        "s3_over_local": _ratio(seconds["geobatch_s3_on_half"], seconds["geobatch_on_half"]),
        "memory_growth": _ratio(max(growth.values()), growth["1"]),
        "over_obspy_read": _ratio(_median(waveforms["obspy_read"]), _median(waveforms["geobatch"])),
        "over_mdio_packed_by_itself": _ratio(seconds.get("mdio_packed_by_itself"), seconds["geobatch"]),
        "over_mdio_with_cluster_start": _ratio(seconds.get("mdio"), whole),
        "mb_per_s": {name: round(megabytes / median, 1) for name, median in seconds.items()},
        "peak_mib_by_size": {size: round(peak / 2**20) for size, peak in growth.items()},
        "peers": {name: _summary(own) for name, own in runs.items()},
        "waveforms": {name: _summary(own) for name, own in waveforms.items()},
        "setting": {"megabytes": round(megabytes, 1), "shape": list(options.shape), "smallest": list(SMALLEST)},
    }
    record("ingest", figures)


def _waveform_peers(own: Path) -> dict[str, Peer]:
    return {
        "geobatch": Peer(HERE / "peers" / "ingest.py", own, format="miniseed"),
        "obspy": Peer(HERE / "rivals" / "obspy_loop.py", own, codec="store"),
        "obspy_read": Peer(HERE / "rivals" / "obspy_loop.py", own, codec="read"),
    }


def _write_archive(folder: Path, days: int) -> Path:
    """A folder of day files of one station, three channels at 100 Hz: a random walk under noise, packed as Steim 2."""
    import obspy

    chance = np.random.default_rng(0)
    samples = 24 * 3600 * 100
    folder.mkdir()
    for day in range(days):
        for channel in ("HHE", "HHN", "HHZ"):
            values = np.cumsum(chance.integers(-40, 41, samples), dtype=np.int64) // 8 + chance.integers(
                -60, 61, samples
            )
            start = obspy.UTCDateTime(2024, 1, 1) + 86400 * day
            header = {
                "network": "XX",
                "station": "BENCH",
                "channel": channel,
                "sampling_rate": 100.0,
                "starttime": start,
            }
            path = folder / f"XX.BENCH..{channel}.D.2024.{day + 1:03d}"
            obspy.Trace(values.astype(np.int32), header).write(str(path), format="MSEED", encoding="STEIM2", reclen=512)
    return folder


def _measure(peers: dict[str, Peer], path: Path, repetitions: int) -> dict[str, list[Run]]:
    """Every peer's runs, interleaved, each round beginning with another one."""
    runs: dict[str, list[Run]] = {name: [] for name in peers}
    names = list(peers)
    for repetition in range(repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            runs[name].append(_run(peers[name], path))
            print(f"{name}: {runs[name][-1].figures}", file=sys.stderr, flush=True)
    return runs


def _run(peer: Peer, path: Path) -> Run:
    for file in path.rglob("*") if path.is_dir() else [path]:
        file.read_bytes()
    folder = path.parent
    output = folder / "output"
    order = Order(str(path), str(output), codec=peer.codec, format=peer.format)
    if peer.cores:
        order = dataclasses.replace(order, cpus=len(peer.cores))
    if peer.place == "local":
        run = run_peer(peer.python, peer.script, order, folder / "order.json", peer.cores)
        shutil.rmtree(output, ignore_errors=True)
        return run
    with local_s3(BUCKET, folder=folder) as server, environment(server.environment):
        _pin(server.process_id, _halves()[1])
        open_storage(f"s3://{BUCKET}").put("raw.sgy", path.read_bytes())
        order = dataclasses.replace(order, source=f"s3://{BUCKET}/raw.sgy", output=f"s3://{BUCKET}/survey")
        return run_peer(peer.python, peer.script, order, folder / "order.json", peer.cores)


def _halves() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cores in two halves."""
    cores = sorted(os.sched_getaffinity(0))
    middle = max(1, len(cores) // 2)
    return tuple(cores[:middle]), tuple(cores[middle:] or cores)


def _pin(process_id: int, cores: tuple[int, ...]) -> None:
    """Bind every thread of a process to these cores; threads that it starts later follow."""
    for thread in psutil.Process(process_id).threads():
        os.sched_setaffinity(thread.id, cores)


def _growth(folder: Path) -> dict[str, int]:
    """Peak of geobatch's largest process, by the size of the file."""
    own = Peer(HERE / "peers" / "ingest.py", Path(sys.executable))
    peaks: dict[str, int] = {}
    for size in SIZES:
        path = folder / f"raw-{size}.sgy"
        inlines, crosslines, samples = SMALLEST
        write_segy(SyntheticSurvey((inlines * size, crosslines, samples), 5), str(path))
        peaks[str(size)] = _run(own, path).peak_bytes
        path.unlink()
    return peaks


def _median(runs: list[Run]) -> float:
    return statistics.median(run.figures["seconds"] for run in runs)


def _ratio(one: float | None, other: float) -> float | None:
    return None if one is None else round(one / other, 3)


def _summary(runs: list[Run]) -> Figures:
    figures = {key: [round(run.figures[key], 3) for run in runs] for key in runs[0].figures if key != "processes"}
    return figures | {"peak_mib_of_all_processes": round(max(run.tree_peak_bytes for run in runs) / 2**20)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(640, 640, 512))
    parser.add_argument("--days", type=int, default=32, help="of the MiniSEED archive")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rivals", type=Path, default=ROOT / ".rivals", help="folder of the rivals' environments")
    parser.add_argument("--folder", help="where files and outputs lie meanwhile; the system's by default")
    parser.add_argument("--allow-missing", action="store_true", help="measure the rest when a rival is not installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
