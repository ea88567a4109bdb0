"""Compare two answers to one request: what differs, where, and which rule expected it.

Numbers are equal by value, but a number without a point is another kind than one with it: clients in typed
languages read them differently. Names of an object have no order, elements of an array have one, unless a
rule says otherwise. Swapping both answers swaps the sides of each difference and changes nothing else, but
for rules that name the sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from enum import StrEnum
from html.parser import HTMLParser
from typing import Final
from urllib.parse import parse_qsl

from shadow.classes import ValueClass, class_of
from shadow.exhibit import Answer, Body, Fields, Kind
from shadow.json_text import Fraction, Json, UnreadableJsonError, read, write
from shadow.paths import Place, spelled
from shadow.rules import NO_RULES, RouteRules, Rule, RuleKind
from shadow.volatile_headers import OF_THE_CODING, PRESENCE, VOLATILE

MOST_DIFFERENCES: Final = 200
"""After which a comparison stops to collect."""
LONGEST_TEXT: Final = 200
EVENTS: Final = 50
"""Events of a stream that are compared."""


class Verdict(StrEnum):
    MATCH = "match"
    NOISE = "noise"
    """Legacy differs from itself in the same places."""
    IGNORED = "ignored"
    """Rules expected all of it."""
    DIFF = "diff"
    NOT_COMPARABLE = "not_comparable"
    SHADOW_ERROR = "shadow_error"
    """The side that was asked besides gave no whole answer."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`kind` is value, type, missing (in new), extra, order, length, header, status or body."""

    place: Place
    kind: str
    legacy: str
    new: str
    classes: tuple[ValueClass, ValueClass] | None = None
    """Of two values that differ."""

    @property
    def path(self) -> str:
        return spelled(self.place)


@dataclass(frozen=True, slots=True)
class Comparison:
    verdict: Verdict
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    ignored: tuple[tuple[Difference, str], ...] = ()
    """What a rule expected, and the rule's id."""
    broken_rules: tuple[str, ...] = ()
    """Ids of rules that raised; they did not apply."""


def compare(legacy: Answer, new: Answer, rules: RouteRules = NO_RULES) -> Comparison:
    """Compare two answers of different sides, or of the same side at two times."""
    for answer in (legacy, new):
        if answer.trouble:
            return Comparison(Verdict.SHADOW_ERROR, f"{answer.side}: {answer.trouble}")
    if legacy.status >= 500 and new.status >= 500:
        # Two failures are no proof that both do the same.
        return Comparison(Verdict.NOT_COMPARABLE, "both_failed")
    search = _Search(rules)
    search.status(legacy.status, new.status)
    search.headers(legacy.headers, new.headers)
    reason = search.bodies(legacy.body, new.body)
    found = tuple(search.found)
    ignored, broken = tuple(search.ignored), tuple(dict.fromkeys(search.broken))
    if found:
        return Comparison(Verdict.DIFF, "", found, ignored, broken)
    if reason:
        return Comparison(Verdict.NOT_COMPARABLE, reason, (), ignored, broken)
    return Comparison(Verdict.IGNORED if ignored else Verdict.MATCH, "", (), ignored, broken)


