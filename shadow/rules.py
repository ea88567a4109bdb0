"""Rules by which differences are expected: who answers for each, why, and until when.

    ignore       what stands there is not compared
    unordered    an array is compared as if it were sorted
    keyed_by     elements of an array are matched by the field `key`
    tolerance    numbers may differ by `absolute` or `relative` (a share), times by `seconds`
    same_shape   values of the same kind are equal: two UUIDs, two times
    map_value    legacy's value `from` is new's value `to`
    header       a field is compared by `policy`: ignore, presence or compare
    status       legacy's status `from` is new's status `to`

A rule only takes differences away, and what it takes away stays counted under its id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any, Final

from shadow.json_text import Json
from shadow.paths import InvalidPathError, Path, parse


class RuleKind(StrEnum):
    IGNORE = "ignore"
    UNORDERED = "unordered"
    KEYED_BY = "keyed_by"
    TOLERANCE = "tolerance"
    SAME_SHAPE = "same_shape"
    MAP_VALUE = "map_value"
    HEADER = "header"
    STATUS = "status"
    SAME = "same"
    """By users' code: `same(legacy, new)` says whether two values are equal."""


class InvalidRuleError(ValueError):
    """What is wrong with a rule, and what would be right."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`route` is a path template of the configuration, or `*`. `expires_on` is an ISO date."""

    id: str
    kind: RuleKind
    path: str
    reason: str
    owner: str = ""
    route: str = "*"
    expires_on: str | None = None
    key: str = ""
    absolute: float | None = None
    relative: float | None = None
    seconds: float | None = None
    values: tuple[tuple[Json, Json], ...] = ()
    policy: str = "ignore"
    same: Callable[[Json, Json], bool] | None = None
    parsed: Path = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise InvalidRuleError(f"rule {self.id!r}: expected an id of a-z, 0-9 and .:_-")
        try:
            object.__setattr__(self, "parsed", parse(self.path))
        except InvalidPathError as error:
            raise InvalidRuleError(f"rule {self.id}: path {error}") from None
        if wrong := _wrong(self):
            raise InvalidRuleError(f"rule {self.id}: {wrong}")


_ID: Final = re.compile(r"[a-z0-9][a-z0-9._:-]{0,99}")
_POLICIES: Final = ("ignore", "presence", "compare")
_NEEDS: Final[Mapping[RuleKind, tuple[str, ...]]] = {
    RuleKind.KEYED_BY: ("key",),
    RuleKind.MAP_VALUE: ("values",),
    RuleKind.STATUS: ("values",),
    RuleKind.SAME: ("same",),
}


def _wrong(rule: Rule) -> str:
    for name in _NEEDS.get(rule.kind, ()):
        if not getattr(rule, name):
            return f"{rule.kind} needs {name}"
    if rule.kind is RuleKind.TOLERANCE:
        bounds = [bound for bound in (rule.absolute, rule.relative, rule.seconds) if bound is not None]
        if not bounds or any(not 0 <= bound < float("inf") for bound in bounds):
            return "tolerance needs absolute, relative or seconds, from 0 on"
    head = rule.parsed.parts[0]
    if (rule.kind is RuleKind.HEADER) != (head == "headers") and rule.kind is not RuleKind.IGNORE:
        return "a header rule names headers.NAME, and only such a rule does"
    if rule.kind is RuleKind.HEADER and rule.policy not in _POLICIES:
        return f"policy is one of {', '.join(_POLICIES)}"
    if (rule.kind is RuleKind.STATUS) != (head == "status"):
        return "a status rule has the path status, and only such a rule has"
    if not rule.reason.strip():
        return "expected a reason, for whoever reads the report"
    if rule.expires_on is not None:
        try:
            date.fromisoformat(rule.expires_on)
        except ValueError:
            return f"expires_on {rule.expires_on!r}: expected a date such as 2027-03-31"
    return ""


_FIELDS: Final = (
    "id", "kind", "path", "reason", "owner", "route", "expires_on", "key", "absolute", "relative", "seconds",
    "policy",
)  # fmt: skip


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """All but users' code."""
    found = {name: getattr(rule, name) for name in _FIELDS}
    return {**found, "kind": rule.kind.value, "values": [list(pair) for pair in rule.values]}


def rule_from_json(document: Mapping[str, Any]) -> Rule:
    """Raises InvalidRuleError."""
    unknown = sorted(document.keys() - {*_FIELDS, "values"})
    if unknown:
        raise InvalidRuleError(f"unknown key {unknown[0]!r}; expected some of {', '.join(_FIELDS)}, values")
    kinds = [kind.value for kind in RuleKind if kind is not RuleKind.SAME]
    if document.get("kind") not in kinds:
        raise InvalidRuleError(f"kind {document.get('kind')!r}: expected one of {', '.join(kinds)}")
    texts = {name: document.get(name, "") for name in ("id", "path", "reason", "owner", "key")}
    odd = next((name for name, value in texts.items() if not isinstance(value, str)), None)
    if odd is not None:
        raise InvalidRuleError(f"{odd}: expected a text")
    numbers: dict[str, Any] = {name: document.get(name) for name in ("absolute", "relative", "seconds")}
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidRuleError(f"{name}: expected a number")
    values = document.get("values", [])
    if not isinstance(values, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in values):
        raise InvalidRuleError("values: expected pairs of legacy's value and new's, such as [[200, 201]]")
    return Rule(
        **texts, **numbers, kind=RuleKind(document["kind"]), route=str(document.get("route", "*")),
        expires_on=document.get("expires_on"), policy=str(document.get("policy", "ignore")),
        values=tuple((pair[0], pair[1]) for pair in values),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RouteRules:
    """The rules of one route, by kind."""

    by_kind: Mapping[RuleKind, Sequence[Rule]] = field(default_factory=dict)

    def of(self, kind: RuleKind) -> Sequence[Rule]:
        return self.by_kind.get(kind, ())


NO_RULES: Final = RouteRules()


class RuleBook:
    """All rules that hold today, and those that have expired."""

    def __init__(self, rules: Iterable[Rule], today: date) -> None:
        """The last rule of an id counts: what is in the store overrules what is in the code."""
        known = {rule.id: rule for rule in rules}
        self.expired = [rule for rule in known.values() if not _holds(rule, today)]
        self.rules = [rule for rule in known.values() if _holds(rule, today)]
        self._routes: dict[str, RouteRules] = {}

    def of(self, route: str) -> RouteRules:
        found = self._routes.get(route)
        if found is None:
            by_kind: dict[RuleKind, list[Rule]] = {}
            for rule in self.rules:
                if rule.route in ("*", route):
                    by_kind.setdefault(rule.kind, []).append(rule)
            found = self._routes[route] = RouteRules(by_kind)
        return found


def _holds(rule: Rule, today: date) -> bool:
    return rule.expires_on is None or today <= date.fromisoformat(rule.expires_on)
