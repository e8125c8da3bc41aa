"""The training job as a frozen schema."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geobatch.preprocess import Chain


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingData(_Frozen):
    """A survey and the labels of the same grid.

    Attributes:
        survey: URL of the survey.
        labels: URL of the label survey.
        variable: which of its volumes holds the classes.
    """

    survey: str = Field(min_length=1)
    labels: str = Field(min_length=1)
    variable: str = "class_map"


class Validation(_Frozen):
    """Ground whose labels and samples train no weight: a band of the last inlines of each survey.

    Statistics of the preprocessing come from the whole survey, the band included, as they do in scoring, where
    they are fitted to the survey being scored: the metrics measure the network, not its preprocessing.

    Attributes:
        fraction: of the inlines, held out; 0 validates nothing.
        guard: inlines between training and validation that neither uses.
        patches: at most so many are scored per epoch.
    """

    fraction: float = Field(default=0.15, ge=0, lt=0.9)
    guard: int = Field(default=8, ge=0)
    patches: int = Field(default=32, ge=1)


class NetworkSpec(_Frozen):
    """The network; the number of classes comes from the labels."""

    name: Literal["unet"] = "unet"
    channels: int = Field(default=8, ge=1, le=256)
    levels: int = Field(default=3, ge=1, le=6)


class Augmentation(_Frozen):
    """Changes under which geology stays geology. Polarity is never changed: it carries meaning.

    Attributes:
        flip: reverse inlines or crosslines, each half of the time.
        swap: exchange the two, half of the time, where the patch is square.
        noise: largest standard deviation of added noise, over that of the patch; from white to smooth along samples.
        gain: standard deviation of the logarithm of a factor on the whole patch.
    """

    flip: bool = True
    swap: bool = True
    noise: float = Field(default=0.3, ge=0, le=2)
    gain: float = Field(default=0.15, ge=0, le=2)


class Training(_Frozen):
    """How the network is trained.

    Attributes:
        patch: cells along inline, crossline and sample; clipped to the surveys.
        batch: patches per worker and step; on a CPU 1 takes a slow path of PyTorch, twice the time per patch.
        steps_per_epoch: optimiser steps between two validations and checkpoints.
        epochs: how many of those.
        learning_rate: the highest one; it warms up over the first tenth and then follows a cosine to zero.
        weight_decay: of AdamW.
        class_weights: `sqrt` weighs the loss by the inverse root of each class's share, `inverse` by the inverse.
        dice: weight of the soft Dice loss beside cross-entropy.
        balance: draw patches so that every class is met equally often.
        seed: decides initial weights, patches and augmentation.
        max_failures: lost workers to recover from, each from the last checkpoint.
    """

    patch: tuple[int, int, int] = (64, 64, 64)
    batch: int = Field(default=2, ge=1)
    steps_per_epoch: int = Field(default=100, ge=1)
    epochs: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=5e-3, gt=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0, le=1)
    class_weights: Literal["none", "sqrt", "inverse"] = "sqrt"
    dice: float = Field(default=0.0, ge=0, le=10)
    balance: bool = False
    augment: Augmentation = Augmentation()
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_failures: int = Field(default=3, ge=0)

    @field_validator("patch")
    @classmethod
    def _positive(cls, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(patch) < 1:
            raise ValueError(f"patch {patch}: every axis needs at least 1 cell")
        return patch


class TrainResources(_Frozen):
    """What each training worker gets. None of it decides a weight, except the number of workers.

    Attributes:
        workers: processes that train together.
        threads: compute threads of each.
        gpu: give each worker a GPU.
        cache_mib: surveys up to this size together are kept prepared in each worker's memory.
    """

    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    gpu: bool = False
    cache_mib: int = Field(default=1024, ge=0)


class TrainJob(_Frozen):
    """`job: train`: surveys and labels in, a model bundle out."""

    job: Literal["train"] = "train"
    name: str = "train"
    data: tuple[TrainingData, ...] = Field(min_length=1)
    validation: Validation = Validation()
    preprocess: Chain = Chain()
    model: NetworkSpec = NetworkSpec()
    training: Training = Training()
    output: str = Field(min_length=1)
    resources: TrainResources = TrainResources()

    @model_validator(mode="after")
    def _unfitted(self) -> Self:
        if any(getattr(step, "statistics", None) is not None for step in self.preprocess.steps):
            raise ValueError("preprocess: statistics are fitted by the run and cannot be given")
        return self
