"""Shared by all tests: every test starts from the same seed, and Accelerate forgets the last test's settings."""

import signal
import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_start():
    torch.manual_seed(0)
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def _hear_interrupts():
    """Undo what a shell does to commands in its background, whose processes ignore interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
