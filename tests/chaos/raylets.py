"""A Ray cluster on this machine, to be killed in parts: a head without CPUs and raylets, a session of processes each.

The driver of a job joins it as it would join any cluster, by `RAY_ADDRESS`. Everything is ended by process id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from geobatch.storage import open_storage

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 180.0


class Machine:
    """The processes of one `ray start`, as one machine of the cluster."""

    def __init__(self, folder: Path, environment: dict[str, str], *options: str) -> None:
        self.folder = folder
        folder.mkdir()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += [f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", f"--object-store-memory={80 * 2**20}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += ["--include-log-monitor=false"]
        with (folder / "start.log").open("w") as log:
            # A session of its own: its number tells the processes of this machine from all others.
            self.start = subprocess.Popen(
                command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
            )

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The living processes of this machine, those with `title` in their command line."""
        return [p for p in psutil.process_iter() if _session(p.pid) == self.start.pid and title in _command(p)]

    def replicas(self) -> list[psutil.Process]:
        """The living replicas of scoring runs on this machine."""
        return self.processes("ServeReplica:score-")

    def has_joined(self) -> bool:
        """True once it takes work; the test fails when it could not start."""
        told = (self.folder / "start.log").read_text()
        assert self.start.poll() is None, told
        return "Ray runtime started" in told

    def node_id(self) -> str:
        """The id of its raylet."""
        (raylet,) = self.processes("raylet/raylet")
        return _option(raylet, "--node_id")

    def kill(self) -> None:
        """End every process at once, as when the machine loses power."""
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)
            self.start.poll()


