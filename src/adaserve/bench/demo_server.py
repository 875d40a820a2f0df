"""The demo's server: the real `adaserve serve demo` in a process of its own, one per policy."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from adaserve.clock import Clock
from adaserve.errors import EngineFailed

START_LIMIT = 600.0
"""Seconds that a server may take to be ready: the first start on a machine measures its step times."""

STOP_LIMIT = 15.0


class DemoServer:
    """A running server: where it listens, which model it serves, and the machine's baseline latency in s/token.

    shared: latency in s/token of each of 1, 2, ... requests at once, without speculation.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self._process = process
        self._log = log
        self.url = url
        self.model = ""
        self.baseline = 0.0
        self.shared: tuple[float, ...] = ()

    @classmethod
    async def start(cls, options: Sequence[str], clock: Clock, progress: Callable[[str], None]) -> "DemoServer":
        """Start `adaserve serve demo` with these options on a free port of localhost and wait until it is ready.

        `progress` gets the server's latest words while it loads. If it does not come up, raises EngineFailed with the end of
        its log.
        """
        port = _free_port()
        handle, name = tempfile.mkstemp(prefix="adaserve-demo-", suffix=".log")
        command = [sys.executable, "-m", "adaserve.cli.main", "serve", "demo", "--port", str(port), *options]
        # A session of its own: Ctrl-C is for the demo, which then stops the server itself.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True)
        os.close(handle)
        server = cls(process, Path(name), f"http://127.0.0.1:{port}")
        try:
            await server._until_ready(clock, progress)
        except BaseException:
            await server.stop()
            raise
        return server

    async def _until_ready(self, clock: Clock, progress: Callable[[str], None]) -> None:
        limit = clock.now() + START_LIMIT
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as http:
            while True:
                if self._process.poll() is not None:
                    raise EngineFailed(f"the server ended with status {self._process.returncode}: {self._last_words(5)}")
                if clock.now() > limit:
                    raise EngineFailed(f"the server was not ready after {START_LIMIT:g} s: {self._last_words(5)}")
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get("/ready")).status_code == 200:
                        served = (await http.get("/v1/models")).json()["data"][0]
                        self.model, self.baseline = served["id"], served["baseline_ms"] / 1e3
                        self.shared = tuple(ms / 1e3 for ms in served["shared_ms"])
                        return
                progress(self._last_words(1))
                await asyncio.sleep(0.2)

    def _last_words(self, lines: int) -> str:
        words = self._log.read_text(errors="replace").strip().splitlines()[-lines:]
        return " / ".join(words) if words else "no word from it yet"

    async def stop(self) -> None:
        """Ask the server to finish, and kill it and its children if it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, STOP_LIMIT)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
