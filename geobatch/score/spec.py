"""What a scoring job says, and the plan that is made from it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from geobatch.blocks import Grid
from geobatch.models.bundle import ClassInfo
from geobatch.models.sections import Combine, SectionAxis
from geobatch.preprocess import Chain
from geobatch.score.predictor import INVALID, PROBABILITY_STEPS, Precision, Probabilities
from geobatch.score.region import AxisRanges, Region
from geobatch.shards import ArraySpec
from geobatch.survey import VOLUME_AXES, class_attributes

NUMERICS = 3
"""Raised whenever a release would write other voxels, or shards of other codecs, for the same plan."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Cells = Annotated[int, Field(ge=1)]
Shape3 = tuple[Cells, Cells, Cells]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Sections = Annotated[
    tuple[SectionAxis, ...], BeforeValidator(_listed, json_schema_input_type=SectionAxis | tuple[SectionAxis, ...])
]


class ReplicaRange(_Frozen):
    """How many replicas an autoscaled pool may have: it starts at `max` and shrinks as work runs out."""

    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ScoreResources(_Frozen):
    """Where a scoring job runs; none of it changes a voxel.

    Attributes:
        replicas: Serve replicas that score blocks: a number, or `{min, max}` for a pool that follows the work.
        cpus: CPUs a replica reserves.
        gpus: GPUs a replica reserves; its network runs there when above 0.
        threads: Torch threads of a replica, fixed with the plan on the first run.
        memory_gib: Memory one replica may use; by default 80 % of what this machine has free, shared by the replicas.
        gpu_memory_gib: Memory of its GPU that one replica may use; by default 80 % of what is free on the GPU that
            this machine has, and to be given where it has none.
        overlap: Read the next block and write the last one while one is computed; by default on a GPU alone, since on
            a CPU it takes from the computing what it gains.
    """

    replicas: Annotated[int, Field(ge=1)] | ReplicaRange = 1
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    gpu_memory_gib: float | None = Field(default=None, gt=0)
    overlap: bool | None = None

    @property
    def most(self) -> int:
        """The replicas there may be, and are at the start."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def least(self) -> int:
        """The replicas there are at least; work begins when these run."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min

    @property
    def overlaps(self) -> bool:
        """Whether replicas read, compute and write at the same time."""
        return self.gpus > 0 if self.overlap is None else self.overlap

    def for_blocks(self, count: int) -> ScoreResources:
        """The same without replicas that would have nothing to do."""
        least, most = min(self.least, count), min(self.most, count)
        size = most if least == most else ReplicaRange(min=least, max=most)
        return self.model_copy(update={"replicas": size})


class Budget(_Frozen):
    """What a run may cost; it stops cleanly when this is spent, and goes on when the job is run again.

    Attributes:
        hours: Wall-clock hours of one run.
        cost: Money of one run, in the currency of the price.
        price_per_replica_hour: What one replica costs for an hour.
    """

    hours: float | None = Field(default=None, gt=0)
    cost: float | None = Field(default=None, gt=0)
    price_per_replica_hour: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.cost is not None and self.price_per_replica_hour is None:
            raise ValueError("cost needs price_per_replica_hour")
        return self

    def seconds(self, replicas: int) -> float:
        """How long a run with so many replicas may take."""
        limits = [math.inf]
        if self.hours is not None:
            limits.append(self.hours * 3600)
        if self.cost is not None and self.price_per_replica_hour is not None:
            limits.append(self.cost / (self.price_per_replica_hour * replicas) * 3600)
        return min(limits)


class Tolerance(_Frozen):
    """How much less than exact a halo may be: the largest deviation of a logit over the largest logit."""

    tolerance: float = Field(gt=0, lt=1)


class ToleratedHalo(Tolerance):
    """A halo below the network's reach: what it may deviate, and what was measured on samples of the survey."""

    deviation: float


class PrecisionReport(_Frozen):
    """What a lower precision changes on one patch of the survey, measured against float32 on a CPU.

    Attributes:
        deviation: The largest deviation of a logit over the largest logit.
        classes_changed: Part of the cells whose class is another.
    """

    deviation: float
    classes_changed: float


