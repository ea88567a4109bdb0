"""The stages of a flag, as a table; and which move from where.

    stage    answers   asked besides
    legacy   legacy    nobody
    shadow   legacy    new           mirrored and compared
    live     new       legacy        mirrored and compared, so that the way back stays proven
    new      new       nobody

Only neighbours mix. A flag that is settled can move to either neighbour of its stage; one in between
can move to one of its two stages only. So no key ever jumps over a stage in one step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from flags.model import EVERYBODY, Side, Stage, Transition


@dataclass(frozen=True, slots=True)
class Row:
    answers: Side
    mirror: Side | None


STAGES = MappingProxyType(
    {
        Stage.LEGACY: Row(Side.LEGACY, None),
        Stage.SHADOW: Row(Side.LEGACY, Side.NEW),
        Stage.LIVE: Row(Side.NEW, Side.LEGACY),
        Stage.NEW: Row(Side.NEW, None),
    }
)
ORDER = tuple(STAGES)


class StageJumpError(ValueError):
    """A move that would skip a stage; the message names the moves that are possible."""


def above(stage: Stage) -> Stage | None:
    index = ORDER.index(stage) + 1
    return ORDER[index] if index < len(ORDER) else None


def settled_at(stage: Stage) -> Transition:
    """Everybody at `stage`, in the one spelling that is used for it."""
    upper = above(stage)
    if upper is None:
        return Transition(ORDER[-2], stage, EVERYBODY)
    return Transition(stage, upper, 0)


def are_neighbours(origin: Stage, target: Stage) -> bool:
    return above(origin) is target


def reachable(now: Transition) -> tuple[Stage, ...]:
    """The stages that a move may name: those occupied, and the neighbours of a settled one."""
    here = now.settled
    if here is None:
        return (now.origin, now.target)
    index = ORDER.index(here)
    return ORDER[max(0, index - 1) : index + 2]


def moved(now: Transition, to: Stage, weight_ppm: int) -> Transition:
    """`weight_ppm` of the keys at `to`, the rest where they are occupied now.

    Raises StageJumpError.
    """
    possible = reachable(now)
    if to not in possible:
        raise StageJumpError(f"cannot move to {to} from {described(now)}; possible: {', '.join(possible)}")
    here = now.settled
    if here is None:
        share = weight_ppm if to is now.target else EVERYBODY - weight_ppm
        return spelled(Transition(now.origin, now.target, share))
    if to is here:
        if weight_ppm == EVERYBODY:
            return settled_at(here)
        raise StageJumpError(
            f"everybody is at {here}; name the stage to which {percent(EVERYBODY - weight_ppm)} shall go: "
            + ", ".join(stage for stage in possible if stage is not here)
        )
    if above(here) is to:
        return spelled(Transition(here, to, weight_ppm))
    return spelled(Transition(to, here, EVERYBODY - weight_ppm))


def spelled(transition: Transition) -> Transition:
    """The same, in the one spelling that is used for it."""
    return transition if transition.settled is None else settled_at(transition.settled)


def described(now: Transition) -> str:
    """A transition in words: `shadow`, or `shadow→live at 5%`."""
    here = now.settled
    if here is not None:
        return str(here)
    return f"{now.origin}→{now.target} at {percent(now.weight_ppm)}"


def share_of_new(transition: Transition) -> int:
    """Parts per million of the keys that new answers."""
    ppm = 0
    for stage, share in (
        (transition.origin, EVERYBODY - transition.weight_ppm),
        (transition.target, transition.weight_ppm),
    ):
        ppm += share if STAGES[stage].answers is Side.NEW else 0
    return ppm


def percent(ppm: int) -> str:
    """`50000` as `5%`, without needless digits."""
    return f"{ppm / 10_000:.4f}".rstrip("0").rstrip(".") + "%"


SHARE_FORM = "expected a share such as 5% or 0.01%"
_SHARE = re.compile(r"(\d{1,3})(?:\.(\d{1,4}))?\s*%")


def ppm_of(share: str) -> int:
    """`5%` as 50000, by its digits: 0.07 * 10000 is not 700 in binary. Raises ValueError.

    A number without its sign is refused: 5 is 5% for one person and 5 parts per million for another.
    """
    found = _SHARE.fullmatch(share.strip())
    ppm = EVERYBODY + 1 if found is None else int(found[1]) * 10_000 + int((found[2] or "").ljust(4, "0"))
    if ppm > EVERYBODY:
        raise ValueError(SHARE_FORM)
    return ppm
