"""The one path for every change: lock, decide, write, record, commit; and then the bell.

Whoever changes anything waits for the lock of the one row of `flag_set`, so that changes and audit rows
have one order and versions have no gaps. What is refused is recorded too, in a transaction of its own
because the first one is rolled back; while that cannot be written, the refusal is not told either but
the fault of the store.

A dry run goes the same way up to the writing and leaves nothing, neither a change nor an audit row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store import audit, flag_rows, reports
from crossfade.store.actors import Actor, ActorType, DeniedError, Via, authorise
from crossfade.store.audit import Deed, Head, Json, Outcome
from crossfade.store.connection import Database
from flags import change as pure
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
from flags.conditions import All, Not, Test
from flags.conditions import Any as AnyOf
from flags.document import (
    MOST_FLAGS,
    InvalidFlagError,
    authority_to_json,
    condition_to_json,
    flag_to_json,
    from_json,
    kill_to_json,
    to_json,
    transition_to_json,
)
from flags.model import Authority, Flag, FlagSet, Transition

T = TypeVar("T")
LONGEST_REASON = 1000
LONGEST_TICKET = 200


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What the work of a deed came to. `changed` False: there was nothing to do, so nothing to record."""

    value: T
    changed: bool = True
    objects: tuple[str, ...] | None = None
    """What was really touched, where that is not what the deed said."""
    before: Json | None = None
    after: Json | None = None
    from_version: int | None = None
    to_version: int | None = None


Work: TypeAlias = Callable[[AsyncConnection, Head], Awaitable[Done[T]]]


@dataclass(frozen=True, slots=True)
class Recorded(Generic[T]):
    """The work's value, and the number of its audit row; None where nothing was changed."""

    value: T
    audit_seq: int | None


@dataclass(frozen=True, slots=True)
class Applied:
    """A flag set was changed, or would be (dry run), or was so already (`after` is `before`)."""

    version: int
    before: FlagSet
    after: FlagSet
    differences: tuple[str, ...]
    audit_seq: int | None
    """None for a dry run, and where there was nothing to change."""


Also: TypeAlias = Callable[[AsyncConnection, FlagSet], Awaitable[None]]
"""What belongs to a change and is written with it, in one transaction."""

Check: TypeAlias = Callable[[AsyncConnection, FlagSet, FlagSet], Awaitable[None]]
"""What else stands against a change from one set to another; it refuses by raising Refused."""

ACTIONS: Mapping[type[Command], str] = MappingProxyType(
    {
        Create: "flag.create",
        Edit: "flag.edit",
        Move: "flag.move",
        KillFlag: "flag.kill",
        Unkill: "flag.unkill",
        Archive: "flag.archive",
        Apply: "flags.apply",
        KillAll: "flags.kill",
        UnkillAll: "flags.unkill",
        ShadowOff: "shadow.off",
        ShadowOn: "shadow.on",
        SetAuthority: "authority.set",
        DropAuthority: "authority.drop",
    }
)


async def change(
    database: Database,
    actor: Actor,
    command: Command,
    *,
    reason: str,
    ticket: str | None = None,
    expected_version: int | None = None,
    dry_run: bool = False,
    evidence: Json | None = None,
    request_id: str | None = None,
    also: Also | None = None,
    report: str | None = None,
) -> Applied:
    """Change the flag set by `command`.

    `expected_version` is what the caller has seen: the version of the flag, or of the whole set where
    the command is for more than one. `also` is called with the new set before the commit, in the same
    transaction, and also where the set stays as it is; not in a dry run. `report` is the digest of a kept
    report, for flags that ask for one; what goes on by itself was asked for it when it began.
    """
    if report is not None:
        evidence = {**(evidence or {}), "report": report}
    deed = Deed(
        ACTIONS[type(command)], "flag", _keys(command), reason,
        _described(command), ticket, evidence, request_id,
    )  # fmt: skip

    def decide(before: FlagSet, now: float) -> FlagSet:
        _expect(before, command, expected_version)
        return pure.change(before, command, now=now)

    async def check(connection: AsyncConnection, before: FlagSet, after: FlagSet) -> None:
        asking = pure.asking_for_a_report(before, after) if actor.role is not None else []
        if asking:
            await reports.check(connection, report, asking)

    return await _decide_and_write(database, actor, deed, decide, dry_run=dry_run, also=also, check=check)


