"""MONAI's sliding-window inferer over the whole volume in memory. Environment: `monai` of `setup.sh`.

Mode `constant` is the inferer's default; the gaussian one costs more. Windows go one at a time: larger batches only
hold more memory on a CPU. The clock runs from the first byte read to the class map stored.
"""

import time

import torch
from monai.inferers import sliding_window_inference
from order import answer, most_probable, order_of_process, warm_up


@torch.inference_mode()
def main() -> None:
    """Time reading, inference, reduction and writing."""
    order = order_of_process()
    network = order.load_network()
    output = order.create_output()
    warm_up(network, order.roi)
    start = time.perf_counter()
    volume = torch.from_numpy(order.prepared(order.open_volume()[...]))[None, None]
    read = time.perf_counter()
    logits = sliding_window_inference(volume, order.roi, 1, network, overlap=order.overlap, mode="constant")
    class_map = most_probable(logits[0]).numpy()
    inferred = time.perf_counter()
    output[...] = class_map
    end = time.perf_counter()
    stages = {"read": read - start, "predict": inferred - read, "write": end - inferred}
    answer(seconds=end - start, stages=stages)


if __name__ == "__main__":
    main()
