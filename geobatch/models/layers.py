"""Layers by the number of axes, and checks of sizes, which the networks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from geobatch.errors import UsageError


@dataclass(frozen=True)
class Layers:
    """The layers of one number of axes; each is called with its parameters."""

    convolution: Any
    norm: Any
    pool: Any
    average: Any
    upsampling: Any


LAYERS: Final = {
    3: Layers(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d, nn.ConvTranspose3d),
    2: Layers(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.ConvTranspose2d),
    1: Layers(nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.ConvTranspose1d),
}


def require_sizes(network: str, **sizes: int) -> None:
    """Raise `UsageError` naming the first size below 1.

    Args:
        network: Its name with an article, for the message.
        sizes: By parameter.
    """
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{network} needs {name} of at least 1", where=f"model.{name}", measured=value, limit="1")
