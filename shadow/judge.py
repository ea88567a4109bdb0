"""What a pair of answers comes to, once both sides were asked again where that was worth it.

Two answers of legacy to the same request say what differs by itself: that is noise for this pair, as long as
new's value is of the same kind (a time where legacy has a time). What differed at first and not when both
were asked once more was a change of state on its way from one side to the other: such a pair says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shadow.classes import VOLATILE
from shadow.compare import Comparison, Difference, Verdict, compare
from shadow.exhibit import Exhibit
from shadow.paths import template
from shadow.rules import RouteRules
from shadow.verdict import SHAPE

LAG = "lag"


@dataclass(frozen=True, slots=True)
class Judged:
    """`differences` are those that are left; `noise` and `lag` those that are explained."""

    verdict: Verdict
    reason: str
    differences: tuple[Difference, ...]
    noise: tuple[Difference, ...] = ()
    lag: tuple[Difference, ...] = ()
    ignored: tuple[tuple[Difference, str], ...] = ()
    broken_rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pair of which legacy was asked again by lot: where new differs, and where legacy does from itself."""

    new_only: frozenset[str]
    legacy_only: frozenset[str]
    both: frozenset[str]


def judge(exhibit: Exhibit, rules: RouteRules) -> Judged:
    first = compare(exhibit.legacy, exhibit.new, rules)
    if first.verdict is not Verdict.DIFF:
        return Judged(first.verdict, first.reason, (), (), (), first.ignored, first.broken_rules)
    noisy = _places(_itself(exhibit, rules))
    left, noise, lag = [], [], []
    again = _asked_again(exhibit, rules)
    still = None if again is None else _places(again)
    for difference in first.differences:
        if template(difference.place) in noisy:
            if _is_of_one_kind(difference):
                noise.append(difference)
            else:
                left.append(replace(difference, kind=SHAPE))
        elif still is not None and template(difference.place) not in still:
            lag.append(difference)
        else:
            left.append(difference)
    verdict, reason = Verdict.DIFF, ""
    if not left:
        verdict, reason = (Verdict.NOT_COMPARABLE, LAG) if lag else (Verdict.NOISE, "")
    return Judged(
        verdict, reason, tuple(left), tuple(noise), tuple(lag), first.ignored, first.broken_rules
    )  # fmt: skip


def expected_by(exhibit: Exhibit, rules: RouteRules, path: str) -> frozenset[str] | None:
    """The rules that expect a difference of a sample that was kept, by their ids; None where none does.

    `path` is a template. The set is empty where a rule has only said which elements belong together.
    """
    found = judge(exhibit, rules)
    if found.verdict in (Verdict.NOT_COMPARABLE, Verdict.SHADOW_ERROR):
        return None
    if any(template(one.place) == path for one in found.differences):
        return None
    return frozenset(rule for one, rule in found.ignored if _holds(template(one.place), path))


def _holds(above: str, path: str) -> bool:
    return path == above or path.startswith((f"{above}.", f"{above}["))


def drawn(exhibit: Exhibit, rules: RouteRules) -> Drawn | None:
    """What a pair that was drawn by lot says of paths; None where it cannot."""
    if not exhibit.sampled or exhibit.legacy_again is None:
        return None
    first, itself = compare(exhibit.legacy, exhibit.new, rules), _itself(exhibit, rules)
    known = (Verdict.MATCH, Verdict.IGNORED, Verdict.DIFF)
    if first.verdict not in known or itself is None or itself.verdict not in known:
        return None
    new, legacy = _places(first), _places(itself)
    return Drawn(new - legacy, legacy - new, new & legacy)


def _itself(exhibit: Exhibit, rules: RouteRules) -> Comparison | None:
    if exhibit.legacy_again is None:
        return None
    return compare(exhibit.legacy, exhibit.legacy_again, rules)


def _asked_again(exhibit: Exhibit, rules: RouteRules) -> Comparison | None:
    """Both once more; None where that says nothing."""
    if exhibit.legacy_again is None or exhibit.new_again is None:
        return None
    found = compare(exhibit.legacy_again, exhibit.new_again, rules)
    return found if found.verdict in (Verdict.MATCH, Verdict.IGNORED, Verdict.DIFF) else None


def _places(found: Comparison | None) -> frozenset[str]:
    return frozenset() if found is None else frozenset(template(one.place) for one in found.differences)


def _is_of_one_kind(difference: Difference) -> bool:
    """Noise is no excuse for another kind of value: a text where there was a time."""
    if difference.classes is None:
        return True
    legacy, new = difference.classes
    return legacy is new or not {legacy, new} & VOLATILE
