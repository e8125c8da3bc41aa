"""What a training run consists of: weights, their moving average, the best ones, the optimiser."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from geobatch.train.spec import Training


@dataclass
class TrainingState:
    """The state of a run.

    Attributes:
        network: The weights that are trained.
        optimizer: Of them.
        average: Their exponential moving average (Polyak & Juditsky 1992, doi:10.1137/0330046), with `ema`.
        best: The weights of the best epoch so far, with `early_stop`.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    best: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, network: nn.Module, training: Training) -> TrainingState:
        """The state before the first step."""
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        if not training.ema:
            return cls(network, optimizer)
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(training.ema), use_buffers=True)  # type: ignore[no-untyped-call]
        return cls(network, optimizer, average)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated."""
        return self.network if self.average is None else self.average.module

    def step(self) -> None:
        """One step of the optimiser, and of the average."""
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def keep_best(self) -> None:
        """Take the judged weights for the best."""
        self.best = {name: value.detach().cpu().clone() for name, value in self.judged.state_dict().items()}

    def result(self) -> nn.Module:
        """The network that the run ends in: of the best epoch, else the average, else the last."""
        network = copy.deepcopy(self.judged)
        if self.best is not None:
            network.load_state_dict(self.best)
        return network
