"""One writer of control state at a time: a lease with a fencing number, and the control objects written under it.

The lease is one object beside the output, renewed every few seconds and replaced only by its version (compare and
swap). Who takes it over raises the fencing number. A run that was stopped for a while and goes on finds its version
gone, and writes nothing more. Clocks are never compared: a lease counts as abandoned when its reader has seen it
unchanged for the whole time-out, or when its holder was a process of this machine that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from geobatch.errors import GeobatchError, IntegrityError, LeaseError, NotFoundError, TransientError, UsageError
from geobatch.storage import Storage, open_storage

LEASE = "_geobatch/lease.json"
TIMEOUT_S = 30.0
RENEWAL_S = 8.0
POLL_S = 0.5
NO_VERSION = "0" * 32
"""The version, an MD5 as S3 gives them, of no lease there is."""
PATIENCE_S = 300.0
"""How long a run whose storage does not answer waits before it gives up its lease."""


@dataclass(frozen=True)
class Holder:
    """A process, so that another one on the same machine can tell whether it still lives.

    Attributes:
        host: Name of the machine.
        boot: Boot and process namespace of the machine; equal only where process ids mean the same.
        process_id: Its id.
        created: When it was started, seconds since 1970 by that machine's clock.
    """

    host: str
    boot: str
    process_id: int
    created: float

    @classmethod
    def this_process(cls) -> Holder:
        """The holder that the calling process is."""
        return cls(socket.gethostname(), _boot(), os.getpid(), psutil.Process().create_time())

    def is_gone(self) -> bool:
        """True when it certainly ended: it ran where this process runs, and is not there any more."""
        if not self.boot or self.boot != _boot():
            return False
        try:
            process = psutil.Process(self.process_id)
            return abs(process.create_time() - self.created) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


class Lease:
    """The right to write the control state of one output, held until `release`.

    Made by `acquire`. A thread renews it.
    """

    def __init__(self, storage: Storage, fence: int, run: str, document: dict[str, Any], version: str) -> None:
        self.storage, self.fence, self.run = storage, fence, run
        self._document, self._version = document, version
        self._renewed = time.monotonic()
        self._lost = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, output_url: str, *, on_wait: Callable[[str], None] = lambda holder: None) -> Lease:
        """The lease of an output, at once when it is free, or when its holder has not renewed it for `TIMEOUT_S`.

        Args:
            output_url: The output.
            on_wait: Called once with who holds it, when there is something to wait for; what it does takes no
                longer than the waiting.

        Raises:
            LeaseError: a living run holds it.
            UsageError: the storage ignores the conditions of writes, by which runs notice each other.
        """
        storage = open_storage(output_url)
        run, holder = uuid.uuid4().hex, Holder.this_process()
        seen: str | None = None
        since = time.monotonic()
        while True:
            try:
                body, version = storage.read(LEASE)
                found = _parsed(body, storage.url)
            except NotFoundError:
                found, version = {"fence": 0, "released": True}, ""
            if found.get("run") == run:
                _require_conditions(storage)
                # A renewal that waited out an outage would come too late to be one.
                return cls(open_storage(output_url, patience_s=RENEWAL_S), found["fence"], run, found, version)
            # A reader that was held up itself must not take what changed meanwhile for abandoned.
            abandoned = seen == version and time.monotonic() - since > TIMEOUT_S
            if found["released"] or Holder(**found["holder"]).is_gone() or abandoned:
                document = _document(found["fence"] + 1, run, holder)
                if _replace(storage, document, version):
                    continue
            elif seen is None:
                seen, since = version, time.monotonic()
                on_wait(_described(found))
            elif seen != version:
                raise _held(storage.url, found)
            time.sleep(POLL_S)

    def require(self) -> None:
        """Return while this run holds the lease; when its last renewal is old, renew it first.

        Raises:
            LeaseError: another run has taken it over.
            TransientError: it is old, and storage does not answer.
        """
        begun = time.monotonic()
        while not self._lost and time.monotonic() - self._renewed > TIMEOUT_S - RENEWAL_S:
            try:
                self.renew()
            except TransientError:
                if time.monotonic() - begun > PATIENCE_S:
                    raise
        if self._lost:
            raise _lost(self.storage.url)

    def renew(self) -> None:
        """Replace the lease by its version: proof that nobody took it over until now.

        Raises:
            LeaseError: another run has taken it over.
        """
        with self._lock:
            if self._lost:
                raise _lost(self.storage.url)
            self._write({**self._document, "beat": self._document["beat"] + 1})

    def outrank(self, fence: int) -> None:
        """Raise the fencing number above one that control objects carry.

        The lease does not know it when it was deleted, which is the remedy for one that does not read.

        Raises:
            LeaseError: another run has taken it over.
        """
        with self._lock:
            if self.fence <= fence:
                self._write({**self._document, "fence": fence + 1})
                self.fence = fence + 1

    def release(self) -> None:
        """Give the lease back, so that the next run need not wait. Never raises: an output that is done stays done."""
        self._ended.set()
        with contextlib.suppress(GeobatchError), self._lock:
            if not self._lost:
                self._write({**self._document, "released": True})
        self._thread.join(timeout=1)

    def _write(self, document: dict[str, Any]) -> None:
        version = self.storage.put_if_match(LEASE, _json(document), self._version)
        if version is None:
            self._lost = True
            raise _lost(self.storage.url)
        self._document, self._version, self._renewed = document, version, time.monotonic()

    def _keep(self) -> None:
        while not self._ended.wait(RENEWAL_S):
            with contextlib.suppress(GeobatchError):
                self.renew()
            if self._lost:
                return


class Control:
    """The control objects of one output: read by anyone, written by the holder of its lease.

    Every write replaces the version that this run has seen. When there is another one, a run that lost its lease
    learns it, and the holder writes over what a late one left.
    """

    def __init__(self, output_url: str, lease: Lease | None = None) -> None:
        self.storage: Storage = open_storage(output_url)
        self.url = self.storage.url
        self.lease = lease
        self._versions: dict[str, str] = {}

    @property
    def fence(self) -> int:
        """The fencing number of this run, 0 for one that only reads."""
        return self.lease.fence if self.lease else 0

    def get(self, key: str) -> bytes | None:
        """The object, or None."""
        try:
            body, self._versions[key] = self.storage.read(key)
        except NotFoundError:
            self._versions.pop(key, None)
            return None
        return body

    def get_json(self, key: str) -> Any:
        """The document in the object, or None.

        Raises:
            IntegrityError: it does not read.
        """
        body = self.get(key)
        if body is None:
            return None
        try:
            return json.loads(body)
        except ValueError as error:
            raise IntegrityError("control object does not read", where=f"{self.url}/{key}", measured=error) from error

    def require(self) -> None:
        """Return while this run holds the lease; raises as `Lease.require`."""
        self._holding().require()

    def put(self, key: str, data: bytes) -> None:
        """Write the object durably.

        Raises:
            LeaseError: this run holds the lease no more.
        """
        lease = self._holding()
        lease.require()
        while not self._put(key, data):
            lease.renew()
            self.get(key)

    def put_json(self, key: str, document: Any) -> None:
        """Write the document; raises as `put`."""
        self.put(key, _json(document))

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object whose name nobody else uses."""
        self.require()
        self.storage.put(key, data)

    def delete(self, key: str) -> None:
        """Remove the object."""
        self.require()
        self.storage.delete(key)

    def _put(self, key: str, data: bytes) -> bool:
        if key in self._versions:
            version = self.storage.put_if_match(key, data, self._versions[key])
            if version is None:
                return False
            self._versions[key] = version
            return True
        if not self.storage.put_if_absent(key, data):
            return False
        self.get(key)
        return True

    def _holding(self) -> Lease:
        if self.lease is None:
            raise _lost(self.url)
        return self.lease


