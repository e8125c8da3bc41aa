"""U-Net for volumes, sections and traces.

Tensor axes: B batch, C channel, K class; then the network's own axes, of volumes I inline, X crossline, S sample.
"""

from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from geobatch.errors import UsageError
from geobatch.models.layers import LAYERS, Layers, require_sizes

FAULTSEG3D: Final[dict[str, Any]] = {"name": "unet", "classes": 2, "channels": 16, "levels": 4}
"""The size of FaultSeg3D (Wu et al. 2019, doi:10.1190/geo2018-0646.1): 16 channels at the top, three poolings."""


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28) that accepts any size.

    Each level holds two convolutions of 3 cells per axis with batch norm and ReLU; channels double from level to
    level. Max-pooling rounds up and each upsampled tensor is cut to its skip connection, so sizes need not divide by
    the total stride.

    Args:
        in_channels: channels of the input, 1 for amplitude alone.
        classes: number of classes K.
        channels: feature channels of the finest level.
        levels: resolutions; the total stride is `2 ** (levels - 1)`.
        dims: axes of its input: 3 of a volume, 2 of a section, 1 of a trace.

    Raises:
        UsageError: a size is below 1, or `dims` is none of 1, 2 and 3.
    """

    def __init__(
        self, in_channels: int = 1, classes: int = 2, channels: int = 8, levels: int = 3, dims: int = 3
    ) -> None:
        super().__init__()
        if dims not in LAYERS:
            raise UsageError("a U-Net has 1, 2 or 3 dims", where="model.dims", measured=dims, limit="1, 2 or 3")
        require_sizes("a U-Net", in_channels=in_channels, classes=classes, channels=channels, levels=levels)
        layers = LAYERS[dims]
        widths = [channels * 2**level for level in range(levels)]
        self.encoders = nn.ModuleList(
            _double_convolution(layers, before, after)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = layers.pool(2, ceil_mode=True)
        self.upsamplers = nn.ModuleList(
            layers.upsampling(coarse, fine, kernel_size=2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.decoders = nn.ModuleList(_double_convolution(layers, 2 * width, width) for width in widths[:-1])
        self.head = layers.convolution(channels, classes, kernel_size=1)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Logits `(batch, class, *axes)` of an input `(batch, channel, *axes)`, of its size."""
        skips: list[Tensor] = []
        x = self.encoders[0](x_BC)
        for encoder in list(self.encoders)[1:]:
            skips.append(x)
            x = encoder(self.pool(x))
        for level in reversed(range(len(skips))):
            # Each tensor is let go as soon as nothing needs it: the finest level is what memory has to hold.
            skip = skips.pop()
            own = tuple(slice(0, length) for length in skip.shape[2:])
            x = self.upsamplers[level](x)[(slice(None), slice(None), *own)]
            x = torch.cat([skip, x], dim=1)
            del skip
            x = self.decoders[level](x)
        logits_BK: Tensor = self.head(x)
        return logits_BK


def _double_convolution(layers: Layers, before: int, after: int) -> nn.Sequential:
    # No bias: the batch norm that follows would take it out again.
    return nn.Sequential(
        layers.convolution(before, after, kernel_size=3, padding=1, bias=False),
        layers.norm(after),
        nn.ReLU(inplace=True),
        layers.convolution(after, after, kernel_size=3, padding=1, bias=False),
        layers.norm(after),
        nn.ReLU(inplace=True),
    )
