"""Volumes as training takes them: surveys with labels of the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geobatch.errors import MismatchError
from geobatch.models.bundle import QUANTILES, ClassInfo, DataDescription
from geobatch.preprocess import Chain
from geobatch.storage.chunks import KEPT
from geobatch.survey import VOLUME_AXES
from geobatch.train.data import (
    PatchReader,
    Size3,
    cache_within,
    choose_patch,
    class_counts,
    draw_patch,
    open_labelled,
    patch_size,
    prepared_sample,
    require_labels,
    validation_patches,
)
from geobatch.train.objectives import Classes
from geobatch.train.source import Activation, Example, HeldOut
from geobatch.train.spec import TrainJob, VolumeData

DEFAULT_PATCH = {2: 256, 3: 64}
_ACROSS = 1
_MEANING = ("quantity", "domain", "sample_unit", "sample_interval")


class VolumeSource:
    """Patches of labelled surveys, or of sections of them."""

    def __init__(self, readers: list[PatchReader], job: TrainJob) -> None:
        self.readers, self.job = readers, job
        self.patches = _patches(readers, job)

    def draw(self, key: Sequence[int]) -> Example:
        """See `Source`; of sections across several axes one is drawn first."""
        training = self.job.training
        across, patch = self._across(key)
        return _example(across, *draw_patch(self.readers, patch, training.augment, key, balance=training.balance))

    def place(self, key: Sequence[int]) -> str:
        """See `Source`."""
        _, patch = self._across(key)
        reader, region, _ = choose_patch(self.readers, patch, key, balance=self.job.training.balance)
        survey = self.job.data[next(k for k, other in enumerate(self.readers) if other is reader)].survey
        lines = (reader.volume[axis].values[own] for axis, own in zip(VOLUME_AXES, region, strict=True))
        return ", ".join([survey, *(f"{a} {v[0]:g} to {v[-1]:g}" for a, v in zip(VOLUME_AXES, lines, strict=True))])

    def held_out(self) -> Sequence[HeldOut]:
        """See `Source`."""
        each = -(-self.job.validation.patches // len(self.patches))
        return [
            HeldOut(self.job.data[number].survey, _Tile(across, self.readers[number], tile))
            for across, patch in self.patches.items()
            for number, tile in validation_patches(self.readers, patch, each)
        ]

    def _across(self, key: Sequence[int]) -> tuple[str, Size3]:
        """Across which axis the section of a key lies, nothing of volumes, and its patch."""
        kinds = list(self.patches.items())
        if len(kinds) == 1:
            return kinds[0]
        return kinds[int(np.random.default_rng([*key, _ACROSS]).integers(len(kinds)))]

    def answer(self, network: nn.Module, example: Example, device: torch.device, activation: Activation) -> Tensor:
        """See `Source`."""
        outputs = network(torch.from_numpy(np.ascontiguousarray(example.inputs))[None].to(device))
        return activation(outputs)[0]


class _Tile:
    """Reads a tile of a validation band."""

    def __init__(self, across: str, reader: PatchReader, region: tuple[slice, slice, slice]) -> None:
        self.across, self.reader, self.region = across, reader, region

    def __call__(self) -> Example:
        return _example(self.across, *self.reader.read(self.region))


class VolumeTask:
    """See `Task`."""

    answers: Literal["dense", "one"] = "dense"

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.data = [data for data in job.data if isinstance(data, VolumeData)]
        self.axes = _axes(_sections(job))
        self.surveys = [open_labelled(data) for data in self.data]
        self._require_alike()
        self.classes = tuple(ClassInfo(**entry) for entry in self.surveys[0].classes)

    def decides(self) -> dict[str, Any]:
        """See `Task`."""
        pairs = zip(self.surveys, self.data, strict=True)
        return {
            "data": [[survey.info["identity"], item.variable] for survey, item in pairs],
            "labels": [str(survey.label_identity) for survey in self.surveys],
        }

    def fit(self) -> dict[str, Any]:
        """Chains, one per survey: amplitudes of different surveys have no common unit, so each has its own figures."""
        chains = [self.job.preprocess.fit(survey.volume) for survey in self.surveys]
        return {"chains": [chain.model_dump(mode="json") for chain in chains]}

    def source(self, fitted: dict[str, Any]) -> VolumeSource:
        """See `Task`."""
        readers = self._readers(fitted)
        left = cache_within(readers, self.job.resources.cache_mib * 2**20)
        # Of the others, parts are read again and again.
        KEPT.limit(left if any(reader.cached is None for reader in readers) else 0)
        return VolumeSource(readers, self.job)

    def objective(self, fitted: dict[str, Any]) -> Classes:
        """See `Task`."""
        readers = self._readers(fitted)
        counts = class_counts(readers, next(iter(_patches(readers, self.job).values())))
        if not counts.any():
            require_labels(readers)
        return Classes.of(tuple(entry.name for entry in self.classes), counts, self.job.training)

    def in_channels(self, fitted: dict[str, Any]) -> int:
        """The amplitude alone."""
        return 1

    def memory(self, fitted: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """Channels and cells per axis of an example, and the bytes of all surveys prepared."""
        readers = self._readers(fitted)
        (cells, *_) = _patches(readers, self.job).items()
        example = (
            self.in_channels(fitted),
            *(n for axis, n in zip(VOLUME_AXES, cells[1], strict=True) if axis != cells[0]),
        )
        return example, sum(reader.cache_bytes for reader in readers)

    def bundled(self, fitted: dict[str, Any]) -> dict[str, Any]:
        """See `Task`."""
        return {"chain": Chain.model_validate(fitted["chains"][0])}

    def describe(self, fitted: dict[str, Any]) -> DataDescription:
        """See `Task`."""
        info = self.surveys[0].info
        values = np.concatenate([prepared_sample(reader) for reader in self._readers(fitted)])
        return DataDescription(
            quantity=str(info["quantity"]),
            domain=str(info["domain"]),
            sample_unit=str(info["sample_unit"]),
            sample_interval=float(info["sample_interval"]),
            polarity=str(info.get("polarity", "unknown")),
            quantiles=tuple(float(value) for value in np.quantile(values, QUANTILES)) if values.size else (),
        )

    def provenance(self) -> list[dict[str, Any]]:
        """See `Task`."""
        return [{"url": survey.url, "identity": survey.info["identity"]} for survey in self.surveys]

    def _readers(self, fitted: dict[str, Any]) -> list[PatchReader]:
        chains = [Chain.model_validate(chain) for chain in fitted["chains"]]
        pairs = zip(self.surveys, chains, strict=True)
        across = "crossline" if _sections(self.job)[:1] == ("crossline",) else "inline"
        return [PatchReader.split(survey, chain, self.job.validation, across) for survey, chain in pairs]

    def _require_alike(self) -> None:
        first = self.surveys[0]
        for survey in self.surveys[1:]:
            if [entry["name"] for entry in survey.classes] != [entry["name"] for entry in first.classes]:
                raise MismatchError(
                    "labels name other classes",
                    where=survey.url,
                    measured=", ".join(entry["name"] for entry in survey.classes),
                    limit=", ".join(entry["name"] for entry in first.classes),
                )
            for key in _MEANING:
                if survey.info.get(key) != first.info.get(key):
                    raise MismatchError(
                        f"surveys of one training differ in {key}",
                        where=survey.url,
                        measured=survey.info.get(key),
                        limit=f"{first.info.get(key)} as in {first.url}",
                    )


def _sections(job: TrainJob) -> tuple[str, ...]:
    """The axes across which sections lie, none of whole volumes."""
    (sections,) = {data.sections for data in job.data if isinstance(data, VolumeData)}
    return sections


def _axes(sections: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the axes of an example; where sections lie across several, those that stand for all of theirs."""
    if len(sections) < 2:
        return tuple(axis for axis in VOLUME_AXES if axis not in sections)
    return ("row", "column") if "sample" in sections else ("trace", "sample")


