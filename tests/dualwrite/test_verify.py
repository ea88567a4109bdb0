"""A comparison says what differs, and nothing else, while people go on writing."""

from __future__ import annotations

import asyncio
import copy
import random

import psycopg
import pytest

from dualwrite import repair, rest, segments, sync, verify
from dualwrite.mapped import MappingFailedError, SourceTable, by_table, towards
from dualwrite.mapping import Convert, Table
from dualwrite.row_hash import Form
from dualwrite.segments import Progress
from dualwrite.stream_states import State
from dualwrite.sync import Direction, StoppedError, Told
from dualwrite.verify import Compared, Comparison, Difference, Going, NotFollowingError
from examples.migration import follow_ups, tables
from flags.model import Side
from tests.dualwrite.sample import NAME, connected, is_, rows, running, until, write

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


async def compared(pair: tuple[str, str], table: Table = WIDE, going: Going | None = None) -> verify.Compared:
    source = the_only(Side.NEW, table)
    return await verify.compare(NAME, *pair, source, source.mappings[0], going=going)


@pytest.mark.parametrize("portable", [False, True], ids=["typed", "portable"])
async def test_each_planted_difference_is_found_and_none_is_invented(
    pair: tuple[str, str], portable: bool
) -> None:
    """While a writer changes about a thousand rows a second."""
    chance = random.Random(3)
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, running(*pair, [WIDE], []) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        clean = await compared(pair)
        assert (clean.rows, clean.equal) == (5000, True)

        await new.execute("UPDATE wide SET b = '' WHERE id = 7")  # NULL is not the empty text
        await new.execute("UPDATE wide SET a = b, b = a WHERE id = 8")
        await new.execute("UPDATE wide SET a = 'A9' WHERE id = 9")
        await new.execute("DELETE FROM wide WHERE id = 10")
        await new.execute("INSERT INTO wide VALUES (6001, 'x', 'y', 1)")
        await new.execute("UPDATE wide SET b = '~' WHERE id = 11")  # nor is what others write for it
        # Two rows change places; the sum of all values stays what it was.
        await new.execute("UPDATE wide SET n = 33 - n WHERE id IN (16, 17)")
        stop = asyncio.Event()

        async def go_on() -> None:
            while not stop.is_set():
                keys = chance.sample(range(100, 5001), 10)
                await legacy.execute("UPDATE wide SET n = n + 1, b = 'w' WHERE id = ANY(%s)", (keys,))
                await asyncio.sleep(0.01)

        writing = asyncio.create_task(go_on())
        found = await compared(pair, going=Going(portable))
        assert found.form == (Form.PORTABLE if portable else Form.TYPED)
        stop.set()
        await writing

        assert sorted((int(one.key[0]), one.kind, one.columns) for one in found.differences) == [
            (7, "different", ("b",)), (8, "different", ("a", "b")), (9, "different", ("a",)),
            (10, "missing", ()), (11, "different", ("b",)), (16, "different", ("n",)),
            (17, "different", ("n",)), (6001, "extra", ()),
        ]  # fmt: skip
        assert found.unsettled == 0

        keys = [one.source_key for one in found.differences if one.source_key is not None]
        await repair.ask_for(new, NAME, found.name, keys)
        await until(lambda: _nothing_waits(new), "all is repaired")
        assert (await compared(pair)).equal


async def _nothing_waits(new: psycopg.AsyncConnection) -> bool:
    return await repair.waiting(new, NAME) == 0


