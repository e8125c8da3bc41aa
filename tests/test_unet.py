from __future__ import annotations

import pytest
import torch

from geobatch.errors import UsageError
from geobatch.models import UNet, build_model
from geobatch.models.unet import FAULTSEG3D


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (4, 4, 4), (5, 7, 9), (13, 1, 6)])
def test_logits_have_the_size_of_any_input(size: tuple[int, int, int]) -> None:
    network = UNet(classes=3, channels=2, levels=3).eval()
    assert network(torch.zeros(2, 1, *size)).shape == (2, 3, *size)


def test_the_same_seed_gives_the_same_logits() -> None:
    x = torch.arange(5 * 6 * 7.0).reshape(1, 1, 5, 6, 7)

    def logits() -> torch.Tensor:
        torch.manual_seed(3)
        network = UNet(classes=2, channels=2, levels=2).eval()
        with torch.inference_mode():
            return network(x)

    assert torch.equal(logits(), logits())


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        ({"name": "unet", "classes": 4, "channels": 8, "levels": 3}, 85_204),
        ({"name": "unet", "classes": 2, "channels": 4, "levels": 1}, 566),
        (FAULTSEG3D, 1_401_282),
    ],
)
def test_parameter_counts(spec: dict[str, object], parameters: int) -> None:
    assert sum(p.numel() for p in build_model(spec).parameters()) == parameters


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unet"):
        build_model({"name": "resnet"})
    with pytest.raises(UsageError, match="kernel"):
        build_model({"name": "unet", "kernel": 5})
    with pytest.raises(UsageError, match="levels"):
        build_model({"name": "unet", "levels": 0})
