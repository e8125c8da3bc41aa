"""Logs as training takes them: windows of wells, whole wells held out.

A window is a function of (seed, step, item), not of a stream, as patches of volumes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from geobatch.errors import MismatchError, UsageError
from geobatch.models.bundle import ClassInfo, DataDescription
from geobatch.models.sequences import sequence_answer
from geobatch.preprocess import Chain
from geobatch.preprocess.curves import Curves
from geobatch.preprocess.logs import DEPTH
from geobatch.survey import INVALID_CLASS, open_survey, require_complete, survey_info
from geobatch.train.data import class_indices, class_names
from geobatch.train.objectives import Classes
from geobatch.train.source import Activation, Example, HeldOut
from geobatch.train.spec import Augmentation, TrainJob, WellsData

DEFAULT_WINDOW = 64


@dataclass(frozen=True)
class WellLog:
    """One well: the depths that count, one after the other.

    Attributes:
        name: Of the well.
        values: `(channel, depth)` float32 without NaN, prepared.
        labels: `(depth,)` uint8; 255 is unlabelled.
        depth: `(depth,)` float64, m.
    """

    name: str
    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float64]


class WellsSource:
    """Windows of the wells of training, and whole wells held out. All of them are in memory."""

    def __init__(self, training: Sequence[WellLog], held_out: Sequence[WellLog], job: TrainJob, curves: Curves) -> None:
        self.training, self.wells = training, held_out
        self.augment, self.balance = job.training.augment, job.training.balance
        self.window, self.curves = window_of(job), curves
        self._labelled = np.array([(well.labels != INVALID_CLASS).sum() for well in training], float)
        every = np.concatenate([well.labels for well in training])
        self._classes = np.setdiff1d(np.unique(every), INVALID_CLASS)

    def draw(self, key: Sequence[int]) -> Example:
        """See `Source`; with `balance` a class is drawn first, and a window that holds one of its depths."""
        well, own, random = self._choose(key)
        return padded_example(self._augmented(well.values[:, own], random), well.labels[own], self.window)

    def place(self, key: Sequence[int]) -> str:
        """See `Source`."""
        well, own, _ = self._choose(key)
        depth = well.depth[own]
        return f"well {well.name}, {depth[0]:g} to {depth[-1]:g} m"

    def _choose(self, key: Sequence[int]) -> tuple[WellLog, slice, np.random.Generator]:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
        if self.balance:
            wanted = random.choice(self._classes)
            held = np.array([(well.labels == wanted).sum() for well in self.training], float)
            well = self.training[random.choice(len(held), p=held / held.sum())]
            place = int(random.choice(np.flatnonzero(well.labels == wanted)))
            start = place - int(random.integers(self.window))
        else:
            well = self.training[random.choice(len(self.training), p=self._labelled / self._labelled.sum())]
            start = int(random.integers(max(1, well.labels.size - self.window + 1)))
        start = min(max(start, 0), max(0, well.labels.size - self.window))
        return well, slice(start, start + self.window), random

    def held_out(self) -> Sequence[HeldOut]:
        """See `Source`."""
        return [HeldOut(well.name, partial(padded_example, well.values, well.labels, 1)) for well in self.wells]

    def answer(self, network: nn.Module, example: Example, device: torch.device, activation: Activation) -> Tensor:
        """See `Source`."""
        return sequence_answer(network, torch.from_numpy(example.inputs).to(device), self.window, activation)

    def _augmented(self, values: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
        """Curves changed; masks only where a curve counts as missing."""
        changed, own = values.copy(), len(self.curves.curves)
        changed[:own] = augmented(values[:own], self.augment, random)
        if self.augment.missing:
            for number, name in enumerate(self.curves.masked):
                if random.random() < self.augment.missing:
                    curve = self.curves.curves.index(name)
                    changed[curve], changed[own + number] = self.curves.stand_ins[curve], 0
        return changed


class WellsTask:
    """See `Task`."""

    axes = (DEPTH,)
    answers: Literal["dense", "one"] = "dense"

    def __init__(self, job: TrainJob) -> None:
        (data,) = (data for data in job.data if isinstance(data, WellsData))
        self.job, self.data = job, data
        self.wells = open_wells(data)
        found = class_names(self.wells[data.labels], data.survey)
        self.classes = tuple(ClassInfo(**entry) for entry in found)
        self.held_out = held_out_wells(self.wells, job)

    def decides(self) -> dict[str, Any]:
        """See `Task`."""
        given = self.data.model_dump(mode="json", exclude={"survey"})
        return {"data": [survey_info(self.wells, self.data.survey)["identity"], given], "held_out": list(self.held_out)}

    def fit(self) -> dict[str, Any]:
        """The curves, by the wells of training alone."""
        return {"curves": self.data.curves.fit(self._chosen(held_out=False)).model_dump(mode="json")}

    def source(self, fitted: dict[str, Any]) -> WellsSource:
        """See `Task`."""
        curves = Curves.model_validate(fitted["curves"])
        training, held_out = (
            [log for log in self.logs(self._chosen(held_out=held), curves) if log.labels.size] for held in (False, True)
        )
        training = [log for log in training if (log.labels != INVALID_CLASS).any()]
        if not training:
            raise UsageError("no well of training has a label", where=self.data.survey, measured=self.data.labels)
        return WellsSource(training, held_out, self.job, curves)

    def logs(self, wells: xr.Dataset, curves: Curves) -> list[WellLog]:
        """Every well, prepared."""
        values, counts = curves.apply(wells)
        labels = class_indices(wells[self.data.labels].transpose("well", DEPTH), len(self.classes), self.data.survey)
        depth = wells[DEPTH].values.astype(np.float64)
        return [
            WellLog(str(name), values[k][:, counts[k]], labels[k][counts[k]], depth[counts[k]])
            for k, name in enumerate(wells["well"].values.tolist())
        ]

    def objective(self, fitted: dict[str, Any]) -> Classes:
        """See `Task`."""
        labels = np.concatenate([log.labels for log in self.source(fitted).training])
        counts = np.bincount(labels[labels != INVALID_CLASS], minlength=len(self.classes))
        return Classes.of(tuple(entry.name for entry in self.classes), counts, self.job.training)

    def in_channels(self, fitted: dict[str, Any]) -> int:
        """Curves and masks."""
        return Curves.model_validate(fitted["curves"]).channels

    def memory(self, fitted: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """See `Task`; all wells are held."""
        channels = self.in_channels(fitted)
        return (channels, window_of(self.job)), channels * self.wells.sizes["well"] * self.wells.sizes[DEPTH] * 4

    def bundled(self, fitted: dict[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        return {"chain": Chain(), "curves": Curves.model_validate(fitted["curves"]), "window": window_of(self.job)}

    def describe(self, fitted: dict[str, Any]) -> DataDescription:
        """See `Task`."""
        depth = self.wells[DEPTH].values
        return DataDescription(
            quantity="logs",
            domain="depth",
            sample_unit=str(self.wells[DEPTH].attrs.get("units", "m")),
            sample_interval=float(np.median(np.diff(depth))) if depth.size > 1 else 0.0,
        )

    def provenance(self) -> list[dict[str, Any]]:
        """See `Task`."""
        return [{"url": self.data.survey, "identity": survey_info(self.wells, self.data.survey)["identity"]}]

    def _chosen(self, *, held_out: bool) -> xr.Dataset:
        names = self.wells["well"].values.tolist()
        return self.wells.isel(well=[k for k, name in enumerate(names) if (str(name) in self.held_out) == held_out])


def open_wells(data: WellsData) -> xr.Dataset:
    """The survey, whole and with its classes.

    Raises:
        NotFoundError: it is not there.
        DataError: it is not complete.
        MismatchError: it has no wells, or no such variable.
    """
    wells = open_survey(data.survey)
    require_complete(wells, data.survey)
    if not {"well", DEPTH} <= set(wells.dims) or data.labels not in wells:
        raise MismatchError(
            "the survey has no such classes of wells",
            where=data.survey,
            measured=", ".join(map(str, wells.data_vars)),
            limit=f"a variable {data.labels} (well, depth)",
        )
    return wells


def held_out_wells(wells: xr.Dataset, job: TrainJob) -> tuple[str, ...]:
    """Names of the wells that train nothing: those named, or the last of the others by name.

    Raises:
        UsageError: a well is not there or may not be held out, or none is left for training.
    """
    (data,) = (data for data in job.data if isinstance(data, WellsData))
    names = [str(name) for name in wells["well"].values.tolist()]
    for name in (*(job.validation.wells or ()), *data.training_only):
        if name not in names:
            raise UsageError("no such well", where=data.survey, measured=name, limit=f"one of {', '.join(names)}")
    free = sorted(set(names) - set(data.training_only))
    if job.validation.wells is None:
        chosen = tuple(free[len(free) - round(job.validation.fraction * len(free)) :])
    else:
        chosen = job.validation.wells
    if wrong := sorted(set(chosen) & set(data.training_only)):
        raise UsageError("a well is to be held out and for training only", where=data.survey, measured=wrong[0])
    if len(set(chosen)) == len(names):
        raise UsageError("no well is left for training", where=data.survey, measured=f"{len(names)} wells held out")
    return chosen


def window_of(job: TrainJob) -> int:
    """Depths of a window."""
    return (job.training.patch or (DEFAULT_WINDOW,))[0]


def padded_example(values: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8], window: int) -> Example:
    """The example, with zeros and no labels after its end up to `window` depths."""
    length = labels.size
    extra = max(0, window - length)
    return Example(
        np.pad(values, ((0, 0), (0, extra))), np.pad(labels, (0, extra), constant_values=INVALID_CLASS), length
    )


def augmented(
    curves: npt.NDArray[np.float32], augment: Augmentation, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Curves `(curve, depth)` of unit deviation with gain, shift and noise, each curve its own."""
    each = (len(curves), 1)
    changed = curves * np.exp(augment.gain * random.standard_normal(each)) + augment.shift * random.standard_normal(
        each
    )
    changed += augment.noise * random.random(each) * random.standard_normal(curves.shape)
    return changed.astype(np.float32)
