"""Networks, and the registry by which job files and bundles name them."""

from collections.abc import Mapping
from typing import Any

import torch

from geobatch.errors import UsageError
from geobatch.models.attention import Attention
from geobatch.models.cnn import CNN
from geobatch.models.foreign import Foreign
from geobatch.models.phasenet import PhaseNet
from geobatch.models.rnn import RNN
from geobatch.models.unet import UNet

__all__ = ["CNN", "MODELS", "RNN", "Attention", "Foreign", "PhaseNet", "UNet", "build_model"]

MODELS: dict[str, type[torch.nn.Module]] = {
    "attention": Attention,
    "cnn": CNN,
    "foreign": Foreign,
    "phasenet": PhaseNet,
    "rnn": RNN,
    "unet": UNet,
}


def build_model(spec: Mapping[str, Any]) -> torch.nn.Module:
    """Return a freshly initialised network.

    Args:
        spec: `name`, one of `MODELS`, and the parameters of that class, such as
            `{"name": "unet", "classes": 4, "channels": 8, "levels": 3}`.

    Raises:
        UsageError: for an unknown name or parameters the network does not take.
    """
    parameters = dict(spec)
    name = parameters.pop("name", None)
    if name not in MODELS:
        raise UsageError(f"no network is called {name!r}", limit=f"known networks: {', '.join(sorted(MODELS))}")
    try:
        return MODELS[name](**parameters)
    except TypeError as error:
        raise UsageError(f"network {name!r} does not take these parameters", measured=str(error)) from error
