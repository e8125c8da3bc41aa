"""The other end of `miniseed_decoder`: killed when it does not answer, begun anew when it died."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError, UsageError

PATIENCE_S = 30.0
# Far below what obspy reads when it meets every record alone.
SLOWEST_BYTES_PER_S = 250_000
PIPE_BYTES = 2**20
NO_RECORDS = np.zeros((3, 0), np.int64)
COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("miniseed_decoder.py"))]


class Decoder:
    """A decoder process.

    Args:
        command: What starts it.
        patience_s: How long it may take for nothing.
    """

    def __init__(self, command: Sequence[str] = tuple(COMMAND), patience_s: float = PATIENCE_S) -> None:
        self.command, self.patience_s = list(command), patience_s
        self._process: subprocess.Popen[bytes] | None = None

    def decode(
        self, body: bytes, starts_ns: npt.ArrayLike, counts: npt.ArrayLike, lengths: npt.ArrayLike
    ) -> tuple[npt.NDArray[Any], dict[int, str]]:
        """The samples of records in their order, zeros for what does not decode, and the fault of each such record.

        Raises:
            FormatError: the decoder died of them, or did not end.
        """
        columns = np.array([starts_ns, counts, lengths], np.int64)
        answer, samples = self._ask("records", body, columns)
        values = np.frombuffer(samples, answer["dtype"])
        return values, {int(number): str(fault) for number, fault in answer["bad"]}

    def inventory(self, body: bytes) -> list[dict[str, Any]]:
        """The channels of a StationXML document.

        Raises:
            FormatError: it is none.
        """
        entries: list[dict[str, Any]] = self._ask("inventory", body)[0]["entries"]
        return entries

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(
        self, what: str, body: bytes, columns: npt.NDArray[np.int64] = NO_RECORDS
    ) -> tuple[dict[str, Any], bytearray]:
        deadline = time.monotonic() + self.patience_s + len(body) / SLOWEST_BYTES_PER_S
        try:
            process = self._started()
            head = json.dumps({"what": what, "records": columns.shape[1], "bytes": len(body)}).encode() + b"\n"
            for part in (head + columns.tobytes(), body):
                self._send(process, part, deadline)
            answer, samples = self._receive(process, deadline)
        except (OSError, EOFError, ValueError) as error:
            code = self._process.poll() if self._process else None
            self.close()
            what = "the decoder did not end" if isinstance(error, TimeoutError) else "the decoder died"
            raise FormatError(what, measured=f"{error or type(error).__name__}, exit code {code}") from error
        if "error" in answer:
            if answer["error"].startswith(("ImportError", "ModuleNotFoundError")):
                raise UsageError(
                    "a library that this format needs is not installed",
                    where="obspy",
                    measured=answer["error"],
                    remedy="pip install 'geobatch[earthquake]' installs it.",
                )
            raise FormatError("the decoder refuses it", measured=answer["error"][:300])
        return answer, samples

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            for pipe in (self._process.stdin, self._process.stdout):
                _widen(pipe)
                os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        return self._process

    @staticmethod
    def _send(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        left, pipe = memoryview(data), process.stdin.fileno()  # type: ignore[union-attr]
        while left:
            _wait(pipe, select.POLLOUT, deadline)
            left = left[os.write(pipe, left) :]

    @staticmethod
    def _receive(process: subprocess.Popen[bytes], deadline: float) -> tuple[dict[str, Any], bytearray]:
        pipe, line = process.stdout.fileno(), b""  # type: ignore[union-attr]
        while b"\n" not in line:
            _wait(pipe, select.POLLIN, deadline)
            part = os.read(pipe, 2**16)
            if not part:
                raise EOFError("no answer")
            line += part
        head, _, begun = line.partition(b"\n")
        answer = json.loads(head)
        samples = bytearray(int(answer["bytes"]))
        samples[: len(begun)] = begun
        left = memoryview(samples)[len(begun) :]
        while left:
            _wait(pipe, select.POLLIN, deadline)
            read = os.readv(pipe, [left])
            if not read:
                raise EOFError("half an answer")
            left = left[read:]
        return answer, samples


def decoder() -> Decoder:
    """This process's decoder."""
    if os.getpid() not in _DECODERS:
        _DECODERS.clear()
        _DECODERS[os.getpid()] = Decoder()
    return _DECODERS[os.getpid()]


def close_decoder() -> None:
    """End this process's decoder, which the next use starts again."""
    if found := _DECODERS.pop(os.getpid(), None):
        found.close()


_DECODERS: dict[int, Decoder] = {}


def _wait(pipe: int, event: int, deadline: float) -> None:
    """Until the pipe is ready, or the process at its other end is gone."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        raise TimeoutError("no answer in time")


def _widen(pipe: Any) -> None:
    """Give a pipe room for a megabyte where the system can: fewer switches between the two processes."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            return
