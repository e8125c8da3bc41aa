"""Blocks and patches: which cells are read, seen by the network, and written.

    survey  0 ├────────────┼────────────┼────────────┼──────┤ N
    write                  ├────────────┤                        one shard of each output array
    patch            o ├──────────────────────┤ o + P            what the network sees
    halo               ├───┤            ├─────┤                  read, never written

A patch starts at a multiple of the network's total stride S, so that pooling meets the same cells as on the
whole survey. One that stays inside the survey is P long, a multiple of S. One that touches the far edge ends
exactly at N and is P or P - S + N mod S long, so that the residue N mod S is truncated as on the whole. Patches
slide inwards to the edges, hence at most two lengths per axis. An axis no longer than P is one patch of length N.

In blend mode the patches form one lattice over the whole survey, under the same rules for their edges, and every
patch that touches a block contributes to it, weighted:

    patches o ├───────────┤
                     ├───────────┤
                            ├───────────┤                          overlap is a part of P
    write             ├──────────┤                               three patches contribute
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from geobatch.errors import UsageError

Index = tuple[int, ...]
Region = tuple[slice, ...]
Halo = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Patch:
    """One forward pass: what the network sees, and the part of it that counts for a block, both in survey cells.

    In halo mode kept parts tile the block, in blend mode they overlap.
    """

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
class Blend:
    """How overlapping patches share cells.

    Attributes:
        overlap: Part of the patch that neighbouring patches share, 0 up to but not including 1.
        weights: `gaussian`, a bell around the patch's centre whose standard deviation is 1/8 of the patch; `constant`.
    """

    overlap: float
    weights: Literal["gaussian", "constant"] = "gaussian"


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
        blend: How patches overlap, in blend mode; None in halo mode.
        whole: Numbers of the axes that every patch sees whole.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    halo: Halo
    reach: Halo
    blend: Blend | None = None
    whole: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.blend and not 0 <= self.blend.overlap < 1:
            raise UsageError(
                "overlap is no part of a patch", where="overlap", measured=self.blend.overlap, limit="0 up to 1"
            )
        for axis in self.whole:
            if self.patch[axis] < self.shape[axis]:
                raise UsageError(
                    "patch does not hold the whole axis",
                    where=f"axis {axis}",
                    measured=f"{self.patch[axis]} cells",
                    limit=f"{self.shape[axis]} cells",
                )
        for axis, (n, p, s, h) in enumerate(zip(self.shape, self.patch, self.stride, self.halo, strict=True)):
            if p < 1 or p % s:
                raise UsageError(
                    "patch is no multiple of the network's stride", where=f"axis {axis}", measured=p, limit=f"{s}·k"
                )
            if not self.blend and p < n and p < smallest_patch(s, h):
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
        """The most cells any block reads, per axis."""
        lengths = []
        for axis, (n, (before, after)) in enumerate(zip(self.shape, self.reach, strict=True)):
            reads = []
            for start, _ in self._kinds(axis):
                spans = self._axis_spans(axis, self._written(axis, start))
                reads.append(min(n, spans[-1][0].stop + after) - max(0, spans[0][0].start - before))
            lengths.append(max(reads))
        return tuple(lengths)

    def redundancy(self) -> float:
        """Voxels computed per voxel written, over the whole survey."""
        computed = 1.0
        for axis, n in enumerate(self.shape):
            cells = 0
            for start, blocks in self._kinds(axis):
                spans = self._axis_spans(axis, self._written(axis, start))
                cells += blocks * sum(see.stop - see.start for see, _ in spans)
            computed *= cells / n
        return computed

    def with_smaller_patch(self) -> Grid:
        """The same in halo mode with the longest reducible side of the patch halved: less memory, the same result.

        Raises:
            UsageError: nothing can be reduced without another result, or at all.
        """
        halves = list(self.patch)
        for axis, (p, n, s, h) in enumerate(zip(self.patch, self.shape, self.stride, self.halo, strict=True)):
            if axis not in self.whole and self.blend is None:
                halves[axis] = min(p, max(min(p, -(-n // s) * s) // 2 // s * s, smallest_patch(s, h)))
        gains = [min(p, n) - half for p, n, half in zip(self.patch, self.shape, halves, strict=True)]
        longest = max(range(len(gains)), key=gains.__getitem__)
        if gains[longest] <= 0:
            raise UsageError(
                "memory does not hold the smallest patch",
                measured=self.patch,
                remedy="Lower shard, or give the replicas more memory.",
            )
        return replace(self, patch=(*self.patch[:longest], halves[longest], *self.patch[longest + 1 :]))

    def _written(self, axis: int, start: int) -> slice:
        return slice(start, min(start + self.shard[axis], self.shape[axis]))

    def _kinds(self, axis: int) -> list[tuple[int, int]]:
        """Block starts along one axis that stand for all others of their kind, and how many they stand for.

        Blocks whose patches touch no edge of the survey repeat with the period of patch origins.
        """
        n, b, p, s = self.shape[axis], self.shard[axis], self.patch[axis], self.stride[axis]
        count = -(-n // b)
        step = self._step(axis) if self.blend else s
        period = step // math.gcd(b, step)
        margin = p + step + sum(self.halo[axis])
        first = min(-(-margin // b), count)
        last = max((n - margin) // b - 1, first)
        if last - first <= period:
            return [(i * b, 1) for i in range(count)]
        inner = last - first
        kinds = [(i * b, 1) for i in (*range(first), *range(last, count))]
        return kinds + [((first + k) * b, -(-(inner - k) // period)) for k in range(period)]

    def _spans(self, write: Region) -> list[list[tuple[slice, slice]]]:
        return [self._axis_spans(axis, cells) for axis, cells in enumerate(write)]

    def _axis_spans(self, axis: int, write: slice) -> list[tuple[slice, slice]]:
        """What each patch sees and keeps along one axis, in order."""
        n, p, s, (before, after) = self.shape[axis], self.patch[axis], self.stride[axis], self.halo[axis]
        if n <= p:
            return [(slice(0, n), write)]
        edge_length = p if n % s == 0 else p - s + n % s
        if self.blend:
            return self._lattice_spans(axis, write, n - edge_length)
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

    def _step(self, axis: int) -> int:
        """Cells from one lattice patch to the next: the largest multiple of the stride that the overlap allows."""
        p, s = self.patch[axis], self.stride[axis]
        overlap = self.blend.overlap if self.blend else 0.0
        return max(int(p * (1 - overlap)) // s, 1) * s

    def _lattice_spans(self, axis: int, write: slice, last_origin: int) -> list[tuple[slice, slice]]:
        """The patches of the survey's lattice that touch `write`, and where they do."""
        n, p, step = self.shape[axis], self.patch[axis], self._step(axis)
        first = max(0, (write.start - p) // step + 1) * step
        origins = [o for o in range(first, write.stop, step) if o + p < n]
        sees = [slice(o, o + p) for o in origins]
        if write.stop > last_origin:
            sees.append(slice(last_origin, n))
        return [(see, slice(max(see.start, write.start), min(see.stop, write.stop))) for see in sees]


def rounded_up(cells: int, stride: int) -> int:
    """The least multiple of the stride that is no less than `cells`."""
    return -(-cells // stride) * stride


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
