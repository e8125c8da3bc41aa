"""The whole line on synthetic surveys, against an S3 server on loopback: raw file in a bucket to report."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from geobatch import cluster
from geobatch.errors import IncompleteError, UsageError
from geobatch.local_s3 import environment, local_s3

BUCKET = "geobatch-demo"
SHAPE = (144, 144, 144)
UNSEEN_SHAPE = (176, 160, 192)
TRAINING_SEEDS = (1, 2, 3, 4)
UNSEEN_SEED = 101
LEAST_CLASS_ACCURACY = 0.7
LEAST_FAULT_F1 = 0.5
JOBS = Path("jobs")

Report = Callable[[int, int, str], None]


@dataclass
class Stages:
    """Runs the stages one by one, says what is going on, and keeps their times."""

    console: Console
    times: list[tuple[str, float, str]] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str], None]]:
        """A context that times one stage; what it is given last is the stage's result in one line."""
        self.console.print(f"[bold]{title}[/]")
        results: list[str] = []
        start = time.perf_counter()
        yield results.append
        seconds = time.perf_counter() - start
        result = results[-1] if results else ""
        self.console.print(f"  {seconds:.1f} s  {result}", highlight=False)
        self.times.append((title, seconds, result))

    def table(self) -> Table:
        """All stages with their times."""
        table = Table("stage", "seconds", "result", title="geobatch demo")
        for title, seconds, result in self.times:
            table.add_row(title, f"{seconds:.1f}", result)
        table.add_section()
        table.add_row("in all", f"{sum(seconds for _, seconds, _ in self.times):.1f}", "")
        return table


def run_demo(folder: Path) -> dict[str, Any]:
    """Run the demo; leave report, bundle and exported SEG-Y in `folder`, and nothing else, no process either.

    Returns:
        The evaluation of the unseen survey.

    Raises:
        UsageError: it is not run from a checkout, whose job files it uses.
        IncompleteError: the network missed the accuracy the demo promises.
    """
    for name in ("train_synthetic.yaml", "score_synthetic.yaml"):
        if not (JOBS / name).is_file():
            raise UsageError("job file of the demo is missing", where=str(JOBS / name), remedy="Run it in a checkout.")
    stages = Stages(Console(highlight=False))
    try:
        with tempfile.TemporaryDirectory(prefix="geobatch-demo-") as scratch:
            return _run_stages(stages, folder, Path(scratch))
    finally:
        cluster.disconnect()


def _run_stages(stages: Stages, folder: Path, scratch: Path) -> dict[str, Any]:
    base = f"s3://{BUCKET}"
    with contextlib.ExitStack() as stack:
        with stages.stage("start an S3 server and a Ray cluster") as done:
            server = stack.enter_context(local_s3(BUCKET, folder=scratch))
            stack.enter_context(environment(server.environment))
            cluster.connect(cpus=2)
            done(f"{server.endpoint}, bucket {BUCKET}")
        with stages.stage("make synthetic SEG-Y files and labels in the bucket") as done:
            done(_make_raw_files(stages, base))
        with stages.stage("ingest SEG-Y to surveys") as done:
            done(_ingest(base))
        with stages.stage("train on 2 Ray Train workers") as done:
            done(_train(stages, base))
        with stages.stage("score the unseen survey through Ray Serve") as done:
            done(_score(stages, base))
        with stages.stage("evaluate against the true labels") as done:
            figures = _evaluate(base)
            done(_figures_line(figures))
        with stages.stage("export the faults to SEG-Y and write the report") as done:
            report = _export_and_report(base, folder)
            done(str(report))
    stages.console.print(stages.table())
    stages.console.print(f"Report: {report.absolute()}", soft_wrap=True)
    if figures["mean_class_accuracy"] < LEAST_CLASS_ACCURACY or figures["fault_f1"] < LEAST_FAULT_F1:
        raise IncompleteError(
            "the network missed what the demo promises",
            measured=_figures_line(figures),
            limit=f"mean class accuracy {LEAST_CLASS_ACCURACY}, fault F1 {LEAST_FAULT_F1}",
        )
    return figures


