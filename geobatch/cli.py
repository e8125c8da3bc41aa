"""The command line: names, options and exit codes; the work is done elsewhere."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from geobatch import watch
from geobatch.errors import GeobatchError

INTERRUPTED = 130
WATCHED = ("run", "repair", "retry")
UNITS = {
    "ingest": "parts",
    "label": "shards",
    "preprocess": "shards",
    "train": "steps",
    "compare": "folds",
    "tune": "trials",
    "score": "blocks",
    "evaluate": "blocks",
}
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
messages = Console(stderr=True, highlight=False)

Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, replaces a key of the job file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ScoredUrl = Annotated[str, typer.Argument(help="URL of a scored survey.")]
WrittenUrl = Annotated[str, typer.Argument(help="URL of a scored or an ingested survey.")]
Source = Annotated[str, typer.Argument(help="s3://bucket/key or a path.")]


@app.command()
def ingest(
    src: Source,
    dst: Annotated[str, typer.Argument(help="URL of the survey to write.")],
    format_name: Annotated[str | None, typer.Option("--format", help="By the suffix if absent.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="key=value, an option of the format.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a survey that is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a survey (sharded Zarr) from a raw file or folder; `geobatch formats` lists formats and their options."""
    from geobatch.formats import find_format
    from geobatch.job import parse_job, run_job, with_overrides

    document = {"job": "ingest", "source": src, "output": dst, "format": format_name, "overwrite": overwrite}
    job = parse_job(with_overrides(document, [f"options.{option}" for option in options or []]), "ingest")
    with _Progress("ingest", find_format(src, format_name)[1].unit) as update:
        summary = run_job(job, on_progress=update)
    _print_result(summary, as_json)


@app.command()
def formats(as_json: AsJson = False) -> None:
    """The raw formats that ingest reads, with the options of each."""
    from geobatch.formats import FORMATS, option_table

    if as_json:
        _print_result({name: format_.options.model_json_schema() for name, format_ in FORMATS.items()}, True)
        return
    for name, format_ in FORMATS.items():
        print(f"{name}: {format_.about} ({', '.join(format_.suffixes) or 'by --format'})")
        for option, about in option_table(name):
            print(f"    {option}: {about}")


