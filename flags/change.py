"""What a change makes of a flag set: a command and the set before it give the set after it, or a refusal.

Pure. Who may change, the reason, the record and the version of the whole set are the store's business;
here each flag that becomes another one gets its own version raised by one. A command that changes nothing
gives the same object back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TypeAlias

from flags.document import (
    InvalidFlagError,
    check_flag,
    check_key,
    condition_to_json,
    flag_from_json,
    flag_to_json,
)
from flags.model import (
    EVERYBODY,
    Authority,
    Bucketing,
    Flag,
    FlagSet,
    Kill,
    Override,
    Phase,
    Rule,
    Side,
    Stage,
    Transition,
)
from flags.stages import (
    ORDER,
    STAGES,
    StageJumpError,
    described,
    moved,
    percent,
    settled_at,
    share_of_new,
    spelled,
)


class Refused(Exception):  # noqa: N818  (a refusal is an answer, not a fault)
    """The change is not possible; `kind` is one word, the message says what is.

    Kinds: not_found, archived, exists, stage_jump, invalid, conflict, guardrail_tripped, under_authority.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Create:
    """A new flag; its key must never have been used."""

    flag: Flag


@dataclass(frozen=True, slots=True)
class Edit:
    """Everything about a flag but where it stands: what is None stays as it is."""

    key: str
    bucketing: Bucketing | None = None
    overrides: tuple[Override, ...] | None = None
    rules: tuple[Rule, ...] | None = None
    fallback_ppm: int | None = None
    no_fallback: bool = False
    mirror_ppm: int | None = None
    needs_report: bool | None = None
    owner: str | None = None
    ticket: str | None = None
    expires_on: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """`weight_ppm` of the keys to the stage `to`; the rest stays where it is."""

    key: str
    to: Stage
    weight_ppm: int = EVERYBODY


@dataclass(frozen=True, slots=True)
class KillFlag:
    """`at` is the ISO time at which a host has obeyed already, where one has."""

    key: str
    reason: str
    by: str
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Unkill:
    key: str


@dataclass(frozen=True, slots=True)
class KillAll:
    reason: str
    by: str
    at: str | None = None


@dataclass(frozen=True, slots=True)
class UnkillAll:
    pass


@dataclass(frozen=True, slots=True)
class Archive:
    """The flag decides nothing any more: its routes take the side that the configuration gives them.

    `sides` are those sides, as far as whoever archives knows them.
    """

    key: str
    sides: tuple[Side, ...] = ()


@dataclass(frozen=True, slots=True)
class Apply:
    """Flags as a file has them: those it names become so, others stay. All or nothing.

    Kills are not the file's business and stay; so do versions. A transition may only change as `Move`
    could change it.
    """

    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class ShadowOff:
    """No side is asked besides any more, whatever the stages; who answers stays as it is."""

    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class ShadowOn:
    pass


@dataclass(frozen=True, slots=True)
class SetAuthority:
    """A step of a cutover: `authority` holds instead of what its cutover has had."""

    authority: Authority


@dataclass(frozen=True, slots=True)
class DropAuthority:
    """The cutover is over for good: its flags go by themselves again."""

    cutover: str


Command: TypeAlias = (
    Create
    | Edit
    | Move
    | KillFlag
    | Unkill
    | KillAll
    | UnkillAll
    | ShadowOff
    | ShadowOn
    | Archive
    | Apply
    | SetAuthority
    | DropAuthority
)


