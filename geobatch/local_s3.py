"""An S3 server of its own process on loopback, for the demo and the tests (moto's server; nothing is kept after it)."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geobatch.errors import UsageError

START_TIMEOUT_S = 60


@dataclass(frozen=True)
class LocalS3:
    """A running server: its endpoint, its credentials as AWS environment variables, and its process."""

    endpoint: str
    environment: dict[str, str]
    process_id: int


@contextlib.contextmanager
def local_s3(*buckets: str, require_credentials: bool = False, folder: Path | None = None) -> Iterator[LocalS3]:
    """A context with an S3 server on a free loopback port and random credentials, stopped at the end.

    The server watches a pipe from its parent, so that it ends with it, however that dies.

    Args:
        buckets: Buckets to create; not possible together with `require_credentials`.
        folder: Where large objects lie while the server runs; the system's folder for temporary files by default.
        require_credentials: Answer 403 to every credential, as a bucket of someone else does.

    Raises:
        UsageError: moto is not installed.
    """
    environment = dict(os.environ)
    if folder is not None:
        environment["TMPDIR"] = str(folder)
    if require_credentials:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    process = subprocess.Popen(
        [sys.executable, "-m", "geobatch.local_s3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        if not endpoint:
            raise UsageError("the local S3 server did not start", remedy="Install it: pip install 'geobatch[demo]'.")
        settings = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "local" + secrets.token_hex(8),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
        }
        for bucket in buckets:
            _create_bucket(bucket, settings)
        yield LocalS3(endpoint, settings, process.pid)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """A context in which the environment holds `settings`."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _create_bucket(bucket: str, settings: dict[str, str]) -> None:
    from geobatch.storage.s3 import create_bucket

    with environment(settings):
        create_bucket(bucket)


class _Unread:
    """The bytes of one of moto's objects, of which only the part that is sliced out is read."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def __len__(self) -> int:
        return int(self._key.size)

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        with self._key.lock:
            self._key._value_buffer.seek(start)
            return bytes(self._key._value_buffer.read(stop - start))


def _read_ranges() -> None:
    """Let moto read the range that a request asks for; by itself it reads the whole object for each."""
    from moto.s3 import models, responses

    stored: Any = models.FakeKey
    answers: Any = responses.S3Response
    asked = threading.local()
    get, cut, whole = answers.get_object, answers._handle_range_header, stored.value.fget

    def get_object(response: Any) -> Any:
        asked.range = bool(response.headers.get("range"))
        try:
            return get(response)
        finally:
            asked.range = False

    def handle_range(response: Any, request: Any, headers: Any, content: Any) -> Any:
        status, headers, body = cut(response, request, headers, content)
        return status, headers, body[:] if isinstance(body, _Unread) else body

    def value(key: Any) -> Any:
        return _Unread(key) if getattr(asked, "range", False) else whole(key)

    stored.value = property(value, stored.value.fset)
    answers.get_object, answers._handle_range_header = get_object, handle_range


def _serve() -> None:
    """Serve until standard input closes."""
    import logging

    from moto.server import ThreadedMotoServer

    _read_ranges()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve()