class Cluster:
    """A head and its raylets."""

    def __init__(self) -> None:
        # Socket names have room for a hundred characters only.
        self._folder = Path(tempfile.mkdtemp(prefix="rc-"))
        self.address = f"127.0.0.1:{_free_port()}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests/chaos"))),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_TMPDIR": str(self._folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.raylets: list[Machine] = []
        self._count = 0
        port = self.address.rpartition(":")[2]
        options = ("--head", f"--port={port}", f"--ray-client-server-port={_free_port()}", "--num-cpus=0")
        self.head = Machine(self._folder / "head", self.environment, *options, "--include-dashboard=false")

    def add_raylet(self) -> Machine:
        """Another machine of one CPU joins, as soon as the head answers."""
        wait_until(self._head_answers, f"head answers at {self.address}")
        self._count += 1
        options = (f"--address={self.address}", "--num-cpus=1")
        self.raylets.append(Machine(self._folder / str(self._count), self.environment, *options))
        return self.raylets[-1]

    def remove(self, raylet: Machine) -> None:
        """A machine loses power."""
        raylet.kill()
        self.raylets.remove(raylet)

    def resize(self, count: int) -> None:
        """Return when `count` raylets take work."""
        while len(self.raylets) > count:
            self.remove(self.raylets[-1])
        while len(self.raylets) < count:
            self.add_raylet()
        wait_until(lambda: all(raylet.has_joined() for raylet in self.raylets), "raylets join")

    def replicas(self) -> list[psutil.Process]:
        """The living replicas of scoring runs."""
        return [replica for raylet in self.raylets for replica in raylet.replicas()]

    def drain(self, raylet: Machine, deadline_s: int) -> Callable[[], float]:
        """A function that announces that a machine will be taken away, and returns when it did, by `time.time`."""
        script = (
            "import time, ray; from ray.core.generated import autoscaler_pb2; "
            f"head = ray._raylet.GcsClient(address={self.address!r}); print('ready', flush=True); input(); "
            "reason = autoscaler_pb2.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION'); now = time.time(); "
            f"accepted = head.drain_node({raylet.node_id()!r}, reason, 'reclaimed', int((now + {deadline_s}) * 1000)); "
            "assert accepted[0], accepted; print(now, flush=True)"
        )
        # What takes long, the imports, is over before the notice.
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout and process.stdout.readline() == "ready\n"

        def announce() -> float:
            told, _ = process.communicate("now\n", timeout=60)
            assert process.returncode == 0
            return float(told)

        return announce

    def evaluate(self, expression: str) -> Any:
        """The value of a Python expression over `ray` and `serve`, in a process connected to this cluster."""
        script = (
            "import json, logging, ray; from ray import serve; "
            "ray.init(log_to_driver=False, logging_level=logging.ERROR); "
            f"print(json.dumps({expression}))"
        )
        command = [sys.executable, "-W", "ignore", "-c", script]
        done = subprocess.run(
            command,
            env=self.driver_environment,
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return json.loads(done.stdout.splitlines()[-1])

    @property
    def driver_environment(self) -> dict[str, str]:
        """The environment of a process that joins this cluster."""
        return {**self.environment, "RAY_ADDRESS": self.address}

    def close(self) -> None:
        """End everything that was started."""
        for machine in [self.head, *self.raylets]:
            machine.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _head_answers(self) -> bool:
        assert self.head.start.poll() is None, (self.head.folder / "start.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self.address[10:])), timeout=1):
            return True
        return False


@contextlib.contextmanager
def cluster(raylets: int) -> Iterator[Cluster]:
    """A cluster of so many raylets, all of which have joined."""
    started = Cluster()
    try:
        started.resize(raylets)
        yield started
    finally:
        started.close()


class Command:
    """A running `geobatch run`.

    Args:
        on: The cluster.
        job: The job document.
        folder: Where job file and messages go.
    """

    def __init__(self, on: Cluster, job: dict[str, Any], folder: Path) -> None:
        self.output = job["output"]
        base = folder / f"command-{uuid.uuid4().hex[:8]}"
        base.with_suffix(".yaml").write_text(yaml.safe_dump(job))
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "geobatch.cli",
            "run",
            str(base.with_suffix(".yaml")),
            "--json",
        ]
        self._out, self._err = base.with_suffix(".out"), base.with_suffix(".err")
        self.started = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command, env=on.driver_environment, cwd=REPOSITORY, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def messages(self) -> str:
        """What it told its user so far."""
        return self._err.read_text()

    def wait_for_shards(self, count: int) -> None:
        """Return when its output has at least `count` shards of `class_map`."""

        def there() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.poll()}: {self.messages}"
            return len(shards(self.output)) >= count

        wait_until(there, f"{count} shards", every_s=0.05)

    def summary(self) -> dict[str, Any]:
        """Its result, once it ended well."""
        code = self.wait()
        assert code == 0, self.messages
        return json.loads(self._out.read_text())

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(timeout=2 * PATIENCE_S)

    def kill(self) -> None:
        """End the command and the driver that it watches at once, as when their machine loses power."""
        for process in psutil.process_iter():
            if _session(process.pid) == self.process.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def shards(output: str) -> dict[str, int]:
    """Size by key of the stored shards of `class_map`."""
    with contextlib.suppress(OSError):
        return {key: size for key, size in open_storage(output).list("class_map") if "/c/" in key}
    return {}


def output_hash(output: str) -> str:
    """SHA-256 over the names and bytes of all shards."""
    storage, digest = open_storage(output), hashlib.sha256()
    for key in sorted(key for key, _ in storage.list() if "/c/" in key and not key.startswith("_geobatch")):
        digest.update(key.encode() + hashlib.sha256(storage.get(key)).digest())
    return digest.hexdigest()


def wait_until(true: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S, every_s: float = 0.2) -> float:
    """Seconds until the condition held; the test fails when it does not in time."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < patience_s, f"not within {patience_s} s: {what}"
        time.sleep(every_s)
    return time.monotonic() - started


def kill(process: psutil.Process) -> None:
    """End one process at once."""
    os.kill(process.pid, signal.SIGKILL)


def _session(process_id: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(process_id)
    return -1


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _option(process: psutil.Process, name: str) -> str:
    for argument in process.cmdline():
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    raise AssertionError(f"no {name} in {process.cmdline()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
