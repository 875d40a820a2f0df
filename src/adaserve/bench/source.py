"""The workload of each point of a sweep: what becomes of a trace's requests before they are sent."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adaserve.bench.runs import Point
from adaserve.errors import InvalidConfig
from adaserve.request import SLO
from adaserve.workload import Workload, with_urgent_share

PAPER_BASELINE = 0.030
"""Seconds per token on the machine for which the paper's targets in milliseconds were chosen."""

USUAL_URGENT = "coding"


@dataclass(frozen=True)
class WorkloadSource:
    """Where the workload of every point comes from.

    requests(seed, seconds): the trace's requests of its first `seconds`, before anything else is done to them.
    start: seconds of the trace that are passed over. duration: seconds in which requests are sent, at whatever speed; infinite
        for the whole trace. stop_at_eos: outputs end where the model says so, even where the trace asks to ignore that.
    urgent: the urgent class; None for the workload's own, by `urgent_class`. slos: targets that replace those of a class.
    ms_scale: multiple on targets in ms; None: baseline / 30 ms. prompt_scale, output_scale: as in Workload.scale_lengths.
    facts: how all this came about, for the report.
    """

    requests: Callable[[int, float], Workload]
    duration: float = math.inf
    start: float = 0.0
    stop_at_eos: bool = False
    urgent: str | None = None
    slos: dict[str, SLO] = field(default_factory=dict)
    ms_scale: float | None = 1.0
    prompt_scale: float = 1.0
    output_scale: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)

    def at(self, point: Point, baseline: float) -> Workload:
        """The workload at a point, on a machine with this baseline (s/token). Raises InvalidConfig when nothing is left of it."""
        workload = self.requests(point.seed, self.start + self.duration * point.speed).since(self.start)
        workload = workload.stopping_at_eos() if self.stop_at_eos else workload
        if len(workload) == 0:
            raise InvalidConfig(f"no request arrives within {self.duration:g} s at speed {point.speed:g}: raise --duration")
        workload = workload.with_slos(self.slos)
        urgent = self.urgent or urgent_class(workload)
        if urgent is not None and urgent not in workload.classes:
            raise InvalidConfig(f"there is no class {urgent!r} in this workload, only {', '.join(workload.classes)}")
        if urgent is None and (point.urgent is not None or point.slo_scale != 1):
            raise InvalidConfig("no class of this workload has a TPOT target: name the urgent one with --urgent-class")
        scale = baseline / PAPER_BASELINE if self.ms_scale is None else self.ms_scale
        try:
            if point.urgent is not None and urgent is not None:
                rng = np.random.default_rng([point.seed, 1])  # the same draws at every share
                workload = with_urgent_share(workload, urgent, point.urgent, rng)
            workload = workload.scale_lengths(self.prompt_scale, self.output_scale).scale_ms(scale)
            if urgent is not None:
                workload = workload.scale_class(urgent, point.slo_scale)
            return workload.at_speed(point.speed)
        except ValueError as error:
            raise InvalidConfig(str(error)) from None


def urgent_class(workload: Workload) -> str | None:
    """The class that the paper's urgent one is in this workload: `coding`, else the one of the strictest TPOT target.

    Multiples of the baseline count as stricter than milliseconds, for they shrink with the machine. None without TPOT targets.
    """
    if USUAL_URGENT in workload.classes:
        return USUAL_URGENT
    slos = {(a.class_name, a.slo) for a in workload.arrivals if a.slo is not None}
    for name in ("tpot_multiple", "tpot_ms"):
        stated = [(value, class_name) for class_name, slo in slos if (value := getattr(slo, name)) is not None]
        if stated:
            return min(stated)[1]
    return None