async def register(database: Database, wanted: Sequence[Flag]) -> Applied:
    """Create the flags that are not there, so that those of routes can be moved. Archived ones stay so."""
    actor = Actor(ActorType.CONFIGURATION, "crossfade.yaml", None, None, Via.CONFIG)
    keys = tuple(flag.key for flag in wanted)
    deed = Deed("flag.create", "flag", keys, "a route of the configuration names it", {"keys": keys})

    def decide(before: FlagSet, now: float) -> FlagSet:
        known = {flag.key for flag in before.flags}
        after = before
        for flag in wanted:
            if flag.key not in known:
                after = pure.change(after, Create(flag), now=now)
        return after

    return await _decide_and_write(database, actor, deed, decide)


async def _decide_and_write(
    database: Database,
    actor: Actor,
    deed: Deed,
    decide: Callable[[FlagSet, float], FlagSet],
    *,
    dry_run: bool = False,
    also: Also | None = None,
    check: Check | None = None,
) -> Applied:
    async def work(connection: AsyncConnection, _: Head) -> Done[Applied]:
        before, now = await flag_rows.read(connection)
        after = decide(before, now)
        changed = after is not before
        if changed:
            after = replace(after, version=before.version + 1)
            _check_readable(before, after)
            if check is not None:
                await check(connection, before, after)
            if not dry_run:
                await flag_rows.write(connection, before, after)
        if also is not None and not dry_run:
            await also(connection, after)
        was, becomes = _touched(before, after)
        lines = tuple(pure.differences(before, after))
        return Done(
            Applied(after.version, before, after, lines, None),
            changed=changed,
            objects=tuple(becomes["flags"]),
            before=was, after=becomes,
            from_version=before.version, to_version=after.version,
        )  # fmt: skip

    recorded = await perform(database, actor, deed, work, dry_run=dry_run)
    return replace(recorded.value, audit_seq=recorded.audit_seq)


async def perform(
    database: Database,
    actor: Actor,
    deed: Deed,
    work: Work[T],
    *,
    dry_run: bool = False,
) -> Recorded[T]:
    """Do `work` in one transaction with its audit row, if `actor` may.

    `work` runs under the lock of the flag set and may lock what it wants besides. It refuses by raising
    `Refused`. Raises `DeniedError`, `Refused`, or `StoreError`.
    """
    deed = replace(deed, reason=deed.reason.strip())
    try:
        authorise(actor, deed.action)
        _check_words(deed)
        async with database.transaction() as connection:
            head = await audit.lock(connection)
            done = await work(connection, head)
            if dry_run:
                await connection.rollback()
            if dry_run or not done.changed:
                return Recorded(done.value, None)
            seq = await audit.append(
                connection, head, actor,
                deed if done.objects is None else replace(deed, objects=done.objects),
                Outcome.APPLIED,
                from_version=done.from_version, to_version=done.to_version,
                before=done.before, after=done.after,
            )  # fmt: skip
        return Recorded(done.value, seq)
    except (DeniedError, Refused) as refusal:
        if not dry_run:
            outcome = Outcome.DENIED if isinstance(refusal, DeniedError) else Outcome.REJECTED
            async with database.transaction() as connection:
                head = await audit.lock(connection)
                await audit.append(connection, head, actor, deed, outcome, refusal=str(refusal))
        raise


