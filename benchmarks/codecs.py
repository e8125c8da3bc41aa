"""What packs a chunk: ratio, and MB/s of packing and unpacking on one core, for the arrays that geobatch stores.

    python benchmarks/codecs.py

Amplitude, classes and probabilities of a synthetic survey, and the amplitudes of two real surveys when
GEOBATCH_TEST_DATA names a folder that has them. Rates count unpacked bytes in processor time.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
from common import record
from numcodecs import Blosc, Zstd
from scipy.ndimage import gaussian_filter

from geobatch.formats.segy import open_segy
from geobatch.interpretation.synthetic import CLASSES, SyntheticSurvey

SHAPE = (192, 192, 192)
CHUNK = 64
REAL = {"penobscot": "penobscot/penobscot_xl1155.sgy", "f3": "segy/f3-ebcidctest.sgy"}
LEAST_BYTES = 2**27
Array = npt.NDArray[Any]


def main() -> None:
    """Measure every codec on every array."""
    numcodecs.blosc.use_threads = False
    figures = {name: {codec: _measure(chunks, packer) for codec, packer in _codecs()} for name, chunks in _arrays()}
    record("codecs", figures)


def _codecs() -> Iterator[tuple[str, Any]]:
    for level in (1, 3):
        yield f"zstd {level}", Zstd(level=level)
    shuffles = {"": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
    for (name, level), (how, shuffle) in itertools.product((("lz4", 5), ("zstd", 1), ("zstd", 3)), shuffles.items()):
        yield f"blosc {name} {level} {how}".strip(), Blosc(cname=name, clevel=level, shuffle=shuffle)


def _arrays() -> Iterator[tuple[str, list[Array]]]:
    """Chunks of each array."""
    block = SyntheticSurvey(SHAPE, 3).block(tuple(slice(0, n) for n in SHAPE))
    yield "amplitude float32", _chunks(block["amplitude"])
    class_map = block["class_map"]
    yield "class map uint8", _chunks(class_map)
    # Not a network's, but as smooth, with what is small and rough over it.
    rough = np.random.default_rng(0).normal(size=(len(CLASSES), *SHAPE))
    p = np.stack([gaussian_filter((class_map == k).astype(np.float32), 2) for k in range(len(CLASSES))])
    p = np.clip(p + 0.05 * gaussian_filter(rough, (0, 1, 1, 1)), 1e-4, None)
    p = (p / p.sum(axis=0)).astype(np.float32)
    yield "probability float32", [chunk for part in p for chunk in _chunks(part)]
    yield "probability uint8", [chunk for part in p for chunk in _chunks(np.rint(254 * part).astype(np.uint8))]
    folder = Path(os.environ.get("GEOBATCH_TEST_DATA", "")) / "subsurface"
    for name, path in REAL.items():
        if (folder / path).is_file():
            file = open_segy(str(folder / path))
            traces = file.decode(file.read_traces(0, file.trace_count))
            yield f"{name} float32", [np.ascontiguousarray(traces[i : i + CHUNK]) for i in range(0, len(traces), CHUNK)]


def _chunks(volume: Array) -> list[Array]:
    starts = itertools.product(*(range(0, n, CHUNK) for n in volume.shape))
    return [np.ascontiguousarray(volume[tuple(slice(s, s + CHUNK) for s in start)]) for start in starts]


def _measure(chunks: list[Array], packer: Any) -> dict[str, float]:
    stored = sum(chunk.nbytes for chunk in chunks)
    times = -(-LEAST_BYTES // stored)
    start = time.process_time()
    for _ in range(times):
        packed = [packer.encode(chunk) for chunk in chunks]
    middle = time.process_time()
    for _ in range(times):
        for chunk in packed:
            packer.decode(chunk)
    end = time.process_time()
    return {
        "ratio": round(stored / sum(map(len, packed)), 2),
        "pack_mb_per_s": round(times * stored / 1e6 / (middle - start)),
        "unpack_mb_per_s": round(times * stored / 1e6 / (end - middle)),
    }


if __name__ == "__main__":
    main()
