"""Flags as JSON, and back: strict, because what cannot be understood must not decide anything.

Workers read this form, the store keeps it and the disk remembers it, so it has one shape:

    {"version": 43, "kill": null, "flags": [{"key": "items.read", "version": 7,
      "transition": {"from": "shadow", "to": "live", "weight_ppm": 50000},
      "bucketing": {"by": ["cookie:sid"], "salt": "items.read", "assign_cookie": null}, …}],
     "authorities": [{"cutover": "items", "flags": ["items.read"], "side": "legacy", "generation": 0,
      "phase": "open", "own_writes": false, "max_lag_ms": null}]}

A condition is {"attribute": "header:x-tenant", "in": ["a", "b"]}, {"all": […]}, {"any": […]} or
{"not": …}. Keys that are left out have their defaults; an unknown key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from enum import StrEnum
from typing import Any as Json
from typing import TypeVar

from flags.attributes import FORM, is_attribute
from flags.conditions import (
    All,
    Any,
    Condition,
    InvalidConditionError,
    Not,
    Operator,
    Test,
    check_condition,
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
from flags.stages import are_neighbours

T = TypeVar("T")
W = TypeVar("W", bound=StrEnum)

KEY = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}")
KEY_FORM = "2 to 63 of a-z, 0-9, dot, underscore and hyphen, with a letter or digit first"
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
LONGEST_TEXT = 2000
LONGEST_KEY_LIST = 8
MOST_RULES = 100
MOST_FLAGS = 10_000


class InvalidFlagError(ValueError):
    """What is wrong, and where: `flags[3].transition.weight_ppm: expected …`."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


# To JSON.


def to_json(flag_set: FlagSet) -> dict[str, Json]:
    return {
        "version": flag_set.version,
        "kill": kill_to_json(flag_set.kill) if flag_set.kill else None,
        "flags": [flag_to_json(flag) for flag in flag_set.flags],
        "shadow_off": kill_to_json(flag_set.shadow_off) if flag_set.shadow_off else None,
        "authorities": [authority_to_json(one) for one in flag_set.authorities],
    }


def authority_to_json(authority: Authority) -> dict[str, Json]:
    return {
        "cutover": authority.cutover,
        "flags": list(authority.flags),
        "side": authority.side.value,
        "generation": authority.generation,
        "phase": authority.phase.value,
        "own_writes": authority.own_writes,
        "max_lag_ms": authority.max_lag_ms,
    }


def kill_to_json(kill: Kill) -> dict[str, Json]:
    return {"reason": kill.reason, "by": kill.by, "at": kill.at}


def flag_to_json(flag: Flag) -> dict[str, Json]:
    return {
        "key": flag.key,
        "version": flag.version,
        "transition": transition_to_json(flag.transition),
        "bucketing": {
            "by": list(flag.bucketing.by),
            "salt": flag.bucketing.salt,
            "assign_cookie": flag.bucketing.assign_cookie,
        },
        "owner": flag.owner,
        "ticket": flag.ticket,
        "expires_on": flag.expires_on,
        "description": flag.description,
        "kill": kill_to_json(flag.kill) if flag.kill else None,
        "overrides": [
            {
                "id": override.id,
                "when": condition_to_json(override.when),
                "stage": override.stage.value,
                "expires_at": override.expires_at,
            }
            for override in flag.overrides
        ],
        "rules": [
            {
                "id": rule.id,
                "when": condition_to_json(rule.when),
                "transition": transition_to_json(rule.transition),
            }
            for rule in flag.rules
        ],
        "fallback_ppm": flag.fallback_ppm,
        "mirror_ppm": flag.mirror_ppm,
        "needs_report": flag.needs_report,
        "archived": flag.archived,
    }


def transition_to_json(transition: Transition) -> dict[str, Json]:
    return {
        "from": transition.origin.value,
        "to": transition.target.value,
        "weight_ppm": transition.weight_ppm,
    }


