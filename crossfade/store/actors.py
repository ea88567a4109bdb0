"""Who acts, and what each may do: the table of permissions.

People have a role, and each role may do what the roles below it may. What acts by itself (a ramp, a
guardrail, the configuration) has no role but a list of its own, so that a fault in one of them cannot
do what it never has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import total_ordering
from types import MappingProxyType


class ActorType(StrEnum):
    HUMAN = "human"
    LOCAL = "local"
    """Somebody on this host, who holds the instance's own token."""
    RAMP = "ramp"
    GUARDRAIL = "guardrail"
    CONFIGURATION = "configuration"
    CUTOVER = "cutover"


class Via(StrEnum):
    """The door that an act came through."""

    CLI = "cli"
    API = "api"
    RAMP = "ramp"
    GUARDRAIL = "guardrail"
    CONFIG = "config"
    CUTOVER = "cutover"


@total_ordering
class Role(Enum):
    """From the least to the most. No StrEnum: that one would compare by the alphabet."""

    VIEWER = "viewer"
    REVIEWER = "reviewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Role):
            return NotImplemented
        order = list(Role)
        return order.index(self) < order.index(other)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, as the audit will say it. `role` is None for what acts by itself."""

    type: ActorType
    name: str
    role: Role | None
    address: str | None
    via: Via


class DeniedError(Exception):
    """The actor may not do that; the message says who may."""


LEAST_ROLE: Mapping[str, Role] = MappingProxyType(
    {
        "flag.create": Role.OPERATOR,
        "flag.edit": Role.OPERATOR,
        "flag.move": Role.OPERATOR,
        "flag.kill": Role.OPERATOR,
        "flag.unkill": Role.OPERATOR,
        "flag.kill_over": Role.ADMIN,
        "flag.archive": Role.OPERATOR,
        "flags.apply": Role.OPERATOR,
        "flags.kill": Role.OPERATOR,
        "flags.unkill": Role.OPERATOR,
        "shadow.off": Role.OPERATOR,
        "shadow.on": Role.OPERATOR,
        "shadow.mark": Role.REVIEWER,
        "report.keep": Role.REVIEWER,
        "rule.set": Role.REVIEWER,
        "rule.delete": Role.REVIEWER,
        "ramp.start": Role.OPERATOR,
        "ramp.pause": Role.OPERATOR,
        "ramp.resume": Role.OPERATOR,
        "ramp.abort": Role.OPERATOR,
        "guardrail.set": Role.OPERATOR,
        "guardrail.rearm": Role.OPERATOR,
        "guardrail.delete": Role.OPERATOR,
        "cutover.prepare": Role.OPERATOR,
        "cutover.run": Role.APPROVER,
        "cutover.rehearse": Role.OPERATOR,
        "cutover.back": Role.OPERATOR,
        "cutover.accept_loss": Role.APPROVER,
        "cutover.abort": Role.OPERATOR,
        "cutover.finish": Role.ADMIN,
        "authority.set": Role.OPERATOR,
        "authority.drop": Role.ADMIN,
        "person.add": Role.ADMIN,
        "person.revoke": Role.ADMIN,
    }
)
"""The least role for each action. An action that is not here is nobody's."""

BY_ITSELF: Mapping[ActorType, frozenset[str]] = MappingProxyType(
    {
        ActorType.RAMP: frozenset({"flag.move", "ramp.advance", "ramp.hold", "ramp.end"}),
        ActorType.GUARDRAIL: frozenset(
            {"flag.move", "flag.kill", "ramp.pause", "ramp.abort", "guardrail.trip"}
        ),
        ActorType.CONFIGURATION: frozenset({"flag.create"}),
        ActorType.CUTOVER: frozenset({"authority.set"}),
    }
)


def authorise(actor: Actor, action: str) -> None:
    """Raise `DeniedError` unless `actor` may do `action`."""
    if actor.role is None:
        if action not in BY_ITSELF.get(actor.type, frozenset()):
            raise DeniedError(f"a {actor.type} may not do {action}")
        return
    least = LEAST_ROLE.get(action)
    if least is None:
        raise DeniedError(f"{action} is nothing that a person does")
    if actor.role < least:
        raise DeniedError(
            f"{action} needs the role {least.value}, and {actor.name} is {actor.role.value}; "
            f"ask somebody who has it, or an admin for a token with it"
        )
