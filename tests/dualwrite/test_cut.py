"""Both sides at one moment, while people move money from one table to the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from dualwrite import cut as cuts
from dualwrite import heartbeat, sync, target, verify
from dualwrite.capture import CaptureStopped
from dualwrite.cut import Cut, CutAt, NoCutError, cut
from dualwrite.mapped import by_table, towards
from dualwrite.mapping import Convert, Table
from dualwrite.stream_states import State
from flags.model import Side
from tests.dualwrite.sample import NAME, connected, is_, rows, running, until

TABLES = [
    Table("safe", "safe", key=["id"], columns=["id", "cents"]),
    # By a function: such rows are mapped and compared one by one.
    Table(
        "purse", "purse", ["id"],
        {"id": "id", "cents": Convert("cents", lambda cents: cents)}, towards=Side.NEW,
    ),
]  # fmt: skip
MAPPINGS = list(by_table(towards(Side.NEW, TABLES, [])))
ROWS, EACH = 300, 1000
SUM = "SELECT (SELECT sum(cents) FROM safe WHERE id > 0) + (SELECT sum(cents) FROM purse WHERE id > 0)"


@pytest.fixture
def pair(legacy_url: str, new_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(sync, "LOOK_FOR_REPAIRS", 0.1)
    for url in (legacy_url, new_url):
        with psycopg.connect(url, autocommit=True) as connection:
            for name in ("safe", "purse"):
                connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, cents int)")
    with psycopg.connect(legacy_url, autocommit=True) as connection:
        for name in ("safe", "purse"):
            connection.execute(f"INSERT INTO {name} SELECT i, {EACH} FROM generate_series(0, {ROWS}) i")
    return legacy_url, new_url


@contextlib.asynccontextmanager
async def following(pair: tuple[str, str]) -> AsyncIterator[None]:
    async with running(*pair, TABLES, []) as told:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        yield


@contextlib.asynccontextmanager
async def moving_money(url: str, writers: int = 6) -> AsyncIterator[None]:
    """Each of them moves something, in one transaction over both tables, as often as it can."""
    stop = asyncio.Event()

    async def moves(seed: int) -> None:
        chance = random.Random(seed)
        async with connected(url) as connection:
            while not stop.is_set():
                # One row of each, in the same order: nobody waits for each other in a circle.
                async with connection.transaction():
                    cents = chance.randint(-9, 9)
                    for name, change in (("safe", -cents), ("purse", cents)):
                        await connection.execute(
                            f"UPDATE {name} SET cents = cents + %s WHERE id = %s",
                            (change, chance.randint(1, ROWS)),
                        )

    async with asyncio.TaskGroup() as group:
        for seed in range(writers):
            group.create_task(moves(seed))
        try:
            yield
        finally:
            stop.set()


async def different(both: Cut) -> list[tuple[str, tuple[str, ...], str]]:
    found = []
    for source, mapping in MAPPINGS:
        one = await verify.compare_at(both, source, mapping)
        assert (one.unsettled, one.cut, one.rows) == (0, both.at, ROWS + 1)
        found += [(source.name, each.key, each.kind) for each in one.differences]
    return found


async def no_slot_is_left(url: str) -> bool:
    async with connected(url) as legacy:
        return not await rows(
            legacy, r"SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'crossfade\_cut%'"
        )


async def goes_on(pair: tuple[str, str]) -> None:
    async with connected(pair[0]) as legacy, connected(pair[1]) as new:
        position = await heartbeat.mark(legacy, NAME)

        async def has_it() -> bool:
            state = await target.state(new, NAME)
            return state is not None and state.applied >= position

        await until(has_it, "the stream goes on")


async def test_at_one_moment_nothing_differs_but_what_was_spoiled(pair: tuple[str, str]) -> None:
    async with following(pair), connected(pair[1]) as new, moving_money(pair[0]):
        stood, positions = [], []
        for number in range(12):
            spoiled = number % 2 == 1
            if spoiled:
                await new.execute("UPDATE purse SET cents = cents + 1 WHERE id = 0")
                await new.execute("DELETE FROM safe WHERE id = 0")
            async with cut(NAME, *pair) as both:
                assert await rows(both.written, SUM) == await rows(both.fed, SUM) == [(2 * ROWS * EACH,)]
                assert sorted(await different(both)) == (
                    [("public.purse", ("0",), "different"), ("public.safe", ("0",), "missing")]
                    if spoiled
                    else []
                )
            if spoiled:
                await new.execute("UPDATE purse SET cents = cents - 1 WHERE id = 0")
                await new.execute("INSERT INTO safe VALUES (0, %s)", (EACH,))
            stood.append(both.at.stood)
            positions.append(both.at.position)
        assert len(set(positions)) == 12
        assert max(stood) < 5
        await until(lambda: no_slot_is_left(pair[0]), "no slot is left")
        # Two snapshots after one another, with the position in between, are not that.
        found = [await different_without_a_cut(pair) for _ in range(5)]
        assert any(found)
        await goes_on(pair)


async def different_without_a_cut(pair: tuple[str, str]) -> list[Any]:
    async with connected(pair[0]) as written, connected(pair[1]) as fed:
        position = await heartbeat.mark(written, NAME)
        await _sees_this_moment(written)

        async def has_it() -> bool:
            state = await target.state(fed, NAME)
            return state is not None and state.applied >= position

        await until(has_it, "the target has what was written")
        await _sees_this_moment(fed)
        return await different(Cut(CutAt(NAME, "", "", 0), written, fed))


async def _sees_this_moment(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await connection.execute("SELECT 1 FROM safe LIMIT 1")


async def test_a_commit_at_the_cut_lies_behind_it_and_one_before_does_not(pair: tuple[str, str]) -> None:
    """What waits behind the cut comes once it is released."""
    async with following(pair), connected(pair[0]) as legacy, connected(pair[1]) as new:
        await legacy.execute("UPDATE safe SET cents = 1 WHERE id = 1")
        async with cut(NAME, *pair) as both:
            await legacy.execute("UPDATE safe SET cents = 2 WHERE id = 1")
            for connection in (both.written, both.fed):
                assert await rows(connection, "SELECT cents FROM safe WHERE id = 1") == [(1,)]
            await goes_on(pair)
            assert await rows(new, "SELECT cents FROM safe WHERE id = 1") == [(2,)]
            assert await different(both) == []


async def test_on_the_way_back_the_moment_is_one_of_new_s_log(pair: tuple[str, str]) -> None:
    """The mapping stays that of the way there; its rows are staged in the snapshot that was exported."""
    both_ways = [
        Table("safe", "safe", key=["id"], columns=["id", "cents"]),
        Table(
            "purse", "purse", ["id"],
            {"id": "id", "cents": Convert("cents", lambda cents: cents, lambda cents: cents)},
        ),
    ]  # fmt: skip
    for url in pair:
        async with connected(url) as connection:
            for name in ("safe", "purse"):
                await connection.execute(
                    f"INSERT INTO {name} SELECT i, {EACH} FROM generate_series(0, {ROWS}) i"
                    " ON CONFLICT DO NOTHING"
                )
    mappings = list(by_table(towards(Side.NEW, both_ways, [])))
    async with running(*pair, both_ways, [], Side.LEGACY) as told, connected(pair[0]) as legacy:
        await until(lambda: is_(told, State.FOLLOWING), "it follows")
        await legacy.execute("UPDATE purse SET cents = cents + 1 WHERE id = 0")
        async with moving_money(pair[1], writers=3), cut("to_legacy", pair[1], pair[0]) as both:
            found = [await verify.compare_at(both, *one, backwards=True) for one in mappings]
            assert await rows(both.written, SUM) == await rows(both.fed, SUM) == [(2 * ROWS * EACH,)]
    assert [[(each.kind, each.key) for each in one.differences] for one in found] == [
        [], [("different", ("0",))]
    ]  # fmt: skip


async def test_who_waits_too_long_for_others_says_for_whom(pair: tuple[str, str]) -> None:
    async with following(pair), connected(pair[0]) as legacy, connected(pair[0]) as long:
        async with long.transaction():
            await long.execute("UPDATE safe SET cents = 0 WHERE id = 5")
            pid = long.info.backend_pid
            with pytest.raises(CaptureStopped, match=f"pid {pid} ") as stopped:
                async with cut(NAME, *pair, within=0.5):
                    pass
            assert stopped.value.reason == "long_transaction"
            await legacy.execute("UPDATE safe SET cents = 7 WHERE id = 7")
            await goes_on(pair)
            await until(lambda: no_slot_is_left(pair[0]), "no slot is left")
        async with cut(NAME, *pair) as both:
            assert await different(both) == []


KILLED = """
import asyncio, sys
from dualwrite import cut
async def slowly(*_):
    print("stands", flush=True)
    await asyncio.sleep(60)
