"""A comparison says what differs, and nothing else, while people go on writing."""

from __future__ import annotations

import asyncio
import random

import psycopg
import pytest

from dualwrite import repair, rest, sync, verify
from dualwrite.mapped import MappingFailedError, SourceTable, by_table, towards
from dualwrite.mapping import Convert, Table
from dualwrite.stream_states import State
from dualwrite.sync import Direction, StoppedError, Told
from dualwrite.verify import Compared, Comparison, NotFollowingError
from examples.migration import follow_ups, tables
from flags.model import Side
from tests.dualwrite.test_sample import NAME, _is, connected, legacy_url, new_url, rows, running, until, write

__all__ = ["legacy_url", "new_url"]

WIDE = Table("wide", "wide", key=["id"], columns=["id", "a", "b", "n"])
CREATE = """
    CREATE TABLE wide (id int PRIMARY KEY, a text, b text, n int);
"""


def the_only(side: Side, *mapped: Table) -> SourceTable:
    (source,) = towards(side, mapped, []).values()
    return source


@pytest.fixture
def pair(legacy_url: str, new_url: str) -> tuple[str, str]:
    for url in (legacy_url, new_url):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(CREATE)
    with psycopg.connect(legacy_url, autocommit=True) as connection:
        connection.execute("INSERT INTO wide SELECT i, 'a' || i, NULL, i FROM generate_series(1, 5000) i")
    return legacy_url, new_url


async def compared(pair: tuple[str, str], table: Table = WIDE) -> verify.Compared:
    source = the_only(Side.NEW, table)
    return await verify.compare(NAME, *pair, source, source.mappings[0])


async def test_each_planted_difference_is_found_and_none_is_invented(pair: tuple[str, str]) -> None:
    chance = random.Random(3)
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, running(*pair, [WIDE], []) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        clean = await compared(pair)
        assert (clean.rows, clean.equal) == (5000, True)

        await new.execute("UPDATE wide SET b = '' WHERE id = 7")  # NULL is not the empty text
        await new.execute("UPDATE wide SET a = b, b = a WHERE id = 8")
        await new.execute("UPDATE wide SET a = 'A9' WHERE id = 9")
        await new.execute("DELETE FROM wide WHERE id = 10")
        await new.execute("INSERT INTO wide VALUES (6001, 'x', 'y', 1)")
        stop = asyncio.Event()

        async def go_on() -> None:
            while not stop.is_set():
                key = chance.randint(100, 5000)
                await legacy.execute("UPDATE wide SET n = n + 1, b = 'w' WHERE id = %s", (key,))

        writing = asyncio.create_task(go_on())
        found = await compared(pair)
        stop.set()
        await writing

        assert sorted((int(one.key[0]), one.kind, one.columns) for one in found.differences) == [
            (7, "different", ("b",)), (8, "different", ("a", "b")), (9, "different", ("a",)),
            (10, "missing", ()), (6001, "extra", ()),
        ]  # fmt: skip
        assert found.unsettled == 0

        keys = [one.source_key for one in found.differences if one.source_key is not None]
        await repair.ask_for(new, NAME, found.name, keys)
        await until(lambda: _nothing_waits(new), "all is repaired")
        assert (await compared(pair)).equal


async def _nothing_waits(new: psycopg.AsyncConnection) -> bool:
    return await repair.waiting(new, NAME) == 0


async def test_mapped_rows_are_compared_as_they_should_be(pair: tuple[str, str]) -> None:
    chance = random.Random(9)
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, running(*pair) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        sources = towards(Side.NEW, tables, follow_ups)
        for _ in range(30):
            await write(legacy, chance)
        for source, mapping in by_table(sources):
            assert (await verify.compare(NAME, *pair, source, mapping)).equal
        await new.execute("UPDATE accounts SET role = 'admin' WHERE role = 'member' AND id = 4")
        await new.execute("DELETE FROM sessions")
        await new.execute("UPDATE wallets SET balance_cents = balance_cents + 1 WHERE account_id = 1")
        found = {}
        for source, mapping in by_table(sources):
            one = await verify.compare(NAME, *pair, source, mapping)
            found[one.name] = [(each.kind, each.columns) for each in one.differences]
        sessions = (await rows(legacy, "SELECT count(*) FROM sessions"))[0][0]
        assert found == {
            "public.users to public.accounts": [("different", ("role",))],
            "public.users to public.wallets": [("different", ("balance_cents",))],
            "public.sessions to public.sessions": [("missing", ())] * sessions,
            "public.posts to public.posts": [],
            "public.comments to public.comments": [],
            "public.transfers to public.transfers": [],
        }


async def test_values_written_otherwise_are_compared_by_what_they_mean(pair: tuple[str, str]) -> None:
    shout = Table("wide", "wide", ["id"], {"id": "id", "a": Convert("a", lambda a: a and a.upper()),
                                           "b": "b", "n": "n"}, towards=Side.NEW)  # fmt: skip
    async with connected(pair[1]) as new, running(*pair, [shout], []) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        assert (await compared(pair, shout)).equal
        await new.execute("UPDATE wide SET a = lower(a) WHERE id = 5")
        (one,) = (await compared(pair, shout)).differences
        assert (one.kind, one.key, one.columns) == ("different", ("5",), ("a",))


