"""A proxy in front of an S3 server that does what networks and busy servers do: it fails, cuts, lies and stalls.

    with local_s3("bucket") as server, chaos_proxy(server.endpoint) as proxy:
        with environment({**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}):
            proxy.set(rate=0.2, seed=1)
            ...
            assert proxy.statistics()["faults"]["flip_response"] > 0

It runs in a process of its own, watches a pipe from its parent so that it ends with it, and takes one request of a key
at a time, since the server behind it is not linearizable under concurrent conditional writes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import urllib.request
import weakref
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

CONTROL = "/_chaos"
SLOW_DOWN = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Reduce rate.</Message></Error>"
BAD_DIGEST = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>BadDigest</Code><Message>Checksum.</Message></Error>"
DROPPED_HEADERS = ("connection", "expect", "transfer-encoding", "keep-alive", "date", "server")

KINDS = {
    "slow_down": ("GET", "HEAD", "PUT", "POST", "DELETE"),
    "reset": ("GET", "HEAD", "PUT", "POST", "DELETE"),
    "stall": ("GET", "HEAD", "PUT", "POST", "DELETE"),
    "cut_body": ("GET",),
    "short_body": ("GET",),
    "flip_response": ("GET",),
    "flip_request": ("PUT",),
    "lost_acknowledgement": ("PUT", "POST", "DELETE"),
}
"""Faults, and the requests each can strike."""


@dataclass
class Faults:
    """What goes wrong from now on.

    Attributes:
        rate: Share of the requests that a fault strikes.
        kinds: The faults to choose from, each as likely as the other where it applies.
        seed: Of the choice; the order in which concurrent requests arrive is not in it.
        stall_s: How long a stalled request is held.
        unverifiable: Part of the path of objects whose bytes nothing can vouch for: they arrive unflipped.
    """

    rate: float = 0.0
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    seed: int = 0
    stall_s: float = 60.0
    unverifiable: str = ""


@dataclass(frozen=True)
class ChaosProxy:
    """A running proxy: its endpoint, and the control of its faults."""

    endpoint: str

    def set(self, **settings: Any) -> None:
        """Replace the faults by `Faults(**settings)`, and start counting anew."""
        body = json.dumps(asdict(Faults(**settings))).encode()
        urllib.request.urlopen(urllib.request.Request(self.endpoint + CONTROL, body, method="POST")).close()

    def statistics(self) -> dict[str, dict[str, int]]:
        """Counts since the last `set`: `requests` by method, `faults` by kind, `struck` by method and kind."""
        with urllib.request.urlopen(self.endpoint + CONTROL) as answer:
            return json.load(answer)


@contextlib.contextmanager
def chaos_proxy(upstream: str) -> Iterator[ChaosProxy]:
    """A context with a proxy in front of the S3 server at `upstream`, without faults until it is told."""
    process = subprocess.Popen(
        [sys.executable, __file__, upstream], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield ChaosProxy(process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


class Proxy:
    """One request after the other of each key, struck by faults."""

    def __init__(self, upstream: str, session: Any) -> None:
        self.upstream, self.session = upstream, session
        self.locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.change(Faults())

    def change(self, faults: Faults) -> None:
        self.faults = faults
        self.random = random.Random(faults.seed)
        self.counts: dict[str, Counter[str]] = {"requests": Counter(), "faults": Counter(), "struck": Counter()}

    async def control(self, request: Any) -> Any:
        from aiohttp import web

        if request.method == "POST":
            self.change(Faults(**await request.json()))
        return web.json_response(self.counts)

    async def answer(self, request: Any) -> Any:
        body = await request.read()
        fault = self._choose(request)
        self.counts["requests"][request.method] += 1
        if fault:
            self.counts["faults"][fault] += 1
            self.counts["struck"][f"{request.method} {fault}"] += 1
        if fault == "slow_down":
            return self._refusal(503, SLOW_DOWN)
        if fault == "reset":
            return _hang_up(request)
        if fault == "stall":
            await asyncio.sleep(self.faults.stall_s)
            if request.transport is None or request.transport.is_closing():
                return _hang_up(request)
        if fault == "flip_request":
            body = self._flipped(body)
            # The server behind stores whatever comes; S3 compares.
            if not _as_announced(body, request.headers):
                return self._refusal(400, BAD_DIGEST)
        status, headers, data = await self._forward(request, body)
        if fault == "lost_acknowledgement":
            return _hang_up(request) if self.random.random() < 0.5 else self._refusal(500, b"")
        return await self._deliver(request, status, headers, data, fault)

    def _choose(self, request: Any) -> str:
        if self.random.random() >= self.faults.rate:
            return ""
        flips = not self.faults.unverifiable or self.faults.unverifiable not in request.raw_path
        kinds = [
            kind for kind in self.faults.kinds if request.method in KINDS[kind] and (flips or kind != "flip_response")
        ]
        return self.random.choice(kinds) if kinds else ""

    async def _forward(self, request: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        from yarl import URL

        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED_HEADERS}
        lock = self.locks.setdefault(request.path, asyncio.Lock())
        async with (
            lock,
            self.session.request(
                request.method, URL(self.upstream + request.raw_path, encoded=True), headers=headers, data=body
            ) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED_HEADERS}
            return answer.status, kept, await answer.read()

    async def _deliver(self, request: Any, status: int, headers: dict[str, str], data: bytes, fault: str) -> Any:
        from aiohttp import web

        listing = headers.get("Content-Type", "").endswith("xml")
        if status < 300 and data:
            if fault == "short_body":
                data = data[: self.random.randrange(len(data))]
                headers["Content-Length"] = str(len(data))
            if fault == "flip_response" and not listing:
                data = self._flipped(data)
            if fault == "cut_body":
                response = web.StreamResponse(status=status, headers=headers)
                await response.prepare(request)
                await response.write(data[: self.random.randrange(len(data))])
                return _hang_up(request, response)
        return web.Response(status=status, headers=headers, body=data)

    def _refusal(self, status: int, body: bytes) -> Any:
        from aiohttp import web

        return web.Response(status=status, body=body, content_type="application/xml")

    def _flipped(self, data: bytes) -> bytes:
        if not data:
            return data
        changed = bytearray(data)
        changed[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(changed)


def _hang_up(request: Any, response: Any = None) -> Any:
    """Reset the connection; the answer that aiohttp wants goes nowhere."""
    from aiohttp import web

    transport = request.transport
    if transport is not None:
        # Lingering for 0 s makes the kernel send RST instead of an orderly end.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return response or web.Response()


def _as_announced(body: bytes, headers: Any) -> bool:
    """True when the body is the one whose checksum the request announces; true too when it announces none."""
    found = {
        "x-amz-checksum-crc32": lambda: base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode(),
        "content-md5": lambda: base64.b64encode(hashlib.md5(body).digest()).decode(),
    }
    return all(compute() == headers[name] for name, compute in found.items() if name in headers)


async def _serve(upstream: str) -> None:
    """Serve on a free loopback port until standard input closes."""
    import aiohttp
    from aiohttp import web

    connector = aiohttp.TCPConnector(force_close=True, limit=32)
    time_out = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=time_out) as session:
        proxy = Proxy(upstream, session)
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", CONTROL, proxy.control)
        application.router.add_route("*", "/{key:.*}", proxy.answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        print(f"http://{host}:{port}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        # Stalled requests are not waited for.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