def _check_words(deed: Deed) -> None:
    reason, ticket = deed.reason, deed.ticket or ""
    if not reason:
        raise Refused("invalid", 'a change needs a reason: --reason "why, in a few words"')
    for name, said, longest in (("reason", reason, LONGEST_REASON), ("ticket", ticket, LONGEST_TICKET)):
        if len(said) > longest or not said.isprintable():
            raise Refused("invalid", f"the {name} must be one line of at most {longest} printable characters")


def _expect(flag_set: FlagSet, command: Command, expected: int | None) -> None:
    """Refuse what was decided on something that is no longer so."""
    if expected is None:
        return
    match command:
        case Edit(key) | Move(key) | KillFlag(key) | Unkill(key) | Archive(key):
            what, flag = key, flag_set.flag(key)
            if flag is None:
                return  # which is refused with better words
            found = flag.version
        case _:
            what, found = "the flag set", flag_set.version
    if found != expected and found != flag_set.version == expected:
        raise Refused(
            "conflict",
            f"{what} is at version {found}; {expected} is the version of the whole set, and the flag's is "
            f"expected: crossfade flag get {what}",
        )
    if found != expected:
        raise Refused(
            "conflict",
            f"{what} is at version {found}, not {expected}: somebody has changed it since you looked; "
            "look again, and repeat with the version you then see",
        )


def _check_readable(before: FlagSet, after: FlagSet) -> None:
    """Refuse to write what could not be read again: it would stop everybody at the last version."""
    if len(after.flags) > MOST_FLAGS:
        raise Refused("invalid", f"a store holds at most {MOST_FLAGS} flags, archived ones among them")
    was = {flag.key: flag for flag in before.flags}
    touched = replace(after, flags=tuple(flag for flag in after.flags if flag != was.get(flag.key)))
    try:
        readable = from_json(to_json(touched)) == touched
    except InvalidFlagError as error:
        raise Refused("invalid", str(error)) from None
    if not readable:
        raise Refused("invalid", "the flag is not in its one spelling")


def _touched(before: FlagSet, after: FlagSet) -> tuple[Json, Json]:
    """What the change has touched, as it was and as it is: flags by key, and the global kill."""
    old = {flag.key: flag for flag in before.flags}
    new = {flag.key: flag for flag in after.flags if flag != old.get(flag.key)}
    was: dict[str, Any] = {"flags": {key: flag_to_json(old[key]) if key in old else None for key in new}}
    becomes: dict[str, Any] = {"flags": {key: flag_to_json(flag) for key, flag in new.items()}}
    for name in ("kill", "shadow_off"):
        old_one, new_one = getattr(before, name), getattr(after, name)
        if old_one != new_one:
            was[name] = None if old_one is None else kill_to_json(old_one)
            becomes[name] = None if new_one is None else kill_to_json(new_one)
    if before.authorities != after.authorities:
        was["authorities"] = [authority_to_json(one) for one in before.authorities]
        becomes["authorities"] = [authority_to_json(one) for one in after.authorities]
    return was, becomes


def _keys(command: Command) -> tuple[str, ...]:
    match command:
        case Create(flag):
            return (flag.key,)
        case Apply(flags):
            return tuple(flag.key for flag in flags)
        case KillAll() | UnkillAll() | ShadowOff() | ShadowOn():
            return ()
        case SetAuthority(authority):
            return authority.flags
        case DropAuthority(cutover):
            return (cutover,)
        case _:
            return (command.key,)


def _described(value: Any) -> Any:
    """A command, or a part of one, as JSON."""
    match value:
        case Flag():
            return flag_to_json(value)
        case Authority():
            return authority_to_json(value)
        case All() | AnyOf() | Not() | Test():
            return condition_to_json(value)
        case Transition():
            return transition_to_json(value)
        case tuple():
            return [_described(part) for part in value]
    if is_dataclass(value):
        return {field.name: _described(getattr(value, field.name)) for field in fields(value)}
    return value