def change(flag_set: FlagSet, command: Command, *, now: float) -> FlagSet:
    """The set after `command`; `now` is Unix time. Raises Refused."""
    match command:
        case Create(flag):
            if flag_set.flag(flag.key) is not None:
                raise _exists(flag_set, flag.key)
            return _with(flag_set, None, _checked(replace(flag, version=0)))
        case Edit(key):
            flag = _found(flag_set, key)
            return _with(flag_set, flag, _edited(flag, command))
        case Move(key, to, weight_ppm):
            flag = _found(flag_set, key)
            _must_have_a_say(flag_set, key)
            return _with(flag_set, flag, _moved(flag, to, weight_ppm))
        case KillFlag(key, reason, by, at):
            flag = _found(flag_set, key)
            _must_have_a_say(flag_set, key)
            return _with(flag_set, flag, replace(flag, kill=flag.kill or Kill(reason, by, at or _at(now))))
        case Unkill(key):
            flag = _found(flag_set, key)
            return _with(flag_set, flag, replace(flag, kill=None))
        case KillAll(reason, by, at):
            return flag_set if flag_set.kill else replace(flag_set, kill=Kill(reason, by, at or _at(now)))
        case UnkillAll():
            return replace(flag_set, kill=None) if flag_set.kill else flag_set
        case ShadowOff(reason, by):
            off = Kill(reason, by, _at(now))
            return flag_set if flag_set.shadow_off else replace(flag_set, shadow_off=off)
        case ShadowOn():
            return replace(flag_set, shadow_off=None) if flag_set.shadow_off else flag_set
        case SetAuthority(authority):
            return _with_authority(flag_set, authority)
        case DropAuthority(cutover):
            return _without_authority(flag_set, cutover)
        case Archive(key, sides):
            flag = _found(flag_set, key)
            if (over := flag_set.authority_over(key)) is not None:
                raise Refused("under_authority", f"{key} belongs to the cutover {over.cutover}")
            _check_archivable(flag, sides)
            return _with(flag_set, flag, replace(flag, archived=True))
        case Apply(flags):
            return _applied(flag_set, flags)


def no_say(flag_set: FlagSet, key: str) -> str | None:
    """Why the flag cannot move anybody at the moment, if so."""
    authority = flag_set.authority_over(key)
    if authority is None or (authority.side is Side.LEGACY and authority.phase is Phase.OPEN):
        return None
    if authority.phase is not Phase.OPEN:
        return f"{key} waits for the cutover {authority.cutover}: crossfade cutover status"
    return (
        f"new has the authority over the data of {key} since the cutover {authority.cutover}, so its requests"
        f" go to new; the way back for all of them is crossfade cutover back {authority.cutover}"
    )


def _must_have_a_say(flag_set: FlagSet, key: str) -> None:
    if (why := no_say(flag_set, key)) is not None:
        raise Refused("under_authority", why)


def _with_authority(flag_set: FlagSet, authority: Authority) -> FlagSet:
    for key in authority.flags:
        _found(flag_set, key)
        other = flag_set.authority_over(key)
        if other is not None and other.cutover != authority.cutover:
            raise Refused("under_authority", f"{key} belongs to the cutover {other.cutover} already")
    before = flag_set.authority(authority.cutover)
    if before == authority:
        return flag_set
    if before is not None and authority.generation < before.generation:
        raise Refused(
            "conflict",
            f"{authority.cutover} is at generation {before.generation}, {authority.generation} is old",
        )
    others = (one for one in flag_set.authorities if one.cutover != authority.cutover)
    return replace(flag_set, authorities=tuple(sorted((*others, authority), key=lambda one: one.cutover)))


def _without_authority(flag_set: FlagSet, cutover: str) -> FlagSet:
    """Letting the flags go moves nobody: they are settled where their requests have gone."""
    authority = flag_set.authority(cutover)
    if authority is None:
        return flag_set
    if authority.side is Side.NEW and flag_set.kill is not None:
        raise Refused(
            "invalid",
            f"everything is killed, which would count for {cutover} too; crossfade unkill --all first",
        )
    left = tuple(one for one in flag_set.authorities if one is not authority)
    found = replace(flag_set, authorities=left)
    for key in authority.flags:
        flag = flag_set.flag(key)
        if flag is None or flag.archived:
            continue
        if authority.side is Side.NEW:
            if flag.kill is not None:
                raise Refused(
                    "invalid", f"{key} is killed, which would count again; crossfade unkill {key} first"
                )
            settled = replace(flag, transition=settled_at(Stage.NEW), overrides=(), rules=())
            found = _with(found, flag, settled)
        elif share_of_new(flag.transition) or flag.overrides or flag.rules:
            raise Refused(
                "invalid",
                f"{key} would send what changes data to new once it goes by itself; settle it at legacy or"
                f" shadow first: crossfade flag move {key} --to shadow",
            )
    return found


