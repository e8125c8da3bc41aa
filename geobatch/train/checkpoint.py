"""Checkpoints of a training run: weights as safetensors, optimiser state without pickles, progress as JSON.

    <run>/epoch-00003/model.safetensors, optimizer.pt, progress.json, …
                      manifest.json       SHA-256 of each, stored last and removed first

A checkpoint without its manifest is one that was being stored, or removed, and counts as none. One that differs from
its manifest is damaged and is never loaded; the one before is kept for that day.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from geobatch.errors import IntegrityError, NotFoundError
from geobatch.storage import join_url, open_storage
from geobatch.train.state import TrainingState

_WEIGHTS, _OPTIMISER, _PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"
_AVERAGE, _BEST, _MANIFEST = "average.safetensors", "best.safetensors", "manifest.json"
_KEPT = 2
_REMEDY = "Delete the checkpoint: the run continues from the one before, or from the beginning."


@dataclass
class Progress:
    """How far a run is: epochs done, and the figures of each.

    Random numbers need no state here: patches and augmentation are functions of the seed and the step.
    """

    epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of a run in storage, the newest two of them.

    Args:
        url: Of the run.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._storage = open_storage(url)

    def store(self, state: TrainingState, progress: Progress) -> None:
        """Store what an epoch made, its manifest last, and remove what is older than the checkpoint before."""
        name = f"epoch-{progress.epochs:05d}"
        # A damaged one of that name may be there, and its manifest must not stand beside files of this one.
        self._storage.delete(f"{name}/{_MANIFEST}")
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), state, progress)
            for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == _MANIFEST):
                self._storage.put(f"{name}/{path.name}", path.read_bytes())
        for old in [other for other in self._names() if other <= name][:-_KEPT]:
            self._remove(old)

    def restore(self, state: TrainingState) -> Progress:
        """Restore the newest whole checkpoint; return how far the run was, no epoch where there is none.

        Raises:
            IntegrityError: none is whole, and one of them is damaged.
        """
        whole, _ = self.whole()
        return self.load(whole[-1], state) if whole else Progress()

    def whole(self) -> tuple[list[str], list[IntegrityError]]:
        """Names of the whole checkpoints from the oldest to the newest, and what is wrong with the damaged ones.

        Raises:
            IntegrityError: none is whole, and one of them is damaged.
        """
        whole, damaged = [], []
        for name in self._names():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    if self._fetch(name, Path(folder)):
                        _verify(Path(folder), join_url(self._url, name))
                        whole.append(name)
                except IntegrityError as error:
                    damaged.append(error)
        if damaged and not whole:
            raise damaged[-1]
        return whole, damaged

    def load(self, name: str, state: TrainingState) -> Progress:
        """Restore one checkpoint; return how far the run was.

        Raises:
            IntegrityError: it is not whole.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._fetch(name, Path(folder))
            return load_checkpoint(Path(folder), state, join_url(self._url, name))

    def last(self, state: TrainingState) -> Progress:
        """Restore the checkpoint of the last epoch, whatever it takes.

        Raises:
            IntegrityError: it is not whole.
            NotFoundError: there is none.
        """
        names = self._names()
        if not names:
            raise NotFoundError("the run has no checkpoint", where=self._url)
        return self.load(names[-1], state)

    def _names(self) -> list[str]:
        return sorted({key.partition("/")[0] for key, _ in self._storage.list() if key.startswith("epoch-")})

    def _fetch(self, name: str, folder: Path) -> bool:
        """Bring the files of a checkpoint that are there; False without a manifest."""
        for key, _ in self._storage.list(name):
            (folder / key.rpartition("/")[2]).write_bytes(self._storage.get(key))
        return (folder / _MANIFEST).exists()

    def _remove(self, name: str) -> None:
        keys = [key for key, _ in self._storage.list(name)]
        for key in sorted(keys, key=lambda key: not key.endswith(_MANIFEST)):
            self._storage.delete(key)


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


def load_checkpoint(folder: Path, state: TrainingState, where: str = "") -> Progress:
    """Restore the state; return how far the run was.

    Args:
        folder: Where the files lie.
        state: Of the same network and training.
        where: The checkpoint's name in errors; the folder by default.

    Raises:
        IntegrityError: a file is missing or differs from its hash.
    """
    _verify(folder, where or str(folder))
    state.network.load_state_dict(safetensors.torch.load_file(folder / _WEIGHTS))
    if state.average is not None:
        state.average.load_state_dict(safetensors.torch.load_file(folder / _AVERAGE))
    if (folder / _BEST).exists():
        state.best = safetensors.torch.load_file(folder / _BEST)
    state.optimizer.load_state_dict(torch.load(folder / _OPTIMISER, weights_only=True, map_location="cpu"))
    return Progress(**json.loads((folder / _PROGRESS).read_text()))


def _verify(folder: Path, where: str) -> None:
    try:
        hashes = dict(json.loads((folder / _MANIFEST).read_text()))
        found = {name: _sha256(folder / name) for name in hashes}
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError("a checkpoint is not whole", where=where, measured=error, remedy=_REMEDY) from error
    for name, told in hashes.items():
        if found[name] != told:
            raise IntegrityError(
                f"{name} of a checkpoint differs from its hash",
                where=where,
                measured=found[name],
                limit=told,
                remedy=_REMEDY,
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
