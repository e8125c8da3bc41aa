"""A network as it is run gives what the network as it was trained gives."""

from __future__ import annotations

import pytest
import torch
from surveys import strong_network

from geobatch.models.inference import for_inference
from geobatch.score.predictor import _most_probable


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_folded_network_gives_the_logits_of_the_whole(dtype: torch.dtype, tolerance: float) -> None:
    network = strong_network(levels=3).to(dtype)
    x = torch.randn(1, 1, 21, 22, 23, dtype=dtype)
    with torch.inference_mode():
        expected, found = network(x), for_inference(network)(x)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_folding_leaves_the_network_itself_alone_and_no_batch_norm_in_the_copy() -> None:
    network = strong_network(levels=2)
    names = list(network.state_dict())
    folded = for_inference(network)
    assert list(network.state_dict()) == names
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded.modules())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_most_probable_class_is_the_first_of_the_largest_logits(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    logits = torch.randint(-3, 3, (1, 5, 40, 50, 60)).float().contiguous(memory_format=memory_format)
    index = _most_probable(logits[0])
    largest = logits[0].gather(0, index.long()[None])[0]
    assert (largest == logits[0].max(0).values).all()
    earlier = torch.arange(5).reshape(5, 1, 1, 1) < index
    assert not (earlier & (logits[0] == largest)).any()
