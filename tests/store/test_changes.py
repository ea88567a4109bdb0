"""The one path for every change: who, why, in which order, and what is left when it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store.actors import LEAST_ROLE, Actor, ActorType, DeniedError, Role, Via
from crossfade.store.audit import Outcome, Verified
from crossfade.store.changes import ACTIONS
from crossfade.store.connection import StoreError, StoreReason
from crossfade.store.store import Store
from flags.change import (
    Apply,
    Archive,
    Command,
    Create,
    DropAuthority,
    Edit,
    KillAll,
    KillFlag,
    Move,
    Refused,
    SetAuthority,
    ShadowOff,
    ShadowOn,
    Unkill,
    UnkillAll,
)
from flags.conditions import Operator, Test
from flags.model import (
    Authority,
    Bucketing,
    Flag,
    FlagSet,
    Override,
    Phase,
    Rule,
    Side,
    Stage,
    Transition,
)
from flags.stages import settled_at
from tests.store.relay import Relay

ADA = Actor(ActorType.HUMAN, "ada", Role.OPERATOR, "192.0.2.1", Via.CLI)
ROOT = Actor(ActorType.HUMAN, "root", Role.ADMIN, None, Via.API)
EVE = replace(ADA, name="eve", role=Role.VIEWER)
WHEN = Test("header:x-tenant", Operator.IN, ("a", "b"))


def flag(key: str = "items.read", **more: object) -> Flag:
    made = Flag(key, 0, settled_at(Stage.LEGACY), Bucketing(("cookie:sid",), key))
    return replace(made, **more)  # type: ignore[arg-type]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = await Store.open(store_url)
    yield opened
    await opened.close()


@pytest.fixture
async def other(store_url: str) -> AsyncIterator[Store]:
    """Another control process at the same store."""
    opened = await Store.open(store_url)
    yield opened
    await opened.close()


async def refused(store: Store, command: Command, **more: object) -> Refused:
    with pytest.raises(Refused) as caught:
        await store.change(ADA, command, **{"reason": "try", **more})  # type: ignore[arg-type]
    return caught.value


async def test_a_change_is_there_for_everybody_with_who_and_why(store: Store, other: Store) -> None:
    rung: list[int] = []
    store.on_change = rung.append
    made = await store.change(ADA, Create(flag()), reason="  begin ", ticket="T-1", request_id="r-1")
    moved = await store.change(ADA, Move("items.read", Stage.SHADOW, 50_000), reason="5% first")
    assert (made.version, made.audit_seq, moved.version, moved.audit_seq) == (1, 1, 2, 2)
    assert moved.before == made.after
    assert moved.differences == ("items.read: legacy → legacy→shadow at 5%",)
    assert rung == [1, 2]

    seen = await other.flag_set()
    assert seen == moved.after
    assert seen.version == await other.version() == 2
    assert seen.flags[0].transition == Transition(Stage.LEGACY, Stage.SHADOW, 50_000)
    assert seen.flags[0].version == 2

    latest, first = await other.history("items.read")
    assert (first.reason, first.ticket, first.request_id, first.action) == (
        "begin",
        "T-1",
        "r-1",
        "flag.create",
    )
    assert (latest.from_version, latest.to_version) == (1, 2)
    assert latest.actor["name"] == "ada"
    assert latest.command == {"key": "items.read", "to": "shadow", "weight_ppm": 50_000}
    assert latest.before is not None
    assert latest.after is not None
    assert latest.before["flags"]["items.read"]["transition"]["weight_ppm"] == 0
    assert latest.after["flags"]["items.read"]["transition"]["weight_ppm"] == 50_000
    assert first.before == {"flags": {"items.read": None}}


async def test_every_command_comes_back_from_the_store_as_it_went_in(store: Store) -> None:
    rich = flag(
        "a.rich",
        owner="team", ticket="T", expires_on="2027-03-31", description="ä\u2028 \U0001f600",
        overrides=(Override("o1", WHEN, Stage.LIVE, 1_900_000_000.125),),
        rules=(Rule("r1", WHEN, Transition(Stage.SHADOW, Stage.LIVE, 1)),),
        fallback_ppm=100_000, bucketing=Bucketing(("cookie:sid", "path"), "salt", "cf_id"),
    )  # fmt: skip
    commands: list[Command] = [
        Create(rich),
        Create(flag()),
        Edit("items.read", owner="me", overrides=rich.overrides, rules=rich.rules, bucketing=rich.bucketing),
        Move("a.rich", Stage.SHADOW, 1),
        KillFlag("a.rich", "bad", "ada"),
        KillAll("worse", "ada"),
        ShadowOff("new is down", "ada"),
        ShadowOn(),
        UnkillAll(),
        Unkill("a.rich"),
        Edit("items.read", overrides=(), rules=()),
        Archive("items.read"),
        Apply((flag("b.one"), flag("b.two"))),
        SetAuthority(Authority("shop", ("b.one",), Side.LEGACY, 3, Phase.HOLD)),
        DropAuthority("shop"),
    ]
    assert {type(command) for command in commands} == set(ACTIONS)
    for version, command in enumerate(commands, 1):
        applied = await store.change(ROOT, command, reason=f"step {version}")
        assert applied.version == version
        assert await store.flag_set() == applied.after
        assert applied.differences
    rows = await store.audit_tail(0, 100)
    assert [row.action for row in rows] == [ACTIONS[type(command)] for command in commands]
    assert rows[-3].objects == ("b.one", "b.two")
    assert rows[5].before == {"flags": {}, "kill": None}
    assert [row.action for row in await store.history("items.read")] == [
        "flag.archive", "flag.edit", "flag.edit", "flag.create",
    ]  # fmt: skip
    assert isinstance(await store.audit_verify(), Verified)


async def test_what_changes_nothing_leaves_nothing(store: Store) -> None:
    rung: list[int] = []
    await store.change(ADA, Create(flag()), reason="begin")
    store.on_change = rung.append
    await store.change(ADA, KillAll("bad", "ada"), reason="bad")
    again = await store.change(ADA, KillAll("bad", "ada"), reason="bad")
    assert (again.version, again.audit_seq, again.differences) == (2, None, ())
    assert again.after is again.before
    assert rung == [2]
    assert len(await store.audit_tail()) == 2


async def test_a_dry_run_says_what_would_be_and_leaves_nothing(store: Store) -> None:
    await store.change(ADA, Create(flag()), reason="begin")
    would = await store.change(ADA, Move("items.read", Stage.SHADOW), reason="look", dry_run=True)
    assert (would.version, would.audit_seq) == (2, None)
    assert would.differences == ("items.read: legacy → shadow",)
    assert (await store.flag_set()).version == 1
    await refused(store, Move("items.read", Stage.NEW), dry_run=True)
    with pytest.raises(DeniedError):
        await store.change(EVE, Move("items.read", Stage.SHADOW), reason="look", dry_run=True)
    assert len(await store.audit_tail()) == 1


async def test_of_two_stores_one_wins_and_the_other_is_told(store: Store, other: Store) -> None:
    await store.change(ADA, Create(flag()), reason="begin")
    outcomes = await asyncio.gather(
        store.change(ADA, Move("items.read", Stage.SHADOW, 1), reason="one", expected_version=1),
        other.change(ADA, Move("items.read", Stage.SHADOW, 2), reason="two", expected_version=1),
        return_exceptions=True,
    )
    (lost,) = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert lost.kind == "conflict"
    assert "items.read is at version 2, not 1" in str(lost)
    (won,) = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert await store.flag_set() == won.after
    assert [row.outcome for row in await store.audit_tail()] == ["applied", "applied", "rejected"]


async def test_the_expected_version_is_the_flag_s_or_the_set_s(store: Store) -> None:
    await store.change(ADA, Apply((flag("a.one"), flag("a.two"))), reason="begin", expected_version=0)
    await store.change(ADA, Move("a.two", Stage.SHADOW), reason="go", expected_version=1)
    await store.change(ADA, Move("a.one", Stage.SHADOW), reason="go", expected_version=1)
    conflict = await refused(store, KillAll("x", "ada"), expected_version=2)
    assert "the flag set is at version 3, not 2" in str(conflict)
    await store.change(ADA, KillAll("x", "ada"), reason="go", expected_version=3)
    assert (await refused(store, Move("a.three", Stage.LIVE), expected_version=9)).kind == "not_found"


async def test_changes_of_two_stores_without_expectation_all_apply_in_one_order(
    store: Store, other: Store
) -> None:
    await store.change(ADA, Apply((flag("f.0"), flag("f.1"))), reason="begin")
    rung: list[int] = []
    store.on_change = other.on_change = rung.append

    async def ramp(which: Store, key: str) -> list[int]:
        commands = [Move(key, Stage.SHADOW, weight) for weight in range(1, 16)]
        return [(await which.change(ADA, command, reason="up")).version for command in commands]

    mine, theirs = await asyncio.gather(ramp(store, "f.0"), ramp(other, "f.1"))
    assert mine == sorted(mine)
    assert theirs == sorted(theirs)
    assert sorted(mine + theirs) == sorted(rung) == list(range(2, 32))
    rows = await store.audit_tail(0, 100)
    assert [(row.seq, row.to_version) for row in rows] == [(number, number) for number in range(1, 32)]
    found = await store.flag_set()
    assert [one.version for one in found.flags] == [16, 16]
    assert isinstance(await store.audit_verify(), Verified)


async def test_the_set_that_is_read_is_never_half_a_change(store: Store, other: Store) -> None:
    """Each change sets both flags and the version alike, so a mixture would show."""
    await store.change(ADA, Apply((flag("f.0"), flag("f.1"))), reason="begin")
    seen: set[int] = set()

    async def write() -> None:
        for number in range(1, 41):
            both = tuple(
                flag(key, transition=Transition(Stage.LEGACY, Stage.SHADOW, number)) for key in ("f.0", "f.1")
            )
            await store.change(ADA, Apply(both), reason="both")

    writing = asyncio.create_task(write())
    while not writing.done():
        found = await other.flag_set()
        assert {one.transition.weight_ppm for one in found.flags} == {found.version - 1}
        assert {one.version for one in found.flags} == {found.version}
        seen.add(found.version)
    await writing
    assert len(seen) > 3


async def test_a_change_needs_a_reason_that_can_be_read(store: Store) -> None:
    for reason in ("", "  \t", "two\nlines", "nul\0", "half \ud800", "x" * 1001):
        caught = await refused(store, Create(flag()), reason=reason)
        assert caught.kind == "invalid"
        assert "reason" in str(caught)
        (row,) = await store.audit_tail(limit=1)
        assert (row.outcome, row.refusal, row.objects) == (Outcome.REJECTED, str(caught), ("items.read",))
    assert await store.flag_set() == FlagSet(0)
    assert isinstance(await store.audit_verify(), Verified)


async def test_what_is_refused_is_recorded_with_what_was_wanted(store: Store) -> None:
    await store.change(ADA, Create(flag()), reason="begin")
    jump = await refused(store, Move("items.read", Stage.NEW), reason="now", ticket="T-9")
    assert jump.kind == "stage_jump"
    await refused(store, Apply((flag("b.new"), flag(transition=settled_at(Stage.NEW)))), reason="all")
    *_, first, second = await store.audit_tail()
    assert (first.outcome, first.refusal, first.ticket) == (Outcome.REJECTED, str(jump), "T-9")
    assert first.command == {"key": "items.read", "to": "new", "weight_ppm": 1_000_000}
    assert (first.before, first.after, first.to_version) == (None, None, None)
    assert second.objects == ("b.new", "items.read")
    assert (await store.flag_set()).version == 1, "all or nothing"
    assert isinstance(await store.audit_verify(), Verified)


COMMANDS: list[Command] = [
    Create(flag("b.new")),
    Edit("items.read", owner="x"),
    Move("items.read", Stage.SHADOW),
    KillFlag("items.read", "r", "ada"),
    Unkill("items.read"),
    KillAll("r", "ada"),
    UnkillAll(),
    Archive("items.read"),
    Apply((flag("b.other"),)),
]


@pytest.mark.parametrize("role", Role)
async def test_each_role_may_do_what_the_table_says(store: Store, role: Role) -> None:
    admin = replace(ADA, role=Role.ADMIN)
    await store.change(admin, Create(flag()), reason="begin")
    somebody = replace(ADA, name="somebody", role=role)
    denied = 0
    for command in COMMANDS:
        if role >= LEAST_ROLE[ACTIONS[type(command)]]:
            await store.change(somebody, command, reason="may")
            continue
        with pytest.raises(DeniedError, match="needs the role operator"):
            await store.change(somebody, command, reason="may not")
        denied += 1
        last = (await store.audit_tail(limit=1))[0]
        assert (last.outcome, last.action, last.reason) == ("denied", ACTIONS[type(command)], "may not")
        assert last.actor["name"] == "somebody"
    assert denied == (0 if role >= Role.OPERATOR else len(COMMANDS))
    assert ((await store.flag_set()).version == 1) == (denied > 0)


async def test_a_ramp_moves_and_cannot_do_more(store: Store) -> None:
    await store.change(ADA, Create(flag()), reason="begin")
    ramp = Actor(ActorType.RAMP, "ramp 1", None, None, Via.RAMP)
    await store.change(ramp, Move("items.read", Stage.SHADOW, 10), reason="step 1", evidence={"e": 0.5})
    with pytest.raises(DeniedError, match=r"a ramp may not do flag\.unkill"):
        await store.change(ramp, Unkill("items.read"), reason="step 2")
    assert [row.evidence for row in await store.history("items.read")] == [None, {"e": 0.5}, None]


async def test_what_belongs_to_a_change_is_written_with_it_or_not_at_all(store: Store) -> None:
    await store.change(ADA, Create(flag()), reason="begin")

    async def start(connection: AsyncConnection, after: FlagSet) -> None:
        assert after.flags[0].transition.settled is None
        await connection.execute(
            text("INSERT INTO crossfade_store.ramps (flag, state, steps) VALUES ('items.read', 'x', '[]')")
        )

    async def fail(connection: AsyncConnection, after: FlagSet) -> None:
        await start(connection, after)
        raise ZeroDivisionError

    async def ramps() -> int:
        async with store.transaction() as connection:
            found = await connection.execute(text("SELECT count(*) FROM crossfade_store.ramps"))
            return int(found.scalar_one())

    move = Move("items.read", Stage.SHADOW, 10)
    with pytest.raises(ZeroDivisionError):
        await store.change(ADA, move, reason="ramp", also=fail)
    assert (await store.version(), await ramps()) == (1, 0)
    await store.change(ADA, move, reason="ramp", also=start, dry_run=True)
    assert (await store.version(), await ramps()) == (1, 0)
    await store.change(ADA, move, reason="ramp", also=start)
    assert (await store.version(), await ramps()) == (2, 1)


async def test_flags_of_routes_are_registered_once_and_archived_ones_stay(store: Store, other: Store) -> None:
    await store.change(ADA, Create(flag("old.one")), reason="begin")
    await store.change(ADA, Archive("old.one"), reason="over")
    wanted = [flag("old.one"), flag("b.one"), flag("b.two")]
    first, second = await asyncio.gather(store.register(wanted), other.register(wanted))
    assert sorted([first.audit_seq or 0, second.audit_seq or 0]) == [0, 3]
    assert [(one.key, one.archived) for one in (await store.flag_set()).flags] == [
        ("b.one", False), ("b.two", False), ("old.one", True),
    ]  # fmt: skip
    (row,) = await store.audit_tail(2)
    assert (row.actor["type"], row.objects, row.to_version) == ("configuration", ("b.one", "b.two"), 3)
    more = await store.register([*wanted, flag("b.three")])
    assert more.differences == ("b.three: new, at legacy",)


async def test_nothing_is_written_that_could_not_be_read(store: Store) -> None:
    """A kill's words are not checked with the flags; unreadable, they would hold everybody back."""
    await store.change(ADA, Create(flag()), reason="begin")
    for command in (
        KillAll("x" * 2001, "ada"),
        KillAll("\0", "ada"),
        KillFlag("items.read", "\ud800", "ada"),
    ):
        assert (await refused(store, command)).kind == "invalid"
    assert (await store.flag_set()).version == 1
    assert isinstance(await store.audit_verify(), Verified)


