"""Entry point of ``backpass`` and ``python -m backpass``: runs a command, turns our errors into one clear line."""

import signal
import sys
from collections.abc import Sequence

from backpass.errors import BackpassError, missing_extra

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Returns:
        0; 2 after an error that has been explained; 130 after an interrupt from the terminal (Ctrl-C).

    Raises:
        SystemExit: with status 143 after SIGTERM.
    """
    try:
        try:
            from backpass import cli
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("backpass"):
                raise
            raise missing_extra(str(error.name), "lab", "training, experiments and the command line") from error
        cli.run(sys.argv[1:] if arguments is None else arguments)
    except BackpassError as error:
        _print(str(error))
        return 2
    except KeyboardInterrupt as interrupt:
        _print("; ".join(["interrupted", *_hints(interrupt)]))
        return 128 + signal.SIGINT
    except SystemExit as ending:
        if ending.code == 128 + signal.SIGTERM:
            _print("; ".join(["terminated", *_hints(ending)]))
        raise
    return 0


def _hints(ending: BaseException) -> list[str]:
    return getattr(ending, "__notes__", [])


def _print(line: str) -> None:
    print(f"backpass: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
