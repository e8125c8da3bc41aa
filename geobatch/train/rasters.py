"""Rasters as training takes them: windows of bands and derivatives, blocks of ground held out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from geobatch.errors import MismatchError, UsageError
from geobatch.formats.raster_survey import valid_raster
from geobatch.models.bundle import ClassInfo, DataDescription
from geobatch.preprocess import Chain
from geobatch.preprocess.bands import Bands, Window
from geobatch.survey import INVALID_CLASS, open_survey, require_complete, survey_info
from geobatch.train.data import class_indices, class_names
from geobatch.train.objectives import Classes
from geobatch.train.source import Activation, Example, HeldOut
from geobatch.train.spec import RasterData, TrainJob

AXES = ("y", "x")
DEFAULT_PATCH = (128, 128)
FITTED_WINDOWS = 64
_TRIES = 16

Labels = npt.NDArray[np.uint8]


class Ground:
    """A raster with classes of its cells, and which blocks of it train nothing.

    Args:
        raster: `(band, y, x)`, lazy.
        labels: `(y, x)`, lazy.
        classes: Number of classes.
        held_out: `(block row, block column)`.
        side: Cells of a block.
        guard: Labels nearer than so many cells to a held-out block train nothing either.
        where: URL of the labels, for messages.
    """

    def __init__(
        self,
        raster: xr.DataArray,
        labels: xr.DataArray,
        classes: int,
        held_out: npt.NDArray[np.bool_],
        side: int,
        guard: int,
        where: str,
    ) -> None:
        self.raster, self.labels, self.classes = raster, labels, classes
        self.held_out, self.side, self.guard, self.where = held_out, side, guard, where
        self.shape = (raster.sizes["y"], raster.sizes["x"])

    def training_labels(self, window: Window) -> Labels:
        """Classes `(y, x)` of a window, 255 in and near what is held out."""
        labels = self.all_labels(window)
        return np.where(self._near_held_out(window), np.uint8(INVALID_CLASS), labels)

    def all_labels(self, window: Window) -> Labels:
        """Classes `(y, x)` of a window.

        Raises:
            DataError: a value is neither a class nor 255.
        """
        return class_indices(self.labels.isel(y=window[0], x=window[1]), self.classes, self.where)

    def blocks(self) -> list[Window]:
        """The blocks held out."""
        return [
            (_cut(row, self.side, self.shape[0]), _cut(column, self.side, self.shape[1]))
            for row, column in np.argwhere(self.held_out).tolist()
        ]

    def _near_held_out(self, window: Window) -> npt.NDArray[np.bool_]:
        """Where a cell lies in a held-out block, or no further than the guard from one."""
        near = np.zeros([axis.stop - axis.start for axis in window], bool)
        for block in self.blocks():
            own = [
                slice(max(0, b.start - self.guard - w.start), max(0, b.stop + self.guard - w.start))
                for b, w in zip(block, window, strict=True)
            ]
            near[own[0], own[1]] = True
        return near


class RasterSource:
    """Windows of a raster."""

    def __init__(self, ground: Ground, bands: Bands, job: TrainJob) -> None:
        self.ground, self.bands, self.job = ground, bands, job
        self.patch = patch_of(job, ground.shape)

    def draw(self, key: Sequence[int]) -> Example:
        """See `Source`; invalid cells are 0 and unlabelled."""
        window, labels, random = self._choose(key)
        values, labels = _complete(self.bands.read(self.ground.raster, window), labels)
        return self._augmented(values, labels, random)

    def place(self, key: Sequence[int]) -> str:
        """See `Source`."""
        window, _, _ = self._choose(key)
        ends = [self.ground.raster[axis].values[own] for axis, own in zip(AXES, window, strict=True)]
        return ", ".join(f"{axis} {v[0]:.10g} to {v[-1]:.10g}" for axis, v in zip(AXES, ends, strict=True))

    def held_out(self) -> Sequence[HeldOut]:
        """See `Source`: each block in the middle of a window, whose other labels do not count."""
        return [
            HeldOut(f"block {number}", partial(self._block, block))
            for number, block in enumerate(self.ground.blocks(), 1)
        ]

    def answer(self, network: nn.Module, example: Example, device: torch.device, activation: Activation) -> Tensor:
        """See `Source`."""
        return activation(network(torch.from_numpy(example.inputs)[None].to(device)))[0]

    def _block(self, block: Window) -> Example:
        window = _around(block, self.patch, self.ground.shape)
        labels = np.full([axis.stop - axis.start for axis in window], INVALID_CLASS, np.uint8)
        own = [slice(b.start - w.start, b.stop - w.start) for b, w in zip(block, window, strict=True)]
        labels[own[0], own[1]] = self.ground.all_labels(block)
        values, labels = _complete(self.bands.read(self.ground.raster, window), labels)
        return Example(values, labels, values.shape[-1])

    def _choose(self, key: Sequence[int]) -> tuple[Window, Labels, np.random.Generator]:
        """A window with a label that trains, or after some tries any; with `balance` of a class drawn first."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
        wanted = random.integers(self.ground.classes) if self.job.training.balance else None
        for _ in range(_TRIES):
            starts = [int(random.integers(s - p + 1)) for s, p in zip(self.ground.shape, self.patch, strict=True)]
            y, x = (slice(start, start + cells) for start, cells in zip(starts, self.patch, strict=True))
            labels = self.ground.training_labels((y, x))
            if (labels == wanted).any() if wanted is not None else (labels != INVALID_CLASS).any():
                break
        return (y, x), labels, random

    def _augmented(self, values: npt.NDArray[np.float32], labels: Labels, random: np.random.Generator) -> Example:
        augment = self.job.training.augment
        if not self.bands.directed:
            for axis in (-2, -1):
                if augment.flip and random.random() < 0.5:
                    values, labels = np.flip(values, axis), np.flip(labels, axis)
            if augment.swap and values.shape[-1] == values.shape[-2] and random.random() < 0.5:
                values, labels = values.swapaxes(-1, -2), labels.swapaxes(-1, -2)
        each = (len(values), 1, 1)
        valid = values != 0
        changed = values * np.exp(augment.gain * random.standard_normal(each))
        changed += augment.shift * random.standard_normal(each)
        changed += augment.noise * random.random(each) * random.standard_normal(values.shape)
        return Example(
            np.ascontiguousarray(np.where(valid, changed, 0), np.float32),
            np.ascontiguousarray(labels),
            labels.shape[-1],
        )


