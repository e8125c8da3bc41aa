"""The comparing job as a frozen schema."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from geobatch.preprocess.base import Frozen
from geobatch.train.networks import AnyModel, BoostingSpec, CNNSpec
from geobatch.train.spec import Training, TrainJob, TrainResources, Validation, WellsData


class Candidate(Frozen):
    """One way to classify: a model, the mean of other candidates, or the best of them, chosen without the blind well.

    Attributes:
        model: The model.
        mean_of: Instead of a model: other candidates, whose probabilities are averaged.
        choose_of: Instead of a model: other candidates, of which the one is taken that is best without the group of the
            blind well.
        seeds: Models with other initial weights and windows, whose probabilities are averaged.
        training: Keys of the job's `training` that are other here.
        curves: Keys of the data's `curves` that are other here.
    """

    model: AnyModel | None = None
    mean_of: tuple[str, ...] = ()
    choose_of: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1, le=64)
    training: dict[str, Any] = Field(default_factory=dict)
    curves: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum((self.model is not None, bool(self.mean_of), bool(self.choose_of))) != 1:
            raise ValueError("give one of model, mean_of and choose_of")
        return self


class CompareJob(Frozen):
    """`job: compare`: which of several models suits the data, each trained without the well it is judged by.

    Attributes:
        data: A survey of wells.
        wells: Those left out in turn; all but `training_only` when not given.
        candidates: By name.
        groups: Of wells, by which `choose_of` chooses: a model is trained without each pair of groups.
        training: Of every candidate.
        penalty: URL of a `.npy` matrix of costs `(true class, given class)`: the score is minus its mean.
        output: Folder of the result.
        resources: `workers` folds at a time with `threads` each, on CPUs.
    """

    job: Literal["compare"] = "compare"
    name: str = "compare"
    data: WellsData
    wells: tuple[str, ...] | None = None
    candidates: dict[str, Candidate] = Field(min_length=1)
    groups: int = Field(default=4, ge=3)
    training: Training = Training()
    penalty: str | None = None
    output: str = Field(min_length=1)
    resources: TrainResources = TrainResources()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resources.gpu:
            raise ValueError("resources.gpu: folds are small and run on CPUs")
        for name, candidate in self.candidates.items():
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

    def fold(self, name: str, wells: tuple[str, ...], seed: int) -> TrainJob:
        """The training of a candidate without some wells; of trees, the training that prepares the same data."""
        candidate = self.candidates[name]
        training = {**self.training.model_dump(), **candidate.training}
        curves = {**self.data.curves.model_dump(exclude_unset=True), **candidate.curves}
        data = {**self.data.model_dump(), "curves": curves}
        network = None if isinstance(candidate.model, BoostingSpec) else candidate.model
        return TrainJob.model_validate(
            {
                "job": "train",
                "name": name,
                "data": [data],
                "validation": Validation(wells=wells).model_dump(),
                "model": (network or CNNSpec(name="cnn")).model_dump(),
                "training": {**training, "seed": (training["seed"] + seed) % 2**32},
                "output": self.output,
                "resources": self.resources.model_dump(),
            }
        )
