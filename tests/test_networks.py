"""Networks of traces, logs and images: shapes, reach, padding, and that each learns what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobatch.errors import UsageError
from geobatch.models import build_model
from geobatch.models.attention import positions
from geobatch.models.reach import verified_reach
from geobatch.models.sequences import sequence_answer

DENSE: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "dims": 1, "output": "dense", "channels": 6, "stages": 3},
    "lstm": {"name": "rnn", "hidden": 6, "layers": 2},
    "gru of one direction": {"name": "rnn", "cell": "gru", "hidden": 6, "layers": 1, "bidirectional": False},
    "attention": {"name": "attention", "width": 8, "heads": 2, "layers": 2},
    "attention over tokens": {"name": "attention", "width": 8, "heads": 2, "layers": 1, "step": 4},
}


def built(spec: dict[str, Any], **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model({**spec, "in_channels": 3, "classes": 4, **changes}).eval()


@pytest.mark.parametrize("spec", DENSE.values(), ids=DENSE)
@torch.no_grad()
def test_dense_networks_answer_every_sample_of_any_length(spec: dict[str, Any]) -> None:
    network = built(spec)
    for samples in (1, 4, 5, 37):
        assert network(torch.randn(2, 3, samples)).shape == (2, 4, samples)


@pytest.mark.parametrize("spec", DENSE.values(), ids=DENSE)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), seed=st.integers(0, 99))
@torch.no_grad()
def test_what_is_padded_changes_no_sample(spec: dict[str, Any], lengths: list[int], seed: int) -> None:
    step = spec.get("step", 1)
    # A token that is padding in part is seen as if zeros were samples.
    lengths = [-(-length // step) * step for length in lengths]
    for output in ("dense", "one"):
        if spec["name"] == "cnn" and output == "one":
            continue
        network = built(spec, output=output)
        x_BCS = torch.randn(len(lengths), 3, 28, generator=torch.Generator().manual_seed(seed))
        together = network(x_BCS, torch.tensor(lengths))
        for number, length in enumerate(lengths):
            alone = network(x_BCS[number : number + 1, :, :length])[0]
            own = together[number, :, :length] if output == "dense" else together[number]
            torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
@torch.no_grad()
def test_classifier_gives_one_answer_for_inputs_of_any_size(dims: int) -> None:
    network = built({"name": "cnn", "dims": dims, "stages": 3, "convolutions": 2, "hidden": 5, "pooled": 2})
    for cells in (9, 17):
        assert network(torch.randn(2, 3, *(cells,) * dims)).shape == (2, 4)


@torch.no_grad()
def test_event_classifier_takes_spectrograms_of_three_channels() -> None:
    network = build_model({"name": "cnn", "in_channels": 3, "classes": 1, "channels": 8, "stages": 5, "hidden": 64})
    chance = network(torch.randn(2, 3, 224, 224)).sigmoid()
    assert chance.shape == (2, 1) and bool(((chance > 0) & (chance < 1)).all())


@pytest.mark.parametrize(("stages", "convolutions", "kernel"), [(1, 1, 3), (3, 1, 3), (2, 2, 5)])
def test_dense_cnn_sees_as_far_as_it_says(stages: int, convolutions: int, kernel: int) -> None:
    spec = {"name": "cnn", "dims": 1, "output": "dense", "channels": 4}
    network = built(spec, stages=stages, convolutions=convolutions, kernel=kernel)
    reach, deviation = verified_reach(network, 3, (1,))
    seen = (kernel - 1) * convolutions * (2**stages - 1) + 1
    assert reach.halo == ((seen // 2, seen // 2),)
    assert deviation < 1e-6


@pytest.mark.parametrize("name", ["lstm", "gru of one direction", "attention", "attention over tokens"])
def test_sequence_networks_are_known_to_see_the_whole_axis(name: str) -> None:
    reach, _ = verified_reach(built(DENSE[name]), 3, (DENSE[name].get("step", 1),))
    assert reach.unbounded == (0,)


def test_positions_are_those_of_the_paper() -> None:
    table = positions(50, 8).numpy()
    place = np.arange(50)[:, None] / 10_000 ** (np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(table[:, 0::2], np.sin(place), atol=1e-5)
    np.testing.assert_allclose(table[:, 1::2], np.cos(place), atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "lstm", "attention"])
def test_each_family_learns_a_class_that_is_told_three_samples_above(name: str) -> None:
    torch.manual_seed(0)
    wide = {"width": 32, "heads": 4, "dropout": 0.0} if name == "attention" else {}
    network = build_model({**DENSE[name], **wide, "in_channels": 1, "classes": 2}).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(250):
        x_BCS = torch.randn(16, 1, 32)
        told = (x_BCS[:, 0, :-3] > 0).long()
        loss = torch.nn.functional.cross_entropy(network(x_BCS)[:, :, 3:], told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x_BCS = torch.randn(64, 1, 32)
    right = network.eval()(x_BCS)[:, :, 3:].argmax(dim=1) == (x_BCS[:, 0, :-3] > 0)
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("window", [7, 16, 64])
def test_windows_of_a_network_that_sees_one_sample_blend_to_the_whole(window: int) -> None:
    network = torch.nn.Conv1d(3, 4, 1).eval()
    x_CS = torch.randn(3, 50)
    with torch.no_grad():
        whole = network(x_CS[None])[0].softmax(dim=0)
    torch.testing.assert_close(sequence_answer(network, x_CS, window), whole)


def test_wrong_sizes_are_refused_with_the_parameter() -> None:
    for spec, text in (
        ({"name": "cnn", "kernel": 4}, "odd kernel"),
        ({"name": "cnn", "dims": 4}, "dims"),
        ({"name": "cnn", "stages": 0}, "stages of at least 1"),
        ({"name": "rnn", "hidden": 0}, "hidden of at least 1"),
        ({"name": "attention", "width": 30, "heads": 4}, "multiple of its heads"),
    ):
        with pytest.raises(UsageError, match=text):
            build_model(spec)