cut._slot = slowly
async def main():
    async with cut.cut(*sys.argv[1:]):
        pass
asyncio.run(main())
"""


async def test_the_stream_goes_on_by_itself_where_who_asked_was_killed(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "STAND_AT_MOST", 1.0)
    async with following(pair), connected(pair[0]) as legacy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, NAME, *pair, stdout=asyncio.subprocess.PIPE, env={**os.environ}
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"stands\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await legacy.execute("UPDATE safe SET cents = 7 WHERE id = 7")
        await goes_on(pair)
        monkeypatch.undo()  # the next one may take its time
        async with cut(NAME, *pair) as both:
            assert await different(both) == []
        await until(lambda: no_slot_is_left(pair[0]), "no slot is left")


async def test_one_that_takes_over_while_it_stands_gives_no_wrong_moment(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "STAND_AT_MOST", 3.0)
    async with following(pair):
        pass
    slot = cuts._slot
    gone, stands = asyncio.Event(), asyncio.Event()

    async def meanwhile(*asked: Any) -> Any:
        stands.set()
        await gone.wait()
        return await slot(*asked)

    async def takes_its_moment() -> None:
        async with cut(NAME, *pair):
            pass

    monkeypatch.setattr(cuts, "_slot", meanwhile)
    async with moving_money(pair[0], writers=2):
        async with following(pair):
            comparing = asyncio.create_task(takes_its_moment())
            await stands.wait()
        # Its process is gone. Another one comes, which nobody has asked to stand.
        gone.set()
        async with following(pair):
            with pytest.raises(NoCutError, match="has gone on"):
                await comparing
            monkeypatch.undo()
            async with cut(NAME, *pair) as both:
                assert await different(both) == []
            await until(lambda: no_slot_is_left(pair[0]), "no slot is left")


async def test_without_a_process_that_stands_there_is_no_moment(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "ASK_WITHIN", 0.3)
    with pytest.raises(NoCutError, match="has not begun"):
        async with cut(NAME, *pair):
            pass
    async with following(pair):
        pass
    with pytest.raises(NoCutError, match="is crossfade sync running"):
        async with cut(NAME, *pair):
            pass
