"""Checkpoints of a training run: weights as safetensors, optimiser state without pickles, progress as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

_WEIGHTS, _OPTIMISER, _PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"


@dataclass
class Progress:
    """How far a run is: epochs done, and the figures of each.

    Random numbers need no state here: patches and augmentation are functions of the seed and the step.
    """

    epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint into a local folder."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / _WEIGHTS)
    torch.save(optimizer.state_dict(), folder / _OPTIMISER)
    (folder / _PROGRESS).write_text(json.dumps({"epochs": progress.epochs, "history": progress.history}))


def load_checkpoint(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Restore the network, and the optimiser where one is given; return how far the run was."""
    network.load_state_dict(safetensors.torch.load_file(folder / _WEIGHTS))
    if optimizer is not None:
        optimizer.load_state_dict(torch.load(folder / _OPTIMISER, weights_only=True, map_location="cpu"))
    return Progress(**json.loads((folder / _PROGRESS).read_text()))
