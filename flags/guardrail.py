"""Guardrails: whether new is worse than legacy, judged while the traffic runs. Pure.

Every signal is a count of *bad* requests (failed, too slow, or different), and the question is from which
side they come. The guardrail assumes, until the evidence says otherwise, that new's bad share is at most

    tolerance * (legacy's bad share + ALLOWED)                                            (the assumption)

and bets against that, batch by batch: what one instance has counted between two looks. For each of five
RATIOS r it supposes that new is r times worse than tolerated and multiplies its stake by what that makes
more or less likely. With w the share of the batch's requests that new got, d = r*t*w + 1 - w, and t the
tolerance:

    a bad answer of new         multiplies by   a = r * (t*w + 1 - w) / d
    a bad answer of legacy      multiplies by   b =     (t*w + 1 - w) / d
    an answer of new, any       divides by      1 + t * ALLOWED * (a - 1)

Under the assumption the stakes are worth, on average, never more than before, whatever happened before.
So the chance that they ever reach 1/alpha is at most alpha, however often one looks and whenever one stops.
That is what a test on a fixed sample cannot do (peeking at one of 5 % after each of 300 bad events is wrong
in 25 %).

Three things keep that true:

* It is so given which requests of the batch went where: then the w above is not an estimate, and neither
  the weight of the flag, nor large clients, nor bursts of new's share can make it wrong. A share over
  several batches could: in a burst new has more of the bad answers than its share of the hour says. With a
  larger w, a and b are smaller, so one that is too large is careful; it is rounded up.
* Each instance's batch by itself: if one of them answers worse (both sides do) and has more of new's
  clients, all together would look as if new were worse.
* The batch is what was counted in some time, not until something went wrong. Small batches say nothing
  (one request is new's or legacy's, and w is 1 or 0), so an instance's are put together until they have
  GATHERED requests.

Not everything is staked at once. Half is; of the rest a little is added after each bad answer, fresh.
Without that, a long quiet time would leave the stakes next to nothing, and a backend that goes bad after
a thousand good hours would be found late. What is staked and what is kept together is the evidence.

What it does not know: whether the clients on new were worse than others before. A tolerance above 1 is
for that. It takes bad answers for independent within a batch: those that come together (one client that
tries again and again, a database that is away for a tenth of a second just when new has a burst) count as
if they were not. And a bad answer that takes long is counted in a later batch than the good ones beside it;
when the weight goes down, the share before is still the least that w is, for one look. The share of
requests and the ceiling are shown beside, for people.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

from core.metrics import LATENCY_BUCKETS
from flags.cohort import Cohort
from flags.model import EVERYBODY, Side, Stage, Transition
from flags.stages import ORDER, STAGES, share_of_new

Json: TypeAlias = Mapping[str, Any]
T = TypeVar("T", bound=StrEnum)

RATIOS: Final = (1.5, 2.0, 3.0, 5.0, 10.0)
"""How many times worse than tolerated new is supposed to be, each with a fifth of the stakes."""
ALLOWED: Final = 0.0001
"""A share of bad answers that nobody calls worse, where legacy has none at all."""
STAKED_AT_ONCE: Final = 0.5
GATHERED: Final = 40
"""Requests of an instance that are bet on together, at least. So many say about as much as more do."""
RECENT: Final = 200
"""Requests over which the share of new is shown, at least; at most twice as many."""
CEILING_OF: Final = MappingProxyType({"errors": 0.5, "latency": None, "mismatches": None})
GRID: Final = 4096
"""w is rounded up to parts of this, so that logarithms are taken once."""
MOST: Final = 1e30
"""Evidence is not counted any further."""


class Signal(StrEnum):
    """What makes a request bad."""

    ERRORS = "errors"
    """It failed: 5xx, or legacy had to answer for new."""
    LATENCY = "latency"
    """It took longer than `latency_over`."""
    MISMATCHES = "mismatches"
    """The answers differ; measured against how often two answers of legacy differ."""


class Action(StrEnum):
    """What a guardrail does when it trips, from the mildest."""

    ALERT = "alert"
    PAUSE = "pause"
    """The ramp stops where it is."""
    ROLLBACK = "rollback"
    """Everybody back to where the transition began; a kill where new answers there too."""
    KILL = "kill"
    """Everybody to legacy."""


class Mode(StrEnum):
    ENFORCE = "enforce"
    DRY_RUN = "dry_run"
    """It says what it would have done, and does nothing."""


class State(StrEnum):
    OK = "ok"
    INSUFFICIENT_DATA = "insufficient_data"
    """Too little to say anything: it neither passes nor fails, and a ramp waits."""
    TRIPPED = "tripped"
    """New is worse. Stays so until a person re-arms it, because nothing but the rollback has changed."""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One watch over one flag.

    `alpha` is the chance of ever tripping although new is no worse than tolerated. `ceiling` is the bad share
    of new that is too much whatever legacy does (None: no such), over `min_requests`. Before `min_requests`
    of a side it does not say `ok`; the evidence needs no minimum, because it carries its own.
    """

    id: str
    flag: str
    signal: Signal
    action: Action = Action.ROLLBACK
    mode: Mode = Mode.ENFORCE
    tolerance: float = 1.5
    alpha: float = 0.001
    min_requests: int = 20
    ceiling: float | None = None
    latency_over: float | None = None
    """Seconds, for the signal `latency`."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests of one side and how many of them were bad, by the signal of a guardrail."""

    requests: int = 0
    bad: int = 0

    def plus(self, other: Counted) -> Counted:
        return Counted(self.requests + other.requests, self.bad + other.bad)


