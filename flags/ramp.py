"""Ramps: a flag that moves up by itself, step by step, while nothing speaks against it. Pure.

A ramp has steps, each a weight at the stage `to`, a time to stay there and a number of requests that must
have been seen there. Its states:

    state     who leaves it   meaning
    running   by itself       a step is in force, and its time or its requests are not over
    held      by itself       the next step is due, but something is missing: `held_reason` says what
    paused    a person        a person, a kill, or a guardrail that pauses has stopped it where it is
    done      nobody          the last step is over
    aborted   nobody          a person ended it, or moved the flag by hand
    tripped   nobody          a guardrail took everybody back

Only `running` and `held` advance. What has ended stays so: after a rollback a person re-arms the guardrail
and starts another ramp, because nothing but the weight has changed. A ramp goes up only: down is a plain
move, at once.

A ramp never goes faster than its minima allow, also when nobody looked for an hour: the steps that are
overdue then fold into one, but only over steps that ask for no requests, that no guardrail watches, and
whose time has passed within a window. A step that asks for requests cannot have had them. What was held
goes on by one step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flags.cohort import Cohorts
from flags.document import transition_from_json, transition_to_json
from flags.model import EVERYBODY, Stage, Transition
from flags.stages import STAGES, above, described, moved, percent, reachable

Json: TypeAlias = Mapping[str, Any]

MOST_STEPS: Final = 100
MOST_WINDOWS: Final = 50
LONGEST_HOLD: Final = 30 * 86_400.0
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class RampState(StrEnum):
    RUNNING = "running"
    HELD = "held"
    PAUSED = "paused"
    DONE = "done"
    ABORTED = "aborted"
    TRIPPED = "tripped"


class Event(StrEnum):
    """What can happen to a ramp."""

    ADVANCE = "advance"
    HOLD = "hold"
    CONTINUE = "continue"
    FINISH = "finish"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    TRIP = "trip"


_MOVING: Final = MappingProxyType(
    {
        Event.ADVANCE: RampState.RUNNING,
        Event.HOLD: RampState.HELD,
        Event.CONTINUE: RampState.RUNNING,
        Event.FINISH: RampState.DONE,
        Event.PAUSE: RampState.PAUSED,
        Event.ABORT: RampState.ABORTED,
        Event.TRIP: RampState.TRIPPED,
    }
)
TABLE: Final = MappingProxyType(
    {
        RampState.RUNNING: _MOVING,
        RampState.HELD: _MOVING,
        RampState.PAUSED: MappingProxyType(
            {
                Event.RESUME: RampState.RUNNING,
                Event.ABORT: RampState.ABORTED,
                Event.TRIP: RampState.TRIPPED,
            }
        ),
        RampState.DONE: MappingProxyType({}),
        RampState.ABORTED: MappingProxyType({}),
        RampState.TRIPPED: MappingProxyType({}),
    }
)
"""From each state, what may happen and where it leads."""

ENDED: Final = frozenset(state for state, row in TABLE.items() if not row)


def after(state: RampState, event: Event) -> RampState | None:
    """Where `event` leads from `state`; None where it cannot happen."""
    return TABLE[state].get(event)


@dataclass(frozen=True, slots=True)
class Step:
    """`hold` in seconds; `min_requests` of those that the step has moved, since it began."""

    weight_ppm: int
    hold: float
    min_requests: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Hours in which a ramp may advance. `end` before `begin` is on the next day; equal is a whole day.

    `days` are those on which it begins (0 is Monday). Times are minutes since midnight in `zone`.
    """

    days: frozenset[int]
    begin: int
    end: int
    zone: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for. `origin` is where everybody goes back to, `start` where the flag stood."""

    flag: str
    origin: Stage
    to: Stage
    start: Transition
    steps: tuple[Step, ...]
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True, slots=True)
class Ramp:
    """A plan under way. `step` counts from 1; 0 is before the first one."""

    plan: Plan
    state: RampState
    step: int
    step_started_at: float
    held_reason: str | None = None

    @property
    def current(self) -> Step | None:
        return self.plan.steps[self.step - 1] if self.step else None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ramp's next action depends on, besides the ramp."""

    transition: Transition
    """Where the flag stands."""
    requests: int
    """How many requests the step has moved since it began."""
    killed: bool = False
    archived: bool = False
    watched: bool = False
    """A guardrail watches this flag, so each step is there to be looked at."""
    unsure: str | None = None
    """What a guardrail misses before it can say `ok`."""
    tripped: str | None = None
    """A guardrail that has tripped and was not re-armed: it stands against going on."""


