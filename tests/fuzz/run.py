"""Fuzzing guided by coverage: python tests/fuzz/run.py TARGET [--runs 200000]

A crash, a hang of more than 10 s or more than 2 GiB of memory ends it with what caused them, stored beside the corpus.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["geobatch"]):
    from targets import TARGETS, execute


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
        limits = [f"-runs={options.runs}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-seed=1"]
        artifacts = f"-artifact_prefix={Path.cwd()}/{options.target}-"
        atheris.Setup(
            [sys.argv[0], *limits, artifacts, str(corpus)], lambda data: execute(options.target, data, folder)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
