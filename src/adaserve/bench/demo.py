"""`make demo`: one machine, one load, three policies, and who got their tokens in time.

For each policy the real server runs in a process of its own and gets the same mixed requests over HTTP: code to complete, chat,
articles to summarise, with targets of 1.2, 1.8 and 5 times the machine's baseline latency. The load is chosen so that plain
continuous batching takes about a third longer for a token than one request alone does: enough sharing that its one speed for all
is too slow for some.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from adaserve.bench.demo_client import Client, Tally, closed_loop, open_loop
from adaserve.bench.demo_options import PILOT_SHARE, Options, parse, pilot_running
from adaserve.bench.demo_report import DemoReport, DemoRun, show
from adaserve.bench.demo_server import DemoServer
from adaserve.bench.demo_terminal import Terminal, Wrap, bar
from adaserve.clock import Clock, WallClock
from adaserve.errors import AdaServeError
from adaserve.policy.adaptive import Constants
from adaserve.policy.library import make_policy
from adaserve.request import SLO
from adaserve.workload import DEMO_MIX, Arrival, Workload, generate
from adaserve.workload.classes import CHAT

T = TypeVar("T")

PILOT_SECONDS = 15.0
PILOT_POLICY = "continuous"
WARM_UP = 3
WRONG_USE = 2
STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""

SHOWN_PROMPT = "Explain in a few sentences why the sky looks blue during the day and red at sunset."


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


class Demo:
    """One demo from start to end. `stop` ends it early, with what there is by then."""

    def __init__(self, options: Options, clock: Clock, terminal: Terminal, stop: asyncio.Event) -> None:
        self._options = options
        self._clock = clock
        self._terminal = terminal
        self._stop = stop
        self._classes: dict[str, SLO] = {kind.name: kind.slo for kind in DEMO_MIX.shares if kind.slo is not None}

    async def run(self) -> DemoReport | None:
        """Run every policy, `repeats` times over; None if it was stopped before there was anything to report."""
        options, terminal = self._options, self._terminal
        try:
            rate = options.rate if options.rate is not None else await self._pilot()
        except Stopped:
            return None
        runs: list[DemoRun] = []
        baseline = None
        plan = [(number, policy) for number in range(options.repeats) for policy in options.policies]
        for position, (number, policy) in enumerate(plan):
            if self._stop.is_set():
                break
            label = policy if options.repeats == 1 else f"{policy}, run {number + 1} of {options.repeats}"
            last = position == len(plan) - 1
            try:
                async with self._serving(policy, label) as (client, server):
                    # One yardstick for all: the first server's. They share one cached measurement, so it is the others' too.
                    baseline = server.baseline if baseline is None else baseline
                    runs.append(await self._measure(client, self._workload(rate, number), policy, number, label))
                    if last and not self._stop.is_set():
                        await self._show_answer(client, policy)
            except Stopped:
                break
            except AdaServeError as error:
                if not runs:
                    raise
                terminal.say(f"{label}: {error}")
        terminal.clear()
        if not runs or baseline is None:
            return None
        return DemoReport(baseline, rate, self._classes, tuple(runs))

    def _workload(self, rate: float, number: int) -> Workload:
        rng = np.random.default_rng([self._options.seed, number])
        return generate(DEMO_MIX, rate, self._options.duration, rng, self._options.cv)

    @asynccontextmanager
    async def _serving(self, policy: str, label: str) -> AsyncIterator[tuple[Client, DemoServer]]:
        """A warm server with the workload's SLO classes, and a client for it. Raises Stopped if the demo is stopped meanwhile."""
        options = ["--policy", policy, *self._options.serve]
        for name, slo in self._classes.items():
            options += ["--slo-class", f"{name}=tpot:{slo.tpot_multiple:g}x"]
        started = self._clock.now()

        def progress(words: str) -> None:
            now = self._clock.now()
            self._terminal.progress(f"{label}: starting the server, {now - started:.0f} s ({words})", now)

        server = await self._unless_stopped(DemoServer.start(options, self._clock, progress))
        client = Client(server.url, server.model, server.baseline, self._clock)
        try:
            await self._unless_stopped(self._warm_up(client))
            self._terminal.clear()
            yield client, server
        finally:
            await client.close()
            await server.stop()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, or cancel it and raise Stopped when the demo is stopped."""
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise Stopped

    async def _warm_up(self, client: Client) -> None:
        workload = generate(DEMO_MIX, 1.0, 1000.0, np.random.default_rng(12345))
        for arrival in workload.arrivals[:WARM_UP]:
            answer = await client.ask("warm-up", replace(arrival, max_tokens=16), self._clock.now())
            if answer.error is not None:
                raise AdaServeError(f"the server does not answer: {answer.error}")

    async def _pilot(self) -> float:
        """Find the rate: a share of what `continuous` completes per second with so many requests in flight."""
        label = f"pilot ({PILOT_POLICY})"
        # The same mix as in the runs, in the order of a workload that is long enough for any machine.
        arrivals = generate(DEMO_MIX, 10.0, 100.0, np.random.default_rng([self._options.seed, 999])).arrivals
        async with self._serving(PILOT_POLICY, label) as (client, server):
            running = self._options.running or pilot_running(server.shared, server.baseline)
            started = self._clock.now()
            ticker = asyncio.create_task(self._tick(label, started, running))
            try:
                most = await self._unless_stopped(closed_loop(client, arrivals, running, PILOT_SECONDS, self._clock))
            finally:
                ticker.cancel()
        rate = PILOT_SHARE * most
        self._terminal.say(
            f"Baseline {server.baseline * 1e3:.1f} ms per token. Load: {rate:.2f} requests/s, "
            f"{PILOT_SHARE:.0%} of what {PILOT_POLICY} serves with {running} in flight."
        )
        return rate

    async def _tick(self, label: str, started: float, running: int) -> None:
        while True:
            now = self._clock.now()
            text = f"{label}: which rate keeps {running} requests running?  {bar((now - started) / PILOT_SECONDS)}"
            self._terminal.progress(text, now)
            await asyncio.sleep(0.25)

    async def _measure(self, client: Client, workload: Workload, policy: str, number: int, label: str) -> DemoRun:
        tally = Tally()
        started = self._clock.now()
        run = asyncio.create_task(open_loop(client, workload, self._clock, tally, self._stop))
        while not run.done():
            now = self._clock.now()
            elapsed, end = now - started, self._options.duration
            attained = "" if tally.attained is None else f"   attained {tally.attained:.0%}"
            text = f"{label}  {bar(elapsed / end)}  {elapsed:3.0f} s   sent {tally.sent}{'' if elapsed < end else ', all'}"
            self._terminal.progress(f"{text}   running {tally.in_flight}{attained}", now)
            await asyncio.wait({run}, timeout=0.25)
        seconds = min(self._clock.now() - started, self._options.duration)
        result = DemoRun(policy, number, tuple(tally.answers), run.result(), seconds)
        attained = "nothing" if tally.attained is None else f"{tally.attained:.1%}"
        self._terminal.say(
            f"{label}: {len(tally.answers)} answers, {attained} attained, {result.mean_running:.1f} running on average"
        )
        return result

    async def _show_answer(self, client: Client, policy: str) -> None:
        terminal, wrap = self._terminal, Wrap(96, "  ")
        arrival = Arrival(0.0, SHOWN_PROMPT, CHAT.name, CHAT.slo, 128, chat=True)
        terminal.say()
        terminal.say(f"One answer, as {policy} streams it. {terminal.bold(SHOWN_PROMPT)}")
        terminal.say()
        answer = await client.ask("shown", arrival, self._clock.now(), lambda text: terminal.stream(wrap.push(text)))
        terminal.say(wrap.rest())
        tpot = answer.result.tpot
        if answer.error is not None:
            terminal.say(f"  (it failed: {answer.error})")
        elif tpot is not None:
            terminal.say(terminal.dim(f"  ({answer.result.output_tokens} tokens, {tpot * 1e3:.1f} ms per token)"))


async def demo(options: Options, terminal: Terminal) -> tuple[DemoReport | None, bool]:
    """Run the demo; Ctrl-C or SIGTERM end it with what was measured by then, and without leaving a server behind."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    report = await Demo(options, WallClock(), terminal, stop).run()
    if stop.is_set():
        terminal.say("Stopped early.")
    return report, stop.is_set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; returns the exit status."""
    options = parse(arguments)
    terminal = Terminal(sys.stderr if options.as_json else sys.stdout)
    try:
        for name in options.policies:  # a wrong name shows before the first run
            make_policy(name, Constants(verify_rows=1, draft_rows=1))
    except AdaServeError as error:
        terminal.say(f"demo: {error}")
        return WRONG_USE
    pull = [sys.executable, "-m", "adaserve.cli.main", "pull", "demo"]
    if subprocess.run(pull, stdout=subprocess.DEVNULL).returncode != 0:
        return 1
    try:
        report, stopped = asyncio.run(demo(options, terminal))
    except AdaServeError as error:
        terminal.say(f"demo: {error}")
        return 1
    if report is not None:
        show(report, terminal)
        if options.as_json:
            print(json.dumps(report.to_json()))
    if stopped:
        return STOPPED
    return 0 if report is not None and len(report.runs) == options.repeats * len(options.policies) else 1


if __name__ == "__main__":
    sys.exit(main())
