"""Conditions of rules and overrides: a small tree of tests on a request's attributes.

A test on an attribute that the request does not have is false, whatever its operator; `not` around it
is true. Numbers are compared as numbers where both sides are one, else the test is false. A regular
expression must match the whole value. It is RE2's, whose time grows with the value's length and no faster,
whatever the expression: with Python's own one request could stop a worker for minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import TypeAlias

from core.http import RequestHead
from flags.attributes import FORM, Facts, Reader, is_attribute, reader

LONGEST_REGEX = 200
LONGEST_VALUE = 1000
"""Characters of a value that a regular expression may look at; a longer value does not match."""
REGEX_MEMORY = 1 << 20
"""Bytes that one compiled expression may take."""
DEEPEST = 8
"""Levels of all, any and not."""
MOST_VALUES = 10_000
"""Values of one `in`."""


class Operator(StrEnum):
    EQ = "eq"
    IN = "in"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    LT = "lt"
    GT = "gt"
    REGEX = "regex"
    CIDR = "cidr"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class Test:
    """`attribute operator value`. `in` and `cidr` take several values, `exists` none, the others one."""

    attribute: str
    operator: Operator
    values: tuple[str, ...] = ()

    __test__ = False  # not a test of pytest's


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Any:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Condition


Condition: TypeAlias = Test | All | Any | Not
Predicate: TypeAlias = Callable[[RequestHead, Facts], bool]


class InvalidConditionError(ValueError):
    """A condition that cannot be used; the message says what would be right."""


def check_condition(condition: Condition, depth: int = 1) -> None:
    """Raise `InvalidConditionError` unless `condition` can be compiled."""
    if depth > DEEPEST:
        raise InvalidConditionError(
            f"all, any and not nest {DEEPEST} deep at most; split this into two rules"
        )
    match condition:
        case All(parts) | Any(parts):
            if not parts:
                raise InvalidConditionError("all and any need at least one condition")
            for part in parts:
                check_condition(part, depth + 1)
        case Not(part):
            check_condition(part, depth + 1)
        case Test():
            _check_test(condition)


def _check_test(test: Test) -> None:
    if not is_attribute(test.attribute):
        raise InvalidConditionError(f'"{test.attribute}" is no attribute; expected {FORM}')
    operator, values = test.operator, test.values
    if operator is Operator.EXISTS:
        if values:
            raise InvalidConditionError("exists takes no value")
        return
    several = operator in (Operator.IN, Operator.CIDR)
    if not values or (len(values) > 1 and not several):
        raise InvalidConditionError(f"{operator} takes {'a list of values' if several else 'one value'}")
    if len(values) > MOST_VALUES:
        raise InvalidConditionError(f"in takes at most {MOST_VALUES} values; bucket by the attribute instead")
    match operator:
        case Operator.LT | Operator.GT:
            if _number(values[0]) is None:
                raise InvalidConditionError(f'{operator} compares numbers; "{values[0]}" is none')
        case Operator.CIDR:
            for value in values:
                try:
                    ip_network(value)
                except ValueError as error:
                    raise InvalidConditionError(f'{error}; expected a network such as "10.0.0.0/8"') from None
        case Operator.REGEX:
            _check_regex(values[0])
        case _:
            pass


def _check_regex(pattern: str) -> None:
    if len(pattern) > LONGEST_REGEX:
        raise InvalidConditionError(
            f"a regular expression has at most {LONGEST_REGEX} characters; use in or prefix"
        )
    import re2  # noqa: PLC0415  (12 ms and 3 MB in each worker, for those who have such a condition)

    try:
        _matcher(pattern)
    except re2.error as error:
        (why,) = error.args
        raise InvalidConditionError(
            f'"{pattern}" is no regular expression of RE2 (which looks neither ahead nor back): '
            f"{why.decode(errors='replace')}"
        ) from None


def _matcher(pattern: str) -> Callable[[bytes], object]:
    """None for what does not match. Over bytes, because a value may be no UTF-8. Raises re2.error."""
    import re2  # noqa: PLC0415

    options = re2.Options()
    options.log_errors = False
    options.max_mem = REGEX_MEMORY
    matches: Callable[[bytes], object] = re2.compile(pattern.encode(), options).fullmatch
    return matches


def compile_condition(condition: Condition) -> Predicate:
    """The function that decides `condition`, which must have been checked."""
    match condition:
        case All(parts):
            every = tuple(map(compile_condition, parts))
            return lambda head, facts: all(part(head, facts) for part in every)
        case Any(parts):
            some = tuple(map(compile_condition, parts))
            return lambda head, facts: any(part(head, facts) for part in some)
        case Not(part):
            inner = compile_condition(part)
            return lambda head, facts: not inner(head, facts)
        case Test(attribute, operator, values):
            read = reader(attribute)
            if operator is Operator.EXISTS:
                return lambda head, facts: read(head, facts) is not None
            return _present(read, _comparison(operator, values))


def _present(read: Reader, compare: Callable[[str], bool]) -> Predicate:
    def decide(head: RequestHead, facts: Facts) -> bool:
        value = read(head, facts)
        return value is not None and compare(value)

    return decide


def _comparison(operator: Operator, values: tuple[str, ...]) -> Callable[[str], bool]:
    first = values[0]
    match operator:
        case Operator.EQ:
            return first.__eq__
        case Operator.IN:
            return frozenset(values).__contains__
        case Operator.PREFIX:
            return lambda value: value.startswith(first)
        case Operator.SUFFIX:
            return lambda value: value.endswith(first)
        case Operator.LT:
            return lambda value: (number := _number(value)) is not None and number < float(first)
        case Operator.GT:
            return lambda value: (number := _number(value)) is not None and number > float(first)
        case Operator.REGEX:
            matches = _matcher(first)
            return lambda value: (
                len(value) <= LONGEST_VALUE and matches(value.encode("utf-8", "surrogateescape")) is not None
            )
        case Operator.CIDR:
            networks = tuple(map(ip_network, values))
            return lambda value: _within(value, networks)
        case Operator.EXISTS:
            raise AssertionError("exists compares nothing")


def _within(value: str, networks: tuple[object, ...]) -> bool:
    try:
        address = ip_address(value)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)  # type: ignore[operator]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None  # noqa: PLR0124  (NaN)