Batch: TypeAlias = tuple[Counted, Counted]
"""What one instance has counted of new and of legacy in the same time."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a guardrail has seen since it was armed."""

    stakes: tuple[float, ...] = (STAKED_AT_ONCE,) * len(RATIOS)
    new: Counted = Counted()
    legacy: Counted = Counted()
    recent_new: float = 0.0
    recent_all: float = 0.0
    """Requests lately, for the share that new really gets."""
    ceiling_requests: float = 0.0
    ceiling_bad: float = 0.0
    """New's requests lately, for the ceiling."""
    highest: float = 1.0
    """The highest the evidence ever was."""
    bad_bet_on: int = 0
    gathering: Mapping[str, Batch] = field(default_factory=lambda: MappingProxyType({}))
    """By instance: what is too little to bet on yet."""

    @property
    def value(self) -> float:
        """How much likelier what was seen is if new is worse. On average at most 1 if it is not."""
        return sum(self.stakes) / len(RATIOS) + _kept(self.bad_bet_on)

    @property
    def recent_share(self) -> float | None:
        """The share of the requests, not of the clients, that new got lately."""
        return self.recent_new / self.recent_all if self.recent_all else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`trigger` is one word for what decided, also the metric label; `message` is for people."""

    state: State
    trigger: str
    message: str


def counted(guardrail: Guardrail, cohort: Cohort) -> Counted:
    """What of a cohort's counts this guardrail is about."""
    match guardrail.signal:
        case Signal.ERRORS:
            return Counted(cohort.requests, cohort.errors)
        case Signal.MISMATCHES:
            return Counted(cohort.compared, cohort.mismatches)
        case Signal.LATENCY:
            # The next bound that is counted: whoever took longer than that took longer than the limit.
            bounds = [bound for bound in cohort.slow if bound >= (guardrail.latency_over or 0.0)]
            return Counted(cohort.requests, cohort.slow[min(bounds)]) if bounds else Counted()


def has_something_to_judge(signal: Signal, transition: Transition) -> bool:
    """Whether requests of this signal exist at all where the flag stands."""
    if transition.settled is not None:
        return False
    if signal is Signal.MISMATCHES:
        return any(STAGES[stage].mirror for stage in (transition.origin, transition.target))
    return share_of_new(transition) > 0


def observe(
    evidence: Evidence, guardrail: Guardrail, batches: Mapping[str, Batch], at_least_ppm: int = 0
) -> Evidence:
    """The evidence after what each instance has counted since it was looked at last.

    An instance that was gathering and is not among `batches` has ended. `at_least_ppm` is the least share
    that new is taken to have had.
    """
    for new, legacy in batches.values():
        evidence = _counted_in(evidence, guardrail, new, legacy)
    gathering = {}
    for name, (new, legacy) in _together(evidence.gathering, batches):
        if name in batches and new.requests + legacy.requests < GATHERED:
            gathering[name] = new, legacy
        else:
            evidence = _bet(evidence, guardrail, new, legacy, at_least_ppm)
    # Nothing new leaves the evidence as it was, so that nothing has to be written.
    return evidence if gathering == evidence.gathering else replace(evidence, gathering=gathering)


def _together(gathering: Mapping[str, Batch], batches: Mapping[str, Batch]) -> Iterator[tuple[str, Batch]]:
    nothing = Counted(), Counted()
    for name in {**gathering, **batches}:
        (new, legacy), (more_new, more_legacy) = gathering.get(name, nothing), batches.get(name, nothing)
        together = new.plus(more_new), legacy.plus(more_legacy)
        if together != nothing:
            yield name, together