def _patches(readers: list[PatchReader], job: TrainJob) -> dict[str, Size3]:
    """Cells of a patch along all three axes by the axis across which it lies; of volumes one, under no name."""
    sections = _sections(job)
    axes = len(VOLUME_AXES) - bool(sections)
    cells = job.training.patch or (DEFAULT_PATCH[axes],) * axes
    patches = {across: patch_size(readers, _across(cells, across)) for across in sections or ("",)}
    # Examples of a batch have one shape, whichever way they lie.
    shapes = [[n for axis, n in zip(VOLUME_AXES, p, strict=True) if axis != across] for across, p in patches.items()]
    least = [min(lengths) for lengths in zip(*shapes, strict=True)]
    return {across: _across(least, across) for across in patches}


def _across(cells: Sequence[int], across: str) -> Size3:
    """The patch with one cell across its section."""
    lengths = list(cells)
    if across:
        lengths.insert(VOLUME_AXES.index(across), 1)
    inline, crossline, sample = lengths
    return inline, crossline, sample


def _example(across: str, amplitude: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> Example:
    """A patch as the network takes it: of sections without the axis across them."""
    if across:
        axis = VOLUME_AXES.index(across)
        amplitude, labels = amplitude.squeeze(axis), labels.squeeze(axis)
    return Example(amplitude[None], labels, labels.shape[-1])
