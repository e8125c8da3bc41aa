"""Scoring a survey: geobatch against the bare network, MONAI and Ray Data, all in one run.

    python benchmarks/score.py [--shape 384 384 384] [--network small|faultseg3d] [--memory-gib 4] [--allow-missing]

Every peer is a process of its own, under the same allocator, threads and memory cap, over the same volume in float32,
whose files are read once before each peer is timed; each runs the network once before its clock starts. A rate counts
every voxel of the output once. Repetitions are interleaved, each beginning with another peer; figures are medians.

    engine_over_bare    rate of geobatch from the start of dispatch, when its replicas stand, to the last receipt,
                        reading, preparing, encoding and storing included, over the rate of the bare loop, which
                        has the volume prepared in memory and stores nothing. Both run the network in the form that
                        `models/inference.py` gives it. Whole jobs, and the bare loop with the network as it was
                        trained, stand in `peers`.
    over_monai          the same rate over MONAI's, from its first byte read to its class map stored; like Ray Data it
                        runs the network as it was trained.
    over_ray_data       the same rate over Ray Data's, from the first block taken by an actor to the end.
    identity_over_copy  see `peers/identity.py`.

The plan's block and MONAI's window are the fastest of a short search among those that keep a computing process within
the memory cap; Ray Data works on the patches of the plan all the same, and is named under `above_memory_cap` when it
needs more for them. Rivals live in environments that `rivals/setup.sh` makes; one that is missing is an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import HERE, ROOT, record
from order import Order
from running import Run, run_peer
from setting import make_setting, with_plan

from geobatch.errors import UsageError
from geobatch.local_s3 import environment, local_s3
from geobatch.models.unet import FAULTSEG3D
from geobatch.storage import open_storage

NETWORKS = {"small": {"channels": 8, "levels": 3}, "faultseg3d": {k: v for k, v in FAULTSEG3D.items() if k != "name"}}
BUCKET = "surveys"
ROI_TRIES = 4
SMALLEST_ROI = 64

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Peer:
    """Who is measured: a script, the Python it runs in, and where it reads and writes."""

    script: Path
    python: Path
    place: str = "local"
    as_trained: bool = False


def main() -> None:
    """Search, measure, store the figures; exit 1 when a rival's environment is missing."""
    options = _options()
    peers, missing = _peers(options.rivals)
    if missing and not options.allow_missing:
        sys.exit(f"environments missing: {', '.join(missing)}. Make them with benchmarks/rivals/setup.sh.")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        order = make_setting(folder, tuple(options.shape), NETWORKS[options.network], options)
        bench = Bench(order, folder)
        order, tried_plans = bench.best_plan(options.shard)
        tried_rois: list[Figures] = []
        if "monai" in peers:
            order, tried_rois = bench.best_roi(order, peers["monai"])
        runs, agreement = bench.measure(order, peers, options.repetitions)
        identity = bench.identity(order)
    rates = {name: order_voxels(order) / _median(own, "seconds") for name, own in runs.items()}
    figures = {
        "engine_over_bare": _ratio(rates, "geobatch", "bare"),
        "over_monai": _ratio(rates, "geobatch", "monai"),
        "over_ray_data": _ratio(rates, "geobatch", "ray_data"),
        "identity_over_copy": _over(identity["seconds"], "engine", "copy"),
        "engine_over_bare_s3": _ratio(rates, "geobatch_s3", "bare"),
        "identity_over_copy_float32": _over(identity["seconds"], "engine", "copy_float32"),
        "voxels_per_s": {name: round(rate) for name, rate in rates.items()},
        "peers": {name: _summary(own) for name, own in runs.items()},
        "agreement_with_bare": agreement,
        "above_memory_cap": [name for name, own in runs.items() if _peak(own) > order.memory_bytes],
        "identity": identity,
        "tried": {"plans": tried_plans, "rois": tried_rois},
        "missing": missing,
        "setting": _setting(order, options),
    }
    record("score", figures)
    sys.exit(1 if missing and not options.allow_missing else 0)