@dataclass(frozen=True, slots=True)
class Act:
    """What to do now. `step` is the one to go to, for ADVANCE."""

    event: Event
    reason: str
    step: int = 0


def next_action(ramp: Ramp, facts: Facts, now: float) -> Act | None:
    """What has to happen to the ramp now; None to leave it as it is."""
    if ramp.state in ENDED:
        return None
    if facts.archived:
        return _if_possible(ramp, Act(Event.ABORT, "the flag was archived"))
    if facts.transition != (expected := expected_transition(ramp)):
        where = f"the flag was moved to {described(facts.transition)}, and this ramp had it at"
        return _if_possible(ramp, Act(Event.ABORT, f"{where} {described(expected)}"))
    if ramp.state is RampState.PAUSED:
        return None
    if facts.killed:
        return Act(Event.PAUSE, "it was killed; resume the ramp when the kill is taken back")
    if facts.tripped:
        return Act(Event.PAUSE, facts.tripped)
    return _forward(ramp, facts, now)


def _forward(ramp: Ramp, facts: Facts, now: float) -> Act | None:
    current = ramp.current
    due = ramp.step_started_at + (current.hold if current else 0.0)
    if current is not None:
        if now < due:
            # A clock that was set back does not hold for ever: only the step's own time is waited for.
            return _continue(ramp)
        if facts.requests < current.min_requests:
            return _hold(ramp, f"{facts.requests} of {current.min_requests} requests at this step")
        if facts.unsure:
            return _hold(ramp, facts.unsure)
    if ramp.step == len(ramp.plan.steps):
        return Act(Event.FINISH, "the last step is over")
    opened = opened_at(ramp.plan.windows, now)
    if opened is None:
        return _hold(ramp, "outside the allowed hours")
    target = ramp.step + 1
    if ramp.state is RampState.RUNNING and ramp.step and not facts.watched:
        target = _folded(ramp.plan.steps, target, now - max(due, opened))
    return Act(Event.ADVANCE, _advance_reason(ramp, target), target)


def _folded(steps: Sequence[Step], target: int, overdue: float) -> int:
    """The step to go to, where those before it would be over already had somebody looked."""
    while target < len(steps):
        step = steps[target - 1]
        if step.min_requests or overdue < step.hold or step.weight_ppm == EVERYBODY:
            break
        overdue -= step.hold
        target += 1
    return target


def _advance_reason(ramp: Ramp, target: int) -> str:
    weight = percent(ramp.plan.steps[target - 1].weight_ppm)
    skipped = target - ramp.step - 1
    folded = f", {skipped} overdue in one" if skipped else ""
    return f"step {target} of {len(ramp.plan.steps)}: {weight} at {ramp.plan.to}{folded}"


def _hold(ramp: Ramp, reason: str) -> Act | None:
    if ramp.state is RampState.HELD and ramp.held_reason == reason:
        return None
    return Act(Event.HOLD, reason)


def _continue(ramp: Ramp) -> Act | None:
    return Act(Event.CONTINUE, "the step's time is not over") if ramp.state is RampState.HELD else None


def _if_possible(ramp: Ramp, act: Act) -> Act | None:
    return act if after(ramp.state, act.event) is not None else None


def expected_transition(ramp: Ramp) -> Transition:
    """Where the ramp has left the flag."""
    if (current := ramp.current) is None:
        return ramp.plan.start
    return moved(Transition(ramp.plan.origin, ramp.plan.to, 0), ramp.plan.to, current.weight_ppm)


