"""The lineage of the store: the tables are those that the code knows, and each step goes both ways."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from crossfade.store import schema
from crossfade.store.connection import Database, StoreError, StoreReason
from crossfade.store.tables import SCHEMA, metadata

ROOT = Path(__file__).parents[2]
REVISIONS = ["base", "0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008"]


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names(schema=SCHEMA)) - {"alembic_version"}


def differences(connection: Connection) -> object:
    options = {"version_table_schema": SCHEMA, "include_schemas": True, "compare_server_default": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


def checks(connection: Connection) -> set[str]:
    found = connection.exec_driver_sql(
        "SELECT conname FROM pg_constraint"
        " WHERE contype = 'c' AND connamespace = 'crossfade_store'::regnamespace"
    )
    return set(found.scalars())


async def test_the_revisions_make_the_tables_that_the_code_knows(database: Database) -> None:
    await schema.upgrade(database)
    async with database.transaction() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(schema.current) == schema.newest() == REVISIONS[-1]
        assert await connection.run_sync(checks) == {
            "flag_set_one_row_check", "audit_outcome_check", "people_role_check",
            "cutovers_state_check",
        }  # fmt: skip


async def test_each_revision_can_be_taken_back_and_applied_again(database: Database) -> None:
    stands: dict[str, set[str]] = {"base": set()}
    for revision in REVISIONS[1:]:
        await schema.upgrade(database, revision)
        async with database.transaction() as connection:
            stands[revision] = await connection.run_sync(tables)
    for earlier, revision in zip(REVISIONS[-2::-1], REVISIONS[:0:-1], strict=True):
        await schema.downgrade(database, earlier)
        async with database.transaction() as connection:
            assert await connection.run_sync(tables) == stands[earlier]
        await schema.upgrade(database, revision)
        async with database.transaction() as connection:
            assert await connection.run_sync(tables) == stands[revision]
        await schema.downgrade(database, earlier)
    await schema.upgrade(database)
    async with database.transaction() as connection:
        assert await connection.run_sync(differences) == []


MIGRATE = """
import asyncio, sys
from crossfade.store import schema
from crossfade.store.connection import Database

async def migrate():
    database = Database(sys.argv[1])
    sys.stdin.readline()
    await schema.upgrade(database)
    await database.close()

asyncio.run(migrate())
"""


def test_five_processes_migrate_at_once(database_url: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, database_url], stdin=subprocess.PIPE, cwd=ROOT)
        for _ in range(5)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0] * 5
    with psycopg.connect(database_url) as connection:
        stands = connection.execute("SELECT version_num FROM crossfade_store.alembic_version").fetchall()
        assert stands == [(REVISIONS[-1],)]
        row = connection.execute("SELECT id, version, audit_seq FROM crossfade_store.flag_set").fetchall()
        assert row == [(1, 0, 0)]


async def test_a_store_of_a_newer_crossfade_is_refused(database: Database, database_url: str) -> None:
    await schema.upgrade(database)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE crossfade_store.alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="migrated by a newer Crossfade") as caught:
        await schema.upgrade(database)
    assert caught.value.reason is StoreReason.NEWER


async def test_a_store_lives_beside_the_tables_of_others(database: Database, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE flags (own text)")
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('theirs')")
    await schema.upgrade(database)
    await schema.downgrade(database, "base")
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT version_num FROM public.alembic_version").fetchone() == ("theirs",)
        assert connection.execute("SELECT count(*) FROM public.flags").fetchone() == (0,)


def test_the_revisions_are_in_the_wheel(tmp_path: Path) -> None:
    """The same finder that makes the wheel; `pip install` of a wheel is all that a user has."""
    places = {"egg_info": "--egg-base", "build": "--build-base", "bdist_wheel": "--dist-dir"}
    words = [word for order, place in places.items() for word in (order, place, str(tmp_path / order))]
    for folder in places:
        (tmp_path / folder).mkdir()
    program = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", *words]
    made = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("bdist_wheel/*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("migrations/store/")}
    ours = {str(path.relative_to(ROOT)) for path in ROOT.glob("migrations/store/**/*.py")}
    assert names == ours
    assert len([name for name in names if re.search(r"/\d{4}_", name)]) == len(REVISIONS) - 1


async def test_one_migration_waits_for_the_other(database: Database) -> None:
    await asyncio.gather(schema.upgrade(database), schema.upgrade(database), schema.upgrade(database))
    async with database.transaction() as connection:
        assert await connection.run_sync(schema.current) == REVISIONS[-1]