def _check_archivable(flag: Flag, sides: tuple[Side, ...]) -> None:
    """Archiving must move nobody."""
    here = flag.transition.settled
    if here is None:
        raise Refused(
            "invalid",
            f"{flag.key} is in between ({described(flag.transition)}); settle it first, then archive it",
        )
    if flag.kill is not None:
        raise Refused(
            "invalid",
            f"{flag.key} is killed, and archiving it would end that; settle it where it shall stay "
            f"(crossfade flag move {flag.key} --to STAGE), crossfade unkill {flag.key}, then archive it",
        )
    if flag.rules or flag.overrides:
        raise Refused(
            "invalid",
            f"{flag.key} has rules or overrides, which would end; take them away first: crossfade apply -f, "
            "with the flag without them",
        )
    side = STAGES[here].answers
    if any(other is not side for other in sides):
        raise Refused(
            "invalid",
            f"{flag.key} is at {here}, and a route of it has another target in crossfade.yaml: archiving it "
            f"would move everybody; write `target: {side}` into its routes and crossfade reload before",
        )


def _applied(flag_set: FlagSet, flags: tuple[Flag, ...]) -> FlagSet:
    found = flag_set
    keys = [flag.key for flag in flags]
    for index, wanted in enumerate(flags):
        if wanted.key in keys[:index]:
            raise Refused("invalid", f"{wanted.key} is in the file twice")
        flag = found.flag(wanted.key)
        if flag is None:
            found = _with(found, None, _checked(replace(wanted, version=0, kill=None)))
            continue
        if flag.archived:
            raise _exists(found, wanted.key)
        if wanted.transition != flag.transition:
            _must_have_a_say(found, wanted.key)
        _check_step(flag, wanted.transition)
        _check_salt(flag, wanted.bucketing)
        after = _checked(replace(wanted, version=flag.version, kill=flag.kill))
        found = _with(found, flag, after)
    return found


def _check_step(flag: Flag, wanted: Transition) -> None:
    """A file may not do in one step what `Move` could not."""
    now = flag.transition
    same_pair = (now.origin, now.target) == (wanted.origin, wanted.target)
    if same_pair or wanted.settled is now.settled is not None:
        return
    here, there = now.settled, wanted.settled
    if here is not None and there is not None:
        possible = abs(ORDER.index(here) - ORDER.index(there)) == 1
    elif here is not None:
        possible = here in (wanted.origin, wanted.target)
    else:
        possible = there in (now.origin, now.target)
    if not possible:
        raise Refused(
            "stage_jump",
            f"{flag.key}: cannot go from {described(now)} to {described(wanted)} in one step; "
            "go by neighbouring stages, each settled before the next",
        )


def _check_salt(flag: Flag, wanted: Bucketing) -> None:
    if flag.transition.settled is None and (wanted.salt, wanted.by) != (
        flag.bucketing.salt,
        flag.bucketing.by,
    ):
        raise Refused(
            "invalid",
            f"{flag.key} is in between ({described(flag.transition)}): another salt or key would move "
            "clients back and forth; settle it first",
        )


def _edited(flag: Flag, edit: Edit) -> Flag:
    if edit.bucketing is not None:
        _check_salt(flag, edit.bucketing)
    after = replace(
        flag,
        bucketing=flag.bucketing if edit.bucketing is None else edit.bucketing,
        overrides=flag.overrides if edit.overrides is None else edit.overrides,
        rules=flag.rules if edit.rules is None else edit.rules,
        fallback_ppm=flag.fallback_ppm if edit.fallback_ppm is None else edit.fallback_ppm,
        mirror_ppm=flag.mirror_ppm if edit.mirror_ppm is None else edit.mirror_ppm,
        needs_report=flag.needs_report if edit.needs_report is None else edit.needs_report,
        owner=flag.owner if edit.owner is None else edit.owner,
        ticket=flag.ticket if edit.ticket is None else edit.ticket,
        expires_on=flag.expires_on if edit.expires_on is None else edit.expires_on,
        description=flag.description if edit.description is None else edit.description,
    )
    return _checked(replace(after, fallback_ppm=None) if edit.no_fallback else after)


