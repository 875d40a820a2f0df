"""Starts the real server, `adaserve serve`, in a process of its own, and watches it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

START_LIMIT = 120.0


class Server:
    """A running server. `key` is sent with every request that `http` makes."""

    def __init__(self, arguments: list[str], key: str | None = None) -> None:
        self.key = key
        self.log = Path(tempfile.mkstemp(prefix="adaserve-test-", suffix=".log")[1])
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "adaserve.cli.main", "serve", *arguments, "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.url = ""
        self.http = httpx.Client(timeout=60)

    def wait_until_ready(self) -> "Server":
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit:
            assert self.process.poll() is None, f"the server ended: {self.words()}"
            if not self.url and (found := re.search(r"listening at (http\S+);", self.words())):
                self.url = found[1]
                headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
                self.http = httpx.Client(base_url=self.url, timeout=60, headers=headers, trust_env=False)
            with contextlib.suppress(httpx.TransportError):
                if self.url and self.http.get("/ready").status_code == 200:
                    return self
            time.sleep(0.1)
        raise AssertionError(f"the server was not ready in time: {self.words()}")

    def words(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def engine_pid(self) -> int | None:
        """The engine process, once there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            if b"engine_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        return None

    def metric(self, line: str) -> float:
        """The value of a metric, named with its labels as it stands in the text."""
        for found in self.http.get("/metrics").text.splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        raise AssertionError(f"no metric {line}")

    def labelled(self, name: str) -> float:
        return self.metric(f'{name}{{model_name="tiny"}}')

    def wait_idle(self, limit: float = 10.0) -> None:
        """Wait until the engine holds no request."""
        end = time.monotonic() + limit
        while self.labelled("vllm:num_requests_running") + self.labelled("vllm:num_requests_waiting") > 0:
            assert time.monotonic() < end, "the engine still holds requests"
            time.sleep(0.02)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.http.close()
            self.log.unlink(missing_ok=True)
