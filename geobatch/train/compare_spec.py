"""The comparing job as a frozen schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from geobatch.preprocess.base import Frozen
from geobatch.train.networks import BASELINES, AnyModel, Baseline, CNNSpec
from geobatch.train.spec import Training, TrainJob, TrainResources, Validation, WellsData
from geobatch.train.windows_spec import Grouping, WindowsData


class Candidate(Frozen):
    """One way to answer: a model, the mean of other candidates, or the best of them, chosen without the blind group.

    Attributes:
        model: The model.
        mean_of: Instead of a model: other candidates, whose answers are averaged.
        choose_of: Instead of a model: other candidates, of which for each fold that one is taken which is best without
            it.
        seeds: Models with other initial weights and windows, whose answers are averaged.
        training: Keys of the job's `training` that are other here.
        curves: Keys of the data's `curves` that are other here.
        input: Keys of the data's `input` that are other here, of event windows.
    """

    model: AnyModel | None = None
    mean_of: tuple[str, ...] = ()
    choose_of: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1, le=64)
    training: dict[str, Any] = Field(default_factory=dict)
    curves: dict[str, Any] = Field(default_factory=dict)
    input: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum((self.model is not None, bool(self.mean_of), bool(self.choose_of))) != 1:
            raise ValueError("give one of model, mean_of and choose_of")
        return self


class CompareJob(Frozen):
    """`job: compare`: which of several models suits the data, each trained without the group it is judged by.

    Attributes:
        data: A survey of wells, or of event windows.
        wells: Those left out in turn; all but `training_only` when not given.
        by: Of event windows: whether stations, networks or events are left out.
        folds: Of event windows: into how many parts those are divided, each left out in turn; when not given, every
            group is left out by itself.
        candidates: By name.
        parts: Into which `choose_of` deals the folds: a model is trained without each pair of parts.
        training: Of every candidate.
        penalty: URL of a `.npy` matrix of costs `(true class, given class)`: the score is minus its mean.
        output: Folder of the result.
        resources: `workers` folds at a time with `threads` each, on CPUs.
    """

    job: Literal["compare"] = "compare"
    name: str = "compare"
    data: Annotated[WellsData | WindowsData, Field(discriminator="kind")]
    wells: tuple[str, ...] | None = None
    by: Grouping = "station"
    folds: int | None = Field(default=None, ge=2)
    candidates: dict[str, Candidate] = Field(min_length=1)
    parts: int = Field(default=4, ge=3)
    training: Training = Training()
    penalty: str | None = None
    output: str = Field(min_length=1)
    resources: TrainResources = TrainResources()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resources.gpu:
            raise ValueError("resources.gpu: folds are small and run on CPUs")
        asked = self.data.ask if isinstance(self.data, WindowsData) else "wells"
        if (asked == "wells" and self.folds) or (asked != "wells" and (self.wells or self.penalty)):
            raise ValueError("folds: of event windows; wells and penalty: of logs")
        for name, candidate in self.candidates.items():
            if isinstance(candidate.model, Baseline) and candidate.model.name not in BASELINES[asked]:
                raise ValueError(f"candidates.{name}: {candidate.model.name} is no baseline of {asked}")
            if candidate.input if asked == "wells" else candidate.curves:
                raise ValueError(f"candidates.{name}: curves are of logs, input is of event windows")
            training = {**self.training.model_dump(), **candidate.training}
            if training["early_stop"] or training["schedule"] == "plateau":
                raise ValueError("training: early_stop and plateau need a validation, and a fold has none to spare")
            for member in candidate.mean_of:
                if member not in self.candidates or self.candidates[member].mean_of:
                    raise ValueError(f"candidates.{name}.mean_of: {member} is no candidate with a model or a choice")
            for member in candidate.choose_of:
                if member not in self.candidates or self.candidates[member].choose_of:
                    raise ValueError(f"candidates.{name}.choose_of: {member} is no candidate with a model or a mean")
                if any(self.candidates[part].choose_of for part in self.candidates[member].mean_of):
                    raise ValueError(f"candidates.{name}.choose_of: {member} is a mean of what is chosen itself")
            if candidate.model is not None:
                try:
                    self.fold(name, ("any",), 0)
                except ValidationError as error:
                    raise ValueError(f"candidates.{name}: {error.errors()[0]['msg']}") from None
        return self

    def fold(self, name: str, held_out: tuple[str, ...], seed: int) -> TrainJob:
        """The training of a candidate without some groups; of a baseline, the training that prepares the same data."""
        candidate = self.candidates[name]
        training = {**self.training.model_dump(), **candidate.training}
        if isinstance(self.data, WellsData):
            curves = {**self.data.curves.model_dump(exclude_unset=True), **candidate.curves}
            data = {**self.data.model_dump(), "curves": curves}
            validation = Validation(wells=held_out)
        else:
            windows = {**self.data.input.model_dump(exclude_unset=True), **candidate.input}
            data = {**self.data.model_dump(), "input": windows}
            validation = Validation(by=self.by, groups=held_out)
        network = None if isinstance(candidate.model, Baseline) else candidate.model
        return TrainJob.model_validate(
            {
                "job": "train",
                "name": name,
                "data": [data],
                "validation": validation.model_dump(),
                "model": (network or CNNSpec(name="cnn")).model_dump(),
                "training": {**training, "seed": (training["seed"] + seed) % 2**32},
                "output": self.output,
                "resources": self.resources.model_dump(),
            }
        )