def _moved(flag: Flag, to: Stage, weight_ppm: int) -> Flag:
    if not 0 <= weight_ppm <= EVERYBODY:
        raise Refused("invalid", f"a weight is from 0 to 100%; {percent(weight_ppm)} is not")
    try:
        transition = moved(flag.transition, to, weight_ppm)
    except StageJumpError as error:
        raise Refused("stage_jump", f"{flag.key}: {error}") from None
    after = replace(flag, transition=transition)
    if transition.settled is None and not (flag.bucketing.by or flag.bucketing.assign_cookie):
        raise Refused(
            "invalid",
            f"{flag.key} has nothing to bucket by, so a part of its clients cannot be chosen; give it one: "
            f"crossfade flag edit {flag.key} --bucket-by cookie:NAME (or --assign-cookie NAME)",
        )
    return after


def _found(flag_set: FlagSet, key: str) -> Flag:
    flag = flag_set.flag(key)
    if flag is None:
        raise Refused("not_found", no_such_flag(key, [known.key for known in flag_set.flags]))
    if flag.archived:
        raise Refused("archived", f"{key} is archived and stays as it is; create a flag with another key")
    return flag


def no_such_flag(key: str, known: Collection[str]) -> str:
    """What to tell somebody who has named a flag that is not among `known`."""
    near = [other for other in known if key and (key in other or other in key)][:3]
    near = near or get_close_matches(key, known, n=1)
    hint = f"did you mean {' or '.join(near)}?" if near else "crossfade flag list shows what there is"
    return f'there is no flag "{key}"; {hint}'


def _exists(flag_set: FlagSet, key: str) -> Refused:
    flag = flag_set.flag(key)
    if flag is not None and flag.archived:
        return Refused("archived", f"{key} was used and archived, and no key is used twice; take another")
    return Refused("exists", f"{key} exists; crossfade flag edit {key} changes it")


def _checked(flag: Flag) -> Flag:
    if flag.archived:
        raise Refused(
            "invalid", f"{flag.key}: archived is not for writing; crossfade flag archive {flag.key}"
        )
    flag = replace(
        flag,
        transition=spelled(flag.transition),
        rules=tuple(replace(rule, transition=spelled(rule.transition)) for rule in flag.rules),
    )
    try:
        check_key(flag.key)
        found = flag_from_json(flag_to_json(flag), flag.key)
        check_flag(found)
    except InvalidFlagError as error:
        raise Refused("invalid", str(error)) from None
    splits = [flag.transition, *(rule.transition for rule in flag.rules)]
    if any(split.settled is None for split in splits) and not (
        flag.bucketing.by or flag.bucketing.assign_cookie
    ):
        raise Refused("invalid", f"{flag.key} has a weight in between but no bucketing.by; add it")
    return found


def _with(flag_set: FlagSet, before: Flag | None, after: Flag) -> FlagSet:
    if before == after:
        return flag_set
    after = replace(after, version=after.version + 1)
    others = (flag for flag in flag_set.flags if flag is not before)
    return replace(flag_set, flags=tuple(sorted((*others, after), key=lambda flag: flag.key)))


