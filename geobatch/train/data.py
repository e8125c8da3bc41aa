"""Training patches straight from surveys and label surveys, on disk or in a bucket.

A patch is a function of (seed, step, item), not of a stream: a run resumed at any step sees the patches it
would have seen.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from geobatch.errors import DataError, MismatchError, UsageError
from geobatch.preprocess import Chain, prepare, read_region
from geobatch.survey import (
    INVALID_CLASS,
    VOLUME_AXES,
    class_flags,
    open_survey,
    require_complete,
    survey_info,
    valid_volume,
)
from geobatch.train.spec import Augmentation, Validation, VolumeData

K = TypeVar("K")
T = TypeVar("T")
Region = tuple[slice, slice, slice]
Patch = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
Size3 = tuple[int, int, int]

_TRIES = 8
_CELL_BYTES = 5
_SLAB = 64


@dataclass(frozen=True)
class LabelledSurvey:
    """A survey with labels on the same grid, both lazily opened.

    Attributes:
        url: of the survey, for messages.
        volume: (inline, crossline, sample) float32, with `live_mask`.
        labels: class indices on the same grid, of any number type; 255 and NaN are unlabelled.
        classes: name and colour per class index.
        info: the survey's own description.
        label_identity: what identifies the labels' voxels.
        labels_url: of the labels, for messages.
    """

    url: str
    volume: xr.DataArray
    labels: xr.DataArray
    classes: tuple[dict[str, str], ...]
    info: dict[str, Any]
    label_identity: str
    labels_url: str = ""


def open_labelled(data: VolumeData) -> LabelledSurvey:
    """Return a survey with its labels.

    Raises:
        NotFoundError: one of the two is not there.
        MismatchError: they are not on the same grid, or the labels name no classes.
        DataError: one of them is not complete.
    """
    survey, labels = open_survey(data.survey), open_survey(data.labels)
    require_complete(survey, data.survey)
    require_complete(labels, data.labels)
    volume = valid_volume(survey, data.survey)
    if data.variable not in labels:
        raise MismatchError(
            "labels hold no such variable",
            where=data.labels,
            measured=", ".join(map(str, labels.data_vars)),
            limit=data.variable,
        )
    classes = labels[data.variable].transpose(*VOLUME_AXES)
    for axis in VOLUME_AXES:
        if not np.array_equal(volume[axis].values, classes[axis].values):
            raise MismatchError(
                f"survey and labels differ along {axis}",
                where=data.labels,
                measured=_extent(classes[axis].values),
                limit=f"{_extent(volume[axis].values)} as in {data.survey}",
            )
    return LabelledSurvey(
        url=data.survey,
        volume=volume,
        labels=classes,
        classes=class_names(classes, data.labels),
        info=survey_info(survey, data.survey),
        label_identity=str(survey_info(labels, data.labels).get("identity")),
        labels_url=data.labels,
    )


def class_names(labels: xr.DataArray, where: str = "") -> tuple[dict[str, str], ...]:
    """Return name and colour per class from the attributes `flag_values`, `flag_meanings` and `flag_colors`.

    Raises:
        MismatchError: they are missing, or the values are not 0, 1, 2 and so on.
    """
    values, names, colors = class_flags(labels.attrs)
    colors = colors or ["#808080"] * len(names)
    if not names or values != list(range(len(names))) or len(colors) != len(names):
        raise MismatchError(
            "labels do not name their classes",
            where=where,
            measured=f"flag_values {values}, flag_meanings {names}",
            limit="flag_values 0, 1, 2, ... with one name and one colour each",
        )
    return tuple({"name": name, "color": color} for name, color in zip(names, colors, strict=True))


def class_indices(labels: xr.DataArray, classes: int, where: str = "") -> npt.NDArray[np.uint8]:
    """Return labels of any number type as uint8; 255 where they are 255 or NaN.

    Raises:
        DataError: a value is neither a class index nor 255.
    """
    values = labels.values
    wrong = ((values < 0) | (values >= classes)) & (values != INVALID_CLASS)
    if values.dtype.kind == "f":
        missing = np.isnan(values)
        wrong = (wrong | (values != np.floor(values))) & ~missing
        values = np.where(missing, INVALID_CLASS, values)
    if wrong.any():
        first = labels[tuple(np.argwhere(wrong)[0])]
        place = ", ".join(f"{axis} {first[axis].item()}" for axis in labels.dims)
        raise DataError(
            f"a value of {labels.name} is no class",
            where=f"{where}, {place}" if where else place,
            measured=first.item(),
            limit=f"an integer from 0 to {classes - 1}, or {INVALID_CLASS} or NaN for unlabelled",
        )
    return values.astype(np.uint8)


@dataclass
class PatchReader:
    """Reads prepared patches of one labelled survey.

    Attributes:
        volume: the cropped survey.
        labels: the cropped labels.
        classes: number of classes.
        chain: fitted.
        train: regions of training lie inside it; validation is in `validation`, None without.
        validation: held out, no inline of it shared with `train`.
        cached: the whole survey prepared, or None: each patch is then read from storage.
        labels_url: for messages.
    """

    volume: xr.DataArray
    labels: xr.DataArray
    classes: int
    chain: Chain
    train: Region
    validation: Region | None
    cached: Patch | None = None
    labels_url: str = ""

    @classmethod
    def split(cls, survey: LabelledSurvey, chain: Chain, validation: Validation, across: str = "inline") -> PatchReader:
        """Return a reader whose validation is a band of lines, with a guard between it and those of training.

        Args:
            survey: Labelled.
            chain: Fitted.
            validation: Which lines, and how wide a guard.
            across: The axis along which lines are counted where `validation` names none.

        Raises:
            UsageError: no line is left for training, or the band is not at an end of the survey.
        """
        volume, labels = chain.crop(survey.volume), chain.crop(survey.labels)
        axis = validation.axis or across
        ground = [slice(0, size) for size in volume.shape]
        band = _held_out(volume[axis].values, validation, survey.url)
        train, held = list(ground), list(ground)
        if band is not None:
            train[VOLUME_AXES.index(axis)], held[VOLUME_AXES.index(axis)] = band
        return cls(
            volume,
            labels,
            len(survey.classes),
            chain,
            (train[0], train[1], train[2]),
            None if band is None else (held[0], held[1], held[2]),
            labels_url=survey.labels_url,
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes that `cache` takes."""
        return self.volume.size * _CELL_BYTES

    def cache(self) -> None:
        """Prepare the whole survey and keep it in memory, slab by slab."""
        inlines, crosslines, samples = self.volume.shape
        amplitude, labels = np.empty(self.volume.shape, np.float32), np.empty(self.volume.shape, np.uint8)
        for start in range(0, inlines, _SLAB):
            slab = slice(start, min(start + _SLAB, inlines))
            amplitude[slab], labels[slab] = self._read_stored((slab, slice(0, crosslines), slice(0, samples)))
        self.cached = (amplitude, labels)

    def read(self, region: Region) -> Patch:
        """Return prepared amplitude (NaN as 0) and labels of a region; invalid cells are labelled 255.

        Args:
            region: in indices of the cropped survey.

        Raises:
            DataError: a label is neither a class nor 255.
        """
        if self.cached is not None:
            return self.cached[0][region], self.cached[1][region]
        return self._read_stored(region)

    def read_labels(self, region: Region) -> npt.NDArray[np.uint8]:
        """Return the labels alone, whatever the amplitudes are."""
        if self.cached is not None:
            return self.cached[1][region]
        return self._labels(region)

    def _read_stored(self, region: Region) -> Patch:
        amplitude = prepare(read_region(self.volume, self.chain, region), self.chain)
        invalid = np.isnan(amplitude)
        labels = self._labels(region)
        return np.where(invalid, np.float32(0), amplitude), np.where(invalid, np.uint8(INVALID_CLASS), labels)

    def _labels(self, region: Region) -> npt.NDArray[np.uint8]:
        return class_indices(self.labels[region], self.classes, self.labels_url)


