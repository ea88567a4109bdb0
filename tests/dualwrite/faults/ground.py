"""Two servers of one's own that may be killed, each behind a way that may be cut, and what lies in them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import make_url

from crossfade.embedded.folders import socket_folder
from crossfade.embedded.postgres import EmbeddedPostgres
from tests.dualwrite.faults.wire import Relay
from tests.support.crossfade_process import living_children

DATABASE: Final = "app"
SLOT: Final = "crossfade_to_new"
STREAM: Final = "to_new"
CENTS: Final = 1_000
HOLDERS, VAULTS, SEATS, LOG, QUIET = 500, 100, 200, 2_500, 50
"""Rows that are there from the beginning. The log is more than one chunk."""
TOTAL: Final = (HOLDERS + VAULTS) * CENTS
LARGE: Final = 3_000
"""Bytes: out of line, so that an update of other columns does not carry it."""

_SOURCE: Final = f"""
    CREATE TABLE lists (id text PRIMARY KEY, items text NOT NULL, filler text, seen int NOT NULL);
    ALTER TABLE lists ALTER items SET STORAGE EXTERNAL, ALTER filler SET STORAGE EXTERNAL;
    CREATE TABLE holders (id int PRIMARY KEY, name text NOT NULL, cents bigint NOT NULL);
    CREATE TABLE vaults (id int PRIMARY KEY, cents bigint NOT NULL, note text);
    CREATE TABLE seats (id int PRIMARY KEY, place text UNIQUE, body text);
    ALTER TABLE seats ALTER body SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
    CREATE TABLE log (id bigserial PRIMARY KEY, list text NOT NULL, said text NOT NULL, more text);
    INSERT INTO holders SELECT i, 'name ' || i, {CENTS} FROM generate_series(1, {HOLDERS}) i;
    INSERT INTO vaults SELECT i, {CENTS} FROM generate_series(1, {VAULTS}) i;
    INSERT INTO seats SELECT i, 'place ' || i, repeat('b', {LARGE}) FROM generate_series(1, {SEATS}) i;
    INSERT INTO log (list, said) SELECT 'before', i::text FROM generate_series(1, {LOG}) i;
    INSERT INTO log (list, said, more) SELECT 'quiet', i::text, NULL FROM generate_series(1, {QUIET}) i;
    INSERT INTO lists SELECT 'old ' || i, '', repeat('f', {LARGE}), 0 FROM generate_series(1, 60) i;