class Bench:
    """Runs of peers over one survey.

    Args:
        order: The order without plan and window.
        folder: Where outputs go for as long as they are needed.
    """

    def __init__(self, order: Order, folder: str) -> None:
        self.order = order
        self.folder = Path(folder)
        self._numbers = itertools.count()

    def best_plan(self, shards: list[int]) -> tuple[Order, list[Figures]]:
        """The order with the plan under which the bare loop is fastest, and what was tried."""
        bare = Peer(HERE / "peers" / "bare.py", Path(sys.executable))
        return self._best((lambda s=shard: with_plan(self.order, s) for shard in shards), bare, "patch")

    def best_roi(self, order: Order, monai: Peer) -> tuple[Order, list[Figures]]:
        """The order with the window under which MONAI is fastest, and what was tried."""
        edges = sorted(_roi_edges(order), key=lambda edge: _window_cells(order, edge))[:ROI_TRIES]
        candidates = (lambda e=edge: dataclasses.replace(order, roi=(e,) * 3) for edge in sorted(edges))
        return self._best(candidates, monai, "roi")

    def measure(
        self, order: Order, peers: dict[str, Peer], repetitions: int
    ) -> tuple[dict[str, list[Run]], dict[str, float]]:
        """Every peer's runs, interleaved, and the share of voxels in which its classes are those of the bare loop."""
        runs: dict[str, list[Run]] = {name: [] for name in peers}
        class_maps: dict[str, Any] = {}
        names = list(peers)
        for repetition in range(repetitions):
            turn = repetition % len(names)
            for name in names[turn:] + names[:turn]:
                with self._placed(order, peers[name]) as placed:
                    runs[name].append(self._run(peers[name], placed))
                    if repetition == 0 and peers[name].place == "local":
                        class_maps[name] = zarr.open_array(f"{placed.output}/class_map", mode="r")[...]
                _say(f"{name}: {runs[name][-1]}")
        return runs, {name: float(np.mean(found == class_maps["bare"])) for name, found in class_maps.items()}

    def identity(self, order: Order) -> Figures:
        """Seconds of the engine without a network and of the copies."""
        found = self._run(Peer(HERE / "peers" / "identity.py", Path(sys.executable)), self._local(order)).figures
        _say(f"identity: {found}")
        return found

    def _best(self, candidates: Iterator[Callable[[], Order]], peer: Peer, key: str) -> tuple[Order, list[Figures]]:
        """The fastest order that stays within the memory cap."""
        tried: list[Figures] = []
        fitting: list[tuple[float, Order]] = []
        for candidate in candidates:
            try:
                order = candidate()
            except UsageError as error:
                tried.append({"refused": str(error)})
                continue
            with self._placed(order, peer) as placed:
                run = self._run(peer, placed)
            fits = run.peak_bytes <= order.memory_bytes
            tried.append({key: getattr(order, key), "shard": order.shard, "fits": fits, **_summary([run])})
            _say(f"tried {tried[-1]}")
            if fits:
                fitting.append((run.figures["seconds"], order))
        if not fitting:
            sys.exit(f"nothing tried stays within the memory cap: {tried}")
        return min(fitting, key=lambda pair: pair[0])[1], tried

    @contextmanager
    def _placed(self, order: Order, peer: Peer) -> Iterator[Order]:
        """The order with a new output where the peer works; what was written is dropped at the end."""
        if peer.place == "local":
            placed = self._local(order)
            yield placed
            shutil.rmtree(placed.output, ignore_errors=True)
            return
        with local_s3(BUCKET, folder=self.folder) as server, environment(server.environment):
            survey, bundle = (_uploaded(place) for place in (order.survey, order.bundle))
            yield dataclasses.replace(order, survey=survey, bundle=bundle, output=f"s3://{BUCKET}/scored")

    def _local(self, order: Order) -> Order:
        return dataclasses.replace(order, output=str(self.folder / f"output-{next(self._numbers)}"))

    def _run(self, peer: Peer, order: Order) -> Run:
        for path in Path(self.order.survey).rglob("*"):
            if path.is_file():
                path.read_bytes()
        order = dataclasses.replace(order, as_trained=peer.as_trained)
        return run_peer(peer.python, peer.script, order, self.folder / "order.json")


