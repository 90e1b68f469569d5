"""Entry point of ``backpass`` and ``python -m backpass``: runs a command, turns our errors into one clear line."""

import sys
from collections.abc import Sequence

from backpass.errors import BackpassError, missing_extra

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 after an error that has been explained."""
    try:
        try:
            from backpass import cli
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("backpass"):
                raise
            raise missing_extra(str(error.name), "lab", "training, experiments and the command line") from error
        cli.run(sys.argv[1:] if arguments is None else arguments)
    except BackpassError as error:
        print(f"backpass: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
