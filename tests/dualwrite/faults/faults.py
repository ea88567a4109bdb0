"""What may go wrong, by a seed. Each fault is over when it returns, and then all has to be well again: by
itself, or, where something was lost, by what docs/data.md tells a person to do about the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg

from tests.dualwrite.faults import points
from tests.dualwrite.faults.ground import LOG, SLOT, VAULTS, Ground
from tests.dualwrite.faults.people import PATIENT, People
from tests.dualwrite.faults.scene import Scene, WrongError, differences, until
from tests.dualwrite.faults.wire import LOG as IN_THE_LOG
from tests.dualwrite.faults.wire import STATUS, STREAM, Said, Sender, everything, log_message

Fault = Callable[[Scene, random.Random], Awaitable[None]]

BEGINNING: Final = ("before the publication is made", "before the slot is made", "before the stream is known")
COPYING: Final = (
    "before a chunk is read", "in a chunk that is read", "in a chunk that is written",
    "before a chunk is noted", "before the commit", "the commit is not heard of", "before the position",
    "before it confirms", "before it is whole",
)  # fmt: skip
STARTING: Final = (
    "before it takes over", "before it marks what it writes", "before it reads", "before a beat",
    "before the position", "the commit is not heard of",
)  # fmt: skip
FOLLOWING: Final = (
    "in the log", "before the position", "before the commit", "the commit is not heard of",
    "before it confirms", "before a beat",
)  # fmt: skip


# While it begins, and while it copies.


async def killed_while_it_begins(scene: Scene, chance: random.Random) -> None:
    point = chance.choice(BEGINNING)
    await scene.kill_at(point, starting=True)
    await scene.start()
    if point == "before the stream is known":
        # Nobody can tell whose the slot is: a person has to.
        await scene.stops({"slot_exists"})
        await scene.ground.source.do(f"SELECT pg_drop_replication_slot('{SLOT}')")
        await scene.start()


async def killed_while_it_copies(scene: Scene, chance: random.Random) -> None:
    """And again on the way, and once more while it takes over from the one before."""
    await scene.kill_at(chance.choice(COPYING), starting=True)
    await scene.kill_at(chance.choice(COPYING[:6]), starting=True)
    if chance.random() < 0.5:
        await scene.kill_at(chance.choice(STARTING), starting=True)
    await scene.start()


async def cut_while_it_copies(scene: Scene, chance: random.Random) -> None:
    """The connection ends in the middle of a COPY, out and in; the process lives."""
    for number, point in enumerate(chance.sample(COPYING[:6], 3)):
        await broken_off(scene, point, chance.randint(1, 2), starting=not number)


async def others_are_open_while_it_begins(scene: Scene, chance: random.Random) -> None:
    """A transaction that takes long, and one that was prepared and forgotten: a slot waits for both."""
    source = scene.ground.source
    async with await psycopg.AsyncConnection.connect(source.url, options=PATIENT) as long:
        await scene.people.begin(long, "long")
        await source.do(
            "BEGIN; INSERT INTO log (list, said) VALUES ('prepared', 'x'); PREPARE TRANSACTION 'forgotten'"
        )
        try:
            await scene.start()
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND query LIKE '%pg_create_logical_replication_slot%'"
            )
            await until(lambda: source.ask(waiting)[0][0] > 0, "it waits for those before it")
            await scene.people.grow_by(10)
        finally:
            await source.do("COMMIT PREPARED 'forgotten'")
        await scene.people.finish(long)


async def one_is_open_while_it_copies(scene: Scene, chance: random.Random) -> None:
    """Nothing is copied meanwhile, and the stream goes on all the same."""
    async with await psycopg.AsyncConnection.connect(scene.ground.source.url, options=PATIENT) as long:
        relay, point = scene.way_to("before a chunk is read")
        async with relay.hold(point, 2) as held:
            await scene.start()
            await held.until_reached()
            await scene.people.begin(long, "long")
        _, _, before = await scene.state()
        await scene.people.grow_by(10)
        await scene.gets_beyond(before)
        await scene.people.finish(long)


async def commits_are_seen_late(scene: Scene, chance: random.Random) -> None:
    """A commit is in the log and cannot be seen: its synchronous standby is not there. Chunks must not be
    read meanwhile (`dualwrite/snapshot.py`)."""
    source, relay = scene.ground.source, scene.ground.source.relay
    hidden: list[asyncio.Task[None]] = []
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

    def all_wait() -> bool:
        # A few may have been through before each process had read the setting.
        left = sum(not one.done() for one in hidden)
        return left >= len(hidden) // 2 and bool(source.ask(waiting)[0][0] >= left)

    try:
        async with relay.hold(points.SOURCE["before a chunk is read"]) as held:
            await scene.start()
            await held.until_reached()
            await source.set("SET synchronous_standby_names = 'nobody'")
            hidden += [asyncio.create_task(_hidden(scene, number, chance)) for number in range(20)]
            await until(all_wait, "commits wait")
        # What is copied without regard to them is copied by now.
        await asyncio.sleep(chance.uniform(3, 4))
    finally:
        await source.set("RESET synchronous_standby_names")
        await asyncio.gather(*hidden)


async def compared_while_commits_are_seen_late(scene: Scene, chance: random.Random) -> None:
    """They have come to the target before anybody sees them at the source: that is no difference."""
    source, target = scene.ground.source, scene.ground.target
    ids = [row[0] for row in source.ask("SELECT id FROM log WHERE list = 'quiet' ORDER BY 1")]
    said, new = f"late {chance.random()}", -chance.randint(1, 1_000_000)
    statements = (
        f"UPDATE log SET more = '{said}' WHERE id = {ids[0]}",
        f"INSERT INTO log (id, list, said) VALUES ({new}, 'quiet', '{said}')",
    )
    arrived = f"SELECT count(*) FROM log WHERE '{said}' IN (said, more)"
    await source.set("SET synchronous_standby_names = 'nobody'")
    try:
        hidden = [asyncio.create_task(source.do(one)) for one in statements]
        await until(lambda: target.ask(arrived) == [(2,)], "both have come")
        began = source.ask("SELECT clock_timestamp()::text")[0][0]
        looks = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_current_snapshot%'"
            f" AND backend_start > '{began}' AND pid <> pg_backend_pid()"
        )
        comparing = asyncio.create_task(scene.compared("--table", "log"))
        await until(lambda: comparing.done() or source.ask(looks)[0][0], "it looks what can be seen")
    finally:
        await source.set("RESET synchronous_standby_names")
    await asyncio.gather(*hidden)
    if found := await comparing:
        raise WrongError(f"I11: a false alarm: {found}")
    await source.do(f"DELETE FROM log WHERE id = {new}", f"UPDATE log SET more = NULL WHERE id = {ids[0]}")


async def _hidden(scene: Scene, number: int, chance: random.Random) -> None:
    """Rows that have not been copied yet go, or change without their large values."""
    async with await psycopg.AsyncConnection.connect(
        scene.ground.source.url, options=PATIENT, autocommit=True
    ) as connection:
        if number % 2:
            await connection.execute("DELETE FROM log WHERE id = %s", (LOG - 5 * number,))
        else:
            await connection.execute("UPDATE lists SET seen = -1 WHERE id = %s", (f"old {number + 20}",))


async def a_copied_row_is_refused(scene: Scene, chance: random.Random) -> None:
    """A constraint of the target does not take what was there before: a person mends it."""
    target = scene.ground.target
    await target.do(
        f"ALTER TABLE log ADD CONSTRAINT narrow CHECK (list <> 'quiet' OR said <> '{chance.randint(1, 50)}')"
    )
    try:
        await scene.start()
        await scene.stops({"refused", "poison_row"})
    finally:
        await target.do("ALTER TABLE log DROP CONSTRAINT narrow")
    await scene.start()


# While it follows.


async def killed(scene: Scene, chance: random.Random) -> None:
    await scene.kill_at(chance.choice(FOLLOWING), chance.randint(1, 3))
    await scene.start()


async def killed_twice(scene: Scene, chance: random.Random) -> None:
    await scene.kill_at(chance.choice(FOLLOWING))
    await scene.kill_at(chance.choice(STARTING), starting=True)
    await scene.start()


async def cut(scene: Scene, chance: random.Random) -> None:
    for point in chance.sample(FOLLOWING, 2):
        await broken_off(scene, point, chance.randint(1, 3))


async def broken_off(scene: Scene, point: str, nth: int, *, starting: bool = False) -> None:
    relay, which = scene.way_to(point)
    async with relay.hold(which, nth) as held:
        if starting:
            await scene.start()
        await held.until_reached()
        relay.hang_up()


async def frozen(scene: Scene, chance: random.Random) -> None:
    """Nothing gets through for a while, on one connection or on all of one server."""
    point = chance.choice(FOLLOWING)
    relay, which = scene.way_to(point)
    async with relay.hold(which, chance.randint(1, 3)) as held:
        await held.until_reached()
        await asyncio.sleep(chance.uniform(0.5, 1.5))
    side = chance.choice(("source", "target"))
    async with scene.unreachable(side):
        await asyncio.sleep(chance.uniform(0.2, 1))


async def slow_target(scene: Scene, chance: random.Random) -> None:
    relay = scene.ground.target.relay
    relay.delay = chance.uniform(0.03, 0.1)
    try:
        await scene.people.grow_by(60)
    finally:
        relay.delay = 0.0


async def source_is_killed(scene: Scene, chance: random.Random) -> None:
    await scene.people.grow_by(chance.randint(1, 30))
    scene.people.away = True
    try:
        scene.ground.source.kill()
        await asyncio.sleep(chance.uniform(0, 1))
        scene.ground.source.restart()
        await scene.people.grow_by(5)
    finally:
        scene.people.away = False


async def source_is_restarted(scene: Scene, chance: random.Random) -> None:
    """In order, as for a new setting: it waits for nobody who reads its log."""
    await scene.people.grow_by(chance.randint(1, 30))
    scene.people.away = True
    try:
        began = time.monotonic()
        await scene.ground.source.stop()
        if time.monotonic() - began > 15:
            raise WrongError(f"I12: the source took {time.monotonic() - began:.0f} s to stop")
        scene.ground.source.restart()
        await scene.people.grow_by(5)
    finally:
        scene.people.away = False


async def target_is_killed(scene: Scene, chance: random.Random) -> None:
    relay, point = scene.way_to(
        chance.choice(("before the commit", "the commit is not heard of", "before the position"))
    )
    async with relay.hold(point, chance.randint(1, 5)) as held:
        await held.until_reached()
        scene.ground.target.kill()
    await asyncio.sleep(chance.uniform(0, 1))
    scene.ground.target.restart()


async def zombie(scene: Scene, chance: random.Random) -> None:
    """One sleeps in the middle of something, another takes over, and then the first one wakes up."""
    asleep_at = ("in the log", "before the position", "before the commit", "before it confirms")
    relay, point = scene.way_to(chance.choice(asleep_at))
    async with relay.hold(point) as held:
        await held.until_reached()
        async with scene.asleep():
            held.go_on()
            await scene.start()
            await scene.is_well()
        # Awake, and with its messages through: whatever it writes now would be wrong, and be found.
        await scene.people.grow_by(5)


async def zombie_that_was_about_to_write(scene: Scene, chance: random.Random) -> None:
    """It has taken in many transactions, and has not asked yet whether the stream is still its own."""
    relay, unheard_of = scene.way_to("the commit is not heard of")
    scene.people.wander = False  # else the target may refuse what is too old, and nobody learns who let it in
    async with relay.hold(unheard_of) as before:
        await before.until_reached()
        await scene.people.grow_by(15)
        async with relay.hold(points.TARGET["before it begins to write"]) as held:
            before.go_on()
            await held.until_reached()
            async with scene.asleep():
                await scene.start()
                await scene.is_well()
                await scene.people.grow_by(30)
                await scene.is_well()
            held.go_on()
            await scene.people.grow_by(15)
    scene.people.wander = True


async def taken_over_while_it_works(scene: Scene, chance: random.Random) -> None:
    """The one that begins looks at slot and position, and meanwhile the other, which has not heard that the
    stream is not its own any more, applies and confirms: nothing of that may look like a loss."""
    renewing, renews = scene.way_to("before it renews its lease")
    beginning, asks = scene.way_to("before it knows the source")
    async with renewing.hold(renews) as unheard:
        await unheard.until_reached()
        async with beginning.hold(asks) as held:
            await scene.start()
            await held.until_reached()
            _, _, before = await scene.state()
            await scene.people.grow_by(10)
            await scene.gets_beyond(before)
            await scene.is_well()
        await scene.people.grow_by(10)
        await scene.is_well()


async def comes_again(scene: Scene, chance: random.Random) -> None:
    """The source hears of nothing that was applied, and is asked from the beginning: all comes twice."""
    relay = scene.ground.source.relay
    relay.passing = unheard
    try:
        await scene.people.grow_by(chance.randint(20, 60))
        await scene.kill_at("the commit is not heard of")
        relay.passing = from_the_beginning
        await scene.start()
        await scene.is_well()
    finally:
        relay.passing = everything


def unheard(said: Said) -> bytes | None:
    """Confirmations are lost."""
    return None if said.text == STATUS and said.sender is Sender.WORKER else said.message


def from_the_beginning(said: Said) -> bytes | None:
    if said.session != STREAM or said.sender is Sender.SERVER or not said.text.startswith("START_REP"):
        return unheard(said)
    asked = re.search(rb"LOGICAL ([0-9A-F]+)/([0-9A-F]+)", said.message)
    assert asked is not None
    zeros = b"LOGICAL %b/%b" % (b"0" * len(asked[1]), b"0" * len(asked[2]))
    return said.message.replace(asked[0], zeros)


async def one_is_open_for_long(scene: Scene, chance: random.Random) -> None:
    """Open over everything that others do, and over a restart; then it is committed, or not."""
    async with await psycopg.AsyncConnection.connect(scene.ground.source.url, options=PATIENT) as long:
        await scene.people.begin(long, "long")
        await scene.people.grow_by(30)
        await killed(scene, chance)
        await scene.is_well()
        if chance.random() < 0.7:
            await scene.people.finish(long)
        else:
            await long.rollback()


# What a person has to mend.


async def column_is_added(scene: Scene, chance: random.Random) -> None:
    """Nobody has said what becomes of it. Once the mapping does, it goes on where it was."""
    source = scene.ground.source
    await source.do("ALTER TABLE vaults ADD COLUMN more text", "UPDATE vaults SET more = 'x' WHERE id = 1")
    try:
        await scene.stops({"column_unknown"})
        with _mapped(scene, '["id", "cents", "note"], ["more"])'):
            await scene.start()
            await scene.is_well()
            await source.do("ALTER TABLE vaults DROP COLUMN more")
            await scene.people.grow_by(20)
            await scene.is_well()
    finally:
        await source.do("ALTER TABLE vaults DROP COLUMN IF EXISTS more")
    await scene.restart()


async def column_is_renamed(scene: Scene, chance: random.Random) -> None:
    """And named back later: each time the mapping is mended, and nothing between is lost."""
    source = scene.ground.source
    vault = chance.randint(1, VAULTS)
    await source.do(f"UPDATE vaults SET note = 'before' WHERE id = {vault}")
    await source.do(
        "ALTER TABLE vaults RENAME note TO remark",
        f"UPDATE vaults SET remark = remark || ', after' WHERE id = {vault}",
    )
    await scene.stops({"column_gone"})
    with _mapped(scene, '{"id": "id", "cents": "cents", "remark": "note"})'):
        await scene.start()
        await scene.is_well()
        arrived = scene.ground.target.ask(f"SELECT note FROM vaults WHERE id = {vault}")
        if arrived != [("before, after",)]:
            raise WrongError(f"I1: {arrived} of a column that was renamed")
        await source.do(
            "ALTER TABLE vaults RENAME remark TO note", f"UPDATE vaults SET note = NULL WHERE id = {vault}"
        )
        await scene.stops({"column_gone"})
    await scene.start()


async def column_is_dropped(scene: Scene, chance: random.Random) -> None:
    """And made again later. The mapping takes it out and in, and the target keeps its own meanwhile."""
    source, touched = scene.ground.source, "UPDATE vaults SET cents = cents WHERE id = 1"
    await source.do("ALTER TABLE vaults DROP COLUMN note", touched)
    await scene.stops({"column_gone"})
    with _mapped(scene, '["id", "cents"], (), ["note"])'):
        await scene.start()
        await scene.people.grow_by(20)
        await scene.is_well()
        await source.do("ALTER TABLE vaults ADD COLUMN note text", touched)
        await scene.stops({"column_unknown"})
    await scene.start()


async def types_change(scene: Scene, chance: random.Random) -> None:
    """On both sides, while it runs: it goes on, since each value is one in the other type, too."""
    source, target = scene.ground.source, scene.ground.target
    vault = chance.randint(1, VAULTS)
    await source.do("ALTER TABLE vaults ALTER note TYPE int USING note::int")
    await source.do(f"UPDATE vaults SET note = 7 WHERE id = {vault}")
    await scene.is_well()
    await target.do("ALTER TABLE vaults ALTER note TYPE varchar(9)")
    await source.do(f"UPDATE vaults SET note = note * 6 WHERE id = {vault}")
    await scene.people.grow_by(20)
    await scene.is_well()
    arrived = target.ask(f"SELECT note FROM vaults WHERE id = {vault}")
    if arrived != [("42",)]:
        raise WrongError(f"I1: {arrived} of a column whose type has changed")
    await target.do("ALTER TABLE vaults ALTER note TYPE text")
    await source.do("ALTER TABLE vaults ALTER note TYPE text", "UPDATE vaults SET note = NULL")


@contextlib.contextmanager
def _mapped(scene: Scene, columns: str) -> Iterator[None]:
    """While this lasts, the mapping of the vaults is another one, for processes that begin."""
    migration = scene.ground.folder / "migration.py"
    before = migration.read_text()
    mended = before.replace('["id", "cents", "note"])', columns)
    assert mended != before
    migration.write_text(mended)
    try:
        yield
    finally:
        migration.write_text(before)


REFUSALS: Final = (
    ("ALTER TABLE log ADD CONSTRAINT narrow CHECK (said <> 'poison')",
     "ALTER TABLE log DROP CONSTRAINT narrow"),
    ("CREATE UNIQUE INDEX narrow ON log (said) WHERE said = 'poison'", "DROP INDEX narrow"),
    ("BEGIN; ALTER TABLE log ADD needed int NOT NULL DEFAULT 0;"
     "ALTER TABLE log ALTER needed DROP DEFAULT; COMMIT",
     "ALTER TABLE log DROP needed"),
)  # fmt: skip
"""What somebody does to the target that takes no such rows then, and what mends it."""


async def row_is_refused(scene: Scene, chance: random.Random) -> None:
    """The target's own rules have become narrower."""
    refuse, mend = chance.choice(REFUSALS)
    await scene.ground.target.do(refuse)
    try:
        await scene.ground.source.do(
            "INSERT INTO log (list, said) VALUES ('bad', 'poison'), ('bad', 'poison')"
        )
        await scene.stops({"poison_row"})
    finally:
        await scene.ground.target.do(mend)
    await scene.start()