def condition_to_json(condition: Condition) -> dict[str, Json]:
    match condition:
        case All(parts):
            return {"all": [condition_to_json(part) for part in parts]}
        case Any(parts):
            return {"any": [condition_to_json(part) for part in parts]}
        case Not(part):
            return {"not": condition_to_json(part)}
        case Test(attribute, operator, values):
            value: Json = list(values)
            if operator is Operator.EXISTS:
                value = True
            elif operator not in (Operator.IN, Operator.CIDR):
                value = values[0]
            return {"attribute": attribute, operator.value: value}


# From JSON.


def from_json(document: Json, known: FlagSet | None = None) -> FlagSet:
    """The flag set of a document. Raises InvalidFlagError.

    A flag that is written as one of `known` is that one, without another look: of many flags few change.
    """
    flags_known = {flag.key: flag for flag in known.flags} if known is not None else {}

    def read(value: Json, path: str) -> Flag:
        key = value.get("key") if isinstance(value, Mapping) else None
        same = flags_known.get(key) if isinstance(key, str) else None
        return same if same is not None and flag_to_json(same) == value else flag_from_json(value, path)

    form = _Object(document, "", {"version", "kill", "flags", "shadow_off", "authorities"})
    version = form.number("version", 0, 2**62)
    kill = form.optional("kill", _kill)
    flags = form.list("flags", read, MOST_FLAGS)
    keys: set[str] = set()
    for index, flag in enumerate(flags):
        if flag.key in keys:
            raise InvalidFlagError(f"flags[{index}].key", f'"{flag.key}" is there twice')
        keys.add(flag.key)
    authorities = form.list("authorities", _authority, MOST_FLAGS)
    under = [key for one in authorities for key in one.flags]
    for key in under:
        if under.count(key) > 1:
            raise InvalidFlagError("authorities", f'"{key}" is under two of them')
    return FlagSet(
        version,
        kill,
        tuple(sorted(flags, key=lambda flag: flag.key)),
        form.optional("shadow_off", _kill),
        tuple(sorted(authorities, key=lambda one: one.cutover)),
    )


def flag_from_json(document: Json, path: str = "flag") -> Flag:
    """Raises InvalidFlagError."""
    form = _Object(
        document,
        path,
        {
            "key", "version", "transition", "bucketing", "owner", "ticket", "expires_on", "description",
            "kill", "overrides", "rules", "fallback_ppm", "mirror_ppm", "needs_report",
            "archived",
        },
    )  # fmt: skip
    key = check_key(form.text("key"), f"{path}.key")
    flag = Flag(
        key=key,
        version=form.number("version", 0, 2**62) if form.has("version") else 1,
        transition=transition_from_json(form.raw("transition"), f"{path}.transition"),
        bucketing=_bucketing(form.raw("bucketing", {}), f"{path}.bucketing", key),
        owner=form.text("owner", ""),
        ticket=form.text("ticket", ""),
        expires_on=form.optional("expires_on", _day),
        description=form.text("description", ""),
        kill=form.optional("kill", _kill),
        overrides=tuple(form.list("overrides", _override, MOST_RULES)),
        rules=tuple(form.list("rules", _rule, MOST_RULES)),
        fallback_ppm=form.number("fallback_ppm", 0, EVERYBODY) if form.has("fallback_ppm") else None,
        mirror_ppm=form.number("mirror_ppm", 0, EVERYBODY) if form.has("mirror_ppm") else EVERYBODY,
        needs_report=form.truth("needs_report", False),
        archived=form.truth("archived", False),
    )
    for name, parts in (("overrides", flag.overrides), ("rules", flag.rules)):
        ids = [part.id for part in parts]
        for index, one in enumerate(ids):
            if one in ids[:index]:
                raise InvalidFlagError(f"{path}.{name}[{index}].id", f'"{one}" is there twice')
    return flag


def bucketing_from_json(document: Json, key: str) -> Bucketing:
    """The part of a flag of that key. Raises InvalidFlagError."""
    return _bucketing(document, "bucketing", key)


def overrides_from_json(documents: Json) -> tuple[Override, ...]:
    return tuple(
        _Object({"overrides": documents}, "", {"overrides"}).list("overrides", _override, MOST_RULES)
    )


