"""Checkpoints of a training run: weights as safetensors, optimiser state without pickles, progress as JSON.

A manifest, written last, holds the SHA-256 of each; a checkpoint without it, or which differs from it, is not loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from geobatch.errors import IntegrityError
from geobatch.train.state import TrainingState

_WEIGHTS, _OPTIMISER, _PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
_AVERAGE, _BEST, _MANIFEST = "average.safetensors", "best.safetensors", "manifest.json"


@dataclass
class Progress:
    """How far a run is: epochs done, and the figures of each.

    Random numbers need no state here: patches and augmentation are functions of the seed and the step.
    """

    epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(folder: Path, state: TrainingState, progress: Progress) -> None:
    """Write a checkpoint into a local folder."""
    weights = {_WEIGHTS: state.network.state_dict()}
    if state.average is not None:
        weights[_AVERAGE] = state.average.state_dict()
    if state.best is not None:
        weights[_BEST] = state.best
    for name, values in weights.items():
        kept = {key: value.detach().cpu().contiguous() for key, value in values.items()}
        safetensors.torch.save_file(kept, folder / name)
    torch.save(state.optimizer.state_dict(), folder / _OPTIMISER)
    (folder / _PROGRESS).write_text(json.dumps({"epochs": progress.epochs, "history": progress.history}))
    files = (*weights, _OPTIMISER, _PROGRESS)
    (folder / _MANIFEST).write_text(json.dumps({name: _sha256(folder / name) for name in files}))


def load_checkpoint(folder: Path, state: TrainingState) -> Progress:
    """Restore the state; return how far the run was.

    Raises:
        IntegrityError: a file is missing or differs from its hash.
    """
    _verify(folder)
    state.network.load_state_dict(safetensors.torch.load_file(folder / _WEIGHTS))
    if state.average is not None:
        state.average.load_state_dict(safetensors.torch.load_file(folder / _AVERAGE))
    if (folder / _BEST).exists():
        state.best = safetensors.torch.load_file(folder / _BEST)
    state.optimizer.load_state_dict(torch.load(folder / _OPTIMISER, weights_only=True, map_location="cpu"))
    return Progress(**json.loads((folder / _PROGRESS).read_text()))


def _verify(folder: Path) -> None:
    remedy = "Delete the checkpoint: the run continues from the one before, or from the beginning."
    try:
        hashes = json.loads((folder / _MANIFEST).read_text())
        found = {name: _sha256(folder / name) for name in hashes}
    except (OSError, ValueError) as error:
        raise IntegrityError("a checkpoint is not whole", where=str(folder), measured=error, remedy=remedy) from error
    for name, told in hashes.items():
        if found[name] != told:
            raise IntegrityError(
                f"{name} of a checkpoint differs from its hash",
                where=str(folder),
                measured=found[name],
                limit=told,
                remedy=remedy,
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
