"""What every peer of `score.py` is asked to do, and the parts of it that all do alike.

Imported in the environments of the rivals too: it needs torch, Zarr and NumPy, and of geobatch the network alone.

Alike in all peers: the volume in float32, its preparation (clip, scale), the network and its weights, one pass of it
before the clock starts, threads, allocator, the reduction of logits to classes, and the codec, chunks and shards of the
output.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from geobatch.models.unet import UNet

Span = tuple[int, int]
INVALID = 255
CACHED_CELLS = 2**16


@dataclass(frozen=True)
class Work:
    """One block: the cells written, and its patches as pairs of cells seen and kept; a span (start, stop) per axis."""

    write: tuple[Span, ...]
    patches: tuple[tuple[tuple[Span, ...], tuple[Span, ...]], ...]


@dataclass(frozen=True)
class Order:
    """A survey to classify.

    Attributes:
        survey: Folder of the survey's Zarr group; its volume is `amplitude`.
        bundle: Folder of the bundle, for geobatch.
        weights: File of the network's state, for the others.
        output: URL of the class map's group, not there yet.
        network: Parameters of `UNet`.
        limits: Amplitudes are clipped to these.
        centre: Subtracted after clipping.
        divisor: Divided by after that.
        shape: Cells per axis.
        chunk: Unit of reading of the output.
        shard: Unit of writing of the output.
        patch: Patch of the plan per axis.
        blocks: The plan: every block and its haloed patches.
        roi: Edges of MONAI's window.
        overlap: Overlap of MONAI's windows.
        workers: Processes that compute at once.
        threads: Torch threads of each.
        as_trained: The bare loop runs the network as it was trained, and not in the form in which geobatch runs it.
        memory_bytes: What a computing process may hold.
    """

    survey: str
    bundle: str
    weights: str
    output: str
    network: dict[str, Any]
    limits: tuple[float, float]
    centre: float
    divisor: float
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    patch: tuple[int, ...]
    blocks: tuple[Work, ...]
    roi: tuple[int, ...]
    overlap: float
    workers: int
    threads: int
    as_trained: bool
    memory_bytes: int

    @classmethod
    def read(cls, path: str) -> Order:
        """The order in a JSON file."""
        document = json.loads(Path(path).read_text())
        document["blocks"] = tuple(Work(**work) for work in document["blocks"])
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in document.items()})

    def write(self, path: str) -> str:
        """Store the order as JSON; the path."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)))
        return path

    def load_network(self) -> torch.nn.Module:
        """The network with its weights, in evaluation mode, torch's threads set for the calling thread."""
        torch.set_num_threads(self.threads)
        network = UNet(**self.network)
        network.load_state_dict(torch.load(self.weights, weights_only=True))
        return network.eval()

    def open_volume(self) -> zarr.Array[Any]:
        """The survey's volume, read by Zarr's own local store."""
        return zarr.open_array(f"{self.survey}/amplitude", mode="r")

    def prepared(self, raw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`raw` clipped and scaled."""
        clipped = np.clip(raw, np.float32(self.limits[0]), np.float32(self.limits[1]))
        return (clipped - np.float32(self.centre)) / np.float32(self.divisor)

    def create_output(self) -> zarr.Array[Any]:
        """The empty class map, under the codecs of geobatch's output."""
        sharding = ShardingCodec(
            chunk_shape=tuple(self.chunk),
            codecs=[BytesCodec(), ZstdCodec(level=1), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        )
        return zarr.create_array(
            f"{self.output}/class_map",
            shape=tuple(self.shape),
            dtype="uint8",
            chunks=tuple(self.shard),
            serializer=sharding,
            compressors=None,
            fill_value=INVALID,
        )

    def open_output(self) -> zarr.Array[Any]:
        """The class map that `create_output` made, to write to."""
        return zarr.open_array(f"{self.output}/class_map", mode="r+")


def cells(spans: Any, origin: Any = None) -> tuple[slice, ...]:
    """Spans as slices, counted from `origin`, a start per axis."""
    starts = [0] * len(spans) if origin is None else origin
    return tuple(slice(first - start, stop - start) for (first, stop), start in zip(spans, starts, strict=True))


def starts(spans: Any) -> list[int]:
    """The first cell of each span."""
    return [first for first, _ in spans]


def most_probable(logits_K: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit `(class, *axes)`, uint8: a running maximum, many times faster than argmax.

    A few planes at a time, so that they stay in the processor's cache.
    """
    index = torch.zeros(logits_K.shape[1:], dtype=torch.uint8)
    planes = max(1, CACHED_CELLS * len(index) // index.numel())
    for first in range(0, len(index), planes):
        logits, part = logits_K[:, first : first + planes], index[first : first + planes]
        best = logits[0].clone()
        for k in range(1, len(logits)):
            larger = logits[k] > best
            torch.maximum(best, logits[k], out=best)
            torch.maximum(part, larger.view(torch.uint8).mul_(k), out=part)
    return index


@torch.inference_mode()
def warm_up(network: torch.nn.Module, shape: Sequence[int]) -> None:
    """Run the network on zeros of this shape, as geobatch does when it loads one."""
    network(torch.zeros(1, 1, *shape))


@torch.inference_mode()
def classify(
    network: torch.nn.Module, values: npt.NDArray[np.float32], origin: list[int], work: Work
) -> npt.NDArray[np.uint8]:
    """The class map of one block: each patch of `values`, which begins at cell `origin`, predicted and trimmed."""
    source = torch.from_numpy(values)
    class_map = np.empty([stop - first for first, stop in work.write], np.uint8)
    for see, keep in work.patches:
        logits_K = network(source[cells(see, origin)][None, None])[0]
        kept_K = logits_K[(slice(None), *cells(keep, starts(see)))]
        class_map[cells(keep, starts(work.write))] = most_probable(kept_K).numpy()
    return class_map


def seen(work: Work) -> tuple[Span, ...]:
    """The cells that the patches of a block see."""
    axes = range(len(work.write))
    return tuple((min(s[a][0] for s, _ in work.patches), max(s[a][1] for s, _ in work.patches)) for a in axes)


def order_of_process() -> Order:
    """The order that this process was started with."""
    return Order.read(sys.argv[1])


def answer(**figures: Any) -> None:
    """Print a peer's figures for `score.py`."""
    print(json.dumps(figures), flush=True)
