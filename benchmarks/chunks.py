"""Clients that read Zarr chunks: throughput of haloed blocks, and what each makes of a faulty network.

    python benchmarks/chunks.py --make-rivals FOLDER     makes an environment for the rivals there, then measures
    python benchmarks/chunks.py --rivals PYTHON          measures with the interpreter of an environment made before

Every reader is a process of its own that reads the same blocks of one survey, block by block as a worker does. The
last line printed is JSON; it is kept under benchmarks/results/ too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHAPE = (256, 256, 256)
BLOCK, HALO = 128, 24
RUNS = 5
FAULTY_READS = 40
FAULT_RATE = 0.2
KINDS = ("flip_response", "short_body", "cut_body", "slow_down", "reset")
RIVALS = ("zarr==3.1.6", "obstore==0.12.1", "s3fs==2026.9.0", "zarrs==0.2.3", "tensorstore==0.1.86", "boto3")
CLIENTS = ("geobatch", "obstore", "zarr_own", "zarrs", "tensorstore")
BUCKET = "surveys"

Read = Callable[[tuple[slice, ...]], npt.NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", help="interpreter of the rivals' environment")
    parser.add_argument("--make-rivals", metavar="FOLDER", help="make that environment here")
    parser.add_argument("--reader", nargs=3, metavar=("CLIENT", "URL", "TRUTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        return read_as(*options.reader)
    if options.make_rivals:
        options.rivals = make_rivals(Path(options.make_rivals))
    figures = measure(options.rivals)
    path = Path(__file__).parent / "results" / f"chunks-{figures['commit']}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
    return None


def make_rivals(folder: Path) -> str:
    """An environment with the rivals; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *RIVALS], check=True)
    return python


def measure(rivals: str | None) -> dict[str, Any]:
    """Throughput by place and client, and the outcome of reads by client and fault."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "chaos"))
    from proxy import chaos_proxy

    from geobatch.interpretation.synthetic import SyntheticSurvey
    from geobatch.interpretation.synthetic_files import write_survey
    from geobatch.local_s3 import environment, local_s3
    from geobatch.survey import open_survey

    clients = CLIENTS if rivals else CLIENTS[:1]
    with tempfile.TemporaryDirectory() as folder, local_s3(BUCKET) as server, environment(server.environment):
        truth = f"{folder}/truth.npy"
        places = {"disk": f"{folder}/survey", "s3": f"s3://{BUCKET}/survey"}
        for url in places.values():
            write_survey(SyntheticSurvey(SHAPE, 5), url)
        amplitude = open_survey(places["disk"])["amplitude"]
        np.save(truth, amplitude.values)
        speed = {
            place: {client: _read(client, url, truth, rivals) for client in clients} for place, url in places.items()
        }
        with chaos_proxy(server.endpoint) as proxy, environment({"AWS_ENDPOINT_URL": proxy.endpoint}):
            outcomes: dict[str, Any] = {client: {} for client in clients}
            for client, kind in itertools.product(clients, KINDS):
                os.environ["FAULT"] = json.dumps({"rate": FAULT_RATE, "kinds": [kind], "seed": 7})
                outcomes[client][kind] = _read(client, places["s3"], truth, rivals)
    return {
        "decoded": speed,
        "faulty_reads": outcomes,
        "shape": SHAPE,
        "chunks": amplitude.encoding["chunks"],
        "shards": amplitude.encoding["shards"],
        "block": BLOCK,
        "halo": HALO,
        "runs": RUNS,
        "fault_rate": FAULT_RATE,
        "machine": {"cpus": os.cpu_count(), "processor": _processor(), "system": platform.platform()},
        "versions": _versions(rivals),
        "commit": _commit(),
    }


def _read(client: str, url: str, truth: str, rivals: str | None) -> Any:
    python = sys.executable if client == "geobatch" or rivals is None else rivals
    command = [python, __file__, "--reader", client, url, truth]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if answer.returncode:
        return {"failed": answer.stderr.strip().splitlines()[-1]}
    return json.loads(answer.stdout.splitlines()[-1])


def read_as(client: str, url: str, truth: str) -> None:
    """In a reader's process: medians of the decoded rate over all blocks, or under `FAULT` what reads came to."""
    warnings.simplefilter("ignore")
    fault = os.environ.pop("FAULT", "")
    samples = np.load(truth, mmap_mode="r")
    read = OPENERS[client](url)
    blocks = [
        tuple(slice(max(0, o - HALO), min(n, o + BLOCK + HALO)) for o, n in zip(at, SHAPE, strict=True))
        for at in _origins()
    ]
    if fault:
        print(json.dumps(_outcomes(read, samples, json.loads(fault))))
        return
    for block in blocks:
        np.testing.assert_array_equal(read(block), samples[block])
    size_mb = sum(samples[block].nbytes for block in blocks) / 1e6
    wall_s, cpu_s = zip(*(_seconds(read, blocks) for _ in range(RUNS)), strict=True)
    rate = size_mb / statistics.median(wall_s)
    cpu = 1e3 * statistics.median(cpu_s) / size_mb
    print(json.dumps({"mb_per_s": round(rate, 1), "cpu_s_per_gb": round(cpu, 2)}))