def _counted_in(evidence: Evidence, guardrail: Guardrail, new: Counted, legacy: Counted) -> Evidence:
    """What is shown, and what the ceiling and the minimum look at: at once."""
    recent_new, recent_all = _faded(
        evidence.recent_new + new.requests,
        evidence.recent_all + new.requests + legacy.requests,
        RECENT,
    )
    ceiling_bad, ceiling_requests = _faded(
        evidence.ceiling_bad + new.bad, evidence.ceiling_requests + new.requests, guardrail.min_requests
    )
    return replace(
        evidence,
        new=evidence.new.plus(new), legacy=evidence.legacy.plus(legacy),
        recent_new=recent_new, recent_all=recent_all,
        ceiling_bad=ceiling_bad, ceiling_requests=ceiling_requests,
    )  # fmt: skip


def _bet(
    evidence: Evidence, guardrail: Guardrail, new: Counted, legacy: Counted, at_least_ppm: int
) -> Evidence:
    requests = new.requests + legacy.requests
    weight = new.requests / requests if requests else 1.0
    if (
        guardrail.signal is not Signal.MISMATCHES
    ):  # pairs are drawn from both sides alike, whatever the weight
        weight = max(weight, at_least_ppm / EVERYBODY)
    bad = evidence.bad_bet_on + new.bad + legacy.bad
    kept = _kept(bad)
    added = _kept(evidence.bad_bet_on) - kept
    stakes = tuple(
        min(
            MOST,
            stake * math.exp(min(60.0, new.bad * by_new + legacy.bad * by_legacy - new.requests * cost))
            + added,
        )
        for stake, (by_new, by_legacy, cost) in zip(
            evidence.stakes, _logarithms(guardrail.tolerance, math.ceil(weight * GRID)), strict=True
        )
    )
    highest = max(evidence.highest, sum(stakes) / len(RATIOS) + kept)
    return replace(evidence, stakes=stakes, bad_bet_on=bad, highest=highest)


@lru_cache(maxsize=4 * GRID)
def _logarithms(tolerance: float, share: int) -> tuple[tuple[float, float, float], ...]:
    """For each ratio: of a, of b, and of what an answer of new divides by. `share` is w in parts of GRID."""
    weight = share / GRID
    tolerated = tolerance * weight + 1.0 - weight
    found = []
    for ratio in RATIOS:
        supposed = ratio * tolerance * weight + 1.0 - weight
        a = ratio * tolerated / supposed
        cost = math.log1p(tolerance * ALLOWED * (a - 1.0))
        found.append((math.log(a), math.log(tolerated / supposed), cost))
    return tuple(found)


def _kept(bad: int) -> float:
    """What is not staked yet after so many bad answers. Falls so slowly that there is always something."""
    return (1.0 - STAKED_AT_ONCE) / (1.0 + math.log1p(bad))


def _faded(part: float, whole: float, least: int) -> tuple[float, float]:
    """Halved until only the last `least` to twice as many are left."""
    while whole >= 2 * max(1, least):
        part, whole = part / 2.0, whole / 2.0
    return part, whole


def verdict(evidence: Evidence, guardrail: Guardrail) -> Verdict:
    """What the evidence says now. Latching what has tripped is the caller's."""
    new, legacy = evidence.new, evidence.legacy
    seen = f"{guardrail.signal}: new {_said(new)}, legacy {_said(legacy)}"
    if evidence.value >= 1.0 / guardrail.alpha:
        return Verdict(
            State.TRIPPED,
            "evidence",
            f"{seen}; the evidence that new is more than {guardrail.tolerance:g} times worse is "
            f"{evidence.value:,.0f}, the limit {1.0 / guardrail.alpha:,.0f}",
        )
    lately = evidence.ceiling_bad / evidence.ceiling_requests if evidence.ceiling_requests else 0.0
    if (
        guardrail.ceiling is not None
        and evidence.ceiling_requests >= guardrail.min_requests
        and lately > guardrail.ceiling
    ):
        return Verdict(
            State.TRIPPED,
            "ceiling",
            f"{seen}; {lately:.1%} of new's last requests are bad, the ceiling is {guardrail.ceiling:.1%}",
        )
    if new.requests < guardrail.min_requests:
        missing = f"{new.requests} of the {guardrail.min_requests} requests of new"
        return Verdict(State.INSUFFICIENT_DATA, "min_requests", f"{seen}; so far {missing} that it needs")
    everybody_on_new = evidence.recent_share == 1.0
    if legacy.requests < guardrail.min_requests and not everybody_on_new:
        missing = f"{legacy.requests} of the {guardrail.min_requests} requests of legacy"
        return Verdict(State.INSUFFICIENT_DATA, "min_requests", f"{seen}; so far {missing} that it needs")
    return Verdict(State.OK, "none", f"{seen}; evidence {evidence.value:.3g}")


def _said(counts: Counted) -> str:
    return f"{counts.bad} bad of {counts.requests}"


