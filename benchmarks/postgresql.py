"""A PostgreSQL server of one's own, from the Debian package, for the tests and the benchmark of studies."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["missing", "server"]

_INSTALLED = Path("/usr/lib/postgresql")


def missing() -> str | None:
    """Return why there can be no server, or ``None``."""
    if not list(_INSTALLED.glob("*/bin/initdb")):
        return f"PostgreSQL is not installed: {_INSTALLED}/*/bin/initdb is missing"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg, the driver of PostgreSQL, is not installed"
    return None


@contextlib.contextmanager
def server(*, fsync: bool = True) -> Iterator[str]:
    """Start a server on the loopback interface and yield the URL of its empty database.

    Without ``fsync`` it is faster, and safe as long as the machine does not go down.
    """
    binaries = sorted(_INSTALLED.glob("*/bin/initdb"))[-1].parent
    # The server refuses to run as root; the Debian package brings a user for it.
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp())
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "--auth=trust", "--username=study", "--encoding=UTF8", *([] if fsync else ["--no-sync"]))
        options = f"-c listen_addresses=127.0.0.1 -c fsync={'on' if fsync else 'off'} -p {port} -k {folder}"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://study@127.0.0.1:{port}/postgres"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
