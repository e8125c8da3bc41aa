"""What a bundle of event windows says of windows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from geobatch.errors import MismatchError
from geobatch.models.bundle import Bundle


@torch.inference_mode()
def answer_windows(bundle: Bundle, windows: npt.NDArray[np.float32], rate_hz: float) -> npt.NDArray[np.float32]:
    """Probabilities `(window, class)` float32 of windows, or numbers `(window,)` such as magnitudes.

    Args:
        bundle: Trained on event windows.
        windows: `(window, component, sample)` in the order of `bundle.spec.windows.components` and as long as it says,
            in the unit of the survey it was trained on; NaN where nothing was recorded.
        rate_hz: Their samples per second.

    Raises:
        MismatchError: the bundle is none of event windows, or windows are of another rate or shape.
    """
    spec, own = bundle.spec, bundle.spec.windows
    if own is None:
        raise MismatchError("the bundle is none of event windows", where=spec.name)
    found, expected = (*windows.shape[1:], rate_hz), (len(own.components), own.samples, own.rate_hz)
    if windows.ndim != 3 or found != expected:
        raise MismatchError(
            "windows are not what the bundle was trained on",
            where=spec.name,
            measured=f"{windows.shape} at {rate_hz:g} Hz",
            limit=f"(window, {expected[0]}, {expected[1]}) at {own.rate_hz:g} Hz, {own.components}",
        )
    network = bundle.network()
    outputs = torch.cat([network(torch.from_numpy(own.apply(window))[None]) for window in windows])
    if spec.number is not None:
        return (outputs[:, 0] * spec.number.deviation + spec.number.mean).numpy()
    if outputs.shape[1] == 1:
        second = outputs.sigmoid()
        return torch.cat([1 - second, second], dim=1).numpy()
    return outputs.softmax(dim=1).numpy()
