"""The networks of a job file: typed parameters, without the import of what computes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DEFAULT = "unet"
Size = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Network(BaseModel):
    """What all networks share: how many inputs, outputs and axes there are comes from the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def stride(self) -> int:
        """Cells along each axis after which the network repeats itself."""
        return 1

    def build(self, in_channels: int, classes: int, dims: int) -> dict[str, Any]:
        """What `models.build_model` builds for data of so many channels, classes and axes."""
        return {**self.model_dump(), "in_channels": in_channels, "classes": classes}


class UNetSpec(_Network):
    """`models.unet.UNet`; `channels: 16, levels: 4` is the size of FaultSeg3D."""

    name: Literal["unet"] = "unet"
    channels: int = Field(default=8, ge=1, le=256)
    levels: int = Field(default=3, ge=1, le=6)

    @property
    def stride(self) -> int:
        """Its poolings halve so many times."""
        return int(2 ** (self.levels - 1))

    def build(self, in_channels: int, classes: int, dims: int) -> dict[str, Any]:
        """As above, for any number of axes."""
        return {**super().build(in_channels, classes, dims), "dims": dims}


class CNNSpec(_Network):
    """`models.cnn.CNN`."""

    name: Literal["cnn"]
    channels: Size = 32
    stages: int = Field(default=4, ge=1, le=10)
    convolutions: int = Field(default=1, ge=1, le=4)
    kernel: int = Field(default=3, ge=1, le=31)
    hidden: int = Field(default=0, ge=0, le=4096)
    dropout: Share = 0.0

    def build(self, in_channels: int, classes: int, dims: int) -> dict[str, Any]:
        """As above, for any number of axes, one answer per cell."""
        return {**super().build(in_channels, classes, dims), "dims": dims, "output": "dense"}


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


def _named(given: Any) -> Any:
    return {"name": DEFAULT, **given} if isinstance(given, dict) else given


NetworkSpec = Annotated[
    UNetSpec | CNNSpec | RNNSpec | AttentionSpec, Field(discriminator="name"), BeforeValidator(_named)
]
SEQUENCE_NETWORKS = ("rnn", "attention")
"""Networks of one axis alone."""