def _seconds(read: Read, blocks: list[tuple[slice, ...]]) -> tuple[float, float]:
    """Wall and processor time of reading every block; the latter holds on a busy machine too."""
    wall, cpu = time.perf_counter(), time.process_time()
    for block in blocks:
        read(block)
    return time.perf_counter() - wall, time.process_time() - cpu


def _outcomes(read: Read, samples: npt.NDArray[np.float32], fault: dict[str, Any]) -> dict[str, int]:
    """How many reads gave the stored samples, other samples without a word, or an error."""
    _set_faults(fault)
    found: Counter[str] = Counter()
    for number in range(FAULTY_READS):
        block = tuple(slice(start, start + 40) for start in (5 * number % 200, 40, 60))
        try:
            right = np.array_equal(read(block), samples[block])
        except Exception as error:
            found[f"error {type(error).__name__}"] += 1
        else:
            found["right" if right else "wrong without a word"] += 1
    _set_faults({"rate": 0})
    return dict(found)


def _set_faults(fault: dict[str, Any]) -> None:
    from urllib.request import Request, urlopen

    body = json.dumps(fault).encode()
    urlopen(Request(os.environ["AWS_ENDPOINT_URL"] + "/_chaos", body, method="POST")).close()


def _origins() -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(0, n, BLOCK) for n in SHAPE))


def open_geobatch(url: str) -> Read:
    from geobatch.survey import open_survey

    volume = open_survey(url)["amplitude"]
    return lambda block: volume[block].values


def open_zarr_obstore(url: str) -> Read:
    """zarr-python over obstore as it comes."""
    import obstore.store
    import zarr
    from zarr.storage import ObjectStore

    store: Any
    if url.startswith("s3://"):
        bucket, prefix = url.removeprefix("s3://").split("/", 1)
        store = obstore.store.S3Store(
            bucket,
            prefix=prefix,
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
    else:
        store = obstore.store.LocalStore(url)
    array: Any = zarr.open_array(ObjectStore(store, read_only=True), path="amplitude", mode="r")
    return lambda block: array[block]


def open_zarr_own(url: str) -> Read:
    """zarr-python over its own local store, and over s3fs."""
    import zarr
    from zarr.storage import FsspecStore, LocalStore

    store: Any
    if url.startswith("s3://"):
        remote = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        store = FsspecStore.from_url(url, storage_options=remote, read_only=True)
    else:
        store = LocalStore(url, read_only=True)
    array: Any = zarr.open_array(store, path="amplitude", mode="r")
    return lambda block: array[block]


def open_zarrs(url: str) -> Read:
    """zarr-python with the codec pipeline of zarrs, which reads the store by itself."""
    import zarr
    import zarrs  # noqa: F401

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return open_zarr_obstore(url) if url.startswith("s3://") else open_zarr_own(url)


def open_tensorstore(url: str) -> Read:
    import tensorstore

    store: dict[str, Any] = {"driver": "file", "path": f"{url}/amplitude/"}
    if url.startswith("s3://"):
        bucket, prefix = url.removeprefix("s3://").split("/", 1)
        store = {
            "driver": "s3",
            "bucket": bucket,
            "path": f"{prefix}/amplitude/",
            "endpoint": os.environ["AWS_ENDPOINT_URL"],
            "aws_region": "us-east-1",
        }
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result()
    return lambda block: array[block].read().result()


OPENERS: dict[str, Callable[[str], Read]] = {
    "geobatch": open_geobatch,
    "obstore": open_zarr_obstore,
    "zarr_own": open_zarr_own,
    "zarrs": open_zarrs,
    "tensorstore": open_tensorstore,
}


def _versions(rivals: str | None) -> dict[str, str]:
    names = ("geobatch", "zarr", "obstore", "boto3", "moto")
    ours = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            ours[name] = metadata.version(name)
    return ours | (dict(rival.split("==") for rival in RIVALS if "==" in rival) if rivals else {})


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