class InvalidGuardrailError(ValueError):
    """The definition cannot be a guardrail; the message says which field and what it may be."""


def guardrail_from_json(guardrail_id: str, flag: str, definition: Json) -> Guardrail:
    """A definition as people write it and the store keeps it. Raises InvalidGuardrailError."""
    known = ("signal", "action", "mode", "tolerance", "alpha", "min_requests", "ceiling", "latency_over")
    for name in definition:
        if name not in known:
            raise InvalidGuardrailError(f"there is no {name}; a guardrail has {', '.join(known)}")
    signal = _word(Signal, definition, "signal", None)
    latency_over = _number(definition, "latency_over", None, above=0.0, most=LATENCY_BUCKETS[-1])
    if signal is Signal.LATENCY and latency_over is None:
        raise InvalidGuardrailError("latency_over (seconds) is missing: above it a request is slow")
    if signal is not Signal.LATENCY and latency_over is not None:
        raise InvalidGuardrailError(f"latency_over belongs to the signal latency, not to {signal}")
    least = _number(definition, "min_requests", 20.0, above=0.0, most=1e9)
    tolerance = _number(definition, "tolerance", 1.5, above=0.999, most=100.0)
    alpha = _number(definition, "alpha", 0.001, above=1e-12, most=0.2)
    ceiling = _number(definition, "ceiling", CEILING_OF[signal], above=0.0, most=1.0)
    assert least is not None
    assert tolerance is not None
    assert alpha is not None
    if least != int(least):
        raise InvalidGuardrailError(f"min_requests must be a whole number, not {least:g}")
    return Guardrail(
        guardrail_id, flag, signal,
        _word(Action, definition, "action", Action.ROLLBACK), _word(Mode, definition, "mode", Mode.ENFORCE),
        tolerance, alpha, int(least), ceiling, latency_over,
    )  # fmt: skip


def guardrail_to_json(guardrail: Guardrail) -> dict[str, Any]:
    return {
        "signal": guardrail.signal.value,
        "action": guardrail.action.value,
        "mode": guardrail.mode.value,
        "tolerance": guardrail.tolerance,
        "alpha": guardrail.alpha,
        "min_requests": guardrail.min_requests,
        "ceiling": guardrail.ceiling,
        "latency_over": guardrail.latency_over,
    }


def evidence_to_json(evidence: Evidence) -> dict[str, Any]:
    return {
        "stakes": list(evidence.stakes),
        "new": [evidence.new.requests, evidence.new.bad],
        "legacy": [evidence.legacy.requests, evidence.legacy.bad],
        "recent": [evidence.recent_new, evidence.recent_all],
        "ceiling": [evidence.ceiling_requests, evidence.ceiling_bad],
        "highest": evidence.highest,
        "bad_bet_on": evidence.bad_bet_on,
        "gathering": {
            name: [new.requests, new.bad, legacy.requests, legacy.bad]
            for name, (new, legacy) in evidence.gathering.items()
        },
    }


def evidence_from_json(value: Json) -> Evidence:
    """What `evidence_to_json` made; an empty one where there is nothing yet."""
    if not value:
        return Evidence()
    recent_new, recent_all = value["recent"]
    ceiling_requests, ceiling_bad = value["ceiling"]
    new, legacy = Counted(*value["new"]), Counted(*value["legacy"])
    return Evidence(
        tuple(value["stakes"]), new, legacy,
        recent_new, recent_all, ceiling_requests, ceiling_bad, value["highest"],
        # One that was written before batches were gathered has bet on all that it had seen.
        value.get("bad_bet_on", new.bad + legacy.bad),
        {name: (Counted(*four[:2]), Counted(*four[2:])) for name, four in value.get("gathering", {}).items()},
    )  # fmt: skip


def way_back(transition: Transition) -> Stage | None:
    """The stage to which everybody can go in one step so that new answers nobody; None: there is no such."""
    here = transition.settled
    if here is None:
        back = transition.origin
    elif STAGES[here].answers is Side.LEGACY:
        back = here
    else:
        back = ORDER[ORDER.index(here) - 1]
    return back if STAGES[back].answers is Side.LEGACY else None


def _word(words: type[T], definition: Json, name: str, otherwise: T | None) -> T:
    found = definition.get(name, otherwise)
    if found not in tuple(words):
        said = "is missing" if found is None else f"cannot be {found!r}"
        raise InvalidGuardrailError(f"{name} {said}: {', '.join(words)}")
    return words(found)


def _number(
    definition: Json, name: str, otherwise: float | None, *, above: float, most: float
) -> float | None:
    found = definition.get(name, otherwise)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not above < found <= most:
        raise InvalidGuardrailError(
            f"{name} must be a number above {above:g} and at most {most:g}, not {found!r}"
        )
    return float(found)
