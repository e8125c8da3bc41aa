"""The comparing job as a frozen schema."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from geobatch.preprocess.base import Frozen
from geobatch.train.networks import AnyModel, BoostingSpec, CNNSpec
from geobatch.train.spec import Training, TrainJob, TrainResources, Validation, WellsData


class Candidate(Frozen):
    """One way to classify: a model, or the mean of other candidates.

    Attributes:
        model: The model.
        mean_of: Instead of a model: other candidates, whose probabilities are averaged.
        seeds: Models with other initial weights and windows, whose probabilities are averaged.
        training: Keys of the job's `training` that are other here.
        curves: Keys of the data's `curves` that are other here.
    """

    model: AnyModel | None = None
    mean_of: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1, le=64)
    training: dict[str, Any] = Field(default_factory=dict)
    curves: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (not self.mean_of):
            raise ValueError("give either model or mean_of")
        return self


class CompareJob(Frozen):
    """`job: compare`: which of several models suits the data, each trained without the well it is judged by.

    Attributes:
        data: A survey of wells.
        wells: Those left out in turn; all but `training_only` when not given.
        candidates: By name.
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
                    raise ValueError(f"candidates.{name}.mean_of: {member} is no candidate with a model")
            if candidate.model is not None:
                try:
                    self.fold(name, "any", 0)
                except ValidationError as error:
                    raise ValueError(f"candidates.{name}: {error.errors()[0]['msg']}") from None
        return self

    def fold(self, name: str, well: str, seed: int) -> TrainJob:
        """The training of a candidate without one well; of trees, the training that prepares the same data."""
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
                "validation": Validation(wells=(well,)).model_dump(),
                "model": (network or CNNSpec(name="cnn")).model_dump(),
                "training": {**training, "seed": (training["seed"] + seed) % 2**32},
                "output": self.output,
                "resources": self.resources.model_dump(),
            }
        )
