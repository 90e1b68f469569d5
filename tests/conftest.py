"""Shared by all tests: every test starts from the same seed, and Accelerate forgets the last test's settings."""

import os

# Before torch is imported, and inherited by processes that tests start. Tests run in one process for each core; a
# second thread would wait for its core by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import sys

import pytest
import torch

try:
    import hypothesis
except ImportError:  # the methods are tested with torch alone, too
    pass
else:
    # A busy machine stalls for longer than Hypothesis's deadline of 0.2 s for an example.
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _fresh_start():
    torch.manual_seed(0)
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # set by older versions of transformers


@pytest.fixture(scope="session", autouse=True)
def _hear_interrupts():
    """Undo what a shell does to commands in its background, whose processes ignore interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
