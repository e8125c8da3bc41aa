"""What TensorBoard shows of a run: one file of events in the object store, whole after every epoch."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from geobatch.errors import GeobatchError
from geobatch.storage import join_url, open_storage

FOLDER, EVENTS = "tensorboard", "events.out.tfevents.geobatch"


def tell_board(url: str, history: list[dict[str, Any]]) -> None:
    """Put the figures of all epochs under `tensorboard/` of a run's folder; failing to do so stops nothing.

    The file begins with the bytes of the one before, so that a TensorBoard that reads it goes on where it was.

    Args:
        url: Of the run's folder.
        history: Figures of each epoch.
    """
    with contextlib.suppress(GeobatchError), tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for figures in history:
                for name, value in scalars(figures):
                    writer.add_scalar(name, value, figures["epoch"], walltime=float(figures["epoch"]))
        (file,) = Path(folder).iterdir()
        open_storage(join_url(url, FOLDER)).put(EVENTS, file.read_bytes())


def scalars(figures: dict[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each number of an epoch, such as `validation/classes/fault/f1`."""
    for key, value in figures.items():
        own = f"{name}/{key}" if name else key
        if isinstance(value, dict):
            yield from scalars(value, own)
        elif isinstance(value, (int, float)) and own != "epoch":
            yield own, float(value)