"""
_TARGET: Final = """
    CREATE TABLE lists (id text PRIMARY KEY, items text NOT NULL, filler text, seen int NOT NULL);
    CREATE TABLE names (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE wallets (holder int PRIMARY KEY, cents bigint NOT NULL);
    CREATE TABLE vaults (id int PRIMARY KEY, cents bigint NOT NULL, note text);
    CREATE TABLE seats (id int PRIMARY KEY, place text UNIQUE, body text);
    CREATE TABLE log (id bigint PRIMARY KEY, list text NOT NULL, said text NOT NULL, more text);
"""
_MIGRATION: Final = """
from crossfade import Convert, Project, Table

def turned(text):
    return text[::-1]

project = Project(tables=[
    Table("holders", "names", ["id"], {"id": "id", "name": Convert("name", turned, turned)}, ["cents"]),
    Table("holders", "wallets", ["id"], {"id": "holder", "cents": "cents"}, ["name"]),
    Table("vaults", "vaults", ["id"], ["id", "cents", "note"]),
    Table("seats", "seats", ["id"], ["id", "place", "body"]),
    Table("lists", "lists", ["id"], ["id", "items", "filler", "seen"]),
    Table("log", "log", ["id"], ["id", "list", "said", "more"]),
])
"""
WANTED: Final = {
    "names": "SELECT id, reverse(name) FROM holders",
    "wallets": "SELECT id, cents FROM holders",
    "vaults": "SELECT id, cents, note FROM vaults",
    "seats": "SELECT id, place, md5(body) FROM seats",
    "lists": "SELECT id, items, md5(filler), seen FROM lists",
    "log": "SELECT id, list, said, more FROM log",
}
"""What the source's rows have to be at the target; written down here once more, for a mapping does not
prove itself."""
FOUND: Final = {
    "names": "SELECT id, name FROM names",
    "wallets": "SELECT holder, cents FROM wallets",
    "vaults": "SELECT id, cents, note FROM vaults",
    "seats": "SELECT id, place, md5(body) FROM seats",
    "lists": "SELECT id, items, md5(filler), seen FROM lists",
    "log": "SELECT id, list, said, more FROM log",
}


class Server:
    """A PostgreSQL whose commits outlive it (the machine's death is not played, so no disk is waited for)."""

    def __init__(self, folder: Path) -> None:
        with (
            EmbeddedPostgres(folder, durable=False) as made,
            psycopg.connect(made.url(), autocommit=True) as connection,
        ):
            for setting in ("fsync = off", "max_prepared_transactions = 5", "checkpoint_timeout = '1h'"):
                connection.execute(f"ALTER SYSTEM SET {setting}".encode())
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        self._data = folder / "data"
        self._postgres = EmbeddedPostgres(folder)
        self._postgres.start()
        self.url = self._postgres.url(DATABASE)
        """The application's way, which nobody cuts."""
        self.relay = Relay(socket_folder(folder.absolute()) / ".s.PGSQL.5432")

    @property
    def relayed_url(self) -> str:
        direct = make_url(self.url)
        return direct.set(
            host="127.0.0.1", port=self.relay.port,
            query={"sslmode": "disable", "gssencmode": "disable"},
        ).render_as_string(hide_password=False)  # fmt: skip

    def restart(self) -> None:
        self._postgres.stop()
        self._postgres.start()

    async def stop(self) -> None:
        """In order. What it still has to say passes the relay meanwhile."""
        await asyncio.to_thread(self._postgres.stop)

    def kill(self) -> None:
        """Every process of it, at once."""
        pid = self._postgres.pid
        assert pid is not None
        children = living_children(pid)
        for one in (pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)

    def end(self) -> None:
        self._postgres.stop()

    async def copied(self) -> Path:
        """All that is on its disk, as a standby or a backup has it. It is down for a moment."""
        copy = self._data.with_name("copy")
        await self.stop()
        await asyncio.to_thread(subprocess.run, ["cp", "-a", str(self._data), str(copy)], check=True)
        self._postgres.start()
        return copy

    @contextlib.contextmanager
    def replaced(self, copy: Path, *, promoted: bool) -> Iterator[None]:
        """While this lasts, another server answers in its place: a backup, or a standby that took over."""
        own = self._data.with_name("own")
        self.kill()
        self._postgres.stop()
        self._data.rename(own)
        copy.rename(self._data)
        try:
            if promoted:
                told = self._data / "standby.signal"
                told.touch()
                os.chown(told, self._data.stat().st_uid, -1)
            self._postgres.start()
            if promoted:
                self.ask("SELECT pg_promote()")
            yield
        finally:
            self._postgres.stop()
            shutil.rmtree(self._data)
            own.rename(self._data)
            self._postgres.start()

    async def do(self, *statements: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                await connection.execute(statement.encode())

    def do_alone(self, *statements: str) -> None:
        """Where nobody else is at work: whatever one waited for would wait for us."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    async def set(self, setting: str) -> None:
        await self.do(f"ALTER SYSTEM {setting}", "SELECT pg_reload_conf()")

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()


class Ground:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.source, self.target = Server(folder / "source"), Server(folder / "target")
        self.source.do_alone(_SOURCE)
        self.target.do_alone(
            _TARGET,
            f"CREATE PUBLICATION unmarked FOR TABLE {', '.join(FOUND)}"
            " WITH (publish = 'insert, update, delete')",
            "SELECT pg_create_logical_replication_slot('unmarked', 'pgoutput')",
        )
        self._seen = "0/0"
        self.config = folder / "crossfade.yaml"
        (folder / "migration.py").write_text(_MIGRATION)

    @contextlib.asynccontextmanager
    async def ways(self) -> AsyncIterator[None]:
        """While this lasts, `config` leads to both servers."""
        async with self.source.relay.serve(), self.target.relay.serve():
            said = {
                "targets": {"legacy": {"url": "http://127.0.0.1:1"}, "new": {"url": "http://127.0.0.1:2"}},
                "code": "migration.py",
                "data": {
                    "legacy": {"url": self.source.relayed_url}, "new": {"url": self.target.relayed_url},
                },
            }  # fmt: skip
            self.config.write_text(json.dumps(said))
            yield

    async def forget(self) -> None:
        """What docs/data.md says of beginning anew. Nobody may hold the stream any more."""
        await self.source.do(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE active",
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            f" WHERE slot_name = '{SLOT}'",
            f"DROP PUBLICATION IF EXISTS {SLOT}",
        )
        await self.target.do("DROP SCHEMA IF EXISTS crossfade_sync CASCADE", f"TRUNCATE {', '.join(FOUND)}")

    def unmarked(self) -> int:
        """How many rows were changed at the target, since the last look, by one who did not say that it was
        the stream. A stream the other way would send them back."""
        seen, self._seen = self._seen, self.target.ask("SELECT pg_current_wal_lsn()::text")[0][0]
        # A slot goes back when its server is killed.
        ((number,),) = self.target.ask(
            "SELECT count(*) FROM pg_logical_slot_get_binary_changes('unmarked', NULL, NULL, 'proto_version',"
            " '1', 'publication_names', 'unmarked', 'origin', 'none')"
            f" WHERE get_byte(data, 0) IN (68, 73, 85) AND lsn > '{seen}'"
        )
        return int(number)

    @contextlib.asynccontextmanager
    async def small_disk(self) -> AsyncIterator[Path]:
        """A tablespace `small` at the target, of some megabytes; a file there that may fill it up.

        Raises PermissionError where this user may not mount anything.
        """
        with _mounted((self.folder / "target" / "data").stat().st_uid) as place:
            await self.target.do(f"CREATE TABLESPACE small LOCATION '{place}'")
            ballast = place.with_name("ballast")
            try:
                yield ballast
            finally:
                ballast.unlink(missing_ok=True)
                await self.target.do("ALTER TABLE log SET TABLESPACE pg_default", "DROP TABLESPACE small")

    def end(self) -> None:
        self.source.end()
        self.target.end()


@contextlib.contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    found = Ground(folder)
    try:
        yield found
    finally:
        found.end()
        shutil.rmtree(folder)


@contextlib.contextmanager
def _mounted(owner: int) -> Iterator[Path]:
    """A folder of this owner on a disk of 8 MB, which has nothing else on it."""
    disk = Path(tempfile.mkdtemp(prefix="crossfade-small-"))
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
        mounting = subprocess.run(mount, check=False, capture_output=True)
        if mounting.returncode:
            raise PermissionError(mounting.stderr.decode().strip())
        try:
            place = disk / "place"
            place.mkdir()
            for folder in (disk, place):
                os.chown(folder, owner, -1)
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True, capture_output=True)
    finally:
        disk.rmdir()


def rows(server: Server, queries: dict[str, str]) -> dict[str, Sequence[Any]]:
    """Of all tables, in one snapshot."""
    with psycopg.connect(server.url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return {name: connection.execute(query.encode()).fetchall() for name, query in queries.items()}
