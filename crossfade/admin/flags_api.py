"""Flags over HTTP: read, change, explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from core.http import RequestHead
from crossfade.admin.answers import (
    AuditAnswer,
    AuditRowShown,
    ChangeAnswer,
    ExplainAnswer,
    FlagAnswer,
    FlagSetAnswer,
    KillShown,
    StepShown,
)
from crossfade.admin.asked import Asked
from crossfade.admin.desk import Desk, flag_shown
from crossfade.admin.models import (
    ApplyBody,
    Body,
    CreateBody,
    EditBody,
    ExplainBody,
    HistoryQuery,
    MoveBody,
    Nothing,
)
from crossfade.admin.next_steps import WHY, after_looking_at, after_looking_at_all
from crossfade.channel import Message
from crossfade.store import cutovers
from crossfade.store.audit import AuditRow
from flags.change import (
    Apply,
    Archive,
    Create,
    Edit,
    KillAll,
    KillFlag,
    Move,
    Refused,
    ShadowOff,
    ShadowOn,
    Unkill,
    UnkillAll,
    no_such_flag,
)
from flags.document import bucketing_from_json, flag_from_json, overrides_from_json, rules_from_json
from flags.explain import explain
from flags.model import EVERYBODY, Flag, Route, Side, Stage
from flags.snapshot import compile_snapshot
from proxy.claims import TokenReader
from proxy.config import Tokens
from proxy.head import parse_request


class FlagsApi:
    """The handlers of `/api/v1/flags`, `/explain`, `/kill`, `/unkill` and `/apply`."""

    def __init__(self, desk: Desk, context: Message) -> None:
        self._desk = desk
        self.update(context)

    def update(self, context: Message) -> None:
        """What the configuration says: which routes there are, and where a token is looked for."""
        self._routes: list[dict[str, Any]] = context["routes"]
        self._cutovers: list[dict[str, Any]] = context["cutovers"]
        self._tokens = TokenReader(Tokens(header=context["token_header"]))

    async def list_flags(self, asked: Asked[Nothing]) -> FlagSetAnswer:  # noqa: ARG002
        seen = await self._desk.seen()
        flag_set, kill, off = seen.flag_set, seen.flag_set.kill, seen.flag_set.shadow_off
        return FlagSetAnswer(
            version=flag_set.version,
            kill=None if kill is None else KillShown(reason=kill.reason, by=kill.by, at=kill.at),
            shadow_off=None if off is None else KillShown(reason=off.reason, by=off.by, at=off.at),
            flags=[flag_shown(flag, authority=flag_set.authority_over(flag.key)) for flag in flag_set.flags],
            source=seen.source,
            trouble=seen.trouble,
            next=after_looking_at_all(flag_set),
        )

    async def get(self, asked: Asked[Nothing]) -> FlagAnswer:
        seen = await self._desk.seen()
        flag = seen.flag_set.flag(asked.path["key"])
        if flag is None:
            raise _unknown(asked.path["key"], seen.flag_set.flags)
        return FlagAnswer.model_validate(
            {
                **flag_shown(flag, seen.flag_set.kill, seen.flag_set.authority_over(flag.key)).model_dump(
                    by_alias=True
                ),
                "set_version": seen.flag_set.version,
                "source": seen.source,
                "trouble": seen.trouble,
                "next": after_looking_at(flag),
            }
        )

    async def history(self, asked: Asked[HistoryQuery]) -> AuditAnswer:
        key = asked.path["key"]
        rows = await self._desk.store().history(key, asked.said.limit)
        if not rows:
            raise _unknown(key, (await self._desk.store().flag_set()).flags)
        return AuditAnswer(rows=[row_shown(row) for row in rows], next=[f"crossfade flag get {key}"])

    async def create(self, asked: Asked[CreateBody]) -> ChangeAnswer:
        return await self._desk.change(asked, Create(flag_from_json(asked.said.flag)))

    async def edit(self, asked: Asked[EditBody]) -> ChangeAnswer:
        said, key = asked.said, asked.path["key"]
        command = Edit(
            key,
            bucketing=None if said.bucketing is None else bucketing_from_json(said.bucketing, key),
            overrides=None if said.overrides is None else overrides_from_json(said.overrides),
            rules=None if said.rules is None else rules_from_json(said.rules),
            fallback_ppm=said.fallback,
            no_fallback=said.no_fallback,
            mirror_ppm=said.mirror,
            needs_report=said.needs_report,
            owner=said.owner,
            ticket=said.flag_ticket,
            expires_on=said.expires_on,
            description=said.description,
        )
        return await self._desk.change(asked, command)

    async def move(self, asked: Asked[MoveBody]) -> ChangeAnswer:
        """Refused where it would send to legacy what legacy's fence refuses since its cutover is over."""
        key, said = asked.path["key"], asked.said
        settled = said.to is Stage.NEW and said.weight == EVERYBODY
        if not settled and (fenced := await self._fenced(key)):
            raise Refused("under_authority", fenced[0])
        return await self._desk.change(asked, Move(key, said.to, said.weight))

    async def kill(self, asked: Asked[Body]) -> ChangeAnswer:
        key = asked.path["key"]
        done = await self._desk.change(asked, KillFlag(key, asked.said.reason, asked.actor.name))
        return await self._warned(done, key, f"crossfade unkill {key} {WHY}")

    async def unkill(self, asked: Asked[Body]) -> ChangeAnswer:
        return await self._desk.change(asked, Unkill(asked.path["key"]))

    async def archive(self, asked: Asked[Body]) -> ChangeAnswer:
        key = asked.path["key"]
        sides = {Side(route["side"]) for route in self._routes if route["flag"] == key}
        return await self._desk.change(asked, Archive(key, tuple(sorted(sides))))

    async def kill_all(self, asked: Asked[Body]) -> ChangeAnswer:
        done = await self._desk.change(asked, KillAll(asked.said.reason, asked.actor.name))
        return await self._warned(done, None, f"crossfade unkill --all {WHY}")

    async def _warned(self, done: ChangeAnswer, key: str | None, undo: str) -> ChangeAnswer:
        """A kill is never refused for this: its host has done it already, and reads may be what it is for."""
        fenced = await self._fenced(key)
        if not fenced:
            return done
        return done.model_copy(update={"warnings": fenced, "next": [undo, *done.next]})

    async def _fenced(self, key: str | None) -> list[str]:
        """Why legacy refuses what is written for this flag (None: for any) since a cutover was finished."""
        store = self._desk.store()
        flag_set = await store.flag_set()
        return [
            f"legacy is fenced since the cutover {name} was finished, and refuses what is written by"
            f" {', '.join(flags)}; to go back, crossfade cutover prepare {name},"
            f" then crossfade cutover back {name}"
            for name, flags in ((one["name"], one["flags"]) for one in self._cutovers)
            if (key is None or key in flags) and await cutovers.finished_at(store, flag_set, name) is Side.NEW
        ]

    async def unkill_all(self, asked: Asked[Body]) -> ChangeAnswer:
        return await self._desk.change(asked, UnkillAll())

    async def shadow_off(self, asked: Asked[Body]) -> ChangeAnswer:
        return await self._desk.change(asked, ShadowOff(asked.said.reason, asked.actor.name))

    async def shadow_on(self, asked: Asked[Body]) -> ChangeAnswer:
        return await self._desk.change(asked, ShadowOn())

    async def apply(self, asked: Asked[ApplyBody]) -> ChangeAnswer:
        flags = tuple(flag_from_json(flag, f"flags[{n}]") for n, flag in enumerate(asked.said.flags))
        return await self._desk.change(asked, Apply(flags))

    async def explain(self, asked: Asked[ExplainBody]) -> ExplainAnswer:
        """What would become of a request on this instance: its routes, the flags, its own kills."""
        said = asked.said
        flag_set = await self._desk.decided_by()
        routes = [
            Route(
                route["flag"], route["path"], frozenset(route["methods"]), route["host"], Side(route["side"])
            )
            for route in self._routes
        ]
        head = _head_of(said)
        # Not verified: whoever asks what would be may claim what they like.
        facts = _SaidFacts(said.client, self._tokens.claims(head, time()), said.attributes)
        found = explain(compile_snapshot(routes, 0, flag_set), routes, flag_set, head, facts)
        decision = found.decision
        known = None if flag_set is None else flag_set.flag(decision.flag)
        return ExplainAnswer(
            flag=decision.flag,
            side=decision.side,
            stage=decision.stage,
            reason=decision.reason,
            mirror=decision.mirror,
            set_version=0 if flag_set is None else flag_set.version,
            steps=[StepShown(what=step.what, decided=step.decided) for step in found.steps],
            next=[] if known is None else [f"crossfade flag get {known.key}"],
        )


