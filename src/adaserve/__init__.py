"""AdaServe: LLM inference in which every request states how fast it needs its tokens, and gets it.

    from adaserve import LLM, SLO, SamplingParams
    llm = LLM("demo")
    out = llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=64), slo=SLO(tpot_ms=50))

Importing this package loads neither torch nor transformers: `LLM` and what it needs come with their first use (PEP 562).
"""

from typing import TYPE_CHECKING

from adaserve.errors import (
    AdaServeError,
    EngineFailed,
    InvalidConfig,
    InvalidModel,
    InvalidRequest,
    InvalidTrace,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
)
from adaserve.request import SLO, SamplingParams

if TYPE_CHECKING:
    from adaserve.llm import LLM

__all__ = [
    "LLM",
    "SLO",
    "AdaServeError",
    "EngineFailed",
    "InvalidConfig",
    "InvalidModel",
    "InvalidRequest",
    "InvalidTrace",
    "ModelNotFound",
    "Overloaded",
    "PromptTooLong",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Load `LLM`, and look up the installed version, when first asked for."""
    if name == "LLM":
        from adaserve.llm import LLM

        return LLM
    if name == "__version__":
        from importlib.metadata import version

        return version("adaserve")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
