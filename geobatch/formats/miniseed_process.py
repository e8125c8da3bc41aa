"""The other end of `miniseed_decoder`: killed when it does not answer, begun anew when it died.

Records and samples stand in memory that both processes map: through pipes they cost more than decoding.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from geobatch.errors import FormatError, UsageError

PATIENCE_S = 30.0
# Far below what obspy reads when it meets every record alone.
SLOWEST_BYTES_PER_S = 250_000
MOST_SAMPLE_BYTES = 8
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
        self._memory: IO[bytes] | None = None
        self._room = memoryview(b"")

    def decode(
        self, body: bytes | memoryview, starts_ns: npt.ArrayLike, counts: npt.ArrayLike, lengths: npt.ArrayLike
    ) -> tuple[npt.NDArray[Any], dict[int, str]]:
        """The samples of records in their order, zeros for what does not decode, and the fault of each such record.

        The samples hold until the next request.

        Raises:
            FormatError: the decoder died of them, or did not end.
        """
        columns = np.array([starts_ns, counts, lengths], np.int64)
        answer, answer_at = self._ask("records", body, columns)
        values = np.frombuffer(self._room, answer["dtype"], int(columns[1].sum()), answer_at)
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
        if self._memory is not None:
            self._memory.close()
            self._memory, self._room = None, memoryview(b"")

    def _ask(
        self, what: str, body: bytes | memoryview, columns: npt.NDArray[np.int64] = NO_RECORDS
    ) -> tuple[dict[str, Any], int]:
        """The answer, and where in the memory its samples begin."""
        deadline = time.monotonic() + self.patience_s + len(body) / SLOWEST_BYTES_PER_S
        try:
            process, memory = self._started()
            body_at, body_end = columns.nbytes, columns.nbytes + len(body)
            answer_at = body_end + -body_end % mmap.PAGESIZE
            self._make_room(memory, answer_at + MOST_SAMPLE_BYTES * int(columns[1].sum()))
            self._room[:body_at], self._room[body_at:body_end] = columns.tobytes(), body
            request = {"what": what, "records": columns.shape[1], "bytes": len(body), "answer_at": answer_at}
            line = json.dumps({**request, "room": len(self._room)}).encode() + b"\n"
            os.write(process.stdin.fileno(), line)  # type: ignore[union-attr]
            answer = self._receive(process, deadline)
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
        return answer, answer_at

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        if self._process is None or self._memory is None or self._process.poll() is not None:
            self.close()
            self._memory = _file_in_memory()
            self._process = subprocess.Popen(
                [*self.command, str(self._memory.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=(self._memory.fileno(),),
            )
        return self._process, self._memory

    def _make_room(self, memory: IO[bytes], size: int) -> None:
        """Let the memory hold so many bytes; samples given out before stay where they are."""
        if size > len(self._room):
            memory.truncate(size)
            self._room = memoryview(mmap.mmap(memory.fileno(), size))

    @staticmethod
    def _receive(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        pipe, line = process.stdout.fileno(), b""  # type: ignore[union-attr]
        while not line.endswith(b"\n"):
            _wait(pipe, deadline)
            part = os.read(pipe, 2**16)
            if not part:
                raise EOFError("no answer")
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer


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


def _wait(pipe: int, deadline: float) -> None:
    """Until there is something to read, or the process at the other end is gone."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        raise TimeoutError("no answer in time")


def _file_in_memory() -> IO[bytes]:
    """A file without a name, which no decoder can make smaller than what this process maps."""
    if not hasattr(os, "memfd_create"):  # Linux has it.
        return tempfile.TemporaryFile(buffering=0)
    memory = os.memfd_create("decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return os.fdopen(memory, "r+b", buffering=0)
