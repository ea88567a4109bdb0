"""What the report makes of a seeded corpus, beside Diffy's published rule: `python -m bench.verdicts`.

Each route has pairs with known noise, known drift of state, and a known regression or none. Crossfade judges
each pair and then the route; Diffy's rule looks at two counts per field: how often new differs from legacy,
and how often legacy differs from itself (shown if the difference is above 20 % of their sum and 0.03 % of
all).
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from shadow.compare import Verdict, compare
from shadow.exhibit import Answer, Asked, Body, Exhibit, Kind
from shadow.judge import drawn, judge
from shadow.paths import template
from shadow.rules import NO_RULES
from shadow.verdict import Category, Gate, PathCounts, Readiness, RouteFacts, judgement

PAIRS = 10_000
DRAWN = 0.5
"""The share of which legacy is asked twice by lot."""
RELATIVE, ABSOLUTE = 0.20, 0.0003

Json: TypeAlias = dict[str, Any]
Says: TypeAlias = Callable[[random.Random, int, str, int], tuple[int, Json]]
"""What a side ("legacy" or "new") says to request `number` at its first or second asking."""


def base(draw: random.Random, number: int) -> Json:
    return {
        "id": number, "name": f"item {number % 97}", "price": f"{number % 1000}.50", "tags": ["a", "b"],
        "at": datetime.fromtimestamp(1.7e9 + draw.randrange(10**7), UTC).isoformat(),
        "request": f"{draw.getrandbits(64):016x}",
    }  # fmt: skip


def clean(draw: random.Random, number: int, _side: str, _asking: int) -> tuple[int, Json]:
    return 200, base(draw, number)


def lottery(draw: random.Random, number: int, _side: str, _asking: int) -> tuple[int, Json]:
    """A number from 0 to 9 each time: two answers agree in a tenth of all cases."""
    return 200, {**base(draw, number), "lucky": draw.randrange(10), "order": draw.sample("abc", 3)}


def drift(draw: random.Random, number: int, side: str, asking: int) -> tuple[int, Json]:
    """In a fiftieth the stock changes between the first two askings."""
    moved = number % 50 == 0 and (side == "new" or asking == 2)
    return 200, {**base(draw, number), "stock": 6 if moved else 7}


def price(draw: random.Random, number: int, side: str, _asking: int) -> tuple[int, Json]:
    found = base(draw, number)
    return 200, {**found, "price": found["price"].replace(".50", ".5")} if side == "new" else found


def one_in_all(draw: random.Random, number: int, side: str, _asking: int) -> tuple[int, Json]:
    found = base(draw, number)
    return 200, {**found, "name": ""} if side == "new" and number == PAIRS // 2 else found


def tenth_on_noise(draw: random.Random, number: int, side: str, _asking: int) -> tuple[int, Json]:
    """A field that is noisy half of the time, and wrong in new in a tenth of its answers."""
    noisy = draw.random() < 0.5
    wrong = side == "new" and draw.random() < 0.1
    return 200, {**base(draw, number), "rank": draw.randrange(10**6) if noisy or wrong else 1}


def shape(draw: random.Random, number: int, side: str, _asking: int) -> tuple[int, Json]:
    found = base(draw, number)
    return 200, {**found, "at": "yesterday"} if side == "new" else found


def missing(draw: random.Random, number: int, side: str, _asking: int) -> tuple[int, Json]:
    found = base(draw, number)
    if side == "new" and number % 100 == 0:
        del found["tags"]
    return 200, found


def failing(draw: random.Random, number: int, side: str, _asking: int) -> tuple[int, Json]:
    return (500, {"error": "oops"}) if side == "new" and number % 200 == 0 else (200, base(draw, number))


ROUTES: dict[str, tuple[Says, bool]] = {
    "clean, with times and nonces": (clean, False),
    "clean, with a lottery and a random order": (lottery, False),
    "clean, while its state moves": (drift, False),
    "a price is written otherwise": (price, True),
    "one pair in ten thousand differs": (one_in_all, True),
    "a tenth on a field noisy half of the time": (tenth_on_noise, True),
    "a text where there was a time": (shape, True),
    "a field is missing in 1 %": (missing, True),
    "new fails in 0.5 %": (failing, True),
}
"""What each route is, and whether there is a regression in it."""


@dataclass(frozen=True, slots=True)
class Found:
    readiness: Readiness
    reasons: tuple[str, ...]
    diffy: tuple[str, ...]
    """The fields that Diffy's rule shows."""


