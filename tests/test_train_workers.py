"""However many workers share a step, they train the same weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_loop import RNN, prepared
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from wells import write_wells

from geobatch.train.loop import fit_network
from geobatch.train.places import AlonePlace

GLOBAL_BATCH = 8
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::UserWarning:ray")


class OneOfSeveral(AlonePlace):
    """A worker of a plain process group."""

    def __init__(self, rank: int, workers: int) -> None:
        super().__init__(validates=True)
        self.rank, self.workers = rank, workers

    def prepared(self, network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network)


def work(survey: str, rank: int, workers: int, accumulate: int, port: int, output: str) -> None:
    """What each process runs; the first stores the weights."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    plan, source, _ = prepared(
        survey, RNN, batch=GLOBAL_BATCH // workers // accumulate, accumulate=accumulate, dice=0.0
    )
    network = fit_network(plan, OneOfSeveral(rank, workers), source)
    assert isinstance(network, nn.Module)
    if rank == 0:
        torch.save(network.state_dict(), output)
    torch.distributed.destroy_process_group()


def test_one_two_and_four_workers_of_the_same_global_batch_agree(tmp_path: Path, ray_cluster: None) -> None:
    survey = write_wells(tmp_path)
    found: list[dict[str, Any]] = []
    for workers, accumulate in ((1, 1), (2, 1), (4, 1), (2, 2)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        output = str(tmp_path / f"{workers}-{accumulate}.pt")
        program = "import sys, test_train_workers as t; a = sys.argv; t.work(a[1], *map(int, a[2:6]), a[6])"
        own = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, survey, *map(str, (rank, workers, accumulate, port)), output], env=own
            )
            for rank in range(workers)
        ]
        assert [process.wait(timeout=120) for process in processes] == [0] * workers
        found.append(torch.load(output, weights_only=True))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)