def rules_from_json(documents: Json) -> tuple[Rule, ...]:
    return tuple(_Object({"rules": documents}, "", {"rules"}).list("rules", _rule, MOST_RULES))


def check_flag(flag: Flag) -> None:
    """Raises InvalidFlagError unless `flag` is what `flag_from_json` would give."""
    if flag_from_json(flag_to_json(flag)) != flag:
        raise InvalidFlagError("flag", f"{flag.key} is not in its one spelling")


def check_key(key: str, path: str = "key") -> str:
    if not KEY.fullmatch(key):
        raise InvalidFlagError(path, f'"{key}" is no flag key: expected {KEY_FORM}')
    return key


def transition_from_json(document: Json, path: str) -> Transition:
    form = _Object(document, path, {"from", "to", "weight_ppm"})
    origin, target = form.stage("from"), form.stage("to")
    if not are_neighbours(origin, target):
        raise InvalidFlagError(
            path, f"{origin} and {target} are no neighbours in this order; expected legacy→shadow→live→new"
        )
    return Transition(origin, target, form.number("weight_ppm", 0, EVERYBODY))


def condition_from_json(document: Json, path: str) -> Condition:
    condition = _condition(document, path, 1)
    try:
        check_condition(condition)
    except InvalidConditionError as error:
        raise InvalidFlagError(path, str(error)) from None
    return condition


def _condition(document: Json, path: str, depth: int) -> Condition:
    if depth > 32:
        raise InvalidFlagError(path, "conditions are nested too deep")
    if not isinstance(document, Mapping):
        raise InvalidFlagError(path, 'expected a condition such as {"attribute": "header:x-a", "eq": "b"}')
    for name, make in (("all", All), ("any", Any)):
        if name in document:
            form = _Object(document, path, {name})
            parts = form.list(name, lambda part, at: _condition(part, at, depth + 1), 1000)
            return make(tuple(parts))
    if "not" in document:
        form = _Object(document, path, {"not"})
        return Not(_condition(form.raw("not"), f"{path}.not", depth + 1))
    form = _Object(document, path, {"attribute", *Operator})
    operators = [operator for operator in Operator if form.has(operator)]
    if len(operators) != 1:
        raise InvalidFlagError(path, f"expected one operator of {', '.join(Operator)}")
    operator, attribute = operators[0], form.text("attribute")
    value = form.raw(operator)
    at = f"{path}.{operator}"
    if operator is Operator.EXISTS:
        if value is not True:
            raise InvalidFlagError(at, "expected true; put it into not for the opposite")
        return Test(attribute, operator)
    if operator in (Operator.IN, Operator.CIDR) and isinstance(value, list | tuple):
        return Test(attribute, operator, tuple(_value(each, f"{at}[{n}]") for n, each in enumerate(value)))
    return Test(attribute, operator, (_value(value, at),))


