"""What every benchmark says beside its figures: the machine, the versions, the commit; and where it is stored."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


def record(name: str, figures: dict[str, Any]) -> None:
    """Store the figures under `results/<name>-<commit>.json` and print them as JSON on the last line."""
    from geobatch.score.run import versions

    document = {**figures, "machine": machine(), "versions": versions(), "commit": commit()}
    path = HERE / "results" / f"{name}-{document['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


def machine() -> dict[str, Any]:
    """Processors, their kind, memory in bytes and the system."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "processor": names[0] if names else platform.processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def commit() -> str:
    """The commit, with `-dirty` when the tree differs from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
