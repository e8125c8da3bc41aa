from __future__ import annotations

import pytest
import torch

from geobatch.errors import UsageError
from geobatch.models import UNet, build_model
from geobatch.models.reach import measure_reach, tiling_deviations
from geobatch.models.unet import FAULTSEG3D


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (4, 4, 4), (5, 7, 9), (13, 1, 6)])
def test_logits_have_the_size_of_any_input(size: tuple[int, int, int]) -> None:
    network = UNet(classes=3, channels=2, levels=3).eval()
    assert network(torch.zeros(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1,), (9,), (1, 1), (2, 3), (13, 6)])
def test_sections_and_traces_have_logits_of_their_size(size: tuple[int, ...]) -> None:
    network = UNet(classes=3, channels=2, levels=3, dims=len(size)).eval()
    assert network(torch.zeros(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("dims", [1, 2])
def test_every_axis_of_a_section_or_trace_has_the_reach_of_a_volume(dims: int) -> None:
    torch.manual_seed(0)
    network = UNet(classes=2, channels=2, levels=3, dims=dims).eval()
    reach = measure_reach(network, 1, (4,) * dims)
    assert reach.halo == ((22, 22),) * dims
    assert max(tiling_deviations(network, 1, reach)) < 1e-13


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
        ({"name": "unet", "classes": 2, "channels": 4, "levels": 1, "dims": 2}, 206),
        ({"name": "unet", "classes": 2, "channels": 4, "levels": 1, "dims": 1}, 86),
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
    with pytest.raises(UsageError, match="found 4; expected 1, 2 or 3"):
        build_model({"name": "unet", "dims": 4})