class RasterTask:
    """See `Task`."""

    axes = AXES
    answers: Literal["dense", "one"] = "dense"

    def __init__(self, job: TrainJob) -> None:
        (data,) = (data for data in job.data if isinstance(data, RasterData))
        self.job, self.data = job, data
        self.survey, self.label_survey = open_survey(data.survey), open_survey(data.labels)
        for dataset, url in ((self.survey, data.survey), (self.label_survey, data.labels)):
            require_complete(dataset, url)
        self.raster = valid_raster(self.survey, data.survey).transpose("band", *AXES)
        self.labels = _label_map(self.label_survey, self.raster, data)
        self.classes = tuple(ClassInfo(**entry) for entry in class_names(self.labels, data.labels))
        self.ground = Ground(
            self.raster,
            self.labels,
            len(self.classes),
            held_out_blocks(job, (self.raster.sizes["y"], self.raster.sizes["x"])),
            job.validation.block,
            job.validation.guard,
            data.labels,
        )

    def decides(self) -> dict[str, Any]:
        """See `Task`."""
        given = self.data.model_dump(mode="json", exclude={"survey", "labels"})
        identities = [
            str(survey_info(dataset, url).get("identity"))
            for dataset, url in ((self.survey, self.data.survey), (self.label_survey, self.data.labels))
        ]
        return {"data": [*identities, given]}

    def fit(self) -> dict[str, Any]:
        """The bands, by windows spread over what is not held out."""
        windows = [window for window in _tiles(self.ground) if (self.ground.training_labels(window) != 255).any()]
        if not windows:
            raise UsageError("no cell of training has a label", where=self.data.labels, measured=self.data.variable)
        chosen = np.unique(np.linspace(0, len(windows) - 1, min(FITTED_WINDOWS, len(windows))).astype(int))
        fitted = self.data.bands.fit(self.raster, [windows[k] for k in chosen], self.data.survey)
        return {"bands": fitted.model_dump(mode="json")}

    def source(self, fitted: dict[str, Any]) -> RasterSource:
        """See `Task`."""
        return RasterSource(self.ground, Bands.model_validate(fitted["bands"]), self.job)

    def objective(self, fitted: dict[str, Any]) -> Classes:
        """See `Task`."""
        counts = np.zeros(len(self.classes), np.int64)
        for window in _tiles(self.ground):
            labels = self.ground.training_labels(window)
            counts += np.bincount(labels[labels != INVALID_CLASS], minlength=len(self.classes))
        return Classes.of(tuple(entry.name for entry in self.classes), counts, self.job.training)

    def in_channels(self, fitted: dict[str, Any]) -> int:
        """Bands and derivatives."""
        return len(fitted["bands"]["mean"])

    def memory(self, fitted: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """See `Task`; nothing is held."""
        return (self.in_channels(fitted), *patch_of(self.job, self.ground.shape)), 0

    def bundled(self, fitted: dict[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        return {"chain": Chain(), "bands": Bands.model_validate(fitted["bands"])}

    def describe(self, fitted: dict[str, Any]) -> DataDescription:
        """See `Task`."""
        info, x = survey_info(self.survey, self.data.survey), self.raster["x"].values
        return DataDescription(
            quantity=str(info.get("quantity", "values")),
            domain="map",
            sample_unit=str(self.raster["x"].attrs.get("units", "")),
            sample_interval=float(abs(x[1] - x[0])) if x.size > 1 else 0.0,
        )

    def provenance(self) -> list[dict[str, Any]]:
        """See `Task`."""
        return [{"url": self.data.survey, "identity": survey_info(self.survey, self.data.survey).get("identity")}]


def patch_of(job: TrainJob, shape: tuple[int, int]) -> tuple[int, int]:
    """Cells of a window, clipped to the raster."""
    rows, columns = job.training.patch or DEFAULT_PATCH
    return min(rows, shape[0]), min(columns, shape[1])


def held_out_blocks(job: TrainJob, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which blocks are held out, `(block row, block column)`: drawn by the seed of the training.

    Raises:
        UsageError: none is left for training, or a block is larger than a window.
    """
    side, share = job.validation.block, job.validation.fraction
    grid = tuple(-(-cells // side) for cells in shape)
    count = round(share * grid[0] * grid[1])
    if count == grid[0] * grid[1]:
        raise UsageError(
            "no block is left for training",
            where="validation",
            measured=f"{count} of {count} blocks of {side} cells",
            remedy="Lower validation.block or validation.fraction.",
        )
    if share and any(min(side, cells) > patch for cells, patch in zip(shape, patch_of(job, shape), strict=True)):
        raise UsageError(
            "a block that is held out is larger than a window",
            where="validation.block",
            measured=side,
            limit=patch_of(job, shape),
        )
    held = np.zeros(grid[0] * grid[1], bool)
    held[np.random.default_rng(job.training.seed).permutation(held.size)[:count]] = True
    return held.reshape(grid)


def _label_map(dataset: xr.Dataset, raster: xr.DataArray, data: RasterData) -> xr.DataArray:
    if data.variable not in dataset or not set(AXES) <= set(dataset[data.variable].dims):
        raise MismatchError(
            "labels hold no such class map",
            where=data.labels,
            measured=", ".join(map(str, dataset.data_vars)),
            limit=f"{data.variable} (y, x)",
        )
    labels = dataset[data.variable].squeeze([dim for dim in dataset[data.variable].dims if dim not in AXES])
    for axis in AXES:
        if not np.array_equal(labels[axis].values, raster[axis].values):
            raise MismatchError(
                f"survey and labels differ along {axis}",
                where=data.labels,
                measured=f"{labels.sizes[axis]} cells",
                limit=f"the {raster.sizes[axis]} of {data.survey}",
                remedy="Bring the labels onto the survey's grid by job: label.",
            )
    return labels.transpose(*AXES)


def _complete(values: npt.NDArray[np.float32], labels: Labels) -> tuple[npt.NDArray[np.float32], Labels]:
    """Channels without NaN, and labels where all of them are known."""
    invalid = np.isnan(values)
    return np.where(invalid, np.float32(0), values), np.where(invalid.any(axis=0), np.uint8(INVALID_CLASS), labels)


def _tiles(ground: Ground, cells: int = 512) -> list[Window]:
    rows, columns = (range(0, size, cells) for size in ground.shape)
    return [
        (slice(row, min(row + cells, ground.shape[0])), slice(column, min(column + cells, ground.shape[1])))
        for row in rows
        for column in columns
    ]


def _around(block: Window, patch: tuple[int, int], shape: tuple[int, int]) -> Window:
    """The window of that size with the block in its middle, moved to lie inside the raster."""
    windows = []
    for own, cells, size in zip(block, patch, shape, strict=True):
        start = min(max(0, (own.start + own.stop - cells) // 2), size - cells)
        windows.append(slice(start, start + cells))
    return windows[0], windows[1]


def _cut(number: int, side: int, size: int) -> slice:
    return slice(number * side, min((number + 1) * side, size))
