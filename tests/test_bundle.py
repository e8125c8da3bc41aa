from __future__ import annotations

from pathlib import Path

import pytest

from geobatch.errors import NotFoundError
from geobatch.models import build_model
from geobatch.models.bundle import (
    DESCRIPTION,
    WEIGHTS,
    ClassInfo,
    DataDescription,
    load_bundle,
    make_bundle,
    save_bundle,
)
from geobatch.preprocess import Chain
from geobatch.storage import FileStorage
from geobatch.survey import VOLUME_AXES

SYNTHETIC = Path(__file__).parent / "data" / "synthetic_bundle"


def test_a_kill_while_a_bundle_is_replaced_leaves_no_bundle_rather_than_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(str(SYNTHETIC))
    put = FileStorage.put
    save_bundle(str(tmp_path), bundle)

    def killed_before_the_description(storage: FileStorage, key: str, data: bytes) -> None:
        if key == DESCRIPTION:
            raise KeyboardInterrupt
        put(storage, key, data)

    monkeypatch.setattr(FileStorage, "put", killed_before_the_description)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(str(tmp_path), bundle)
    assert (tmp_path / WEIGHTS).is_file()
    with pytest.raises(NotFoundError, match="no bundle"):
        load_bundle(str(tmp_path))
    monkeypatch.undo()
    assert save_bundle(str(tmp_path), bundle) == load_bundle(str(tmp_path)).spec.hash


def test_a_bundle_leaves_out_the_crop_of_its_training() -> None:
    model = {"name": "unet", "classes": 2, "channels": 2, "levels": 1}
    bundle = make_bundle(
        name="cropped",
        network=build_model(model),
        model=model,
        axes=VOLUME_AXES,
        stride=(1, 1, 1),
        classes=(ClassInfo(name="shale", color="#777777"), ClassInfo(name="sand", color="#eedd55")),
        chain=Chain.model_validate([{"step": "crop", "inline": [100, 200]}, {"step": "scale"}]),
        data=DataDescription(quantity="amplitude", domain="time", sample_unit="ms", sample_interval=4.0),
    )
    assert [step.step for step in bundle.spec.chain.steps] == ["scale"]