def _make_raw_files(stages: Stages, base: str) -> str:
    from geobatch.interpretation.synthetic import SyntheticSurvey
    from geobatch.interpretation.synthetic_files import write_labels, write_segy

    surveys = [(f"{k}", SHAPE, seed) for k, seed in enumerate(TRAINING_SEEDS, 1)]
    for name, shape, seed in [*surveys, ("unseen", UNSEEN_SHAPE, UNSEEN_SEED)]:
        synthetic = SyntheticSurvey.varied(shape, seed)
        write_segy(synthetic, f"{base}/raw/{name}.sgy")
        write_labels(synthetic, f"{base}/labels/{name}")
        stages.console.print(f"  raw/{name}.sgy, {shape[0]} x {shape[1]} traces of {shape[2]} samples")
    return f"{len(TRAINING_SEEDS)} training surveys, 1 unseen"


def _ingest(base: str) -> str:
    from geobatch.formats import ingest

    shapes = []
    for name in [*(str(k) for k in range(1, len(TRAINING_SEEDS) + 1)), "unseen"]:
        summary = ingest(f"{base}/raw/{name}.sgy", f"{base}/surveys/{name}", crs="EPSG:23031")
        shapes.append("x".join(map(str, summary["shape"])))
    return ", ".join(shapes)


def _train(stages: Stages, base: str) -> str:
    from geobatch.job import load_job, run_job

    places = [f"output={base}/bundle"]
    for k in range(len(TRAINING_SEEDS)):
        places += [f"data.{k}.survey={base}/surveys/{k + 1}", f"data.{k}.labels={base}/labels/{k + 1}"]
    summary = run_job(load_job(str(JOBS / "train_synthetic.yaml"), places), on_progress=_liner(stages, "steps"))
    return f"loss {summary['loss']:.3f}, bundle {base}/bundle"


def _score(stages: Stages, base: str) -> str:
    from geobatch.job import load_job, run_job

    places = [f"survey={base}/surveys/unseen", f"bundle={base}/bundle", f"output={base}/scored"]
    summary = run_job(load_job(str(JOBS / "score_synthetic.yaml"), places), on_progress=_liner(stages, "blocks"))
    return f"{summary['voxels']:,} voxels in {summary['blocks']['scored']} blocks, {summary['voxels_per_s']:,} voxels/s"


def _evaluate(base: str) -> dict[str, Any]:
    from geobatch.train.evaluate import evaluate

    return evaluate(f"{base}/scored", f"{base}/labels/unseen")


def _export_and_report(base: str, folder: Path) -> Path:
    from geobatch.formats.segy_export import export_segy
    from geobatch.models.bundle import load_bundle, save_bundle
    from geobatch.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    export_segy(f"{base}/scored", f"{base}/export/faults.sgy", variable="probability:fault", overwrite=True)
    export_segy(f"{base}/scored", str(folder / "faults.sgy"), variable="probability:fault", overwrite=True)
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    save_bundle(str(folder / "bundle"), load_bundle(f"{base}/bundle"))
    write_report(f"{base}/scored", folder / "report.html", labels=f"{base}/labels/unseen")
    return folder / "report.html"


def _figures_line(figures: dict[str, Any]) -> str:
    names = {
        "pixel accuracy": "pixel_accuracy",
        "mean class accuracy": "mean_class_accuracy",
        "FWIoU": "fwiou",
        "fault F1": "fault_f1",
    }
    return ", ".join(f"{name} {figures[key]:.3f}" for name, key in names.items())


def _liner(stages: Stages, unit: str) -> Report:
    """Progress as plain lines, at most one every five seconds."""
    last, told = 0.0, ""

    def line(done: int, total: int, news: str) -> None:
        nonlocal last, told
        if news != told or time.monotonic() - last > 5 or done == total:
            stages.console.print(f"  {done} of {total} {unit}{'; ' + news if news != told else ''}")
            last, told = time.monotonic(), news

    return line