def _held_out(numbers: npt.NDArray[Any], validation: Validation, where: str) -> tuple[slice, slice] | None:
    """The lines of training and those held out, as indices; None where none is."""
    if validation.lines is None:
        held = np.arange(numbers.size) >= numbers.size - round(validation.fraction * numbers.size)
    else:
        first, last = sorted(validation.lines)
        held = (numbers >= first) & (numbers <= last)
    if not held.any():
        if validation.lines is None:
            return None
        raise UsageError(
            "validation holds out no line",
            where=where,
            measured=f"lines {validation.lines[0]:g} to {validation.lines[1]:g}",
            limit=f"of {_extent(numbers)}",
        )
    if not (held[0] or held[-1]):
        raise UsageError(
            "the band held out lies inside the survey",
            where=where,
            measured=f"lines {numbers[held][0]:g} to {numbers[held][-1]:g} of {_extent(numbers)}",
            limit="a band with the first or the last line",
            remedy="Move validation.lines to one end, so that training has one piece of ground.",
        )
    (own,) = np.nonzero(held)
    distance = np.abs(numbers[:, None] - numbers[held][None, [0, -1]]).min(axis=1)
    (free,) = np.nonzero(~held & (distance > validation.guard))
    if not free.size:
        raise UsageError(
            "validation leaves no line for training",
            where=where,
            measured=f"{own.size} held out and {validation.guard} of guard",
            limit=f"less than {numbers.size} lines",
            remedy="Lower validation.fraction or validation.guard.",
        )
    return slice(int(free[0]), int(free[-1]) + 1), slice(int(own[0]), int(own[-1]) + 1)