async def rows_are_spoiled(scene: Scene, chance: random.Random) -> None:
    """Somebody else writes to the target. A comparison names each row, and none besides; a repair mends
    them, although the process is killed in the middle of it."""
    clean = await scene.compared()
    if clean:
        raise WrongError(f"I11: a false alarm: {clean}")
    ids = [row[0] for row in scene.ground.source.ask("SELECT id FROM log WHERE list = 'quiet' ORDER BY 1")]
    cell, null, one, other, gone = chance.sample(ids, 5)
    await scene.ground.target.do(
        f"UPDATE log SET said = said || '!' WHERE id = {cell}",
        f"UPDATE log SET more = '' WHERE id = {null}",
        "UPDATE log a SET said = b.said FROM log b"
        f" WHERE (a.id, b.id) IN (({one}, {other}), ({other}, {one}))",
        f"DELETE FROM log WHERE id = {gone}",
        f"INSERT INTO log SELECT -1, list, said, more FROM log WHERE id = {cell}",
    )
    wanted = {
        ("log", str(cell), "different"), ("log", str(null), "different"), ("log", str(one), "different"),
        ("log", str(other), "different"), ("log", str(gone), "missing"), ("log", "-1", "extra"),
    }  # fmt: skip
    scene.ground.unmarked()  # somebody else's are not the stream's
    only = ("--table", "log")
    found = await scene.compared(*only)
    if found != wanted:
        raise WrongError(f"I11: not found {wanted - found}, invented {found - wanted}")
    relay, point = scene.way_to("before a repair is noted")
    async with relay.hold(point) as held:
        repairing = asyncio.create_task(scene.command("repair", *only))
        await held.until_reached()
        await scene.kill()
        held.lose()
    await scene.start()
    if left := differences(*await repairing):
        raise WrongError(f"I11: not repaired: {left}")