@contextlib.contextmanager
def leased(output_url: str, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[Control]:
    """The control state of an output, with its lease held inside the context."""
    lease = Lease.acquire(output_url, on_wait=on_wait)
    try:
        yield Control(output_url, lease)
    finally:
        lease.release()


def _replace(storage: Storage, document: dict[str, Any], version: str) -> bool:
    if not version:
        return storage.put_if_absent(LEASE, _json(document))
    return storage.put_if_match(LEASE, _json(document), version) is not None


def _require_conditions(storage: Storage) -> None:
    """Refuse a server that stores where it was told not to, as some that speak S3 do."""
    if storage.put_if_match(LEASE, b"{}", NO_VERSION) is None:
        return
    storage.delete(LEASE)
    raise UsageError(
        "this storage ignores the condition of a conditional write",
        where=f"{storage.url}/{LEASE}",
        measured=f"a PUT with If-Match: {NO_VERSION} was done",
        limit="412 Precondition Failed, as S3 answers",
        remedy="Two runs on one output could not be kept apart. Write to another store, or to a file system.",
    )


def _document(fence: int, run: str, holder: Holder) -> dict[str, Any]:
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"fence": fence, "run": run, "holder": vars(holder), "since": began, "beat": 0, "released": False}


def _parsed(body: bytes, url: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
        Holder(**document["holder"])
        return {**document, "fence": int(document["fence"]), "released": bool(document["released"])}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "lease does not read", where=f"{url}/{LEASE}", measured=error, remedy="Delete it when no run is active."
        ) from error


def _described(document: dict[str, Any]) -> str:
    holder = document["holder"]
    return f"process {holder['process_id']} on {holder['host']} since {document['since']}"


def _held(url: str, document: dict[str, Any]) -> LeaseError:
    return LeaseError(
        "another run is writing this output",
        where=url,
        measured=_described(document),
        remedy="Wait for it, or stop it and run the job again.",
    )


def _lost(url: str) -> LeaseError:
    return LeaseError(
        "another run has taken over this output",
        where=url,
        remedy="This run stopped; what it wrote is kept. Follow the other one.",
    )


def _boot() -> str:
    """Identity of the running system and its process namespace, empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=2).encode()
