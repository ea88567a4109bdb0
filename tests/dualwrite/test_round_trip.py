"""Values that go forth and come home, and those that do not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

import new_backend.schema
from crossfade import Convert, MappingContractError, Project, Side, Table, Values, check_mapping
from crossfade.embedded.postgres import EmbeddedPostgres
from dualwrite.mapping import InvalidMappingError
from examples.legacy import database
from examples.migration import project
from tests.support.crossfade_process import crossfade_command
from tests.support.databases import fresh_database

LEGACY = """
    CREATE TYPE colour AS ENUM ('red', 'dark blue');
    CREATE DOMAIN short AS text CHECK (length(VALUE) < 4);
    CREATE TABLE things (
        id bigint PRIMARY KEY, name varchar(20) NOT NULL, note text, paid numeric(10,3), made timestamp,
        state char(1) NOT NULL CHECK (state IN ('N', 'Y')), colour colour, code short, big bigint,
        marks text[], level int
    );
"""
NEW = """
    CREATE TABLE articles (
        id bigint PRIMARY KEY, name varchar(20) NOT NULL, note text NOT NULL, paid numeric(10,2),
        made timestamptz, state boolean NOT NULL, colour text CHECK (colour <> 'dark blue'),
        code text, big int, marks text[], level text
    );
"""
MIGRATION = Path(__file__).parents[2] / "examples" / "migration.py"
KEY = {"id": "id"}


@pytest.fixture
def places(postgres: EmbeddedPostgres) -> Iterator[tuple[str, str]]:
    with fresh_database(postgres) as legacy, fresh_database(postgres) as new:
        for url, schema in ((legacy, LEGACY), (new, NEW)):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(schema)
        yield legacy, new


def unfit(places: tuple[str, str], **more: object) -> dict[tuple[str, str], set[str | None]]:
    """The values, by column and outcome."""
    columns = more.pop("columns")
    assert isinstance(columns, dict)
    tables = [
        Table("things", "articles", key=["id"], columns={**KEY, **columns}, towards=more.pop("towards", None))
    ]  # type: ignore[arg-type]
    try:
        check_mapping(Project(tables=tables, **more), *places)  # type: ignore[arg-type]
    except MappingContractError as error:
        found: dict[tuple[str, str], set[str | None]] = {}
        for one in error.unfit:
            found.setdefault((one.column, one.outcome.value), set()).add(one.value)
        return found
    return {}


def test_what_is_carried_as_it_is_comes_home(places: tuple[str, str]) -> None:
    assert unfit(places, columns={"name": "name", "code": "code", "marks": "marks"}) == {}


def test_a_type_that_is_too_narrow_or_rounds_is_found(places: tuple[str, str]) -> None:
    found = unfit(places, columns={"note": "note", "paid": "paid", "big": "big", "colour": "colour"})
    assert found["things.note", "refused"] == {None}
    assert "0.001" in found["things.paid", "changed"]
    assert "9223372036854775807" in found["things.big", "refused"]
    assert found["things.colour", "refused"] == {"dark blue"}
    # Rounded up it has a digit more than legacy's column.
    left = {("things.paid", "refused_back"): {"9999999.999", "-9999999.999"}}
    assert unfit(places, columns={"paid": "paid"}, lossy=["things.paid"]) == left


def test_functions_are_tried_with_what_the_column_may_hold(places: tuple[str, str]) -> None:
    state = Convert("state", lambda text: text == "Y", lambda text: "Y" if text == "t" else "N")
    assert unfit(places, columns={"state": state}) == {}
    forgetful = Convert("state", lambda text: text == "Y", lambda text: {"t": "Y"}[text or ""])
    assert unfit(places, columns={"state": forgetful}) == {("things.state", "raises_back"): {"N"}}
    stripped = Convert("name", lambda text: (text or "").strip(), lambda text: text)
    assert {" ", " leading", "trailing "} <= unfit(places, columns={"name": stripped})[
        "things.name", "changed"
    ]
    longer = Convert("name", lambda text: f"{text}!", lambda text: (text or "")[:-1])
    found = unfit(places, columns={"name": longer})
    assert {len(value or "") for value in found["things.name", "refused"]} == {20}


def test_few_known_values_are_tried_and_no_others(places: tuple[str, str]) -> None:
    level = Values("level", {None: "none", "0": "low", "1": "low"})
    assert unfit(places, columns={"level": level}) == {("things.level", "changed"): {"1"}}


def test_what_a_column_holds_can_be_said(places: tuple[str, str]) -> None:
    number = Convert("level", lambda text: int(text or "0"), lambda text: text)
    assert ("things.note", "raises") in unfit(places, columns={"note": replace(number, new="note")})
    said = {"things.note": ["0", "12", "-5"]}
    assert unfit(places, columns={"note": replace(number, new="note")}, holds=said) == {}
    with pytest.raises(InvalidMappingError, match=r"holds or lossy names things\.nothing"):
        unfit(places, columns={}, lossy=["things.nothing"])


def test_one_way_is_tried_one_way(places: tuple[str, str]) -> None:
    upper = Convert("name", lambda text: (text or "").upper()[:20])
    assert unfit(places, columns={"name": upper}, towards=Side.NEW) == {}


def test_nothing_is_left_behind(places: tuple[str, str]) -> None:
    unfit(places, columns={"name": "name"})
    for url in places:
        with psycopg.connect(url) as connection:
            there = connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'crossfade%'")
            assert there.fetchone() == (0,)
            there = connection.execute("SELECT count(*) FROM things" if url is places[0] else "SELECT 0")
            assert there.fetchone() == (0,)


@pytest.fixture
def sample(postgres: EmbeddedPostgres) -> Iterator[tuple[str, str]]:
    """Both schemas of the sample product, without a row."""
    with fresh_database(postgres) as legacy, fresh_database(postgres) as new:
        with contextlib.closing(database.connect(legacy)) as connection:
            database.create_schema(connection)
            connection.execute(Path("examples/copies.sql").read_text())
        new_backend.schema.upgrade(new)
        yield legacy, new


def test_the_sample_products_mapping_holds_what_it_promises(sample: tuple[str, str]) -> None:
    check_mapping(project, *sample)


async def test_the_command_says_what_does_not_come_home(tmp_path: Path, sample: tuple[str, str]) -> None:
    (tmp_path / "migration.py").write_text(MIGRATION.read_text())
    file = tmp_path / "crossfade.yaml"
    file.write_text(
        "targets: {legacy: {url: 'http://127.0.0.1:1'}, new: {url: 'http://127.0.0.1:2'}}\n"
        f"code: migration.py\ndata: {{legacy: {{url: '{sample[0]}'}}, new: {{url: '{sample[1]}'}}}}\n"
    )
    done = await crossfade_command("data", "check-mapping", "-c", str(file))
    assert done.code == 0, done
    assert "all come home" in done.out
    text = (tmp_path / "migration.py").read_text()
    (tmp_path / "migration.py").write_text(text.replace('lossy=["users.email", ', "lossy=["))
    done = await crossfade_command("data", "check-mapping", "-o", "json", "-c", str(file))
    assert done.code == 6, done
    assert json.loads(done.out)["unfit"] == [
        {"mapping": "users to accounts", "column": "users.email", "outcome": "changed", "value": "",
         "said": "came home as NULL"}
    ]  # fmt: skip
