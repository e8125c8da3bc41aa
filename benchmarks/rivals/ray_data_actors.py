"""A Ray Data `map_batches` actor pool over geobatch's haloed patches. Environment: `ray_data` of `setup.sh`.

A row is a block. The actor reads what the block's patches see from the survey's Zarr, prepares, predicts, trims and
writes the block's shard, so that no voxel crosses Ray, as in geobatch. The clock that counts starts when an actor
takes the first block: loading torch and the network in the actors is left out here as it is for geobatch.
"""

import os
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from order import Order, answer, cells, classify, order_of_process, seen, starts, warm_up

OBJECT_STORE_BYTES = 256 * 2**20


class Scorer:
    """An actor with its network loaded and its arrays open."""

    def __init__(self, path: str) -> None:
        self.order = Order.read(path)
        self.network = self.order.load_network()
        self.volume = self.order.open_volume()
        self.output = self.order.open_output()
        # Ray limits OpenMP's threads, and the limit is kept per thread: set it where the work is done.
        torch.set_num_threads(self.order.threads)
        warm_up(self.network, self.order.patch)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Score the blocks of a batch; when each began."""
        began = []
        for number in batch["block"]:
            began.append(time.time())
            self._score(int(number))
        return {"block": batch["block"], "began": np.array(began), "process": np.full(len(began), os.getpid())}

    def _score(self, number: int) -> None:
        torch.set_num_threads(self.order.threads)
        work = self.order.blocks[number]
        region = seen(work)
        values = self.order.prepared(self.volume[cells(region)])
        self.output[cells(work.write)] = classify(self.network, values, starts(region), work)


def main() -> None:
    """Time the pool, and beside it the whole from the call to the end."""
    import ray

    order = order_of_process()
    order.create_output()
    ray.init(
        num_cpus=order.workers * order.threads,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    called = time.time()
    blocks = [{"block": number} for number in range(len(order.blocks))]
    rows = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(
            Scorer,
            fn_constructor_args=(sys.argv[1],),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=order.workers),
            num_cpus=order.threads,
        )
        .take_all()
    )
    ended = time.time()
    answer(
        seconds=ended - min(row["began"] for row in rows),
        seconds_from_the_call=ended - called,
        processes=sorted({int(row["process"]) for row in rows}),
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
