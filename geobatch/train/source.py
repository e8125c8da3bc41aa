"""What training asks of data, whatever kind they are: a task before workers start, and a source in each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geobatch.models.bundle import ClassInfo, DataDescription
from geobatch.train.objectives import Objective

Activation = Callable[[Tensor], Tensor]
"""Of outputs `(batch, class, *axes)`: what they say, such as probabilities."""


@dataclass(frozen=True)
class Example:
    """One input with its labels.

    Attributes:
        inputs: `(channel, *axes)` float32 without NaN.
        labels: `(*axes)` uint8, 255 unlabelled; of a whole window `()` uint8, or a number float32, NaN unknown.
        length: Samples of the last axis before its padding.
    """

    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    length: int


@dataclass(frozen=True)
class HeldOut:
    """A part of the data that trains nothing.

    Attributes:
        name: Of the well, line or station it belongs to, by which errors are told apart.
        read: The example, read when it is needed.
    """

    name: str
    read: Callable[[], Example]


@dataclass(frozen=True)
class Batch:
    """Examples side by side.

    Attributes:
        inputs: `(batch, channel, *axes)` float32.
        labels: `(batch, *axes)` int64, 255 unlabelled; or numbers `(batch,)` float32, NaN unknown.
        lengths: `(batch,)` int64, None where nothing is padded.
    """

    inputs: Tensor
    labels: Tensor
    lengths: Tensor | None

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Batch:
        """The examples as one batch; all have the same shape."""
        samples = examples[0].inputs.shape[-1]
        lengths = [example.length for example in examples]
        labels = torch.from_numpy(np.stack([example.labels for example in examples]))
        return cls(
            torch.from_numpy(np.stack([example.inputs for example in examples])),
            labels.long() if labels.dtype == torch.uint8 else labels,
            None if min(lengths) == samples else torch.tensor(lengths),
        )

    def on(self, device: torch.device) -> Batch:
        """The batch on a device, volumes with channels last."""
        inputs = self.inputs.to(device)
        if inputs.ndim == 5:
            # Weights and volumes in this order are 40 % faster on a CPU, if the batch is 2 or more.
            inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
        return Batch(inputs, self.labels.to(device), self.lengths)


class Source(Protocol):
    """Examples of one kind of data, in a worker."""

    def draw(self, key: Sequence[int]) -> Example:
        """One example of training, decided by `key` alone: seed, step, item."""
        ...

    def place(self, key: Sequence[int]) -> str:
        """Where the example of that key comes from, for messages."""
        ...

    def held_out(self) -> Sequence[HeldOut]:
        """The examples of validation, the same in every worker."""
        ...

    def answer(self, network: nn.Module, example: Example, device: torch.device, activation: Activation) -> Tensor:
        """`(class, *axes)` float32 of one held-out example, or what an objective answers for a whole window."""
        ...


class Task(Protocol):
    """One kind of data, before workers start."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """In the order of the network's outputs; none where it answers with a number."""
        ...

    @property
    def answers(self) -> Literal["dense", "one"]:
        """Whether the network answers per cell or once per window."""
        ...

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the input's axes."""
        ...

    def decides(self) -> dict[str, Any]:
        """All of the data that decides weights, as JSON."""
        ...

    def fit(self) -> dict[str, Any]:
        """What every worker has to be told: the fitted preprocessing, as JSON."""
        ...

    def source(self, fitted: dict[str, Any]) -> Source:
        """The source of a worker."""
        ...

    def objective(self, fitted: dict[str, Any]) -> Objective:
        """What the network is asked."""
        ...

    def in_channels(self, fitted: dict[str, Any]) -> int:
        """Channels of the input."""
        ...

    def memory(self, fitted: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """Channels and cells per axis of an example, and the bytes of the data that a worker could keep."""
        ...

    def bundled(self, fitted: dict[str, Any]) -> dict[str, Any]:
        """The preprocessing as `make_bundle` takes it."""
        ...

    def describe(self, fitted: dict[str, Any]) -> DataDescription:
        """What a bundle says of the data it was trained on."""
        ...

    def provenance(self) -> list[dict[str, Any]]:
        """URL and identity of each survey."""
        ...
