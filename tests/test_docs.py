"""What is written runs: the README's commands and code, the job files, and the paths that the documents name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml
from surveys import random_volume, write_bundle, write_survey

from geobatch.cli import app
from geobatch.job import load_job, parse_job
from geobatch.models import build_model
from geobatch.train.spec import TrainJob

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def readme_commands() -> list[str]:
    lines = [line.strip() for line in README.splitlines() if line.startswith("    geobatch ")]
    return [line.partition("#")[0].strip() for line in lines]


@pytest.mark.parametrize("command", readme_commands())
def test_readme_command_parses(command: str) -> None:
    group: Any = typer.main.get_command(app)
    name, *arguments = shlex.split(command)[1:]
    group.commands[name].make_context(name, arguments)


@pytest.mark.usefixtures("ray_cluster")
def test_readme_code_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    volume = write_survey(str(tmp_path / "f3"), random_volume((20, 20, 20)))
    write_bundle(str(tmp_path / "bundle"), volume)
    code = code.replace("s3://surveys/f3", str(tmp_path / "f3")).replace("s3://scored/f3", str(tmp_path / "scored"))
    code = code.replace("demo-output/bundle", str(tmp_path / "bundle"))
    code = code.replace("jobs/score_synthetic.yaml", str(ROOT / "jobs" / "score_synthetic.yaml"))
    code = code.replace('"output=', '"resources.cpus=0.5", "output=')
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["summary"]["blocks"]["scored"] == 1
    assert names["survey"]["amplitude"].shape == (20, 20, 20)


def test_readme_keys_of_a_scoring_job_are_valid() -> None:
    _, block = re.findall(r"```yaml\n(.*?)```", README, re.S)
    keys = yaml.safe_load(block)
    places = {"job": "score", "survey": "a", "bundle": "b", "output": "c"}
    together = [("mode", "overlap", "weights"), ("sections", "combine")]
    alone = [(key,) for key in keys if not any(key in group for group in together)]
    for group in [*together, *alone]:
        job = parse_job({**places, **{key: keys[key] for key in group}})
        assert not set(group) - set(job.model_fields_set)


def test_readme_model_of_another_library_is_valid_and_builds() -> None:
    pytest.importorskip("monai")
    block, _ = re.findall(r"```yaml\n(.*?)```", README, re.S)
    job = TrainJob.model_validate({"data": [{"survey": "a", "labels": "b"}], "output": "c", **yaml.safe_load(block)})
    network = build_model(job.model.build(1, 2, 3))
    assert network.eval()(torch.zeros(1, 1, 20, 33, 16)).shape == (1, 2, 20, 33, 16)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_job_file_is_valid(path: Path) -> None:
    assert load_job(str(path)).name


PACKAGES = [path.parent.name for path in (ROOT / "geobatch").glob("*/__init__.py")]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_files_that_exist(document: Path) -> None:
    folders = "|".join(["geobatch", "jobs", "tests", "benchmarks", "docs", *PACKAGES])
    named = set(re.findall(rf"`((?:{folders})/[\w/.-]+\.(?:py|yaml|json|md))[`\s]", document.read_text()))
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / "geobatch" / name).exists()]


def test_the_map_names_every_part_of_the_library() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    parts = [*(f"{name}/" for name in PACKAGES), *(path.name for path in (ROOT / "geobatch").glob("[a-z]*.py"))]
    assert not [part for part in parts if part not in text]


def test_wheel_holds_geobatch_and_nothing_else(tmp_path: Path) -> None:
    import subprocess
    import sys
    import zipfile

    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"geobatch"}
