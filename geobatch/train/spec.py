"""The training job as a frozen schema."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from geobatch.preprocess import Chain
from geobatch.preprocess.bands import Bands
from geobatch.preprocess.base import Frozen
from geobatch.preprocess.curves import Curves
from geobatch.train.networks import SEQUENCE_NETWORKS, NetworkSpec, UNetSpec
from geobatch.train.windows_spec import Grouping, WindowsData

Axis3 = Literal["inline", "crossline", "sample"]


def _listed(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


class VolumeData(Frozen):
    """A survey and the labels of the same grid.

    Attributes:
        kind: `volume`.
        survey: URL of the survey.
        labels: URL of the label survey.
        variable: which of its volumes holds the classes.
        sections: train a network of sections across this axis, such as `inline`, or across several, of which each
            example draws one; of the whole volume without.
    """

    kind: Literal["volume"] = "volume"
    survey: str = Field(min_length=1)
    labels: str = Field(min_length=1)
    variable: str = "class_map"
    sections: Annotated[
        tuple[Axis3, ...], BeforeValidator(_listed, json_schema_input_type=Axis3 | tuple[Axis3, ...])
    ] = ()


class WellsData(Frozen):
    """A survey of wells whose logs are the input and one of whose variables holds the classes.

    Attributes:
        kind: `wells`.
        survey: URL of the survey.
        labels: the variable of classes.
        curves: see `preprocess.curves.Curves`; nothing of it may be fitted.
        training_only: wells that are never held out, such as pseudo-wells.
    """

    kind: Literal["wells"]
    survey: str = Field(min_length=1)
    labels: str = Field(min_length=1)
    curves: Curves
    training_only: tuple[str, ...] = ()

    @field_validator("curves")
    @classmethod
    def _unfitted(cls, curves: Curves) -> Curves:
        if curves.mean:
            raise ValueError("figures are fitted by the run and cannot be given")
        return curves


class RasterData(Frozen):
    """A raster survey and the classes of its cells, on the same grid.

    Attributes:
        kind: `raster`.
        survey: URL of the survey.
        labels: URL of the label survey.
        variable: which of its maps holds the classes.
        bands: see `preprocess.bands.Bands`; nothing of it may be fitted.
    """

    kind: Literal["raster"]
    survey: str = Field(min_length=1)
    labels: str = Field(min_length=1)
    variable: str = "class_map"
    bands: Bands = Bands()

    @field_validator("bands")
    @classmethod
    def _unfitted(cls, bands: Bands) -> Bands:
        if bands.mean:
            raise ValueError("figures are fitted by the run and cannot be given")
        return bands


def _volume_unless_told(given: Any) -> Any:
    return {"kind": "volume", **given} if isinstance(given, dict) else given


TrainingData = Annotated[
    VolumeData | WellsData | RasterData | WindowsData, Field(discriminator="kind"), BeforeValidator(_volume_unless_told)
]


class Validation(Frozen):
    """Ground whose labels train no weight: of volumes a band of lines, of rasters blocks, of others whole groups.

    Groups of logs are wells, those of event windows stations, networks or events. Samples of bands and groups train
    none either; those of blocks are seen around what is trained on.

    Statistics of a volume's preprocessing come from the whole survey, the band included, as they do in scoring, where
    they are fitted to the survey being scored: the metrics measure the network, not its preprocessing. Those of logs
    come from the wells of training.

    Attributes:
        fraction: of the lines, the last ones, of the wells, blocks or groups of windows, held out; 0 validates nothing.
        axis: of volumes: the axis along which lines are counted; by default that of the sections, or `inline`.
        lines: of volumes: numbers of the first and last line held out, instead of a fraction of them; the band holds
            the first or the last line of the survey.
        guard: lines nearer than this to the band, by their numbers, or cells nearer to a block, are used by neither.
        block: of rasters: cells along each side of a block.
        patches: at most so many are scored per epoch, of volumes.
        wells: of logs: those held out, instead of a fraction of them.
        by: of event windows: no two of one station, network or event are on both sides.
        groups: of event windows: those stations, networks or events held out, instead of a fraction of them.
    """

    fraction: float = Field(default=0.15, ge=0, lt=0.9)
    axis: Literal["inline", "crossline"] | None = None
    lines: tuple[float, float] | None = None
    guard: int = Field(default=8, ge=0)
    block: int = Field(default=64, ge=1)
    patches: int = Field(default=32, ge=1)
    wells: tuple[str, ...] | None = None
    by: Grouping = "station"
    groups: tuple[str, ...] | None = None


class Augmentation(Frozen):
    """Changes under which geology stays geology. Polarity of volumes is never changed: it carries meaning.

    Attributes:
        flip: reverse inlines or crosslines, each half of the time; of event windows the polarity; not of logs.
        swap: exchange the two, half of the time, where the patch is square; not of logs.
        noise: largest standard deviation of added noise, over that of the patch, or of the curve over all wells; from
            white to smooth along samples.
        gain: standard deviation of the logarithm of a factor on the whole patch or window, or on each curve; a
            magnitude grows by the factor's decimal logarithm, as local magnitude does (Richter 1935).
        shift: of logs: standard deviation of a constant added to each curve, over the curve's own.
        missing: of logs: share of windows in which a curve that has a mask channel counts as missing, each by itself;
            of event windows the same of components, of which one always stays.
    """

    flip: bool = True
    swap: bool = True
    noise: float = Field(default=0.3, ge=0, le=2)
    gain: float = Field(default=0.15, ge=0, le=2)
    shift: float = Field(default=0.0, ge=0, le=2)
    missing: float = Field(default=0.0, ge=0, lt=1)


class Training(Frozen):
    """How the network is trained.

    Attributes:
        patch: cells along inline, crossline and sample, clipped to the surveys, 64 of each by default; along the two
            axes of sections, 256 by default; along y and x, 128 by default; or along depth, 64 by default.
        batch: patches per worker and step; on a CPU 1 takes a slow path of PyTorch, twice the time per patch.
        steps_per_epoch: optimiser steps between two validations and checkpoints.
        epochs: how many of those.
        accumulate: batches of each worker whose gradients are summed up to one step.
        learning_rate: the highest one; it warms up over the first tenth.
        schedule: after that `cosine` to zero, `constant`, or `plateau`: halved when the validation is no better for
            `plateau_epochs`.
        plateau_epochs: see there.
        early_stop: stop after so many epochs without a better validation, and take the best; 0 never.
        clip_norm: gradients longer than this are shortened to it.
        ema: decay per step of a moving average of the weights, which is validated and kept; 0 for none.
        precision: `bfloat16` computes the network in mixed precision.
        weight_decay: of AdamW.
        loss: `cross_entropy`; `focal`, which counts what is already right the less; `bce`, one sigmoid output for the
            second of two classes, of whole windows alone; or `penalty`, cross-entropy and the cost to be expected.
        focal_gamma: of `focal`.
        penalty: of `penalty`: URL of a `.npy` matrix of costs `(true class, given class)`.
        class_weights: `sqrt` weighs the loss by the inverse root of each class's share, `inverse` by the inverse.
        dice: weight of the soft Dice loss beside cross-entropy.
        balance: draw patches so that every class is met equally often.
        seed: decides initial weights, patches and augmentation.
        max_failures: lost workers to recover from, each from the last checkpoint.
    """

    patch: tuple[int, ...] | None = None
    batch: int = Field(default=2, ge=1)
    steps_per_epoch: int = Field(default=100, ge=1)
    epochs: int = Field(default=10, ge=1)
    accumulate: int = Field(default=1, ge=1, le=1024)
    learning_rate: float = Field(default=5e-3, gt=0, le=1)
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    plateau_epochs: int = Field(default=3, ge=1)
    early_stop: int = Field(default=0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = Field(default=1e-3, ge=0, le=1)
    loss: Literal["cross_entropy", "focal", "bce", "penalty"] = "cross_entropy"
    focal_gamma: float = Field(default=2.0, ge=0, le=10)
    penalty: str | None = None
    class_weights: Literal["none", "sqrt", "inverse"] = "sqrt"
    dice: float = Field(default=0.0, ge=0, le=10)
    balance: bool = False
    augment: Augmentation = Augmentation()
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_failures: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _loss_complete(self) -> Self:
        if (self.loss == "penalty") != (self.penalty is not None):
            raise ValueError("penalty: the matrix belongs to loss: penalty, and that needs it")
        if self.dice and self.loss == "bce":
            raise ValueError("dice: of several classes of cells, not of bce")
        return self

    @field_validator("patch")
    @classmethod
    def _positive(cls, patch: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if patch is not None and min(patch, default=0) < 1:
            raise ValueError(f"patch {patch}: every axis needs at least 1 cell")
        return patch


class TrainResources(Frozen):
    """What each training worker gets. None of it decides a weight, except the number of workers.

    Attributes:
        workers: processes that train together.
        threads: compute threads of each.
        gpu: give each worker a GPU.
        hang_s: a worker that makes no step for so long is started again from the last checkpoint; longer where its
            steps take more than a tenth of it.
        cache_mib: memory of each worker for data: surveys that fit in it together are kept prepared; of the others,
            the chunks that were read last.
        readers: threads of each that make batches ahead; as many batches are in memory.
    """

    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    gpu: bool = False
    hang_s: float = Field(default=45.0, ge=1)
    cache_mib: int = Field(default=1024, ge=0)
    readers: int = Field(default=4, ge=1, le=64)


class Recipe(Frozen):
    """What is trained, on what and how: all of a training that decides its weights, but the number of workers.

    Attributes:
        data: what is trained on.
        validation: what is held out.
        preprocess: steps of volumes.
        model: the network.
        init_from: URL of a bundle whose weights are where training begins, wherever name and shape agree.
        training: how.
    """

    data: tuple[TrainingData, ...] = Field(min_length=1)
    validation: Validation = Validation()
    preprocess: Chain = Chain()
    model: NetworkSpec = UNetSpec()
    init_from: str | None = None
    training: Training = Training()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = {data.kind for data in self.data}
        if len(kinds) > 1 or (kinds != {"volume"} and len(self.data) > 1):
            raise ValueError("data: several volumes, or one survey of another kind")
        sections = {data.sections for data in self.data if isinstance(data, VolumeData)}
        if len(sections) > 1:
            raise ValueError("data: sections across the same axes in all of the surveys")
        windows = next((data for data in self.data if isinstance(data, WindowsData)), None)
        if windows and self.training.patch is not None:
            raise ValueError("training.patch: windows are as long as data.input.window_s")
        others = {"wells": 1, "raster": 2, "volume": 3 if sections == {()} else 2}
        axes = len(windows.input.axes) if windows else others[self.data[0].kind]
        if self.training.patch is not None and len(self.training.patch) != axes:
            raise ValueError(f"training.patch: {len(self.training.patch)} axes, of data with {axes}")
        if kinds != {"volume"} and self.preprocess.steps:
            prepared = {"wells": "data.curves", "raster": "data.bands", "windows": "data.input"}
            raise ValueError(f"preprocess: prepared by {prepared[self.data[0].kind]}")
        if axes > 1 and self.model.name in SEQUENCE_NETWORKS:
            raise ValueError(f"model: {self.model.name} takes data of one axis, such as wells")
        if self.training.loss == "bce" and (windows is None or windows.ask != "event"):
            raise ValueError("training.loss: bce is of whole windows of two classes")
        if windows and windows.ask == "magnitude" and self.training.loss != "cross_entropy":
            raise ValueError("training.loss: magnitudes have the Huber loss, and no other")
        if any(getattr(step, "statistics", None) is not None for step in self.preprocess.steps):
            raise ValueError("preprocess: statistics are fitted by the run and cannot be given")
        return self


class TrainJob(Recipe):
    """`job: train`: surveys and labels in, a model bundle out; see `Recipe` for most of its keys.

    Attributes:
        output: URL of the bundle.
        resources: of each worker.
    """

    job: Literal["train"] = "train"
    name: str = "train"
    output: str = Field(min_length=1)
    resources: TrainResources = TrainResources()