def _at(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")


# What a change means, for people and for reports.


def differences(before: FlagSet, after: FlagSet) -> list[str]:
    """One line for each thing that is otherwise."""
    lines = []
    if before.kill != after.kill:
        lines.append(_killed_all(after) if after.kill else "the kill of everything is taken back")
    if before.shadow_off != after.shadow_off:
        lines.append("nothing is mirrored any more" if after.shadow_off else "mirroring goes on")
    lines += _authority_differences(before, after)
    was = {flag.key: flag for flag in before.flags}
    for flag in after.flags:
        old = was.get(flag.key)
        if old is None:
            lines.append(f"{flag.key}: new, at {described(flag.transition)}")
        elif old != flag:
            lines += (f"{flag.key}: {line}" for line in _flag_differences(old, flag))
    return lines


def _killed_all(flag_set: FlagSet) -> str:
    kept = beyond_a_kill(flag_set)
    but = f", but for the flags of {', '.join(kept)}: new has the authority there" if kept else ""
    return f"everything goes to legacy{but}"


def beyond_a_kill(flag_set: FlagSet) -> list[str]:
    """The cutovers whose flags a kill of everything leaves at new."""
    return [one.cutover for one in flag_set.authorities if one.read_from_new]


def _authority_differences(before: FlagSet, after: FlagSet) -> Iterator[str]:
    for one in after.authorities:
        if one != before.authority(one.cutover):
            waits = ", and what changes something waits" if one.holds else ""
            yield f"cutover {one.cutover}: {one.side} has the authority (generation {one.generation}){waits}"
    for one in before.authorities:
        if after.authority(one.cutover) is None:
            yield f"cutover {one.cutover}: over, its flags go by themselves again"


def _flag_differences(old: Flag, new: Flag) -> Iterator[str]:
    if old.transition != new.transition:
        yield f"{described(old.transition)} → {described(new.transition)}"
    if old.kill != new.kill:
        yield "killed: everybody to legacy" if new.kill else "the kill is taken back"
    if old.archived != new.archived:
        yield "archived"
    for name in ("owner", "ticket", "expires_on", "description"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{name} {before or 'none'} → {after or 'none'}"
    if old.fallback_ppm != new.fallback_ppm:
        yield f"fallback {_share(old.fallback_ppm)} → {_share(new.fallback_ppm)}"
    if old.mirror_ppm != new.mirror_ppm:
        yield f"mirrored {percent(old.mirror_ppm)} → {percent(new.mirror_ppm)}"
    if old.needs_report != new.needs_report:
        yield "asks for a report before new may answer more" if new.needs_report else "asks for no report"
    if old.bucketing != new.bucketing:
        yield f"bucketing {_bucketing_text(old.bucketing)} → {_bucketing_text(new.bucketing)}"
    yield from _part_differences("override", old.overrides, new.overrides)
    yield from _part_differences("rule", old.rules, new.rules)


def _part_differences(
    what: str, old: tuple[Override, ...] | tuple[Rule, ...], new: tuple[Override, ...] | tuple[Rule, ...]
) -> Iterator[str]:
    was, becomes = {part.id: part for part in old}, {part.id: part for part in new}
    for gone in was.keys() - becomes.keys():
        yield f"{what} {gone} removed"
    for one, part in becomes.items():
        if one not in was:
            yield f"{what} {one} added: {_part_text(part)}"
        elif was[one] != part:
            yield f"{what} {one} changed: {_part_text(part)}"
    if was.keys() == becomes.keys() and list(was) != list(becomes):
        yield f"{what}s in the order {', '.join(becomes)}"


def _part_text(part: Override | Rule) -> str:
    """For whom, and where it sends them."""
    if isinstance(part, Rule):
        return f"{condition_to_json(part.when)} → {described(part.transition)}"
    until = "" if part.expires_at is None else f" until {_at(part.expires_at)}"
    return f"{condition_to_json(part.when)} → {part.stage}{until}"


def _share(ppm: int | None) -> str:
    return "off" if ppm is None else f"up to {percent(ppm)}"


def _bucketing_text(bucketing: Bucketing) -> str:
    by = [*bucketing.by, *([f"assigned cookie {bucketing.assign_cookie}"] if bucketing.assign_cookie else [])]
    return f"by {', '.join(by) or 'nothing'} (salt {bucketing.salt})"


def asking_for_a_report(before: FlagSet, after: FlagSet) -> list[str]:
    """The flags of which new would answer more than before, and that ask for a report then.

    Taking a kill back is none of these: while a flag is killed nothing of it is compared. Nor is taking
    away what sends everybody whom it is for to new.
    """
    was = {flag.key: flag for flag in before.flags}
    return [
        flag.key
        for flag in after.flags
        if (old := was.get(flag.key)) is not None and old.needs_report and _may_send_more_to_new(old, flag)
    ]


def _may_send_more_to_new(old: Flag, new: Flag) -> bool:
    if new.archived:
        return False  # which moves nobody
    rules = tuple(
        rule for rule in old.rules if rule in new.rules or share_of_new(rule.transition) < EVERYBODY
    )
    overrides = tuple(
        override
        for override in old.overrides
        if override in new.overrides or STAGES[override.stage].answers is not Side.NEW
    )
    return share_of_new(new.transition) > share_of_new(old.transition) or (rules, overrides) != (
        new.rules,
        new.overrides,
    )