def judged(says: Says, seed: int = 1, pairs: int = PAIRS) -> Found:
    draw = random.Random(seed)
    verdicts: Counter[str] = Counter()
    categories: Counter[tuple[str, str]] = Counter()
    paths: dict[str, Counter[str]] = {}
    raw: Counter[str] = Counter()
    noise: Counter[str] = Counter()
    equal = lots = 0
    for number in range(pairs):
        legacy, new, again, new_again = (
            answer(side, *says(draw, number, side, asking))
            for side, asking in (("legacy", 1), ("new", 1), ("legacy", 2), ("new", 2))
        )
        for counts, other in ((raw, new), (noise, again)):
            counts.update({template(one.place) for one in compare(legacy, other).differences})
        sampled = draw.random() < DRAWN
        pair = Exhibit(
            str(number), "items", "/items", "shadow", 1, Asked("GET", "/", (), Body(Kind.NONE)),
            legacy, new, again, new_again, sampled,
        )  # fmt: skip
        lot = drawn(pair, NO_RULES)
        if lot is not None:
            lots += 1
            for name, seen in (("new", lot.new_only), ("legacy", lot.legacy_only), ("both", lot.both)):
                for path in seen:
                    paths.setdefault(path, Counter())[name] += 1
        if legacy.body.text == new.body.text and legacy.status == new.status:
            equal += 1
            continue
        result = judge(pair, NO_RULES)
        verdicts[result.verdict.value] += 1
        if result.verdict is Verdict.DIFF:
            categories.update({(template(one.place), one.kind) for one in result.differences})
    facts = RouteFacts(
        "items", "/items", equal, pairs - equal, pairs - equal, verdicts, lots,
        {path: PathCounts(seen["new"], seen["legacy"], seen["both"]) for path, seen in paths.items()},
        [Category(path, kind, count) for (path, kind), count in categories.items()],
    )  # fmt: skip
    found = judgement(facts, Gate())
    return Found(found.readiness, found.reasons, tuple(sorted(diffy(raw, noise, pairs))))


def diffy(raw: Counter[str], noise: Counter[str], total: int) -> list[str]:
    return [
        path
        for path, seen in raw.items()
        if seen > noise[path]
        and (seen - noise[path]) / (seen + noise[path]) > RELATIVE
        and (seen - noise[path]) / total > ABSOLUTE
    ]


def answer(side: str, status: int, said: Json) -> Answer:
    text = json.dumps(said)
    return Answer(side, status, (), Body(Kind.JSON, text, len(text), text), 0.0, 0.0)


def main() -> int:
    print(f"{PAIRS:,} pairs a route, legacy asked twice by lot for {DRAWN:.0%} of them")
    wrong = 0
    for name, (says, is_regression) in ROUTES.items():
        found = judged(says)
        right = (found.readiness is Readiness.NOT_READY) == is_regression
        shown = bool(found.diffy)
        wrong += not right
        print(f"{name}: {found.readiness.value}{'' if right else '  WRONG'}; Diffy's rule: "
              f"{'shows ' + ', '.join(found.diffy) if shown else 'shows nothing'}"
              f"{'' if shown == is_regression else '  WRONG'}")  # fmt: skip
        for reason in found.reasons[:3]:
            print(f"    {reason}")
    print(f"{'PASS' if not wrong else 'MISS'}  routes judged wrong: {wrong} of {len(ROUTES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