async def test_without_a_stream_nothing_is_said_of_what_differs(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "PATIENCE", 0.3)
    async with running(*pair, [WIDE], []) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
    async with connected(pair[0]) as legacy:
        await legacy.execute("DELETE FROM wide WHERE id = 1")
    with pytest.raises(NotFollowingError, match="crossfade sync running"):
        await compared(pair)


async def test_a_missing_row_stops_every_process_until_a_person_knows(pair: tuple[str, str]) -> None:
    sources = towards(Side.NEW, [WIDE], [])
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, asyncio.timeout(90):
        await legacy.execute("ALTER TABLE wide ALTER b SET STORAGE EXTERNAL")
        await legacy.execute("UPDATE wide SET b = repeat('x', 9000) WHERE id = 7")
        async with running(*pair, [WIDE], []) as told:
            await until(lambda: _is(told, State.FOLLOWING), "it follows")
        await new.execute("DELETE FROM wide WHERE id = 7")
        await legacy.execute("UPDATE wide SET n = 0 WHERE id = 7")
        for _ in range(2):
            with pytest.raises(StoppedError) as stopped:
                await sync.run(Direction(NAME, *pair, sources), Told())
            assert stopped.value.reason == "missing_row"
        told = Told()
        going = asyncio.create_task(sync.run(Direction(NAME, *pair, sources, True), told))
        await until(lambda: _is(told, State.FOLLOWING), "it follows again")
        found = await compared(pair)
        assert [(one.kind, one.key) for one in found.differences] == [("missing", ("7",))]
        await repair.ask_for(new, NAME, found.name, [("7",)])
        await until(lambda: _nothing_waits(new), "it is repaired")
        assert (await compared(pair)).equal
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)


async def test_a_value_that_went_up_and_down_again_is_no_difference(pair: tuple[str, str]) -> None:
    """It looks the same at the source twice, while the target was seen in between."""
    async with connected(pair[0]) as legacy, running(*pair, [WIDE], []) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        stop = asyncio.Event()

        async def back_and_forth() -> None:
            while not stop.is_set():
                await legacy.execute("UPDATE wide SET n = -1 WHERE id <= 20")
                await legacy.execute("UPDATE wide SET n = id WHERE id <= 20")

        writing = asyncio.create_task(back_and_forth())
        found = [await compared(pair) for _ in range(8)]
        stop.set()
        await writing
        assert [one.differences for one in found] == [[]] * 8


async def test_a_key_that_comes_back_otherwise_is_said_and_not_passed_over(pair: tuple[str, str]) -> None:
    padded = Table(
        "wide",
        "wide",
        key=["id"],
        columns={
            "id": Convert("id", lambda text: f"0{text}", lambda text: text),
            "a": "a",
            "b": "b",
            "n": "n",
        },
    )
    async with connected(pair[1]) as new, running(*pair, [padded], []) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        await new.execute("UPDATE wide SET n = 0 WHERE id = 7")
        with pytest.raises(MappingFailedError, match="a key that the mapping writes comes back as 7"):
            await compared(pair, padded)


# What is left of a comparison.


async def test_at_rest_no_key_is_lost_where_a_comparison_breaks_off(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = the_only(Side.NEW, WIDE)
    pairs = [rest.Pair(source, source.mappings[0], backwards=False)]
    async with connected(pair[0]) as legacy, running(*pair, [WIDE], []) as told:
        await until(lambda: _is(told, State.FOLLOWING), "it follows")
        async with connected(pair[1]) as new:
            await rest.watch(new, NAME, on=True)
            await legacy.execute("UPDATE wide SET n = 0 WHERE id <= 30")
            await legacy.execute("DELETE FROM wide WHERE id = 31")
            look = rest.Rest(NAME, [(legacy, new)], pairs)
            await until(lambda: _has(look, 31), "all are noted")
            # The stream may write to tables that are none of ours, and to many rows of them.
            await new.execute(
                "INSERT INTO crossfade_sync.changed"
                " SELECT %s, 'public.other', ARRAY[i::text] FROM generate_series(1, 3000) i",
                (NAME,),
            )

            async def killed(*_: object, **__: object) -> Compared:
                await new.close()  # as a process that ends here: nothing can be put back
                raise psycopg.OperationalError("the connection is gone")

            monkeypatch.setattr(Comparison, "again", killed)
            with pytest.raises(psycopg.OperationalError):
                await look.compare_at_rest()
            monkeypatch.undo()
        async with connected(pair[1]) as new:
            look = rest.Rest(NAME, [(legacy, new)], pairs)
            assert await look.left() == 31
            await new.execute("UPDATE wide SET n = 1 WHERE id = 3")
            (found,) = await look.compare_at_rest()
            assert [one.key for one in found.differences] == [("3",)]
            assert await look.left() == 0
            assert await look.compare_at_rest() == []


async def _has(look: rest.Rest, number: int) -> bool:
    return await look.left() == number