def cache_within(readers: Sequence[PatchReader], limit_bytes: int) -> int:
    """Keep surveys in memory, in order, as long as they fit the limit together; return the bytes that are left."""
    left = limit_bytes
    for reader in readers:
        if reader.cache_bytes > left:
            break
        left -= reader.cache_bytes
        reader.cache()
    return left


def patch_size(readers: Sequence[PatchReader], patch: Size3) -> Size3:
    """Return the patch clipped to what every survey offers for training."""
    extents = [[axis.stop - axis.start for axis in reader.train] for reader in readers]
    inline, crossline, sample = (
        min(cells, *sizes) for cells, sizes in zip(patch, zip(*extents, strict=True), strict=True)
    )
    return inline, crossline, sample


def draw_patch(
    readers: Sequence[PatchReader],
    patch: Size3,
    augment: Augmentation,
    key: Sequence[int],
    *,
    balance: bool = False,
) -> Patch:
    """Return one augmented training patch, decided by `key` alone.

    Args:
        readers: surveys are drawn in proportion to their size.
        patch: cells per axis, no more than `patch_size` allows.
        augment: what may be changed.
        key: seed, step, item.
        balance: draw a class first, then look a few times for a patch that holds it.
    """
    reader, region, random = choose_patch(readers, patch, key, balance=balance)
    return _augmented(*reader.read(region), augment, random)


def choose_patch(
    readers: Sequence[PatchReader], patch: Size3, key: Sequence[int], *, balance: bool = False
) -> tuple[PatchReader, Region, np.random.Generator]:
    """Return where the patch of a key lies, and the chance that decides what is done to it."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
    volumes = np.array([np.prod([axis.stop - axis.start for axis in reader.train]) for reader in readers], float)
    reader = readers[random.choice(len(readers), p=volumes / volumes.sum())]
    region = _draw_region(reader.train, patch, random)
    if balance:
        wanted = random.integers(reader.classes)
        for _ in range(_TRIES):
            if (reader.read_labels(region) == wanted).any():
                break
            region = _draw_region(reader.train, patch, random)
    return reader, region, random


def validation_patches(readers: Sequence[PatchReader], patch: Size3, limit: int) -> list[tuple[int, Region]]:
    """Return reader number and region of tiles of the validation bands, evenly thinned to about `limit`."""
    bands = [(number, reader.validation) for number, reader in enumerate(readers) if reader.validation is not None]
    each = -(-limit // max(len(bands), 1))
    return [(number, tile) for number, band in bands for tile in spread_tiles(band, patch, each)]


def class_counts(readers: Sequence[PatchReader], patch: Size3, tiles: int = 256) -> npt.NDArray[np.int64]:
    """Return labelled voxels per class on tiles spread evenly over each survey's training ground."""
    counts = np.zeros(readers[0].classes, np.int64)
    for reader in readers:
        for tile in spread_tiles(reader.train, patch, tiles):
            labels = reader.read_labels(tile)
            counts += np.bincount(labels[labels != INVALID_CLASS], minlength=reader.classes)
    return counts


def require_labels(readers: Sequence[PatchReader]) -> None:
    """Look for a labelled cell on training ground, slab by slab.

    Raises:
        DataError: there is none.
    """
    for reader in readers:
        inline, crossline, sample = reader.train
        for start in range(inline.start, inline.stop, _SLAB):
            labels = reader.read_labels((slice(start, min(start + _SLAB, inline.stop)), crossline, sample))
            if (labels != INVALID_CLASS).any():
                return
    raise DataError(
        "no cell is labelled outside of what is held out",
        where=", ".join(reader.labels_url for reader in readers),
        measured="unlabelled cells alone",
        limit=f"a class from 0 to {readers[0].classes - 1} somewhere",
        remedy="Check the labels' variable, the crop in preprocess, and validation.fraction and guard.",
    )