def _head_of(said: ExplainBody) -> RequestHead:
    """The request as a client would send it. Raises Refused."""
    fields = {name.lower() for name, _ in said.headers}
    headers = [*([] if "host" in fields else [("Host", "localhost")]), *said.headers]
    text = f"{said.method} {said.target} HTTP/1.1\r\n"
    text += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    head = parse_request(text.encode(), max_head=65536, max_target=16384, max_fields=200)
    if isinstance(head, RequestHead):
        return head
    why = "it is not complete" if head is None else head.reason
    raise Refused("invalid", f"this is no request that Crossfade would take: {why}")


@dataclass(frozen=True, slots=True)
class _SaidFacts:
    """The facts of a request that somebody only describes."""

    client: str
    known_claims: Mapping[str, object]
    known_attributes: Mapping[str, str]

    def client_address(self) -> str:
        return self.client

    def now(self) -> float:
        return time()

    def claims(self) -> Mapping[str, object]:
        return self.known_claims

    def attributes(self) -> Mapping[str, str]:
        return self.known_attributes

    def assigned_identity(self, cookie: str) -> str:  # noqa: ARG002  (nobody is given one by asking)
        return "(a new identity)"

    def is_behind(self, cutover: str) -> bool:  # noqa: ARG002  (nobody has written by asking)
        return False

    def is_late(self, cutover: str, most_ms: int) -> bool:  # noqa: ARG002  (workers are told, and nobody else)
        return False


def row_shown(row: AuditRow) -> AuditRowShown:
    return AuditRowShown(
        seq=row.seq, at=row.at.isoformat(), actor=dict(row.actor), action=row.action, kind=row.kind,
        objects=list(row.objects), outcome=row.outcome, refusal=row.refusal,
        from_version=row.from_version, to_version=row.to_version,
        before=None if row.before is None else dict(row.before),
        after=None if row.after is None else dict(row.after),
        reason=row.reason, ticket=row.ticket,
        evidence=None if row.evidence is None else dict(row.evidence),
        request_id=row.request_id, hash=row.hash,
    )  # fmt: skip


def _unknown(key: str, flags: tuple[Flag, ...]) -> Refused:
    return Refused("not_found", no_such_flag(key, [flag.key for flag in flags]))
