"""PhaseNet with the original weights: the figures that were measured with SeisBench's network."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from geobatch.errors import DataError, MismatchError
from geobatch.formats import windows
from geobatch.formats.spec import IngestRun
from geobatch.models import build_model
from geobatch.models.bundle import load_bundle, save_bundle
from geobatch.models.phasenet import PHASES, P, PhaseNet, S, pick_phases
from geobatch.models.sections import volume_network
from geobatch.models.weights import phasenet_bundle
from geobatch.survey import open_survey

STATION = (-21.04323, -69.4874)
KM_PER_DEGREE = 111.19


def test_original_weights_give_the_reference_recall(test_data: Path) -> None:
    network = phasenet_bundle(str(test_data / "weights/phasenet_original.safetensors")).network()
    found = {phase: [] for phase in (P, S)}
    for file in sorted((test_data / "earthquake/ncedc_phasenet").glob("*.npz")):
        with np.load(file) as record:
            window = record["data"][2000:5000].T
            arrivals = {P: int(record["itp"].ravel()[0]) - 2000, S: int(record["its"].ravel()[0]) - 2000}
        window = window - window.mean(axis=1, keepdims=True)
        deviation = window.std(axis=1, keepdims=True)
        window = window / np.where(deviation > 0, deviation, 1)
        with torch.inference_mode():
            likely = network(torch.from_numpy(window.astype(np.float32))[None]).softmax(1)[0].numpy()
        for phase, arrival in arrivals.items():
            sample = int(likely[phase].argmax())
            error_s = abs(sample - arrival) / 100 if likely[phase, sample] > 0.3 else np.inf
            found[phase].append(error_s)
    recall = {
        phase: [round(float(np.mean(np.array(errors) <= limit)), 3) for limit in (0.1, 0.5)]
        for phase, errors in found.items()
    }
    assert recall == {P: [0.875, 0.902], S: [0.795, 0.857]}


def test_both_files_of_weights_load_strictly_and_make_one_bundle(test_data: Path, tmp_path: Path) -> None:
    safe, plain = (
        phasenet_bundle(str(test_data / "weights" / name))
        for name in ("phasenet_original.safetensors", "original.pt.v1")
    )
    assert safe.weights == plain.weights
    save_bundle(str(tmp_path / "bundle"), safe)
    spec = load_bundle(str(tmp_path / "bundle")).spec
    assert [entry.name for entry in spec.classes] == list(PHASES) and spec.reach.unbounded == (0,)
    with pytest.raises(MismatchError, match="axes"):
        volume_network(safe)
    assert spec.window == 3001 and spec.data.sample_interval == 0.01


def test_s_minus_p_of_picked_windows_grows_with_distance(test_data: Path, tmp_path: Path) -> None:
    windows.ingest_source(
        str(test_data / "earthquake/seisbench_cx"), str(tmp_path / "s"), windows.Options(), IngestRun()
    )
    survey = open_survey(str(tmp_path / "s")).isel(window=slice(0, 100, 4))
    network = phasenet_bundle(str(test_data / "weights/original.pt.v1")).network()
    values = survey["waveform"].sel(component=list("ENZ")).values
    picked = np.array([pick_phases(network, window, 20.0) for window in values])
    north = (survey["source_latitude"].values - STATION[0]) * KM_PER_DEGREE
    east = (survey["source_longitude"].values - STATION[1]) * KM_PER_DEGREE * np.cos(np.radians(STATION[0]))
    distance = np.sqrt(north**2 + east**2 + survey["source_depth_km"].values ** 2)
    known = np.isfinite(picked).all(axis=1)
    assert known.mean() > 0.9
    assert np.corrcoef(picked[known, 1] - picked[known, 0], distance[known])[0, 1] > 0.9


@pytest.mark.parametrize("samples", [1, 2, 5, 6, 17, 255, 1001, 3000, 3001])
def test_answers_have_the_length_of_the_input(samples: int) -> None:
    network = build_model({"name": "phasenet", "in_channels": 2, "classes": 4, "filters": 4}).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 2, samples)).shape == (2, 4, samples)


def test_silence_has_no_picks() -> None:
    network = PhaseNet().eval()
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    assert np.isnan(pick_phases(network, np.zeros((3, 100), np.float32), 100.0)).all()


def test_weights_that_are_none_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    harm = tmp_path / "harm.pt"
    target = tmp_path / "touched"
    harm.write_bytes(pickle.dumps(_Touch(target)))
    torch.save({"a": _Touch(target)}, tmp_path / "wrapped.pt")
    for name in ("harm.pt", "wrapped.pt"):
        with pytest.raises(DataError, match="no plain state dict"):
            phasenet_bundle(str(tmp_path / name))
    assert not target.exists()
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    with pytest.raises(DataError, match="no plain state dict"):
        phasenet_bundle(str(tmp_path / "short.safetensors"))
    torch.save({"inc.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(MismatchError, match="not those of PhaseNet"):
        phasenet_bundle(str(tmp_path / "other.pt"))


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))
