"""What a user's mistake costs: one sentence, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from surveys import random_volume, write_bundle, write_survey

from geobatch.cli import main
from geobatch.interpretation.synthetic import SyntheticSurvey
from geobatch.interpretation.synthetic_files import write_segy
from geobatch.local_s3 import environment, local_s3
from geobatch.storage import join_url, open_storage


class Outcome:
    def __init__(self, code: int, out: str, message: str) -> None:
        self.code, self.out, self.message = code, out, " ".join(message.split())


@pytest.fixture
def geobatch(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in this process; it must not end the test session's cluster."""
    monkeypatch.setattr("geobatch.cluster.disconnect", lambda: None)
    monkeypatch.setattr("geobatch.cli.WATCHED", ())

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["geobatch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A sound SEG-Y file of 12 x 10 traces."""
    path = tmp_path / "raw.sgy"
    write_segy(SyntheticSurvey((12, 10, 40), 1), str(path))
    return path


def damage(raw: Path, kind: str) -> None:
    whole = raw.read_bytes()
    if kind == "truncated":
        raw.write_bytes(whole[:-101])
    elif kind == "empty":
        raw.write_bytes(b"")
    elif kind == "text":
        raw.write_text("Well, this is no seismic data.\n" * 400)
    else:
        headers = np.frombuffer(whole[3600:], np.uint8).reshape(120, -1).copy()
        headers[:, 188:196] = 0
        raw.write_bytes(whole[:3600] + headers.tobytes())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "bytes"),
        ("empty", "empty"),
        ("text", "SEG-Y"),
        ("no geometry", "inline_byte="),
    ],
)
def test_bad_raw_file_is_exit_3_and_leaves_no_survey(
    geobatch: Any, raw: Path, tmp_path: Path, kind: str, says: str
) -> None:
    damage(raw, kind)
    outcome = geobatch("ingest", str(raw), str(tmp_path / "survey"), "--set", "geometry=grid")
    assert outcome.code == 3
    assert "raw.sgy" in outcome.message
    assert says in outcome.message
    assert not (tmp_path / "survey" / "zarr.json").exists()


def test_missing_bucket_is_exit_2(geobatch: Any, s3: str, raw: Path) -> None:
    outcome = geobatch("ingest", "s3://no-such-bucket/raw.sgy", join_url(s3, "survey"))
    assert (outcome.code, "bucket does not exist" in outcome.message) == (2, True)
    outcome = geobatch("ingest", str(raw), "s3://no-such-bucket/survey")
    assert (outcome.code, "bucket does not exist" in outcome.message) == (2, True)


def test_wrong_credentials_are_exit_2(geobatch: Any, raw: Path) -> None:
    with local_s3(require_credentials=True) as server, environment(server.environment):
        outcome = geobatch("ingest", str(raw), "s3://bucket/survey")
    assert (outcome.code, "refused the credentials" in outcome.message) == (2, True)


def test_unwritable_output_is_exit_2(geobatch: Any, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    outcome = geobatch("ingest", str(raw), str(tmp_path / "file" / "survey"))
    assert (outcome.code, "cannot write" in outcome.message) == (2, True)


def score_job(tmp_path: Path, **keys: Any) -> str:
    volume = write_survey(str(tmp_path / "survey"), random_volume((20, 20, 20)))
    write_bundle(str(tmp_path / "bundle"), volume)
    places = {name: str(tmp_path / name) for name in ("survey", "bundle", "output")}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"job": "score", **places, "resources": {"cpus": 0.5}, **keys}))
    return str(path)


def test_unknown_job_key_names_the_nearest(geobatch: Any, tmp_path: Path) -> None:
    outcome = geobatch("run", score_job(tmp_path, probabilites="uint8"))
    assert outcome.code == 2
    assert "found probabilites" in outcome.message
    assert "Did you mean probabilities?" in outcome.message


def test_bundle_that_was_changed_is_exit_3(geobatch: Any, tmp_path: Path) -> None:
    job = score_job(tmp_path)
    weights = tmp_path / "bundle" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    outcome = geobatch("run", job)
    assert (outcome.code, "model.safetensors differs from its hash" in outcome.message) == (3, True)
    job = score_job(tmp_path)
    description = tmp_path / "bundle" / "bundle.json"
    description.write_text(description.read_text().replace('"shale"', '"salt"'))
    outcome = geobatch("run", job)
    assert (outcome.code, "changed after it was written" in outcome.message) == (3, True)
    assert not (tmp_path / "output").exists()


def test_unwritable_scored_output_is_exit_2_before_any_block(geobatch: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    outcome = geobatch("run", score_job(tmp_path), "--set", f"output={tmp_path}/file/scored")
    assert (outcome.code, "cannot write" in outcome.message) == (2, True)


def test_missing_survey_bundle_and_job_are_exit_2(geobatch: Any, tmp_path: Path) -> None:
    job = score_job(tmp_path)
    assert geobatch("run", str(tmp_path / "nothing.yaml")).code == 2
    assert geobatch("run", job, "--set", f"survey={tmp_path}/nothing").code == 2
    assert geobatch("run", job, "--set", f"bundle={tmp_path}/nothing").code == 2
    assert geobatch("run", job, "--set", "noequals").code == 2
    assert geobatch("nonsense").code == 2


@pytest.mark.usefixtures("ray_cluster")
def test_line_from_segy_to_segy_and_report_by_commands(geobatch: Any, s3: str, tmp_path: Path) -> None:
    write_segy(SyntheticSurvey((24, 20, 40), 1), join_url(s3, "raw.sgy"))
    survey, scored = join_url(s3, "survey"), join_url(s3, "scored")
    assert geobatch("ingest", join_url(s3, "raw.sgy"), survey, "--json").code == 0
    described = json.loads(geobatch("inspect", survey, "--json").out)
    assert described
    assert "inline" in geobatch("inspect", survey).out
    write_bundle(str(tmp_path / "bundle"), random_volume((20, 20, 20)))
    job = score_job(tmp_path)
    places = ["--set", f"survey={survey}", "--set", f"output={scored}"]
    assert json.loads(geobatch("plan", job, *places).out)["blocks"] == 1
    assert json.loads(geobatch("run", job, *places, "--json").out)["blocks"]["scored"] == 1
    assert geobatch("export", scored, str(tmp_path / "sand.sgy"), "--variable", "probability:sand").code == 0
    assert (tmp_path / "sand.sgy").stat().st_size == open_storage(s3).size("raw.sgy")
    assert geobatch("report", scored, "--to", str(tmp_path / "report.html")).code == 0
    assert "<html" in (tmp_path / "report.html").read_text()


def test_schema_is_json(geobatch: Any) -> None:
    assert json.loads(geobatch("schema").out)["oneOf"]


def test_driver_that_dies_without_a_word_is_told_by_its_parent(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("job: score")
    command = [sys.executable, "-m", "geobatch.cli", "run", str(tmp_path / "job.yaml")]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.01)
    children[0].kill()
    _, message = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "driver ended without a word (SIGKILL)" in " ".join(message.split())