class ScoreJob(_Frozen):
    """`job: score`: a survey, a bundle, and where the scored survey goes.

    Attributes:
        survey: URL of the survey.
        bundle: URL of the bundle; its preprocessing and halo are used.
        output: URL of the scored survey.
        region: Part of the survey to score; the output has the whole survey's axes, so that a region can grow.
        crop: Part of the survey that counts as the whole of it: the output has its axes, statistics come from it.
        sections: Axis across which the sections of a network of two axes lie, or several, each then run by itself;
            needed where the bundle fits more than one.
        combine: How several sets of sections become one result: `mean` of their class probabilities, which is the
            default, or `vote` of their classes.
        statistics: `survey` fits the preprocessing's statistics to this survey, whose amplitude scale is its own;
            `bundle` keeps those of the training data.
        shard: Cells of a block and of an object of the output, per axis; by default the fastest within memory.
        chunk: Unit of reading of the output.
        patch: What the network sees at once; by default the one that scores fastest within memory, in blend mode that
            of the network's training.
        batch: Patches per forward pass; by default 1 on a CPU, and what fits and pays on a GPU.
        mode: `halo` keeps of each patch what has its full surroundings, and equals the whole survey in one piece;
            `blend` averages overlapping patches on one lattice over the survey.
        halo: In halo mode `exact`, or `{tolerance: 1e-3}` for the smallest halo that deviates less, which is measured.
        whole: Axes that every patch and block sees whole.
        overlap: In blend mode, the part of a patch that neighbours share.
        weights: In blend mode, `gaussian` weighs a patch's centre most, `constant` all of it alike.
        precision: What the network computes in; logits are reduced in float32.
        probabilities: `none`, `uint8` (steps of 1/254) or `float32`.
        attempts: Tries of a block that fails by itself before it becomes a dead letter.
        budget: Time or money after which the run stops, resumable.
    """

    job: Literal["score"]
    name: str = "score"
    survey: str
    bundle: str
    output: str
    region: Region = Region()
    crop: AxisRanges | None = None
    sections: Sections = ()
    combine: Combine | None = None
    statistics: Literal["survey", "bundle"] = "survey"
    shard: Shape3 | None = None
    chunk: Shape3 = (64, 64, 64)
    patch: Shape3 | None = None
    batch: int | None = Field(default=None, ge=1)
    mode: Literal["halo", "blend"] = "halo"
    halo: Literal["exact"] | Tolerance = "exact"
    whole: tuple[Literal["inline", "crossline", "sample"], ...] = ()
    overlap: float = Field(default=0.25, ge=0, lt=1)
    weights: Literal["gaussian", "constant"] = "gaussian"
    precision: Precision = "float32"
    probabilities: Probabilities = "uint8"
    attempts: int = Field(default=3, ge=1)
    resources: ScoreResources = ScoreResources()
    budget: Budget | None = None

    @model_validator(mode="after")
    def _halo_of_halo_mode(self) -> Self:
        if self.mode == "blend" and self.halo != "exact":
            raise ValueError("halo has no meaning in blend mode: leave it out, or take mode: halo")
        return self

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard and any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(f"shard {self.shard} is no whole multiple of chunk {self.chunk}")
        return self

    @model_validator(mode="after")
    def _several_sections_are_combined(self) -> Self:
        if len(set(self.sections)) < len(self.sections):
            raise ValueError(f"sections {', '.join(self.sections)}: each may be named once")
        if self.combine and len(self.sections) < 2:
            raise ValueError(f"combine: {self.combine} needs several sections, such as [inline, crossline]")
        return self


class ScorePlan(_Frozen):
    """Everything that decides the voxels of a scored survey, fixed before the run and stored with the output."""

    numerics: int = NUMERICS
    survey: str
    survey_identity: str
    bundle: str
    bundle_hash: str
    sections: tuple[SectionAxis, ...] = ()
    combine: Combine | None = None
    statistics: Literal["survey", "bundle"]
    crop: AxisRanges | None
    chain: Chain
    grid: Grid
    chunk: tuple[int, ...]
    batch: int
    threads: int
    device: Literal["cpu", "cuda"]
    halo: ToleratedHalo | None = None
    precision: Precision = "float32"
    precision_report: PrecisionReport | None = None
    probabilities: Probabilities
    classes: tuple[ClassInfo, ...]

    @property
    def hash(self) -> str:
        """SHA-256 over all that decides voxels; places and names do not."""
        canonical = json.dumps(self.decisive(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def decisive(self) -> dict[str, Any]:
        """The plan without the places it was read from and the deviations that were measured."""
        measured: Any = {"survey": True, "bundle": True, "precision_report": True, "halo": {"deviation"}}
        return self.model_dump(mode="json", exclude=measured)

    def deviations(self) -> list[str]:
        """What was measured of a halo below the reach and of a precision below float32, for a user to read."""
        told = []
        if self.halo:
            told.append(
                f"halo {self.grid.halo}: logits deviate by {self.halo.deviation:.1e} of the largest on samples of this "
                f"survey, tolerance {self.halo.tolerance:.1e}"
            )
        if self.precision_report:
            told.append(
                f"{self.precision}: logits deviate by {self.precision_report.deviation:.1e} of the largest, "
                f"{self.precision_report.classes_changed:.2%} of the cells of a patch change class against float32"
            )
        return told

    def differences(self, other: ScorePlan) -> list[str]:
        """What decides voxels and differs, as `key: ours, theirs`."""
        ours, theirs = _flat(self.decisive()), _flat(other.decisive())
        keys = sorted({*ours, *theirs})
        return [f"{k}: {ours.get(k)} now, {theirs.get(k)} then" for k in keys if ours.get(k) != theirs.get(k)]

    def arrays(self) -> tuple[ArraySpec, ...]:
        """The output arrays that blocks write: `class_map`, and `probability` when asked for."""
        legend = class_attributes([c.name for c in self.classes], [c.color for c in self.classes])
        shape, shard = self.grid.shape, self.grid.shard
        volume = ArraySpec("class_map", VOLUME_AXES, shape, "uint8", self.chunk, shard, INVALID, legend)
        if self.probabilities == "none":
            return (volume,)
        count = len(self.classes)
        fill: float = INVALID if self.probabilities == "uint8" else float("nan")
        packing = {"scale_factor": 1 / PROBABILITY_STEPS, "_FillValue": INVALID}
        attributes = {**(packing if self.probabilities == "uint8" else {}), "long_name": "class probability"}
        probability = ArraySpec(
            "probability",
            ("class", *VOLUME_AXES),
            (count, *shape),
            self.probabilities,
            (1, *self.chunk),
            (count, *shard),
            fill,
            attributes,
        )
        return (volume, probability)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: item for name, part in value.items() for key, item in _flat(part, f"{prefix}.{name}".strip(".")).items()
    }