class _Search:
    """One walk through two answers."""

    def __init__(self, rules: RouteRules) -> None:
        self.found: list[Difference] = []
        self.ignored: list[tuple[Difference, str]] = []
        self.broken: list[str] = []
        self._rules = rules
        self._ignore = rules.of(RuleKind.IGNORE)

    def _note(self, place: Place, kind: str, legacy: Json, new: Json, by: str | None = None) -> None:
        if len(self.found) >= MOST_DIFFERENCES:
            return
        difference = Difference(place, kind, _shown(legacy), _shown(new))
        rule = by or next((rule.id for rule in self._ignore if rule.parsed.covers(place)), None)
        if rule is None:
            if kind in ("value", "type"):
                difference = replace(difference, classes=(class_of(legacy), class_of(new)))
            self.found.append(difference)
        elif len(self.ignored) < MOST_DIFFERENCES:
            self.ignored.append((difference, rule))

    # Status and headers.

    def status(self, legacy: int, new: int) -> None:
        if legacy != new:
            rules = self._rules.of(RuleKind.STATUS)
            by = next((rule.id for rule in rules if (legacy, new) in rule.values), None)
            self._note(("status",), "status", legacy, new, by)

    def headers(self, legacy: Fields, new: Fields) -> None:
        if legacy == new:
            return
        ours, theirs = _by_name(legacy), _by_name(new)
        policies = {str(rule.parsed.parts[1]): rule for rule in self._rules.of(RuleKind.HEADER)}
        for name in dict.fromkeys((*ours, *theirs)):
            one, other = ours.get(name), theirs.get(name)
            if one == other:
                continue
            rule = policies.get(name)
            policy = rule.policy if rule is not None else _policy_of(name)
            both = one is not None and other is not None
            if policy == "ignore" or (policy == "presence" and both):
                if rule is not None:
                    self._note(("headers", name), "header", _joined(one), _joined(other), rule.id)
            elif one is None or other is None or _normal(name, one) != _normal(name, other):
                self._note(("headers", name), "header", _joined(one), _joined(other))

    # Bodies.

    def bodies(self, legacy: Body, new: Body) -> str:
        """Compare both; returns why that cannot be done."""
        if Kind.UNREADABLE in (legacy.kind, new.kind):
            if legacy.digest and legacy.digest == new.digest and not (legacy.trouble or new.trouble):
                return ""
            return legacy.trouble or new.trouble or "unreadable"
        if legacy.kind is new.kind and legacy.text == new.text and legacy.digest == new.digest:
            return ""
        kind = legacy.kind if legacy.kind is new.kind else None
        if kind is None and {legacy.kind, new.kind} <= {Kind.JSON, Kind.TEXT}:
            self._note(("body",), "type", legacy.kind.value, new.kind.value)
        elif kind is None:
            self._note(("body",), "body", legacy.text or legacy.kind.value, new.text or new.kind.value)
        elif kind in (Kind.JSON, Kind.MULTIPART):
            return self._json(legacy.text, new.text)
        elif kind is Kind.FORM:
            self.values(_form(legacy.text), _form(new.text), ("$",))
        elif kind is Kind.EVENTS:
            self.values(_events(legacy.text), _events(new.text), ("$",))
        elif kind in (Kind.HTML, Kind.XML):
            self._lines(_markup(legacy.text), _markup(new.text))
        elif kind is Kind.TEXT:
            self._lines(legacy.text.splitlines(), new.text.splitlines())
        elif legacy.digest != new.digest:
            self._note(("body",), "body", f"{legacy.length} bytes", f"{new.length} bytes")
        return ""

    def _json(self, legacy: str, new: str) -> str:
        if legacy == new:
            return ""
        try:
            one, other = read(legacy), read(new)
        except UnreadableJsonError as error:
            return str(error)
        self.values(one, other, ("$",))
        return ""

    def _lines(self, legacy: list[str], new: list[str]) -> None:
        """The first line that differs says where to look."""
        if legacy == new:
            return
        pairs = zip(legacy, new, strict=False)
        at = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(legacy), len(new)))
        one, other = (lines[at] if at < len(lines) else "(nothing more)" for lines in (legacy, new))
        self._note(("body",), "body", f"line {at + 1}: {one}", f"line {at + 1}: {other}")

    # Values.

    def values(self, one: Json, other: Json, at: Place) -> None:
        if type(one) is not type(other):
            self._leaf(one, other, at, "type")
        elif isinstance(one, dict):
            for name, value in one.items():
                if name not in other:
                    self._note((*at, name), "missing", value, None)
                elif not _equal_leaves(value, theirs := other[name]):
                    self.values(value, theirs, (*at, name))
            for name in other.keys() - one.keys():
                self._note((*at, name), "extra", None, other[name])
        elif isinstance(one, list):
            self._arrays(one, other, at)
        elif one != other:
            self._leaf(one, other, at, "value")

    def _arrays(self, one: list[Json], other: list[Json], at: Place) -> None:
        keyed = next((rule for rule in self._rules.of(RuleKind.KEYED_BY) if rule.parsed.names(at)), None)
        if keyed is not None and self._by_key(one, other, at, keyed.key):
            return
        loose = next((rule for rule in self._rules.of(RuleKind.UNORDERED) if rule.parsed.names(at)), None)
        if loose is not None:
            self._unordered(one, other, at, loose.id)
            return
        before = len(self.found)
        self._elements(one, other, at)
        if len(self.found) > before and len(one) == len(other) > 1 and _sorted(one) == _sorted(other):
            # The same elements in another order: one difference, and not as many as elements.
            del self.found[before:]
            self._note(at, "order", one, other)

    def _elements(self, one: list[Json], other: list[Json], at: Place) -> None:
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            if not _equal_leaves(left, right):
                self.values(left, right, (*at, number))
        if len(one) != len(other):
            self._note(at, "length", f"{len(one)} elements", f"{len(other)} elements")

    def _by_key(self, one: list[Json], other: list[Json], at: Place, key: str) -> bool:
        """Whether all elements have the key, each its own; then they are compared by it."""
        ours, theirs = _keyed(one, key), _keyed(other, key)
        if ours is None or theirs is None:
            return False
        for name, value in ours.items():
            place = (*at, f"[{key}={name}]")
            if name in theirs:
                self.values(value, theirs[name], place)
            else:
                self._note(place, "missing", value, None)
        for name in theirs.keys() - ours.keys():
            self._note((*at, f"[{key}={name}]"), "extra", None, theirs[name])
        return True

    def _unordered(self, one: list[Json], other: list[Json], at: Place, by: str) -> None:
        ours, theirs = self._counted(one, at), self._counted(other, at)
        missing = [text for text, count in ours.items() for _ in range(count - theirs.get(text, 0))]
        extra = [text for text, count in theirs.items() for _ in range(count - ours.get(text, 0))]
        for text in missing[:MOST_DIFFERENCES]:
            self._note((*at, "[*]"), "missing", text, None)
        for text in extra[:MOST_DIFFERENCES]:
            self._note((*at, "[*]"), "extra", None, text)
        if not missing and not extra and _texts(one) != _texts(other):
            self._note(at, "order", one, other, by)

    def _counted(self, values: list[Json], at: Place) -> dict[str, int]:
        found: dict[str, int] = {}
        for number, value in enumerate(values):
            text = write(_ordered(self._without_ignored(value, (*at, number))))
            found[text] = found.get(text, 0) + 1
        return found

    def _without_ignored(self, value: Json, at: Place) -> Json:
        if any(rule.parsed.covers(at) for rule in self._ignore):
            return "(ignored)"
        if isinstance(value, dict):
            return {name: self._without_ignored(part, (*at, name)) for name, part in value.items()}
        if isinstance(value, list):
            return [self._without_ignored(part, (*at, number)) for number, part in enumerate(value)]
        return value

    def _leaf(self, one: Json, other: Json, at: Place, kind: str) -> None:
        self._note(at, kind, one, other, self._expected(one, other, at))

    def _expected(self, one: Json, other: Json, at: Place) -> str | None:
        """The id of the first rule by which two different values are equal."""
        for rule in self._rules.of(RuleKind.TOLERANCE):
            if rule.parsed.names(at) and _is_near(one, other, rule):
                return rule.id
        for rule in self._rules.of(RuleKind.SAME_SHAPE):
            if rule.parsed.names(at) and class_of(one) is class_of(other):
                return rule.id
        for rule in self._rules.of(RuleKind.MAP_VALUE):
            if rule.parsed.names(at) and any(_same(one, a) and _same(other, b) for a, b in rule.values):
                return rule.id
        for rule in self._rules.of(RuleKind.SAME):
            if rule.parsed.names(at) and self._asked(rule, one, other):
                return rule.id
        return None

    def _asked(self, rule: Rule, one: Json, other: Json) -> bool:
        assert rule.same is not None
        try:
            return rule.same(one, other) is True
        except Exception:  # users' code; a rule that raises does not apply
            self.broken.append(rule.id)
            return False


