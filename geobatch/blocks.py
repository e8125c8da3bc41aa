"""Blocks and patches: which cells are read, seen by the network, and written.

    survey  0 ├────────────┼────────────┼────────────┼──────┤ N
    write                  ├────────────┤                        one shard of each output array
    patch            o ├──────────────────────┤ o + P            what the network sees
    halo               ├───┤            ├─────┤                  read, never written

A patch starts at a multiple of the network's total stride S, so that pooling meets the same cells as on the
whole survey. One that stays inside the survey is P long, a multiple of S. One that touches the far edge ends
exactly at N and is P or P - S + N mod S long, so that the residue N mod S is truncated as on the whole. Patches
slide inwards to the edges, hence at most two lengths per axis. An axis no longer than P is one patch of length N.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from geobatch.errors import UsageError

Index = tuple[int, ...]
Region = tuple[slice, ...]
Halo = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Patch:
    """One forward pass: what the network sees, and the part of it that is kept, both in survey cells."""

    see: Region
    keep: Region


@dataclass(frozen=True)
class Block:
    """One unit of work.

    Attributes:
        index: Place in the block grid.
        write: Cells of exactly one shard of each output array.
        read: Cells needed for them: what the patches see and what preprocessing needs around that.
    """

    index: Index
    write: Region
    read: Region

    @property
    def key(self) -> str:
        """The block's name in receipts and messages, such as `0/3/1`."""
        return "/".join(map(str, self.index))


@dataclass(frozen=True)
class Grid:
    """How a survey is cut: the same for every block, replica and order, fixed by the plan.

    Attributes:
        shape: Cells of the survey per axis.
        shard: Cells of a block per axis.
        patch: Patch length per axis, a multiple of `stride`.
        stride: Total stride of the network per axis.
        halo: Cells before and after that a prediction needs, from a stride-aligned patch edge.
        reach: Cells before and after that preprocessing needs on top.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    halo: Halo
    reach: Halo

    def __post_init__(self) -> None:
        for axis, (n, p, s, h) in enumerate(zip(self.shape, self.patch, self.stride, self.halo, strict=True)):
            if p % s:
                raise UsageError(
                    "patch is no multiple of the network's stride", where=f"axis {axis}", measured=p, limit=f"{s}·k"
                )
            if p < n and p < smallest_patch(s, h):
                raise UsageError(
                    "patch is smaller than its halo needs",
                    where=f"axis {axis}",
                    measured=f"{p} cells",
                    limit=f"{smallest_patch(s, h)} cells (halo {h[0]} before and {h[1]} after, stride {s})",
                    remedy="Raise patch in the job.",
                )

    @property
    def counts(self) -> Index:
        """Number of blocks per axis."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.shard, strict=True))

    @property
    def total(self) -> int:
        """Number of blocks."""
        return math.prod(self.counts)

    def number(self, index: Index) -> int:
        """The number of the block at `index`: C order over `counts`, the last axis fastest."""
        if len(index) != len(self.counts) or not all(0 <= i < c for i, c in zip(index, self.counts, strict=True)):
            raise UsageError("no such block", measured=index, limit=f"0 up to, not including, {self.counts}")
        number = 0
        for i, count in zip(index, self.counts, strict=True):
            number = number * count + int(i)
        return number

    def index(self, number: int) -> Index:
        """The index of block `number`, as `number` counts them."""
        if not 0 <= number < self.total:
            raise UsageError("no such block", measured=number, limit=f"0 to {self.total - 1}")
        found: list[int] = []
        rest = int(number)
        for count in reversed(self.counts):
            rest, i = divmod(rest, count)
            found.append(i)
        return tuple(reversed(found))

    def indices(self, region: Region | None = None) -> Iterator[Index]:
        """Every block index, or those of blocks that touch `region`, the last axis fastest."""
        cells = region or tuple(slice(0, n) for n in self.shape)
        spans = (range(c.start // b, -(-c.stop // b)) for c, b in zip(cells, self.shard, strict=True))
        return itertools.product(*spans)

    def block(self, index: Index) -> Block:
        """The block at `index`."""
        write = tuple(slice(i * b, min((i + 1) * b, n)) for i, b, n in zip(index, self.shard, self.shape, strict=True))
        read = tuple(
            slice(max(0, spans[0][0].start - before), min(n, spans[-1][0].stop + after))
            for spans, (before, after), n in zip(self._spans(write), self.reach, self.shape, strict=True)
        )
        return Block(tuple(index), write, read)

    def patches(self, write: Region) -> list[Patch]:
        """The patches whose kept parts tile `write` exactly."""
        found = []
        for combination in itertools.product(*self._spans(write)):
            see, keep = zip(*combination, strict=True)
            found.append(Patch(tuple(see), tuple(keep)))
        return found

    def seen(self, write: Region) -> Region:
        """The cells the network sees for `write`: the union of its patches."""
        return tuple(slice(spans[0][0].start, spans[-1][0].stop) for spans in self._spans(write))

    def longest_read(self) -> tuple[int, ...]:
        """The most cells any block reads, per axis: one of the first two, the middle or the last."""
        lengths = []
        for axis, count in enumerate(self.counts):
            before, after = self.reach[axis]
            reads = []
            for i in {0, min(1, count - 1), count // 2, count - 1}:
                write = slice(i * self.shard[axis], min((i + 1) * self.shard[axis], self.shape[axis]))
                spans = self._axis_spans(axis, write)
                start = max(0, spans[0][0].start - before)
                reads.append(min(self.shape[axis], spans[-1][0].stop + after) - start)
            lengths.append(max(reads))
        return tuple(lengths)

    def redundancy(self) -> float:
        """Voxels computed per voxel written, over the whole survey."""
        computed = 1.0
        for axis, count in enumerate(self.counts):
            cells = 0
            for i in range(count):
                write = slice(i * self.shard[axis], min((i + 1) * self.shard[axis], self.shape[axis]))
                cells += sum(see.stop - see.start for see, _ in self._axis_spans(axis, write))
            computed *= cells / self.shape[axis]
        return computed

    def _spans(self, write: Region) -> list[list[tuple[slice, slice]]]:
        return [self._axis_spans(axis, cells) for axis, cells in enumerate(write)]

    def _axis_spans(self, axis: int, write: slice) -> list[tuple[slice, slice]]:
        """What each patch sees and keeps along one axis, in order."""
        n, p, s, (before, after) = self.shape[axis], self.patch[axis], self.stride[axis], self.halo[axis]
        if n <= p:
            return [(slice(0, n), write)]
        edge_length = p if n % s == 0 else p - s + n % s
        spans = []
        done = write.start
        while done < write.stop:
            origin = max(0, (done - before) // s * s)
            if origin + p >= n:
                see, end = slice(n - edge_length, n), n
            else:
                see, end = slice(origin, origin + p), origin + p - after
            spans.append((see, slice(done, min(end, write.stop))))
            done = min(end, write.stop)
        return spans


def smallest_patch(stride: int, halo: tuple[int, int]) -> int:
    """The least patch length that still keeps a cell when it touches no edge, also at its shorter edge length."""
    return (math.ceil((halo[0] + halo[1] + 1) / stride) + 2) * stride


def covering_patch(shape: Sequence[int], shard: Sequence[int], stride: Sequence[int], halo: Halo) -> tuple[int, ...]:
    """The patch that covers any whole block in one forward pass."""
    lengths = []
    for n, b, s, (before, after) in zip(shape, shard, stride, halo, strict=True):
        needed = b + before + after + (s - 1) * 2
        lengths.append(max(-(-min(needed, n) // s) * s, s))
    return tuple(lengths)
