"""Running compiled models eagerly, so that hooks and modes see every operation."""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["eagerly"]


def eagerly() -> AbstractContextManager[object]:
    """Return a context in which compiled models and functions run without compilation."""
    # Nothing is compiled while dynamo is not imported, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