# Values.


def _equal_leaves(one: Json, other: Json) -> bool:
    """Whether both are one value without parts. Most are, and this is cheaper than to name their place."""
    kind = type(one)
    return kind is type(other) and kind is not dict and kind is not list and one == other


def _same(one: Json, other: Json) -> bool:
    return type(one) is type(other) and bool(one == other)


def _is_near(one: Json, other: Json, rule: Rule) -> bool:
    if rule.seconds is not None:
        left, right = _moment(one), _moment(other)
        if left is not None and right is not None:
            return abs(left - right) <= rule.seconds
    if not (_is_number(one) and _is_number(other)):
        return False
    apart = abs(Decimal(one) - Decimal(other))
    if rule.absolute is not None and apart <= Decimal(str(rule.absolute)):
        return True
    largest = max(abs(Decimal(one)), abs(Decimal(other)))
    return rule.relative is not None and apart <= largest * Decimal(str(rule.relative))


def _is_number(value: Json) -> bool:
    return isinstance(value, int | Fraction) and not isinstance(value, bool)


def _moment(value: Json) -> float | None:
    """A time as Unix time in seconds; numbers beyond the year 2100 are milliseconds."""
    if _is_number(value):
        number = float(value)
        return number / 1000 if number > 4_102_444_800 else number
    if not isinstance(value, str):
        return None
    for reader in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = reader(value)
        except (ValueError, TypeError):
            continue
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None