@app.command()
def inspect(
    url: Source,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Of a raw source; by the suffix if absent.")
    ] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="key=value, an option of the format.")] = None,
    page: Annotated[str | None, typer.Option("--html", help="Also write a page with pictures: a path or URL.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a survey or a raw source holds, suspicious things first; on request as a page with pictures."""
    from geobatch.inspect import look, render_text, write_page
    from geobatch.job import with_overrides

    found = look(url, format_name=format_name, options=with_overrides({}, options or []))
    # The page comes first: whoever reads the text may stop after its first lines.
    if page is not None:
        messages.print(f"Page written to {write_page(found, page)}", markup=False)
    if as_json:
        _print_result(found.told, True)
    else:
        print(render_text(found.told))


@app.command()
def run(
    job_file: Annotated[str, typer.Argument(help="A job file.")],
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option(help="Score data of another kind than the bundle's.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a job: ingest, preprocess, train, tune or score."""
    from geobatch.job import load_job, run_job

    job = load_job(job_file, overrides or [])
    with _Progress(job.name, UNITS[job.job]) as update:
        result = run_job(job, force=force, on_progress=update)
    if job.job == "tune" and not as_json:
        from geobatch.report.tuning import short_table

        _print_table(*short_table(result))
        result = {key: result[key] for key in ("metric", "bundle", "hash", "page")}
    _print_result(result, as_json)


@app.command()
def plan(
    job_file: Annotated[str, typer.Argument(help="A job file.")],
    overrides: Overrides = None,
    calibrate: Annotated[int, typer.Option(help="Score so many blocks, and forecast time and cost from them.")] = 0,
    simulate: Annotated[int, typer.Option(help="Imagine runs with up to so many replicas.")] = 0,
    preemptions_per_hour: Annotated[float, typer.Option(help="How often a simulated replica is taken away.")] = 0.0,
) -> None:
    """Blocks, patch, bytes and memory of a scoring job; on request its time, cost and scaling."""
    from geobatch.job import forecast, load_job

    job = load_job(job_file, overrides or [])
    told = forecast(job, calibrate=calibrate, simulate=simulate, preemptions_per_hour=preemptions_per_hour)
    _print_result(told, True)


@app.command()
def verify(output: WrittenUrl, as_json: AsJson = False) -> None:
    """Read every object of a scored or an ingested survey again and compare it with its receipt."""
    from dataclasses import asdict

    from geobatch.formats.ingest_check import REMEDY, verify_ingested
    from geobatch.formats.manifest import is_ingested
    from geobatch.proof import require_sound
    from geobatch.score.verify import verify as run_verify

    ingested = is_ingested(output)
    with _Progress("verify", "objects") as update:
        check = verify_ingested if ingested else run_verify
        result = check(output, on_progress=lambda done, total: update(done, total, ""))
    _print_result(asdict(result), as_json)
    require_sound(result, output, REMEDY if ingested else "")


@app.command()
def repair(output: WrittenUrl, as_json: AsJson = False) -> None:
    """Have what is missing or damaged written again, and that alone: scored here, ingested by the next ingest."""
    from geobatch.formats.ingest_check import repair_ingested
    from geobatch.formats.manifest import is_ingested
    from geobatch.score.run import repair as run_repair

    if is_ingested(output):
        with _Progress("repair", "objects") as update:
            result = repair_ingested(output, on_progress=lambda done, total: update(done, total, ""))
    else:
        with _Progress("repair", "blocks") as update:
            result = run_repair(output, on_progress=lambda progress: update(progress.done, progress.total, ""))
    _print_result(result, as_json)


@app.command()
def retry(output: ScoredUrl, as_json: AsJson = False) -> None:
    """Score the dead letters of a scored survey once more."""
    from geobatch.score.run import retry as run_retry

    with _Progress("retry", "blocks") as update:
        result = run_retry(output, on_progress=lambda progress: update(progress.done, progress.total, ""))
    _print_result(result, as_json)


@app.command()
def export(
    src: Source,
    dst: Annotated[str, typer.Argument(help="URL of the file to write, or of an MDIO group: NAME.mdio.")],
    variable: Annotated[str | None, typer.Option(help="class_map, probability:NAME or the survey's volume.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a survey as a file: SEG-Y or MDIO, a raster as COG, a catalogue as Parquet, CSV or QuakeML."""
    from geobatch.formats.export import export_survey

    _print_result(export_survey(src, dst, variable=variable, overwrite=overwrite), as_json)


@app.command()
def report(
    output: Annotated[str, typer.Argument(help="URL of a scored survey.")],
    to: Annotated[str | None, typer.Option(help="Where the HTML file goes; beside the output by default.")] = None,
    labels: Annotated[str | None, typer.Option(help="URL of true labels to compare with.")] = None,
    inline: Annotated[int | None, typer.Option(help="Inline number to show; the middle one by default.")] = None,
    crossline: Annotated[int | None, typer.Option(help="Crossline number to show.")] = None,
    sample: Annotated[float | None, typer.Option(help="Time or depth of the slice to show.")] = None,
) -> None:
    """Write one self-contained HTML page about a scored survey."""
    from geobatch.report import SectionChoice, write_report

    choice = SectionChoice(inline=inline, crossline=crossline, sample=sample)
    print(write_report(output, to, choice=choice, labels=labels))


@app.command()
def evaluate(
    scored: Annotated[str, typer.Argument(help="URL of a scored survey.")],
    labels: Annotated[str, typer.Argument(help="URL of true labels on the same grid.")],
    as_json: AsJson = False,
) -> None:
    """Pixel accuracy, mean class accuracy, FWIoU and F1 per class of a scored survey."""
    from geobatch.train.evaluate import evaluate as run_evaluate

    _print_result(run_evaluate(scored, labels), as_json)


@app.command()
def serve(
    bundle: Annotated[str, typer.Argument(help="URL of a bundle.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine only with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    token_file: Annotated[str | None, typer.Option(help="File with the token; else GEOBATCH_TOKEN.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="Root of surveys and outputs that may be read.")] = None,
    replicas: Annotated[int, typer.Option(help="Replicas that are kept.", min=1)] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="Replicas under load.", min=1)] = None,
    cpus: Annotated[float, typer.Option(help="CPUs a replica reserves.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs a replica reserves.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads of a replica.", min=1)] = 1,
    max_voxels: Annotated[int | None, typer.Option(help="Most voxels of a request; what memory allows.", min=1)] = None,
) -> None:
    """Answer predictions over HTTP until interrupted."""
    from geobatch.online.command import run_server

    run_server(
        messages.print,
        bundle=bundle,
        host=host,
        port=port,
        token_file=token_file,
        allow=allow or [],
        replicas=replicas,
        max_replicas=max_replicas,
        cpus=cpus,
        gpus=gpus,
        threads=threads,
        max_voxels=max_voxels,
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files."""
    from geobatch.job import job_schema

    print(json.dumps(job_schema(), indent=2))


@app.command()
def demo(
    keep: Annotated[str | None, typer.Option(help="Folder for the report and exported files.")] = None,
) -> None:
    """Run the whole line on synthetic surveys against an S3 server started here."""
    from geobatch.demo import run_demo

    run_demo(Path(keep) if keep else Path("demo-output"))


def main() -> None:
    """Run the command line; errors of ours become one sentence and an exit code."""
    if sys.argv[1:2] and sys.argv[1] in WATCHED and not watch.is_watched():
        sys.exit(watch.watch(sys.argv[1:], lambda sentence: messages.print(sentence, markup=False)))
    # A terminated run leaves as an interrupted one does: receipts stored, replicas and cluster gone.
    signal.signal(signal.SIGTERM, _interrupt)
    if watch.is_watched():
        watch.heed_parent()
    # Ray prints what raylets tell on a driver's stdout, where nothing but the result belongs.
    with contextlib.redirect_stdout(sys.stderr) if watch.is_watched() else contextlib.nullcontext():
        code = _command()
    if "ray" in sys.modules:
        from geobatch import cluster

        cluster.disconnect()
    watch.say(code)
    sys.exit(code)


def _command() -> int:
    """The exit code of the command that was given."""
    try:
        # Typer turns an interrupt into the exit code that it returns here; our commands return nothing.
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except GeobatchError as error:
        messages.print(f"[bold red]{type(error).__name__}[/]", end=" ")
        messages.print(str(error), markup=False)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        messages.print("Interrupted. What is done is kept: run the same command to go on.")
        return INTERRUPTED
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):
            messages.print(error.format_message(), markup=False)
            return 2
        traceback.print_exc()
        return 1
    return code if isinstance(code, int) else 0


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    results = sys.__stdout__ if watch.is_watched() else sys.stdout
    if as_json:
        print(json.dumps(result, indent=2, default=str), file=results)
        return
    from rich.pretty import pprint

    pprint(result, console=Console(highlight=True, file=results), expand_all=True)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose last column takes the room that is left."""
    from rich.table import Column, Table

    table = Table(*(Column(name, no_wrap=name != header[-1], overflow="fold") for name in header), box=None)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, file=sys.__stdout__ if watch.is_watched() else sys.stdout).print(table)


class _Progress:
    """A bar when a person watches, a plain line every few seconds when not."""

    def __init__(self, title: str, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._title, self._unit = title, unit
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        self._bar = Progress(*columns, TimeElapsedColumn(), console=messages, disable=not messages.is_terminal)
        self._last_line = 0.0

    def __enter__(self) -> Callable[[int, int, str], None]:
        self._bar.start()
        task = self._bar.add_task(self._title, total=None)
        told = ""

        def update(done: int, total: int, news: str = "") -> None:
            nonlocal told
            self._bar.update(task, completed=done, total=total)
            if news != told:
                told = news
                messages.print(news)
            due = time.monotonic() - self._last_line > 5 or done == total
            if not messages.is_terminal and due:
                self._last_line = time.monotonic()
                messages.print(f"{self._title}: {done} of {total} {self._unit}")

        return update

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


if __name__ == "__main__":
    main()