async def test_a_flag_of_a_later_version_is_named_and_not_guessed_at(store: Store, store_url: str) -> None:
    await store.change(ADA, Create(flag()), reason="begin")
    with psycopg.connect(store_url) as connection:
        connection.execute("""UPDATE crossfade_store.flags SET document = document || '{"moon": 1}'""")
    with pytest.raises(StoreError, match=r"flags\[0\]\.moon") as caught:
        await store.flag_set()
    assert caught.value.reason is StoreReason.UNREADABLE


async def test_a_bell_that_fails_does_not_undo_the_change(store: Store) -> None:
    def fail(version: int) -> None:
        raise ZeroDivisionError(version)

    store.on_change = fail
    assert (await store.change(ADA, Create(flag()), reason="begin")).version == 1
    assert await store.version() == 1


async def test_a_store_that_is_away_says_so_by_its_place(store_url: str, tmp_path: Path) -> None:
    away = await Store.open(f"postgresql://ada:s3cret@/flags?host={tmp_path}")
    questions = [
        away.migrate(), away.flag_set(), away.version(), away.history("x"), away.audit_verify(),
        away.change(ADA, Create(flag()), reason="begin"), away.register([flag()]), away.instances(),
        away.change(EVE, Create(flag()), reason="begin"),
        away.people(), away.authenticate("cf_" + "a" * 43),
        away.issue_token(ADA, "x", Role.ADMIN, reason="x"),
    ]  # fmt: skip
    for outcome in await asyncio.gather(*questions, return_exceptions=True):
        assert isinstance(outcome, StoreError), outcome
        assert outcome.reason is StoreReason.UNREACHABLE
        assert str(tmp_path) in str(outcome)
        assert "s3cret" not in str(outcome)
    assert "s3cret" not in away.place
    await away.close()


async def test_a_change_that_got_no_answer_is_whole_or_absent(store: Store, store_url: str) -> None:
    async with Relay.to(store_url) as relay:
        cut = await Store.open(relay.url)
        relay.lose = b"COMMIT"
        with pytest.raises(StoreError) as caught:
            await cut.change(ADA, Create(flag()), reason="begin")
        assert caught.value.reason is StoreReason.UNKNOWN_OUTCOME
        await cut.close()
    again = await store.change(ADA, Create(flag()), reason="begin")
    assert (again.version, again.audit_seq) == (1, 1)
