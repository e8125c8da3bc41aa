"""The networks of a job file: typed parameters, without the import of what computes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue

from geobatch.errors import UsageError
from geobatch.preprocess.base import Frozen

DEFAULT = "unet"
Answers = Literal["dense", "one"]
"""Per cell, or once per window."""
Size = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Network(Frozen):
    """What all networks share: how many inputs, outputs and axes there are comes from the data."""

    any_axes: ClassVar[bool] = False
    """Whether it is told how many axes there are; otherwise it is of one."""
    answers_once: ClassVar[bool] = True
    """Whether it can answer once per window too."""

    @property
    def stride(self) -> int:
        """Cells along each axis after which the network repeats itself."""
        return 1

    def build(self, in_channels: int, outputs: int, dims: int, *, answers: Answers = "dense") -> dict[str, Any]:
        """What `models.build_model` builds for data of so many channels, outputs and axes, answering per cell or once.

        Raises:
            UsageError: the network cannot answer so.
        """
        built = {**self.model_dump(), "in_channels": in_channels, "classes": outputs}
        if self.any_axes:
            built["dims"] = dims
        if self.answers_once:
            built["output"] = answers
        elif answers == "one":
            raise UsageError("the network answers per cell, and the data ask once per window", where="model")
        return built


class UNetSpec(_Network):
    """`models.unet.UNet`; `channels: 16, levels: 4` is the size of FaultSeg3D."""

    any_axes: ClassVar[bool] = True
    answers_once: ClassVar[bool] = False

    name: Literal["unet"] = "unet"
    channels: int = Field(default=8, ge=1, le=256)
    levels: int = Field(default=3, ge=1, le=6)

    @property
    def stride(self) -> int:
        """Its poolings halve so many times."""
        return int(2 ** (self.levels - 1))


class CNNSpec(_Network):
    """`models.cnn.CNN`."""

    any_axes: ClassVar[bool] = True

    name: Literal["cnn"]
    channels: Size = 32
    stages: int = Field(default=4, ge=1, le=10)
    convolutions: int = Field(default=1, ge=1, le=4)
    kernel: int = Field(default=3, ge=1, le=31)
    hidden: int = Field(default=0, ge=0, le=4096)
    dropout: Share = 0.0


class RNNSpec(_Network):
    """`models.rnn.RNN`."""

    name: Literal["rnn"]
    cell: Literal["lstm", "gru"] = "lstm"
    hidden: Size = 64
    layers: int = Field(default=2, ge=1, le=8)
    bidirectional: bool = True
    dropout: Share = 0.0


class AttentionSpec(_Network):
    """`models.attention.Attention`."""

    name: Literal["attention"]
    width: Size = 64
    heads: int = Field(default=4, ge=1, le=64)
    layers: int = Field(default=3, ge=1, le=48)
    step: int = Field(default=1, ge=1, le=256)
    kernel: int = Field(default=3, ge=1, le=31)
    dropout: Share = 0.1

    @property
    def stride(self) -> int:
        """Samples of a token."""
        return self.step


class ForeignSpec(_Network):
    """`models.foreign.Foreign`: a network of another library.

    Attributes:
        path: Import path, such as `monai.networks.nets.BasicUNet`.
        parameters: Of its constructor; `$in_channels`, `$classes` and `$dims` stand for what the data have.
        total_stride: Cells along each axis after which it repeats itself: the product of its poolings.
    """

    any_axes: ClassVar[bool] = True

    name: Literal["foreign"]
    path: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    total_stride: int = Field(default=1, ge=1, le=1024)

    @property
    def stride(self) -> int:
        """As the job says."""
        return self.total_stride


class PhaseNetSpec(_Network):
    """`models.phasenet.PhaseNet`."""

    answers_once: ClassVar[bool] = False

    name: Literal["phasenet"]
    filters: int = Field(default=8, ge=1, le=256)


class BoostingSpec(_Network):
    """Gradient boosting of trees on each depth by itself (`train.boosting`), the baseline of logs.

    Attributes:
        iterations: Trees per class.
        learning_rate: Of each.
        leaves: At most, of a tree.
        regularisation: L2.
        around: Depths above and below whose channels are features too.
    """

    name: Literal["boosting"]
    iterations: int = Field(default=200, ge=1, le=10_000)
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    leaves: int = Field(default=15, ge=2, le=1024)
    regularisation: float = Field(default=1.0, ge=0)
    around: int = Field(default=1, ge=0, le=32)


class StaLtaSpec(_Network):
    """The largest ratio of a short to a long average of energy (`train.window_baselines`), the baseline of detection.

    Attributes:
        short_s: Length of the short average in s.
        long_s: Length of the long one.
        band_hz: Between which frequencies the energy lies.
    """

    name: Literal["sta_lta"]
    short_s: float = Field(default=0.5, gt=0)
    long_s: float = Field(default=5.0, gt=0)
    band_hz: tuple[float, float] = (2.0, 20.0)


class AmplitudeSpec(_Network):
    """Least squares on log amplitude and log S − P time (`train.window_baselines`), the baseline of magnitudes.

    Attributes:
        weights: URL of a bundle of PhaseNet that picks P and S; without it the survey's own picks count.
    """

    name: Literal["amplitude"]
    weights: str | None = None


def _named(given: Any) -> Any:
    return {"name": DEFAULT, **given} if isinstance(given, dict) else given


AnyModel = Annotated[
    UNetSpec
    | CNNSpec
    | RNNSpec
    | AttentionSpec
    | PhaseNetSpec
    | ForeignSpec
    | BoostingSpec
    | StaLtaSpec
    | AmplitudeSpec,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
NetworkSpec = Annotated[
    UNetSpec | CNNSpec | RNNSpec | AttentionSpec | PhaseNetSpec | ForeignSpec,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
Baseline = BoostingSpec | StaLtaSpec | AmplitudeSpec
BASELINES = {"wells": ("boosting",), "event": ("sta_lta",), "magnitude": ("amplitude",)}
"""What is no network, by what it is asked."""
SEQUENCE_NETWORKS = ("rnn", "attention", "phasenet")
"""Networks of one axis alone."""
