"""Entry point of ``backpass`` and ``python -m backpass``: runs a command, turns our errors into one clear line."""

import os
import signal
import sys
from collections.abc import Sequence

from backpass import __version__
from backpass.errors import BackpassError, naming_extra

__all__ = ["main"]

_CLOSED_PIPE = 141  # 128 + SIGPIPE, a signal that Windows lacks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; ``--version`` needs no extra.

    Returns:
        0; 2 after an error that has been explained; 130 after an interrupt from the terminal (Ctrl-C); 141 if nobody
        reads the output any more (a closed pipe).

    Raises:
        SystemExit: with status 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _run(arguments)
    except BackpassError as error:
        _print(str(error))
        return 2
    except BrokenPipeError:
        return _abandon_output()
    except OSError as error:
        _print(_describe(error))
        return 2
    except KeyboardInterrupt as interrupt:
        _print("; ".join(["interrupted", *_hints(interrupt)]))
        return 128 + signal.SIGINT
    except SystemExit as ending:
        if isinstance(ending.__context__, BrokenPipeError):  # Rich ends the program by itself, with status 1.
            return _abandon_output()
        if ending.code == 128 + signal.SIGTERM:
            _print("; ".join(["terminated", *_hints(ending)]))
        raise
    return 0


def _run(arguments: Sequence[str]) -> None:
    try:
        if list(arguments) == ["--version"]:
            print(f"backpass {__version__}")  # noqa: T201
            return
        with naming_extra("lab", "training, experiments and the command line"):
            from backpass import cli
        cli.run(arguments)
    finally:
        if sys.stdout is not None:  # as of a process that was started without
            sys.stdout.flush()  # Not at Python's end, which would give a closed pipe another status.


def _abandon_output() -> int:
    """Return the status for output whose reader has gone; nothing more is written to it, not at Python's end either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
    return _CLOSED_PIPE


def _hints(ending: BaseException) -> list[str]:
    return getattr(ending, "__notes__", [])


def _describe(error: OSError) -> str:
    """Return a line for a path that cannot be used: a file in place of a folder, a name too long, a full disk."""
    names = " and ".join(repr(str(name)) for name in (error.filename, error.filename2) if name is not None)
    return f"expected to read and write {names or 'files'}, got {error.strerror or error}; give another path or mend it"


def _print(line: str) -> None:
    # One line, whatever a file or a library has put into it.
    print(f"backpass: {' '.join(line.split())}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
