"""Event windows as training takes them: parts of records, whole stations, networks or events held out.

A part is a function of (seed, step, item), not of a stream, as patches of volumes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geobatch.models.bundle import ClassInfo, DataDescription, NumberInfo
from geobatch.preprocess import Chain
from geobatch.preprocess.base import Float32Array
from geobatch.preprocess.event_windows import WindowInput
from geobatch.train.objectives import Classes, Number, Objective
from geobatch.train.records import Records, held_out_groups
from geobatch.train.source import Activation, Example, HeldOut
from geobatch.train.spec import Augmentation, TrainJob
from geobatch.train.windows_spec import WindowsData

NOISE, EVENT = 0, 1
CLASSES = (ClassInfo(name="noise", color="#9e9e9e"), ClassInfo(name="event", color="#d7301f"))
MOST_FITTED = 2000
_HELD_OUT = 0x68656C64


@dataclass(frozen=True)
class Cut:
    """A window of a record.

    Attributes:
        record: Its number.
        start: First sample.
        label: Class, or magnitude.
    """

    record: int
    start: int
    label: float


class WindowsSource:
    """Windows of the records of training, and fixed ones of those held out."""

    def __init__(
        self, records: Records, training: Sequence[int], held_out: Sequence[int], job: TrainJob, windows: WindowInput
    ) -> None:
        self.records, self.training, self.windows = records, list(training), windows
        self.augment = job.training.augment
        self.held = [cut for record in held_out for cut in self.fixed(record)]

    def draw(self, key: Sequence[int]) -> Example:
        """See `Source`."""
        cut, random = self._choose(key)
        window, factor = augmented(self.records.read(cut.record, cut.start), self.augment, random)
        return self._example(window, cut.label if self.records.picked else cut.label + np.log10(factor))

    def place(self, key: Sequence[int]) -> str:
        """See `Source`."""
        cut, _ = self._choose(key)
        return f"record {self.records.names[cut.record]} from {cut.start / self.windows.rate_hz:g} s on"

    def fixed(self, record: int) -> list[Cut]:
        """The windows of a record by which models are judged, the same whatever trains: of each label one."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([_HELD_OUT, record])))
        if self.records.picked:
            return [self._cut(record, label, random) for label in (NOISE, EVENT)]
        first, last = self.records.starts(record)
        return [Cut(record, (first + last) // 2, self.records.label(record))]

    def held_out(self) -> Sequence[HeldOut]:
        """See `Source`."""
        return [HeldOut(self.records.groups[cut.record], partial(self._fixed_example, cut)) for cut in self.held]

    def answer(self, network: nn.Module, example: Example, device: torch.device, activation: Activation) -> Tensor:
        """See `Source`."""
        with torch.inference_mode():
            return activation(network(torch.from_numpy(example.inputs)[None].to(device)))[0]

    def _choose(self, key: Sequence[int]) -> tuple[Cut, np.random.Generator]:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
        record = self.training[int(random.integers(len(self.training)))]
        return self._cut(record, int(random.integers(2)), random), random

    def _cut(self, record: int, label: int, random: np.random.Generator) -> Cut:
        noise = self.records.picked and label == NOISE
        first, last = self.records.noise_starts(record) if noise else self.records.starts(record)
        start = int(random.integers(first, last + 1))
        return Cut(record, start, label if self.records.picked else self.records.label(record))

    def _fixed_example(self, cut: Cut) -> Example:
        return self._example(self.records.read(cut.record, cut.start), cut.label)

    def _example(self, window: Float32Array, label: float) -> Example:
        inputs = self.windows.apply(window)
        told = np.array(label, np.uint8) if self.records.picked else np.array(label, np.float32)
        return Example(inputs, told, inputs.shape[-1])


class WindowsTask:
    """See `Task`."""

    answers: Literal["dense", "one"] = "one"

    def __init__(self, job: TrainJob) -> None:
        (data,) = (data for data in job.data if isinstance(data, WindowsData))
        self.job, self.data = job, data
        self.records = Records(data, job.validation.by, job.resources.cache_mib * 2**20)
        self.axes = data.input.axes
        self.classes = CLASSES if data.ask == "event" else ()
        self.held_out = held_out_groups(self.records, job.validation, data.survey)

    def decides(self) -> dict[str, Any]:
        """See `Task`."""
        given = self.data.model_dump(mode="json", exclude={"survey"})
        return {"data": [self.records.identity, given], "held_out": list(self.held_out)}

    def fit(self) -> dict[str, Any]:
        """The scale of amplitudes, by the records of training alone, and that of magnitudes."""
        rated = self.data.unfitted.model_copy(update={"sampling_rate_hz": self.records.rate_hz})
        source = WindowsSource(self.records, self._records(held_out=False), (), self.job, rated)
        chosen = source.training[:: -(-len(source.training) // MOST_FITTED)]
        cuts = [cut for record in chosen for cut in source.fixed(record)]
        fitted = {"input": rated.fit(self.records.read(c.record, c.start) for c in cuts).model_dump(mode="json")}
        if self.data.ask == "magnitude":
            labels = [self.records.label(record) for record in source.training]
            deviation = max(float(np.std(labels)), 1e-6)
            fitted["number"] = {"name": "magnitude", "mean": float(np.mean(labels)), "deviation": deviation}
        return fitted

    def source(self, fitted: dict[str, Any]) -> WindowsSource:
        """See `Task`."""
        windows = WindowInput.model_validate(fitted["input"])
        return WindowsSource(
            self.records, self._records(held_out=False), self._records(held_out=True), self.job, windows
        )

    def objective(self, fitted: dict[str, Any]) -> Objective:
        """See `Task`."""
        if self.data.ask == "magnitude":
            return Number.model_validate(fitted["number"])
        count = len(self._records(held_out=False))
        return Classes.of(tuple(entry.name for entry in CLASSES), np.array([count, count]), self.job.training)

    def in_channels(self, fitted: dict[str, Any]) -> int:
        """Components, and what says of them what is missing or how large they are."""
        return WindowInput.model_validate(fitted["input"]).channels

    def memory(self, fitted: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """See `Task`."""
        example = self.source(fitted).draw((0, 0, 0)).inputs.shape
        return example, self.records.kept_bytes

    def bundled(self, fitted: dict[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        number = NumberInfo.model_validate(fitted["number"]) if "number" in fitted else None
        return {"chain": Chain(), "windows": WindowInput.model_validate(fitted["input"]), "number": number}

    def describe(self, fitted: dict[str, Any]) -> DataDescription:
        """See `Task`."""
        return DataDescription(
            quantity=self.records.quantity, domain="time", sample_unit="s", sample_interval=1 / self.records.rate_hz
        )

    def provenance(self) -> list[dict[str, Any]]:
        """See `Task`; of the survey also how many records count, and why the others do not."""
        told = {"url": self.data.survey, "identity": self.records.identity}
        return [{**told, "records": len(self.records.usable), "left_out": self.records.left_out}]

    def _records(self, *, held_out: bool) -> list[int]:
        return [k for k in self.records.usable if (self.records.groups[k] in self.held_out) == held_out]


def augmented(window: Float32Array, augment: Augmentation, random: np.random.Generator) -> tuple[Float32Array, float]:
    """The window `(component, sample)` with other polarity, gain, noise and missing components, and the gain."""
    polarity = -1.0 if augment.flip and random.random() < 0.5 else 1.0
    factor = float(np.exp(augment.gain * random.standard_normal()))
    level = float(np.nanstd(window)) if np.isfinite(window).any() else 0.0
    noise = augment.noise * random.random() * level * random.standard_normal(window.shape)
    changed: npt.NDArray[np.float64] = polarity * factor * (window + noise)
    if augment.missing:
        there = np.flatnonzero(np.isfinite(window).any(axis=1))
        gone = there[random.random(len(there)) < augment.missing]
        changed[gone[: max(0, len(there) - 1)]] = np.nan
    return changed.astype(np.float32), factor
