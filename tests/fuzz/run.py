"""Fuzzing guided by coverage: python tests/fuzz/run.py TARGET [--runs 200000]

A crash, a hang of more than 10 s or more than 2 GiB of memory ends it with what caused them, stored in the working
folder. It runs in processes of 2,500 executions with one corpus: atheris keeps the result of every comparison of
arrays for good.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import atheris

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (0, 1, 2)]
with atheris.instrument_imports(include=["geobatch"]):
    from targets import TARGETS, execute

SLICE = 2_500


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
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(TARGETS[options.target].seeds(Path(name))):
            (corpus / f"seed-{number}").write_bytes(seed)
        begun = time.monotonic()
        for first in range(0, options.runs, SLICE):
            child = os.fork()
            if not child:
                fuzz(options.target, corpus, min(SLICE, options.runs - first), 1 + first // SLICE)
            if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                sys.exit(code)
        print(f"{options.target}: {options.runs} executions in {time.monotonic() - begun:.0f} s, nothing found")


def fuzz(target: str, corpus: Path, runs: int, seed: int) -> NoReturn:
    """Some of the executions, in this process, which ends here."""
    limits = [f"-runs={runs}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", f"-seed={seed}"]
    artifacts = f"-artifact_prefix={Path.cwd()}/{target}-"
    atheris.Setup(
        [sys.argv[0], *limits, artifacts, "-verbosity=0", str(corpus)],
        lambda data: execute(target, data, corpus.parent),
    )
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    main()
