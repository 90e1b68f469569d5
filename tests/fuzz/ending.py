"""How a command ends, called in this process."""

import re
import signal
import warnings
from contextlib import contextmanager

from accelerate.state import AcceleratorState

from backpass.__main__ import main

__all__ = ["problem"]

LIMIT = 120  # seconds, many times what the slowest takes

# How a failed run of a study is described whose error is none of ours.
UNEXPLAINED = re.compile(r"-seed\d+: (Type|Value|Runtime|Key|Index|Attribute|Assertion)Error: ")


class HangError(BaseException):
    """A command has not come back."""


@contextmanager
def limited(seconds):
    def stop(number, frame):
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(arguments, capsys):
    """Return what is wrong with the ending of a command; ``None`` if it is as it should be."""
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    try:
        with limited(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(arguments)
    except SystemExit as ending:
        printed = capsys.readouterr()
        return None if ending.code in (0, 2) and "Traceback" not in printed.err else f"exit {ending.code}"
    except BaseException as error:
        capsys.readouterr()
        return f"{type(error).__name__}: {error}"
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("backpass: ")]
    if "Traceback" in printed.err:
        return "a traceback on the terminal"
    if status == 0:
        return None if not lines else f"status 0 after {lines}"
    if len(lines) != 1 or status != 2 or not printed.err.endswith(f"{lines[0]}\n"):
        return f"status {status} after {printed.err[-500:]!r}"
    if UNEXPLAINED.search(lines[0]):
        return f"an error of a run that nothing explains: {lines[0]}"
    return None
