"""Who may do what: the whole table, written out once more by hand."""

from __future__ import annotations

import itertools

import pytest

from crossfade.store.actors import BY_ITSELF, LEAST_ROLE, Actor, ActorType, DeniedError, Role, Via, authorise

NOBODY_BELOW_OPERATOR = {
    "flag.create", "flag.edit", "flag.move", "flag.kill", "flag.unkill", "flag.archive",
    "flags.apply", "flags.kill", "flags.unkill", "shadow.off", "shadow.on",
    "ramp.start", "ramp.pause", "ramp.resume", "ramp.abort",
    "guardrail.set", "guardrail.rearm", "guardrail.delete",
    "cutover.prepare", "cutover.rehearse", "cutover.back", "cutover.abort", "authority.set",
}  # fmt: skip
REVIEWERS = {"shadow.mark", "report.keep", "rule.set", "rule.delete"}
APPROVERS = {"cutover.run", "cutover.accept_loss"}
ADMINS_ONLY = {"person.add", "person.revoke", "flag.kill_over", "cutover.finish", "authority.drop"}
MAY = {
    Role.VIEWER: set[str](),
    Role.REVIEWER: REVIEWERS,
    Role.OPERATOR: REVIEWERS | NOBODY_BELOW_OPERATOR,
    Role.APPROVER: REVIEWERS | NOBODY_BELOW_OPERATOR | APPROVERS,
    Role.ADMIN: REVIEWERS | NOBODY_BELOW_OPERATOR | APPROVERS | ADMINS_ONLY,
}
ACTIONS = sorted(
    REVIEWERS | NOBODY_BELOW_OPERATOR | APPROVERS | ADMINS_ONLY | {"no.such.thing", "guardrail.trip"}
)


def may(actor: Actor, action: str) -> bool:
    try:
        authorise(actor, action)
    except DeniedError:
        return False
    return True


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("kind", [ActorType.HUMAN, ActorType.LOCAL])
def test_what_each_role_may_do(role: Role, kind: ActorType) -> None:
    actor = Actor(kind, "ada", role, None, Via.API)
    assert {action for action in ACTIONS if may(actor, action)} == MAY[role]


def test_no_action_is_missing_from_the_table_above() -> None:
    assert set(LEAST_ROLE) == REVIEWERS | NOBODY_BELOW_OPERATOR | APPROVERS | ADMINS_ONLY


@pytest.mark.parametrize("kind", ActorType)
def test_what_acts_by_itself_does_what_it_is_for(kind: ActorType) -> None:
    actor = Actor(kind, "it", None, None, Via.RAMP)
    everything = {*ACTIONS, *itertools.chain.from_iterable(BY_ITSELF.values())}
    allowed = {action for action in everything if may(actor, action)}
    assert allowed == BY_ITSELF.get(kind, frozenset())
    assert not allowed & {"flags.unkill", "flag.unkill", "guardrail.rearm", "person.add", "flag.edit"}


def test_roles_are_ordered_and_each_denial_says_who_may() -> None:
    assert list(Role) == sorted(Role, key=lambda role: role)
    assert Role.VIEWER < Role.REVIEWER < Role.OPERATOR < Role.APPROVER < Role.ADMIN
    assert Role.ADMIN >= Role.ADMIN > Role.VIEWER
    with pytest.raises(DeniedError, match=r"flag\.move needs the role operator, and ada is viewer; ask"):
        authorise(Actor(ActorType.HUMAN, "ada", Role.VIEWER, None, Via.CLI), "flag.move")
