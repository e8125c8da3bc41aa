"""Two surveys of classes on the cells they share, and what is counted of them, block by block."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.ndimage import distance_transform_edt

from geobatch.errors import MismatchError
from geobatch.fanout import in_order, open_fanout
from geobatch.score.region import axis_cells
from geobatch.survey import INVALID_CLASS, VOLUME_AXES, open_survey
from geobatch.train.data import Region, class_indices, class_names, spread_tiles
from geobatch.train.evaluate_spec import EvaluateJob
from geobatch.train.metrics import Counts, confusion_matrix

BINS = 20
SHIFTED = 3
_BLOCK_CELLS = 256
_ALL = 2**62
_SMALL_CELLS = 2**25
_BLOCK_BYTES = 2**31

OnBlock = Callable[[int, int], None]


@dataclass
class Tally:
    """What is counted; tallies of blocks add up.

    Attributes:
        by_line: `(line, true class, given class)` cells.
        most: The same, had the most frequent learnt class been given.
        prior: The same, had the most frequent learnt class of each sample been given.
        near: `(class, 4)`: given cells near a true one, given cells, true cells near a given one, true cells.
        bins: `(bin, 2)`: cells by the probability of the class given, and how many of them are right.
        trust: `(bin,)`: their probabilities summed.
        unscored: Labelled cells without a class.
    """

    by_line: Counts
    most: Counts
    prior: Counts
    near: Counts
    bins: Counts
    trust: npt.NDArray[np.float64]
    unscored: Counts

    @classmethod
    def empty(cls, lines: int, classes: int) -> Tally:
        """Of nothing yet."""
        pairs, more, most = (np.zeros((lines, classes, classes), np.int64) for _ in range(3))
        near, bins = np.zeros((classes, 4), np.int64), np.zeros((BINS, 2), np.int64)
        return cls(pairs, more, most, near, bins, np.zeros(BINS), np.zeros(1, np.int64))

    def add(self, other: Tally, lines: slice) -> None:
        """Count the cells of a block too, which holds these lines."""
        for name in ("by_line", "most", "prior"):
            getattr(self, name)[lines] += getattr(other, name)
        for name in ("near", "bins", "trust", "unscored"):
            getattr(self, name)[...] += getattr(other, name)


@dataclass(frozen=True)
class Compared:
    """Two surveys on the cells they share, lazily.

    Attributes:
        scored: Classes given, `(inline, crossline, sample)`.
        truth: True ones.
        probability: Of the classes given, `(class, inline, crossline, sample)`, None where it was not stored.
        names: Of the classes.
    """

    scored: xr.DataArray
    truth: xr.DataArray
    probability: xr.DataArray | None
    names: tuple[str, ...]


def open_compared(job: EvaluateJob) -> Compared:
    """Both surveys on the cells they share within the region.

    Raises:
        MismatchError: other classes, or no cell in common.
        UsageError: the region holds no cell.
    """
    scored, truth = _volume(job.scored, job.variable), _volume(job.labels, job.variable)
    names = tuple(entry["name"] for entry in class_names(truth, job.labels))
    given = [entry["name"] for entry in class_names(scored, job.scored)]
    if list(names) != given:
        raise MismatchError(
            "scored classes are not those of the labels",
            where=job.scored,
            measured=", ".join(given),
            limit=", ".join(names),
        )
    cut = _common(scored, truth, job.scored)
    scored, truth = scored.isel(cut[0]), truth.isel(cut[1])
    box = {axis: axis_cells(truth, axis, getattr(job.region, axis)) for axis in VOLUME_AXES}
    dataset = open_survey(job.scored)
    probability = None
    if "probability" in dataset:
        probability = dataset["probability"].transpose("class", *VOLUME_AXES).isel(cut[0]).isel(box)
    return Compared(scored.isel(box), truth.isel(box), probability, names)


def count_block(job: EvaluateJob, learnt: npt.NDArray[np.uint8], block: Region) -> Tally:
    """What is counted in one block of the cells that are compared.

    Args:
        job: What is compared.
        learnt: `(2, sample)`: the most frequent class, and that of each sample; 255 where nothing was learnt.
        block: In indices of the compared cells.
    """
    compared = open_compared(job)
    along = VOLUME_AXES.index(job.by)
    classes, lines = len(compared.names), block[along]
    tally = Tally.empty(lines.stop - lines.start, classes)
    wider, inner = _widened(block, job.tolerance, compared.truth.shape)
    truth = class_indices(compared.truth[wider], classes, job.labels)
    given = class_indices(compared.scored[wider], classes, job.scored)
    # Where one of the two says nothing, nothing is near.
    given, truth = np.where(truth == INVALID_CLASS, truth, given), np.where(given == INVALID_CLASS, given, truth)
    for k in range(classes):
        tally.near[k] = found_within(truth == k, given == k, job.tolerance, inner)
    own_truth = class_indices(compared.truth[block], classes, job.labels)
    own_given = class_indices(compared.scored[block], classes, job.scored)
    tally.unscored[0] = np.count_nonzero((own_truth != INVALID_CLASS) & (own_given == INVALID_CLASS))
    own_truth = np.where(own_given == INVALID_CLASS, own_given, own_truth)
    answers = (own_given, *(np.broadcast_to(row[block[-1]], own_truth.shape) for row in learnt))
    for counts, answer in zip((tally.by_line, tally.most, tally.prior), answers, strict=True):
        for k, (line, said) in enumerate(
            zip(np.moveaxis(own_truth, along, 0), np.moveaxis(answer, along, 0), strict=True)
        ):
            counts[k] = confusion_matrix(line, said, classes)
    if compared.probability is not None:
        _trust(tally, compared.probability[(slice(None), *block)], own_truth, own_given)
    return tally


def counted_blocks(job: EvaluateJob, compared: Compared, learnt: npt.NDArray[np.uint8], on_block: OnBlock) -> Tally:
    """What is counted in all blocks, as Ray tasks where there are many cells; see `count_block`."""
    tally = Tally.empty(compared.truth.sizes[job.by], len(compared.names))
    blocks = _blocks(compared.truth)
    done = iter(range(1, len(blocks) + 1))
    with open_fanout(small=compared.truth.size <= _SMALL_CELLS) as fanout:
        counted = in_order(
            fanout,
            partial(count_block, job, learnt),
            blocks,
            task_bytes=_BLOCK_BYTES,
            on_result=lambda _: on_block(next(done), len(blocks)),
        )
    for block, part in zip(blocks, counted, strict=True):
        tally.add(part, block[VOLUME_AXES.index(job.by)])
    return tally


def learnt_classes(job: EvaluateJob, compared: Compared) -> npt.NDArray[np.uint8]:
    """`(2, sample)`: the most frequent class of what training has seen, and that of each sample of it."""
    samples = compared.truth.sizes["sample"]
    learnt = np.full((2, samples), INVALID_CLASS, np.uint8)
    if job.learnt is None:
        return learnt
    labels = _volume(job.labels, job.variable)
    box = {axis: axis_cells(labels, axis, getattr(job.learnt, axis)) for axis in VOLUME_AXES}
    labels = labels.isel(box)
    counts = np.zeros((len(compared.names), labels.sizes["sample"]), np.int64)
    for block in _blocks(labels):
        values = class_indices(labels[block], len(compared.names), job.labels)
        for k in range(len(compared.names)):
            counts[k, block[-1]] += (values == k).sum(axis=(0, 1))
    learnt[0] = counts.sum(axis=1).argmax()
    _, ours, theirs = np.intersect1d(compared.truth["sample"].values, labels["sample"].values, return_indices=True)
    learnt[1] = learnt[0]
    known = counts.sum(axis=0)[theirs] > 0
    learnt[1, ours[known]] = counts[:, theirs[known]].argmax(axis=0)
    return learnt


def _blocks(volume: xr.DataArray) -> list[Region]:
    inlines, crosslines, samples = (slice(0, size) for size in volume.shape)
    return spread_tiles((inlines, crosslines, samples), (_BLOCK_CELLS,) * 3, _ALL)


def _widened(block: Region, by: int, shape: tuple[int, ...]) -> tuple[Region, Region]:
    """The block with so many cells around it, as far as there are any, and where the block lies in that."""
    wider = [slice(max(0, a.start - by), min(size, a.stop + by)) for a, size in zip(block, shape, strict=True)]
    inner = [slice(a.start - w.start, a.stop - w.start) for a, w in zip(block, wider, strict=True)]
    return (wider[0], wider[1], wider[2]), (inner[0], inner[1], inner[2])


def found_within(
    true: npt.NDArray[np.bool_], given: npt.NDArray[np.bool_], cells: int, inner: Region | tuple[()] = ()
) -> Counts:
    """`(4,)`: given cells near a true one, given cells, true cells near a given one, true cells, of the inner cells.

    Args:
        true: Cells of a class.
        given: Cells that were given that class.
        cells: How far apart two cells are still near.
        inner: The cells to count, all of them when empty.
    """
    return np.array(
        [
            np.count_nonzero((given & _within_cells(true, cells))[inner]),
            np.count_nonzero(given[inner]),
            np.count_nonzero((true & _within_cells(given, cells))[inner]),
            np.count_nonzero(true[inner]),
        ],
        np.int64,
    )


def _within_cells(mask: npt.NDArray[np.bool_], cells: int) -> npt.NDArray[np.bool_]:
    """Where the nearest cell of the mask is no further than so many cells."""
    if not cells or not mask.any():
        return mask
    if cells > SHIFTED:
        far: npt.NDArray[np.bool_] = distance_transform_edt(~mask) <= cells
        return far
    # A few dozen shifts of bits take a tenth of the time of a distance transform.
    padded, near = np.pad(mask, cells), np.zeros_like(mask)
    steps = range(-cells, cells + 1)
    for shift in itertools.product(steps, repeat=mask.ndim):
        if sum(step * step for step in shift) <= cells * cells:
            own = (slice(cells + s, cells + s + size) for s, size in zip(shift, mask.shape, strict=True))
            near |= padded[tuple(own)]
    return near


def _trust(tally: Tally, probability: xr.DataArray, truth: npt.NDArray[np.uint8], given: npt.NDArray[np.uint8]) -> None:
    """Count the block's cells by the probability of the class given."""
    p = np.asarray(probability.values, np.float32).max(axis=0)
    valid = (truth != INVALID_CLASS) & np.isfinite(p)
    bins = np.minimum((p[valid] * BINS).astype(np.intp), BINS - 1)
    tally.bins[:, 0] += np.bincount(bins, minlength=BINS)
    tally.bins[:, 1] += np.bincount(bins[(truth == given)[valid]], minlength=BINS)
    tally.trust += np.bincount(bins, weights=p[valid], minlength=BINS)


