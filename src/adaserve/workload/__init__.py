"""What arrives and when: request classes, prompts of the project's own, arrival processes, traces."""

from adaserve.workload.classes import DEMO_MIX, Mix, RequestClass
from adaserve.workload.generate import generate, generate_at, generate_fluctuating
from adaserve.workload.jsonl import write_jsonl
from adaserve.workload.read import Trace, read
from adaserve.workload.redraw import with_urgent_share
from adaserve.workload.trace import read_trace
from adaserve.workload.workload import Arrival, Workload

__all__ = [
    "DEMO_MIX",
    "Arrival",
    "Mix",
    "RequestClass",
    "Trace",
    "Workload",
    "generate",
    "generate_at",
    "generate_fluctuating",
    "read",
    "read_trace",
    "with_urgent_share",
    "write_jsonl",
]