async def disk_is_full(scene: Scene, chance: random.Random) -> None:
    """The target's: nothing is lost, and it goes on by itself when there is room again."""
    source, target = scene.ground.source, scene.ground.target
    async with scene.ground.small_disk() as ballast:
        await target.do("ALTER TABLE log SET TABLESPACE small")
        _fill(ballast)
        await source.do(
            "INSERT INTO log (list, said) SELECT 'many', repeat('m', 500) FROM generate_series(1, 2000)"
        )
        ((position,),) = source.ask("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
        await scene.tries_again("No space left on device")
        assert (await scene.state())[2] < position
        ballast.unlink()
        await scene.is_well()


def _fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(b"\0" * 65_536):
            pass


# What ends a stream for good. Nobody is at work any more, all was judged before, and the next schedule begins
# as docs/data.md says of beginning anew.

_SOMETHING: Final = "INSERT INTO log (list, said) VALUES ('nobody', 'x')"


async def slot_is_dropped(scene: Scene, chance: random.Random) -> None:
    """While it runs."""
    await _drop_slot(scene)
    await scene.stops({"slot_missing"})


async def slot_is_made_again(scene: Scene, chance: random.Random) -> None:
    """Under the same name: what was written in between is lost, and nothing in the log says so."""
    await scene.kill()
    await _drop_slot(scene)
    await scene.ground.source.do(
        _SOMETHING, f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
    )
    await scene.start()
    await scene.stops({"gap"})


async def _drop_slot(scene: Scene) -> None:
    end = (
        "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
        f" WHERE slot_name = '{SLOT}' AND active"
    )
    while True:
        with contextlib.suppress(psycopg.errors.ObjectInUse):
            await scene.ground.source.do(end, f"SELECT pg_drop_replication_slot('{SLOT}')")
            return


async def slot_is_lost(scene: Scene, chance: random.Random) -> None:
    """The source has thrown away the log that nobody came to read (max_slot_wal_keep_size)."""
    source = scene.ground.source
    await scene.kill()
    await source.set("SET max_slot_wal_keep_size = '1MB'")
    try:
        for _ in range(4):
            await source.do(_SOMETHING, "SELECT pg_switch_wal()")
        await source.do("CHECKPOINT")
        status = f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        await until(lambda: source.ask(status) == [("lost",)], "the slot is lost")
        await scene.start()
        await scene.stops({"slot_lost"})
    finally:
        await source.set("RESET max_slot_wal_keep_size")


async def standby_takes_over(scene: Scene, chance: random.Random) -> None:
    """With the last commits, and with the slot or without: nobody can know that it has all that was read."""
    source = scene.ground.source
    has_slot = chance.random() < 0.5
    if not has_slot:
        await scene.kill()
        await _drop_slot(scene)
    copy = await source.copied()
    with source.replaced(copy, promoted=True):
        await scene.restart()
        await scene.stops({"other_timeline" if has_slot else "slot_missing"})


async def backup_is_restored(scene: Scene, chance: random.Random) -> None:
    """The source forgets what was applied already."""
    source = scene.ground.source
    copy = await source.copied()
    await source.do(_SOMETHING)
    await scene.is_well()
    with source.replaced(copy, promoted=False):
        await scene.stops({"target_ahead"})


async def log_has_a_hole(scene: Scene, chance: random.Random) -> None:
    """Whole transactions never come, a beat among them, and the connection says nothing of it."""
    relay = scene.ground.source.relay
    relay.passing = Hole()
    try:
        await scene.ground.source.do(_SOMETHING)
        await scene.stops({"gap"})
    finally:
        relay.passing = everything


class Hole:
    """Swallows transactions up to one with a beat."""

    def __init__(self) -> None:
        self._inside = False
        self._beat = False
        self._over = False

    def __call__(self, said: Said) -> bytes | None:
        if self._over or said.text != IN_THE_LOG:
            return said.message
        what = log_message(said)
        kind = what[:1]
        if kind == b"B":
            self._inside = True
        if kind in b"RY" or not self._inside:
            return said.message  # what tables are like is told once only
        self._beat = self._beat or (kind == b"M" and b"crossfade.beat" in what)
        if kind == b"C":
            self._inside, self._over = False, self._beat
        return None


async def started(scene: Scene, chance: random.Random) -> None:
    """No fault at all."""
    await scene.start()
    await scene.until()
    await scene.people.grow_by(20)


async def killed_while_it_writes(scene: Scene, chance: random.Random) -> None:
    """Rows of the stream: nothing is copied any more."""
    await scene.kill_at("in a chunk that is written", 2)
    await asyncio.sleep(0.3)  # somebody looks
    await scene.start()


IN_COPY: Final[list[Fault]] = [
    killed_while_it_copies, cut_while_it_copies, commits_are_seen_late, killed_while_it_begins,
    one_is_open_while_it_copies, others_are_open_while_it_begins, a_copied_row_is_refused,
]  # fmt: skip
"""Before anything has begun; they start the process."""
IN_STREAM: Final[list[Fault]] = [
    killed, killed_twice, cut, frozen, slow_target, source_is_killed, source_is_restarted, target_is_killed,
    zombie, zombie_that_was_about_to_write, taken_over_while_it_works, comes_again, one_is_open_for_long,
    rows_are_spoiled, row_is_refused, column_is_added, column_is_renamed, column_is_dropped, types_change,
    compared_while_commits_are_seen_late,
]  # fmt: skip
FOR_GOOD: Final[list[Fault]] = [
    log_has_a_hole, slot_is_dropped, slot_is_made_again, slot_is_lost, standby_takes_over, backup_is_restored,
]  # fmt: skip


async def play(own: Ground, seed: int, faults: Sequence[Fault], broken: str | None = None) -> None:
    """One schedule, with all that has to hold. Raises WrongError."""
    chance = random.Random(seed)
    people = People(own, chance)
    scene = Scene(own, people, chance, broken)
    async with own.ways():
        await own.forget()
        try:
            async with people.at_work():
                for fault in [one for one in faults if one not in FOR_GOOD]:
                    began = time.monotonic()
                    print(f"{seed}: {fault.__name__}", end=" ", flush=True)
                    await fault(scene, chance)
                    print(f"over after {time.monotonic() - began:.1f} s,", end=" ", flush=True)
                    await scene.is_well()
                    print(f"well after {time.monotonic() - began:.1f} s", flush=True)
                await people.grow_by(20)
            await scene.is_well()
            await scene.judged()
            for fault in [one for one in faults if one in FOR_GOOD]:
                print(f"{seed}: {fault.__name__}", flush=True)
                await fault(scene, chance)
        finally:
            await scene.kill_all()