def prepared_sample(reader: PatchReader, cells: int = 32, tiles: int = 64) -> npt.NDArray[np.float32]:
    """Return valid prepared amplitudes of small tiles spread evenly over a survey's training ground."""
    parts = []
    for tile in spread_tiles(reader.train, (cells, cells, cells), tiles):
        amplitude = prepare(read_region(reader.volume, reader.chain, tile), reader.chain)
        parts.append(amplitude[np.isfinite(amplitude)])
    return np.concatenate(parts)


def spread_tiles(bounds: Region, patch: Size3, limit: int) -> list[Region]:
    """Return at most `limit` tiles of a region, evenly spread in storage order, without listing all of them."""
    grid = [-(-(axis.stop - axis.start) // cells) for axis, cells in zip(bounds, patch, strict=True)]
    count = math.prod(grid)
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))
    return [_tile(bounds, patch, index) for index in zip(*np.unravel_index(chosen, grid), strict=True)]


def prefetch(make: Callable[[K], T], keys: Iterable[K], threads: int) -> Generator[T, None, None]:
    """Yield what `make` makes of each key, in order, made ahead by several threads.

    Args:
        make: called in the threads, which end when this generator is closed; what it raises is raised in its turn.
        keys: of the items.
        threads: so many items are being made or waiting, besides the one in use.
    """
    left = iter(keys)
    with ThreadPoolExecutor(threads, thread_name_prefix="geobatch-prefetch") as pool:
        made = deque(pool.submit(make, key) for key in itertools.islice(left, threads))
        try:
            while made:
                item = made.popleft().result()
                made.extend(pool.submit(make, key) for key in itertools.islice(left, 1))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def _draw_region(bounds: Region, patch: Size3, random: np.random.Generator) -> Region:
    starts = [random.integers(axis.start, axis.stop - cells + 1) for axis, cells in zip(bounds, patch, strict=True)]
    inline, crossline, sample = (slice(int(a), int(a) + cells) for a, cells in zip(starts, patch, strict=True))
    return inline, crossline, sample


def _tile(bounds: Region, patch: Size3, index: Sequence[Any]) -> Region:
    starts = [axis.start + int(k) * cells for k, axis, cells in zip(index, bounds, patch, strict=True)]
    inline, crossline, sample = (
        slice(start, min(start + cells, axis.stop)) for start, cells, axis in zip(starts, patch, bounds, strict=True)
    )
    return inline, crossline, sample


def _augmented(
    amplitude: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    augment: Augmentation,
    random: np.random.Generator,
) -> Patch:
    if augment.flip:
        for axis in (0, 1):
            if random.random() < 0.5:
                amplitude, labels = np.flip(amplitude, axis), np.flip(labels, axis)
    if augment.swap and amplitude.shape[0] == amplitude.shape[1] and random.random() < 0.5:
        amplitude, labels = amplitude.swapaxes(0, 1), labels.swapaxes(0, 1)
    valid = amplitude != 0
    changed = amplitude * np.float32(np.exp(augment.gain * random.standard_normal()))
    if augment.noise:
        deviation = np.float32(augment.noise * random.random() * amplitude.std())
        changed += deviation * _noise(amplitude.shape, random) * valid
    return np.ascontiguousarray(changed), np.ascontiguousarray(labels)


def _noise(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return noise of unit variance, white across traces and smoothed along samples over one to four of them."""
    width = int(random.integers(1, 5))
    noise = random.standard_normal((shape[0], shape[1], shape[2] + 2 * (width - 1)), np.float32)
    for _ in range(2):
        size = noise.shape[2] - width + 1
        noise = sum((noise[:, :, k : k + size] for k in range(width)), np.zeros((), np.float32))
    box = np.ones(width)
    scaled: npt.NDArray[np.float32] = noise / np.float32(np.linalg.norm(np.convolve(box, box)))
    return scaled


def _extent(values: npt.NDArray[Any]) -> str:
    return f"{values.size} from {values[0]} to {values[-1]}" if values.size else "none"