def requests_moved(ramp: Ramp, grown: Cohorts) -> float:
    """How many of the requests the step has moved. Where one side answers at both stages: by its weight."""
    current = ramp.current
    if current is None:
        return 0.0
    if STAGES[ramp.plan.origin].answers is not STAGES[ramp.plan.to].answers:
        return grown.side(STAGES[ramp.plan.to].answers).requests
    return (grown.new.requests + grown.legacy.requests) * current.weight_ppm / EVERYBODY


def opened_at(windows: Sequence[Window], now: float) -> float | None:
    """When the window that is open now began; None outside of all. Without windows it is always open."""
    if not windows:
        return 0.0
    found = [begin for window in windows if (begin := _opened(window, now)) is not None]
    return min(found, default=None)


def _opened(window: Window, now: float) -> float | None:
    zone = ZoneInfo(window.zone)
    local = datetime.fromtimestamp(now, zone)
    for day in (local.date(), local.date() - timedelta(days=1)):
        if day.weekday() not in window.days:
            continue
        last = day + timedelta(days=1) if window.end <= window.begin else day
        begin = datetime.combine(day, _clock(window.begin), zone).timestamp()
        if begin <= now < datetime.combine(last, _clock(window.end), zone).timestamp():
            return begin
    return None


def _clock(minutes: int) -> time:
    return time(minutes // 60, minutes % 60)


class InvalidRampError(ValueError):
    """The plan cannot be a ramp; the message says what is wrong with it."""


def plan_for(
    flag: str, transition: Transition, steps: Sequence[Step], *, to: Stage, windows: Sequence[Window] = ()
) -> Plan:
    """The plan of a ramp from where the flag stands now. Raises InvalidRampError."""
    origin, now_at = _from(flag, transition, to)
    if not steps:
        raise InvalidRampError("a ramp needs at least one step, such as 5%:10m")
    if len(steps) > MOST_STEPS:
        raise InvalidRampError(f"a ramp has at most {MOST_STEPS} steps, not {len(steps)}")
    last = now_at
    for number, step in enumerate(steps, 1):
        what = f"step {number}"
        if not 0 < step.weight_ppm <= EVERYBODY:
            raise InvalidRampError(f"{what}: a weight is above 0 and at most 100%")
        if step.weight_ppm <= last:
            before = f"step {number - 1}" if number > 1 else f"where {flag} stands now"
            raise InvalidRampError(
                f"{what} ({percent(step.weight_ppm)}) must be above {before} ({percent(last)}): "
                f"a ramp goes up; down is a move: crossfade flag move {flag}"
            )
        if not 0 <= step.hold <= LONGEST_HOLD:
            raise InvalidRampError(f"{what}: the time to hold is from 0 seconds to 30 days")
        if step.min_requests < 0:
            raise InvalidRampError(f"{what}: the least number of requests cannot be below 0")
        if step.weight_ppm == EVERYBODY and step.min_requests:
            raise InvalidRampError(
                f"{what}: at 100% there are no two cohorts left to count; give it a time to hold instead"
            )
        last = step.weight_ppm
    return Plan(flag, origin, to, transition, tuple(steps), tuple(windows))


def _from(flag: str, transition: Transition, to: Stage) -> tuple[Stage, int]:
    """Where the ramp goes back to, and the weight at `to` now."""
    here = transition.settled
    if here is None:
        if to is transition.target:
            return transition.origin, transition.weight_ppm
    elif above(here) is to:
        return here, 0
    goes_down = to in reachable(transition)
    hint = (
        f"a ramp goes up; down is a move: crossfade flag move {flag} --to {to}"
        if goes_down
        else "a ramp goes to the stage above, and a flag in between goes to the upper one of its two"
    )
    raise InvalidRampError(f"{flag} is at {described(transition)} and cannot ramp to {to}: {hint}")


# As JSON.


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """All but the steps, which stand in a column of their own."""
    return {
        "origin": plan.origin.value,
        "to": plan.to.value,
        "start": transition_to_json(plan.start),
        "windows": windows_to_json(plan.windows),
    }


def plan_from_json(flag: str, value: Json, steps: object) -> Plan:
    return Plan(
        flag, Stage(value["origin"]), Stage(value["to"]), transition_from_json(value["start"], "start"),
        steps_from_json(steps), windows_from_json(value["windows"]),
    )  # fmt: skip


_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def steps_from_json(value: object) -> tuple[Step, ...]:
    """[{"weight_ppm": 50000, "hold": 600, "min_requests": 1000}, …]. Raises InvalidRampError."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidRampError("steps must be a list")
    found = []
    for number, one in enumerate(value, 1):
        if not isinstance(one, Mapping):
            raise InvalidRampError(f"step {number} must have weight_ppm and hold")
        for name in one:
            if name not in {"weight_ppm", "hold", "min_requests"}:
                raise InvalidRampError(
                    f"step {number}: there is no {name}; a step has weight_ppm, hold, min_requests"
                )
        weight, hold, least = one.get("weight_ppm"), one.get("hold"), one.get("min_requests", 0)
        if isinstance(weight, bool) or not isinstance(weight, int):
            raise InvalidRampError(f"step {number}: weight_ppm must be a whole number of parts per million")
        if isinstance(hold, bool) or not isinstance(hold, int | float):
            raise InvalidRampError(f"step {number}: hold must be a number of seconds")
        if isinstance(least, bool) or not isinstance(least, int):
            raise InvalidRampError(f"step {number}: min_requests must be a whole number")
        found.append(Step(weight, float(hold), least))
    return tuple(found)


def steps_to_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        {"weight_ppm": step.weight_ppm, "hold": step.hold, "min_requests": step.min_requests}
        for step in steps
    ]


def windows_from_json(value: object) -> tuple[Window, ...]:
    """[{"days": ["mon"], "from": "09:00", "to": "17:00", "zone": "Europe/Berlin"}, …].

    Without days: on all of them; without zone: UTC. Raises InvalidRampError.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidRampError("windows must be a list")
    if len(value) > MOST_WINDOWS:
        raise InvalidRampError(f"a ramp has at most {MOST_WINDOWS} windows, not {len(value)}")
    return tuple(_window(one) for one in value)


def _window(value: object) -> Window:
    if not isinstance(value, Mapping):
        raise InvalidRampError(
            "a window has from and to, such as 09:00 and 17:00, and may have days and zone"
        )
    for name in value:
        if name not in {"days", "from", "to", "zone"}:
            raise InvalidRampError(f"a window has no {name}; it has from, to, days, zone")
    days = value.get("days", DAYS)
    if not isinstance(days, Sequence) or not days or any(day not in DAYS for day in days):
        raise InvalidRampError(f"a window's days are some of {', '.join(DAYS)}")
    zone = value.get("zone", "UTC")
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise InvalidRampError(
            f"{zone!r} is no time zone that this machine knows; take one such as Europe/Berlin, or UTC"
        ) from None
    return Window(
        frozenset(DAYS.index(day) for day in days),
        _minutes(value.get("from")), _minutes(value.get("to")), zone,
    )  # fmt: skip


def _minutes(value: object) -> int:
    hours = _HOURS.fullmatch(value) if isinstance(value, str) else None
    if hours is None:
        raise InvalidRampError(f"a window's from and to are times such as 09:00, not {value!r}")
    return int(hours[1]) * 60 + int(hours[2])


def windows_to_json(windows: Sequence[Window]) -> list[dict[str, Any]]:
    return [
        {
            "days": [DAYS[day] for day in sorted(window.days)],
            "from": f"{window.begin // 60:02}:{window.begin % 60:02}",
            "to": f"{window.end // 60:02}:{window.end % 60:02}",
            "zone": window.zone,
        }
        for window in windows
    ]
