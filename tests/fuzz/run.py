"""Fuzzing guided by coverage: python tests/fuzz/run.py TARGET [--runs 200000]

A crash, a hang of more than 10 s or more than 2 GiB of memory ends it with what caused them, stored in the working
folder.
"""

from __future__ import annotations

import argparse
import operator
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (0, 1, 2)]
with atheris.instrument_imports(include=["geobatch"]):
    from targets import TARGETS, execute

COMPARISONS = (operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge)


def heard(trace: Callable[..., Any]) -> Callable[..., Any]:
    """The hook that atheris 3.0.0 puts in place of comparisons, for what it learns from; other results it leaks."""

    def compare(left: Any, right: Any, operation: int, *rest: Any) -> Any:
        if type(left) in (int, str, bytes) and type(right) is type(left):
            return trace(left, right, operation, *rest)
        return COMPARISONS[operation](left, right)

    return compare


def main() -> None:
    """Run one target; exits as libFuzzer does, 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, nargs="?")
    parser.add_argument("--list", action="store_true", help="print the names of all targets")
    parser.add_argument("--runs", type=int, default=200_000)
    options = parser.parse_args()
    if options.list:
        print(*TARGETS)
        return
    # Files of a fuzzed run live in memory where the system has such a place.
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as name:
        folder, corpus = Path(name), Path(name) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(TARGETS[options.target].seeds(folder)):
            (corpus / f"seed-{number}").write_bytes(seed)
        limits = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-seed=1"]
        artifacts = f"-artifact_prefix={Path.cwd()}/{options.target}-"
        begun, executed = time.monotonic(), 0

        def once(data: bytes) -> None:
            nonlocal executed
            # atheris sets its hook as fuzzing begins.
            if atheris._trace_cmp.__name__ != "compare":
                atheris._trace_cmp = heard(atheris._trace_cmp)
            execute(options.target, data, folder)
            executed += 1
            if executed == options.runs:
                print(f"{options.target}: {executed} executions in {time.monotonic() - begun:.0f} s", flush=True)
                shutil.rmtree(folder)
                # libFuzzer's own end waits for threads of Arrow that never end.
                os._exit(0)

        atheris.Setup([sys.argv[0], *limits, artifacts, str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
