"""Ingest in plain processes, each of which can be told where to end.

    line = IngestLine(folder)
    run = line.start(job, Fault(at=17))
    run.wait().signal == SIGKILL
    line.start(job).wait().summary

Besides what `struck` watches, the scan of each part of a source and the writing of each piece are points.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A first use imports these, which would be once per process.
import pyproj  # noqa: F401
import rasterio  # noqa: F401
import ray  # noqa: F401
from struck import Fault, Orders, Outcome, Run, Trace, forkserver, obeying

import geobatch.fanout
import geobatch.formats.logs
import geobatch.formats.miniseed
import geobatch.formats.raster
from geobatch.errors import GeobatchError
from geobatch.formats import ingest_job
from geobatch.formats.ingestion import Ingestion
from geobatch.formats.spec import IngestJob


class IngestLine:
    """Starts ingests; their traces lie in `folder`.

    Args:
        folder: An empty folder.
        environment: Of every process, such as the endpoint of an S3 server.
        settings: Constants of modules to change in every process, by their dotted names.
        at_once: How many pieces are in flight at a time.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        settings: Mapping[str, float] | None = None,
        at_once: int = 1,
    ) -> None:
        self.folder, self.at_once = folder, at_once
        self.environment, self.settings = environment or {}, settings or {}
        self.runs: list[Run] = []

    def start(self, job: IngestJob, fault: Fault | None = None) -> Run:
        """Start one; it is struck at its fault."""
        context = forkserver()
        trace = self.folder / f"trace-{len(self.runs):04d}"
        orders = Orders(job.output, str(trace), self.environment, self.settings)
        answer, theirs = context.Pipe()
        process = context.Process(target=_ingest, args=(theirs, job, orders, fault, self.at_once), daemon=True)
        process.start()
        theirs.close()
        self.runs.append(Run(process, [], answer, trace))
        return self.runs[-1]

    def close(self) -> None:
        """End every process that is left."""
        for run in self.runs:
            run.driver.kill()
            run.driver.join()


def _ingest(answer: Connection, job: IngestJob, orders: Orders, fault: Fault | None, at_once: int) -> None:
    with obeying(orders, "ingest", fault) as trace:
        for name, point in (("remembered", "scan"), ("write_together", "piece")):
            setattr(Ingestion, name, _watched(getattr(Ingestion, name), point, trace))
        if at_once > 1:
            geobatch.fanout._in_process = functools.partial(_several_at_once, at_once)
        try:
            answer.send(Outcome(summary=ingest_job(job)))
        except GeobatchError as error:
            answer.send(Outcome(error=error))
    os._exit(0)


def _watched(method: Callable[..., Any], point: str, trace: Trace) -> Callable[..., Any]:
    """A method of `Ingestion` that runs a function on items, or on some of them together; each becomes a point."""

    @functools.wraps(method)
    def watched(self: Ingestion, *given: Any, **how: Any) -> Any:
        at = next(n for n, one in enumerate(given) if callable(one))
        function, items = given[at], given[at + 1]

        def passing(work: Any) -> Any:
            numbers = [n for n, one in enumerate(items) if one is work or (type(work) is list and _holds(work, one))]
            with contextlib.ExitStack() as points:
                for number in numbers:
                    points.enter_context(trace.around(f"{point} {number}"))
                return function(work)

        return method(self, *given[:at], passing, *given[at + 1 :], **how)

    return watched


def _holds(works: list[Any], item: Any) -> bool:
    return any(one is item for one in works)


def _several_at_once(
    count: int, function: Callable[[Any], Any], items: Sequence[Any], task_bytes: int
) -> Iterator[tuple[int, Any]]:
    """Results as they come, with so many items in flight, one that is being received included."""
    waiting, running = iter(enumerate(items)), dict[Future[Any], int]()
    with ThreadPoolExecutor(count) as threads:
        while True:
            while len(running) < count and (entry := next(waiting, None)) is not None:
                running[threads.submit(function, entry[1])] = entry[0]
            if not running:
                return
            done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            yield running[done], done.result()
            del running[done]