def _volume(url: str, variable: str) -> xr.DataArray:
    dataset = open_survey(url)
    if variable not in dataset:
        raise MismatchError(
            f"no {variable} to evaluate", where=url, measured=", ".join(map(str, dataset.data_vars)), limit=variable
        )
    return dataset[variable].transpose(*VOLUME_AXES)


def _common(scored: xr.DataArray, truth: xr.DataArray, where: str) -> tuple[dict[str, slice], dict[str, slice]]:
    """The cells that both share, as contiguous ranges so that reading stays lazy."""
    cut_scored, cut_truth = {}, {}
    for axis in VOLUME_AXES:
        _, in_scored, in_truth = np.intersect1d(scored[axis].values, truth[axis].values, return_indices=True)
        contiguous = in_scored.size > 0 and all(np.all(np.diff(found) == 1) for found in (in_scored, in_truth))
        if not contiguous:
            raise MismatchError(
                f"scored survey and labels do not share a range of {axis}",
                where=where,
                measured=f"{in_scored.size} common",
                limit="a run of neighbours in both",
            )
        cut_scored[axis] = slice(int(in_scored[0]), int(in_scored[-1]) + 1)
        cut_truth[axis] = slice(int(in_truth[0]), int(in_truth[-1]) + 1)
    return cut_scored, cut_truth
