from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent


def test_interrupted_demo_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    # Not under tmp_path: the socket names of a Ray cluster may have 107 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="gb-"))
    environment = {**os.environ, "TMPDIR": str(scratch)}
    environment.pop("AWS_ENDPOINT_URL", None)
    # Where the tests run in the background, interrupts are ignored by all that they start.
    heard = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    own = [sys.executable, "-u", "-m", "geobatch.cli", "demo", "--keep", str(tmp_path / "kept")]
    command = [sys.executable, "-c", heard, *own]
    log = tmp_path / "log"
    with log.open("wb") as out:
        demo = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
        _wait_for(log, "raw/1.sgy", demo)
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) >= 3, "an S3 server and a Ray cluster are running"
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(timeout=60) == 130, log.read_text()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not list(scratch.glob("geobatch-demo-*"))
    assert "Interrupted" in log.read_text()
    shutil.rmtree(scratch)


def _wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if text in log.read_text():
            return
        if process.poll() is not None:
            pytest.fail(f"the demo ended with {process.returncode}: {log.read_text()}")
        time.sleep(0.2)
    pytest.fail(f"no {text!r} within 180 s: {log.read_text()}")