def order_voxels(order: Order) -> int:
    """Voxels of the output."""
    return math.prod(order.shape)


def _peers(rivals: Path) -> tuple[dict[str, Peer], list[str]]:
    """The peers that can run, and the names of those whose environment is missing."""
    own = Path(sys.executable)
    peers = {
        "bare": Peer(HERE / "peers" / "bare.py", own),
        "bare_as_trained": Peer(HERE / "peers" / "bare.py", own, as_trained=True),
        "geobatch": Peer(HERE / "peers" / "engine.py", own),
        "monai": Peer(HERE / "rivals" / "monai_sliding_window.py", rivals / "monai" / "bin" / "python"),
        "ray_data": Peer(HERE / "rivals" / "ray_data_actors.py", rivals / "ray_data" / "bin" / "python"),
        "geobatch_s3": Peer(HERE / "peers" / "engine.py", own, place="s3"),
    }
    missing = [name for name, peer in peers.items() if not peer.python.exists()]
    return {name: peer for name, peer in peers.items() if name not in missing}, missing


def _uploaded(folder: str) -> str:
    """The URL in the bucket of a copy of a folder."""
    url = f"s3://{BUCKET}/{Path(folder).name}"
    storage = open_storage(url)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            storage.put(path.relative_to(folder).as_posix(), path.read_bytes())
    return url


def _roi_edges(order: Order) -> list[int]:
    """Window edges to choose from: multiples of 16 up to the volume, no larger than memory may hold."""
    # What the plan's patch holds within the cap tells roughly what a window may hold.
    most = 1.3 * math.prod(order.patch) ** (1 / 3)
    return [edge for edge in range(SMALLEST_ROI, max(order.shape) + 1, 16) if edge <= most]


def _window_cells(order: Order, edge: int) -> int:
    """Cells that MONAI computes with windows of this edge."""
    interval = max(int(edge * (1 - order.overlap)), 1)
    windows = [math.ceil(max(n - edge, 0) / interval) + 1 for n in order.shape]
    return math.prod(windows) * edge**3


def _median(runs: list[Run], key: str) -> float:
    return statistics.median(run.figures[key] for run in runs)


def _ratio(rates: dict[str, float], ours: str, theirs: str) -> float | None:
    return round(rates[ours] / rates[theirs], 3) if ours in rates and theirs in rates else None


def _over(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    return round(statistics.median(seconds[ours]) / statistics.median(seconds[theirs]), 3)


def _summary(runs: list[Run]) -> Figures:
    """Each figure of each run, and the peak memory."""
    keys = [key for key in runs[0].figures if key != "processes"]
    found: Figures = {key: [_rounded(run.figures[key]) for run in runs] for key in keys}
    return found | {
        "peak_gib_of_a_computing_process": round(_peak(runs) / 2**30, 2),
        "peak_gib_of_all_processes": round(max(run.tree_peak_bytes for run in runs) / 2**30, 2),
    }


def _peak(runs: list[Run]) -> int:
    return max(run.peak_bytes for run in runs)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def _setting(order: Order, options: argparse.Namespace) -> Figures:
    keys = ("network", "shape", "chunk", "shard", "patch", "roi", "overlap", "workers", "threads")
    computed = sum(math.prod(stop - first for first, stop in see) for work in order.blocks for see, _ in work.patches)
    return {key: getattr(order, key) for key in keys} | {
        "network_name": options.network,
        "blocks": len(order.blocks),
        "redundancy": round(computed / order_voxels(order), 3),
        "redundancy_monai": round(_window_cells(order, order.roi[0]) / order_voxels(order), 3),
        "memory_cap_gib_of_a_computing_process": options.memory_gib,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(384, 384, 384))
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="cap on a computing process")
    parser.add_argument("--shard", type=int, nargs="+", default=[128, 192], help="edges of the block that are tried")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rivals", type=Path, default=ROOT / ".rivals", help="folder of the rivals' environments")
    parser.add_argument("--folder", help="where the survey and the outputs lie meanwhile; the system's by default")
    parser.add_argument("--allow-missing", action="store_true", help="measure the rest when a rival is not installed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
