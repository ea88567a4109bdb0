"""Pairs per second of the comparator beside DeepDiff: `python -m bench.comparator`.

2 KB of JSON that differ only in noise (times and ids), which rules expect. DeepDiff gets both bodies parsed,
and the same noise to leave out by its own means; that parsing is counted for both.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, date, datetime
from time import process_time
from typing import Any
from uuid import UUID

from deepdiff import DeepDiff

from shadow.compare import Verdict, compare
from shadow.exhibit import Answer, Body, Kind
from shadow.rules import Rule, RuleBook, RuleKind

PAIRS = 300
TARGET = 20.0


def main() -> int:
    draw = random.Random(7)
    pairs = [(body(draw), body(draw)) for _ in range(PAIRS)]
    rules = RuleBook(
        (
            Rule("times", RuleKind.SAME_SHAPE, "$.items[*].updated_at", "it is the time of the answer"),
            Rule("ids", RuleKind.IGNORE, "$.request_id", "it is made anew"),
            Rule("tokens", RuleKind.SAME_SHAPE, "$.items[*].etag", "each backend makes its own"),
        ),
        date(2026, 11, 24),
    ).of("/items")

    def ours(one: str, other: str) -> None:
        found = compare(answer(one), answer(other), rules)
        assert found.verdict is Verdict.IGNORED, found

    def theirs(one: str, other: str) -> None:
        noise = [r"\['updated_at'\]$", r"^root\['request_id'\]$", r"\['etag'\]$"]
        assert not DeepDiff(json.loads(one), json.loads(other), exclude_regex_paths=noise)

    crossfade, deepdiff = rate(ours, pairs), rate(theirs, pairs)
    print(f"pairs of {len(pairs[0][0]):,} bytes that differ only in noise, per second and core")
    print(f"crossfade  {crossfade:>10,.0f}")
    print(f"deepdiff   {deepdiff:>10,.0f}")
    verdict = "PASS" if crossfade >= TARGET * deepdiff else "MISS"
    print(f"{verdict}  crossfade/deepdiff: {crossfade / deepdiff:.1f} (target: at least {TARGET:g})")
    return 0


def body(draw: random.Random) -> str:
    """The same content each time, with other noise."""
    return json.dumps(
        {
            "request_id": str(UUID(int=draw.getrandbits(128))),
            "items": [
                {
                    "id": number, "name": f"item number {number}", "price": f"{number}.50",
                    "tags": ["a", "b"], "owner": {"id": 7, "name": "Ada"},
                    "updated_at": datetime.fromtimestamp(1.7e9 + draw.randrange(10**6), UTC).isoformat(),
                    "etag": f"{draw.getrandbits(64):016x}",
                }
                for number in range(12)
            ],
            "next": None,
        }
    )  # fmt: skip


def answer(text: str) -> Answer:
    return Answer("legacy", 200, (), Body(Kind.JSON, text, len(text), text[:64]), 0.0, 0.0)


def rate(compare_one: Any, pairs: list[tuple[str, str]]) -> float:
    """Pairs per second of CPU, the best of three rounds."""
    best = 0.0
    for _ in range(3):
        began = process_time()
        for one, other in pairs:
            compare_one(one, other)
        best = max(best, len(pairs) / (process_time() - began))
    return best


if __name__ == "__main__":
    sys.exit(main())