def _keyed(values: list[Json], key: str) -> dict[str, Json] | None:
    found: dict[str, Json] = {}
    for value in values:
        if not isinstance(value, dict) or key not in value:
            return None
        name = write(value[key]).strip('"')
        if name in found:
            return None
        found[name] = value
    return found


def _ordered(value: Json) -> Json:
    """With the names of objects in one order."""
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(part) for part in value] if isinstance(value, list) else value


def _texts(values: list[Json]) -> list[str]:
    return [write(_ordered(value)) for value in values]


def _sorted(values: list[Json]) -> list[str]:
    return sorted(_texts(values))


def _shown(value: Json) -> str:
    text = value if isinstance(value, str) else "" if value is None else write(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


# Headers.


def _by_name(fields: Fields) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    return found


def _policy_of(name: str) -> str:
    if name in VOLATILE or name in OF_THE_CODING:
        return "ignore"
    return "presence" if name in PRESENCE else "compare"


def _joined(values: list[str] | None) -> str | None:
    return None if values is None else ", ".join(values)


def _normal(name: str, values: list[str]) -> object:
    """What the values of a field mean, where two spellings mean the same."""
    if name == "set-cookie":
        # The value of a cookie is another for each client; its name and attributes are the contract.
        return sorted(_cookie(value) for value in values)
    words = [word.strip() for value in values for word in value.split(",")]
    if name in ("vary", "allow", "access-control-allow-methods", "access-control-allow-headers"):
        return sorted(word.lower() for word in words)
    if name == "cache-control":
        return sorted(word.lower() for word in words)
    if name == "content-type":
        media, *parameters = values[0].split(";")
        said = sorted(part.strip().lower().replace('"', "") for part in parameters)
        # The boundary between the parts of a body is another in each of them.
        return media.strip().lower(), [part for part in said if not part.startswith("boundary=")]
    return words


def _cookie(value: str) -> tuple[str, tuple[str, ...]]:
    pair, *attributes = value.split(";")
    kept = (part.strip().lower() for part in attributes)
    return pair.partition("=")[0].strip(), tuple(sorted(part.partition("=")[0] for part in kept))


# Other bodies.


def _form(text: str) -> dict[str, Json]:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _events(text: str) -> list[Json]:
    """Server-sent events, or JSON lines: the first of them."""
    if text.lstrip().startswith(("{", "[")):
        return [_json_or_text(line) for line in text.splitlines() if line.strip()][:EVENTS]
    events: list[Json] = []
    for block in re.split(r"\r?\n\r?\n", text)[:EVENTS]:
        event: dict[str, Json] = {}
        for line in block.splitlines():
            name, _, value = line.partition(":")
            if name and name != "id":
                event[name] = _json_or_text(value.removeprefix(" "))
        if event:
            events.append(event)
    return events


def _json_or_text(text: str) -> Json:
    try:
        return read(text)
    except UnreadableJsonError:
        return text


def _markup(text: str) -> list[str]:
    parser = _Markup()
    parser.feed(text)
    parser.close()
    return parser.pieces


class _Markup(HTMLParser):
    """Tags with sorted attributes, and texts without needless blanks, one after the other."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pieces.append(f"<{tag}{''.join(_attributes(attrs))}>")

    def handle_endtag(self, tag: str) -> None:
        self.pieces.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text:
            self.pieces.append(text)


def _attributes(attrs: list[tuple[str, str | None]]) -> Iterator[str]:
    for name, value in sorted(attrs, key=lambda pair: pair[0]):
        words = " ".join(sorted((value or "").split())) if name == "class" else value
        yield f' {name}="{words}"'