def _value(value: Json, path: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return _text(value, path)


def _bucketing(document: Json, path: str, key: str) -> Bucketing:
    form = _Object(document, path, {"by", "salt", "assign_cookie"})
    by = tuple(form.list("by", _attribute, LONGEST_KEY_LIST))
    salt = form.text("salt", key)
    if not salt:
        raise InvalidFlagError(f"{path}.salt", "expected some text; leave it out for the flag's key")
    return Bucketing(by, salt, form.optional("assign_cookie", _cookie))


def _attribute(value: Json, path: str) -> str:
    spelling = _text(value, path)
    if not is_attribute(spelling):
        raise InvalidFlagError(path, f'"{spelling}" is no attribute; expected {FORM}')
    return spelling


def _cookie(value: Json, path: str) -> str:
    name = _text(value, path)
    if not _COOKIE.fullmatch(name):
        raise InvalidFlagError(path, f'"{name}" is no name of a cookie')
    return name


def _override(document: Json, path: str) -> Override:
    form = _Object(document, path, {"id", "when", "stage", "expires_at"})
    return Override(
        _identifier(form, path),
        condition_from_json(form.raw("when"), f"{path}.when"),
        form.stage("stage"),
        form.optional("expires_at", _moment),
    )


def _rule(document: Json, path: str) -> Rule:
    form = _Object(document, path, {"id", "when", "transition"})
    return Rule(
        _identifier(form, path),
        condition_from_json(form.raw("when"), f"{path}.when"),
        transition_from_json(form.raw("transition"), f"{path}.transition"),
    )


def _identifier(form: _Object, path: str) -> str:
    return check_key(form.text("id"), f"{path}.id")


def _authority(document: Json, path: str) -> Authority:
    form = _Object(
        document, path, {"cutover", "flags", "side", "generation", "phase", "own_writes", "max_lag_ms"}
    )
    return Authority(
        check_key(form.text("cutover"), form.at("cutover")),
        tuple(form.list("flags", check_key, MOST_FLAGS)),
        form.one_of("side", Side),
        form.number("generation", 0, 2**62),
        form.one_of("phase", Phase),
        form.truth("own_writes", False),
        form.number("max_lag_ms", 1, 2**31) if form.has("max_lag_ms") else None,
    )


def _kill(document: Json, path: str) -> Kill:
    form = _Object(document, path, {"reason", "by", "at"})
    return Kill(form.text("reason"), form.text("by"), form.text("at"))


def one_line(text: str, most: int) -> str:
    """`text` as every reader takes it: one line that can be printed, of at most `most` characters.

    For words that come with an emergency, which must not fail for how they are written.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most].rstrip()


def _day(value: Json, path: str) -> str:
    text = _text(value, path)
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise InvalidFlagError(path, f'"{text}" is no date; expected one such as "2027-03-31"') from None


def _moment(value: Json, path: str) -> float:
    """Unix time, or ISO 8601 with its offset from UTC."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None:
            return moment.timestamp()
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11:
        return float(value)
    raise InvalidFlagError(path, 'expected a moment with its zone, such as "2027-03-31T18:00:00+00:00"')


def _text(value: Json, path: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or "\0" in value:
        raise InvalidFlagError(path, f"expected text of at most {LONGEST_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidFlagError(path, "expected text that UTF-8 can hold") from None
    return value


_MISSING = object()


class _Object:
    """One JSON object that is being read: which keys it may have, and where it stands."""

    def __init__(self, document: Json, path: str, keys: set[str]) -> None:
        if not isinstance(document, Mapping):
            raise InvalidFlagError(path, f"expected an object with {', '.join(sorted(keys))}")
        for key in document:
            if key not in keys:
                raise InvalidFlagError(
                    f"{path}.{key}" if path else str(key), f"unknown; expected {', '.join(sorted(keys))}"
                )
        self._document = document
        self._path = path

    def at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def has(self, key: str) -> bool:
        return self._document.get(key) is not None

    def raw(self, key: str, default: Json = _MISSING) -> Json:
        if not self.has(key):
            if default is _MISSING:
                raise InvalidFlagError(self.at(key), "missing")
            return default
        return self._document[key]

    def text(self, key: str, default: Json = _MISSING) -> str:
        return _text(self.raw(key, default), self.at(key))

    def number(self, key: str, low: int, high: int) -> int:
        value = self.raw(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidFlagError(self.at(key), f"expected a whole number from {low} to {high}")
        return value

    def truth(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise InvalidFlagError(self.at(key), "expected true or false")
        return value

    def one_of(self, key: str, words: type[W]) -> W:
        value = self.raw(key)
        if not isinstance(value, str) or value not in set(words):
            raise InvalidFlagError(self.at(key), f"expected one of {', '.join(words)}")
        return words(value)

    def stage(self, key: str) -> Stage:
        return self.one_of(key, Stage)

    def optional(self, key: str, read: Callable[[Json, str], T]) -> T | None:
        return read(self._document[key], self.at(key)) if self.has(key) else None

    def list(self, key: str, read: Callable[[Json, str], T], most: int) -> list[T]:
        values = self.raw(key, ())
        if not isinstance(values, list | tuple) or len(values) > most:
            raise InvalidFlagError(self.at(key), f"expected a list of at most {most}")
        return [read(value, f"{self.at(key)}[{n}]") for n, value in enumerate(values)]
