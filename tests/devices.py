"""Where tests of GPU code run: on a GPU if there is one, else on the CPU in Triton's interpreter."""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from adaserve.kernels.native import NativeError, compiler

if find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    def patched(tensor: Any, scope: Any, patch: Any = interpreter._patch_lang_tensor) -> None:
        """Loop bounds: the interpreter wants an array of one element as an index, which numpy 2.4 no longer gives."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def _wants_native() -> bool:
    """Whether native kernels are to be had here: wanted, and there is a compiler. That they then can be built is tested."""
    try:
        return os.environ.get("ADASERVE_NATIVE", "1") != "0" and bool(compiler())
    except NativeError:
        return False


needs_native = pytest.mark.skipif(not _wants_native(), reason="native kernels are off, or there is no C++ compiler")
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