@pytest.fixture
async def many(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Twenty thousand rows on both sides, in stretches of a few segments, and with three that differ."""
    monkeypatch.setattr(segments, "AT_ONCE", 4)
    for url in pair:
        async with connected(url) as connection:
            await connection.execute("TRUNCATE wide")
            await connection.execute(
                "INSERT INTO wide SELECT 7 * i, 'a' || i FROM generate_series(1, 20000) i"
            )
            await connection.execute("VACUUM ANALYZE wide")
    async with connected(pair[1]) as new:
        await new.execute("UPDATE wide SET a = 'x' WHERE id IN (700, 70000)")
        await new.execute("DELETE FROM wide WHERE id = 140000")
    return pair


DIFFER = [("140000",), ("700",), ("70000",)]


async def found_by_sums(pair: tuple[str, str], going: Going) -> list[tuple[str, ...]]:
    """Before anything is settled, which needs a stream."""
    async with connected(pair[0]) as legacy, connected(pair[1]) as new:
        mapping = the_only(Side.NEW, WIDE).mappings[0]
        one = Comparison(NAME, legacy, new, "public.wide", mapping, backwards=False)
        return list(await one.suspects(going))


async def test_one_that_was_killed_is_gone_on_with(many: tuple[str, str]) -> None:
    class KilledError(Exception):
        pass

    kept: list[Progress] = []

    def killed(progress: Progress) -> None:
        kept.append(copy.deepcopy(progress))
        if progress.rows > 5_000:
            raise KilledError

    with pytest.raises(KilledError):
        await found_by_sums(many, Going(told=killed))
    last = kept[-1]
    assert last.upto is not None
    assert 5_000 < last.rows < 12_000
    assert last.about == pytest.approx(20_000, rel=0.2)
    # What was compared is not compared again.
    async with connected(many[1]) as new:
        await new.execute("UPDATE wide SET a = 'y' WHERE id = 7")
    assert await found_by_sums(many, Going(progress=last)) == DIFFER
    assert (last.rows, last.done) == (20_000, True)
    # Nobody goes on with what was found of something else.
    assert await found_by_sums(many, Going(portable=True, progress=last)) == sorted([*DIFFER, ("7",)])


async def test_the_pace_is_kept(many: tuple[str, str]) -> None:
    began = asyncio.get_running_loop().time()
    assert await found_by_sums(many, Going(pace=20_000)) == DIFFER
    assert asyncio.get_running_loop().time() - began > 0.8


async def test_what_differs_is_found_however_the_table_is_cut(
    many: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await found_by_sums(many, Going()) == DIFFER
    # A segment that is large is cut once more.
    monkeypatch.setattr(segments, "ROWS", 5_000)
    monkeypatch.setattr(segments, "CUT_ABOVE", 1_000)
    assert await found_by_sums(many, Going()) == DIFFER
    # Nobody knows how large the table is.
    monkeypatch.setattr(segments, "ROWS", 10**9)
    assert await found_by_sums(many, Going()) == DIFFER
    # Rows lie anywhere.
    monkeypatch.setattr(segments, "SMALL", 10)
    monkeypatch.setattr(segments, "SCATTERED", 2.0)
    progress = Progress()
    assert await found_by_sums(many, Going(progress=progress)) == DIFFER
    assert progress.segments == segments.BUCKETS


async def test_a_table_that_was_never_copied_is_not_looked_through_to_its_end(
    many: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MOST", 100)
    async with connected(many[1]) as new:
        await new.execute("TRUNCATE wide")
    progress = Progress()
    assert len(await found_by_sums(many, Going(progress=progress))) == 100
    assert progress.cut_short
    assert progress.rows < 10_000


async def test_keys_of_several_columns_and_of_texts(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "ROWS", 20)
    places = Table("places", "places", key=["land", "number"], columns=["land", "number", "name"])
    for url, text, number in ((pair[0], "varchar(20)", "int"), (pair[1], "text", "bigint")):
        async with connected(url) as connection:
            await connection.execute(
                f"CREATE TABLE places (land {text}, number {number}, name text, PRIMARY KEY (land, number))"
            )
            await connection.execute(
                "INSERT INTO places SELECT chr(65 + i % 7) || CASE WHEN i % 3 = 0 THEN 'ä''\\' ELSE '' END,"
                " i, 'n' FROM generate_series(1, 3000) i"
            )
            await connection.execute("VACUUM ANALYZE places")
    async with connected(pair[0]) as legacy, connected(pair[1]) as new:
        await new.execute("UPDATE places SET name = NULL WHERE number IN (9, 2000)")
        mapping = the_only(Side.NEW, places).mappings[0]
        one = Comparison(NAME, legacy, new, "public.places", mapping, backwards=False)
        progress = Progress()
        found = await one.suspects(Going(progress=progress))
    assert [number for _, number in found] == ["9", "2000"]
    assert progress.segments > 5


async def test_mapped_rows_are_compared_as_they_should_be(pair: tuple[str, str]) -> None:
    chance = random.Random(9)
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, running(*pair) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
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
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        assert (await compared(pair, shout)).equal
        await new.execute("UPDATE wide SET a = lower(a) WHERE id = 5")
        (one,) = (await compared(pair, shout)).differences
        assert (one.kind, one.key, one.columns) == ("different", ("5",), ("a",))


async def test_what_the_mapping_writes_alike_is_alike_whichever_side_wrote_it(pair: tuple[str, str]) -> None:
    """'' and NULL become NULL in new, and its own clients may write '' there all the same: if that were a
    difference, the way back would be refused for ever."""
    loose = Table(
        "wide", "wide", ["id"],
        {"id": "id", "a": Convert("a", lambda a: a or None, lambda a: a),
         "b": "b", "n": Convert("n", lambda n: n.lstrip("-"), lambda n: f"0{n}")},
    )  # fmt: skip
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, running(*pair, [loose], []) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        await legacy.execute("UPDATE wide SET a = '' WHERE id = 1")
        await legacy.execute("UPDATE wide SET n = -n WHERE id = 2")
        assert (await compared(pair, loose)).equal
        # As if the way back had brought them: legacy has what new's clients have written.
        await new.execute("UPDATE wide SET a = '' WHERE id IN (3, 4, 5)")
        await legacy.execute("ALTER TABLE wide DISABLE TRIGGER ALL")
        await legacy.execute("UPDATE wide SET a = NULL WHERE id = 3")
        assert (await compared(pair, loose)).differences == [
            Difference("different", ("4",), ("4",), ("a",)), Difference("different", ("5",), ("5",), ("a",))
        ]  # fmt: skip
        # And the other way: legacy has two ways to write what is one thing in new.
        back = the_only(Side.LEGACY, loose)
        looks = Comparison(NAME, new, legacy, "public.wide", back.mappings[0], backwards=False)
        found = await looks.suspects(Going())
        assert found == [("4",), ("5",)]


async def test_without_a_stream_nothing_is_said_of_what_differs(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "NOBODY_FOR", 0.3)
    async with running(*pair, [WIDE], []) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
    async with connected(pair[0]) as legacy:
        await legacy.execute("DELETE FROM wide WHERE id = 1")
    with pytest.raises(NotFollowingError, match="nobody works on the stream to_new"):
        await compared(pair)


async def test_a_missing_row_stops_every_process_until_a_person_knows(pair: tuple[str, str]) -> None:
    sources = towards(Side.NEW, [WIDE], [])
    async with connected(pair[0]) as legacy, connected(pair[1]) as new, asyncio.timeout(90):
        await legacy.execute("ALTER TABLE wide ALTER b SET STORAGE EXTERNAL")
        await legacy.execute("UPDATE wide SET b = repeat('x', 9000) WHERE id = 7")
        async with running(*pair, [WIDE], []) as told:
            await until(lambda: is_(told, State.FOLLOWING), "it follows")
        await new.execute("DELETE FROM wide WHERE id = 7")
        await legacy.execute("UPDATE wide SET n = 0 WHERE id = 7")
        for _ in range(2):
            with pytest.raises(StoppedError) as stopped:
                await sync.run(Direction(NAME, *pair, sources), Told())
            assert stopped.value.reason == "missing_row"
        told = Told()
        going = asyncio.create_task(sync.run(Direction(NAME, *pair, sources, True), told))
        await until(lambda: is_(told, State.FOLLOWING), "it follows again")
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
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
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
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
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
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
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
            await rest.watch(new, NAME, on=False)  # another walk has ended, or a walker that had slept
            with pytest.raises(rest.UnwatchedError):
                await look.compare_at_rest()


async def _has(look: rest.Rest, number: int) -> bool:
    return await look.left() == number
