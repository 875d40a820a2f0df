"""What arrives and when: request classes, prompts of the project's own, arrival processes, traces."""

from adaserve.workload.classes import DEMO_MIX, Mix, RequestClass
from adaserve.workload.generate import generate
from adaserve.workload.trace import read_trace
from adaserve.workload.workload import Arrival, Workload

__all__ = ["DEMO_MIX", "Arrival", "Mix", "RequestClass", "Workload", "generate", "read_trace"]
