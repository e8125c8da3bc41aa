"""The bare network: one loop in memory over the haloed patches of geobatch's plan. Environment: geobatch's own.

The network is in the form in which geobatch runs it, or as it was trained (`bare_as_trained`). The volume is read and
prepared before the clock starts; classes go to a NumPy array that is stored after it stops.
"""

import time

import numpy as np
from order import answer, cells, classify, order_of_process, warm_up

from geobatch.models.inference import for_inference


def main() -> None:
    """Time the loop."""
    order = order_of_process()
    network = order.load_network()
    if not order.as_trained:
        network = for_inference(network)
    volume = order.prepared(order.open_volume()[...])
    class_map = np.empty(order.shape, np.uint8)
    origin = [0] * len(order.shape)
    warm_up(network, order.patch)
    start = time.perf_counter()
    for work in order.blocks:
        class_map[cells(work.write)] = classify(network, volume, origin, work)
    seconds = time.perf_counter() - start
    order.create_output()[...] = class_map
    answer(seconds=seconds)


if __name__ == "__main__":
    main()
