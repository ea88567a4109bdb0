"""The story: a whole migration in acts. One that does not do what it promises ends the demo."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from crossfade.demo.play import Play
from crossfade.demo.programs import DemoError
from crossfade.demo.stage import CUTOVER, FAILS, FLAG, GOOD, MISCOUNTS

PAIRS, RATE = 200, "3%"
"""What the gate asks for here, of each route."""
FOUND = 12
"""Pairs in which the bug has shown before it is looked at."""
BY_NEW = 50
"""Requests that new answers before the canary goes on."""
EVIDENCE_WITHIN = 170.0
"""Seconds, up to a minute of them until the counts of another minute begin."""
SETTLES = 1.0
"""Seconds after the last difference from which on a report is asked for."""
MARGIN = 6.0
"""Seconds from the last difference to the minute with which it begins: commands take their time."""


@dataclass(frozen=True, slots=True)
class Act:
    title: str
    why: Sequence[str]
    play: Callable[[Play], None]


def both_alike(play: Play) -> None:
    _from_the_beginning(play)
    play.types("data plan")
    play.syncs("new")
    play.until("a whole copy in new", lambda: _follows(play, "new"))
    play.types("data status", most=2)
    play.types("data verify", most=10, only="equal")
    play.types(f"cutover prepare {CUTOVER} --reason 'the night will come'", most=1)
    play.syncs("legacy")
    play.until("the stream of the way back", lambda: _follows(play, "legacy"))


def a_bug_is_found(play: Play) -> None:
    began = time.time()
    play.types(
        f"flag edit {FLAG} --bucket-by cookie:visitor --assign-cookie visitor --fallback 100%"
        " --needs-report yes --reason 'whole visitors move, by a report'"
    )
    play.types(f"flag move {FLAG} --to shadow --reason 'first look' --wait")
    play.says(f"New is asked besides. What is deployed there is {MISCOUNTS}; somebody made a mistake in it.")
    bug = play.until("a difference in the planted place", lambda: _planted(play, began))
    play.types("shadow diffs")
    play.types(f"shadow show {bug}", most=8)
    play.says(
        f"The gate asks for {PAIRS} pairs of each route, of which at most {RATE} may differ, which some"
    )
    play.says("seconds of this load can prove. Left alone it asks for 1,000 pairs and 0.1%.")
    play.types(f"shadow report --flag {FLAG} --gate --rate {RATE} --pairs {PAIRS}", code=6, most=9)
    play.types(f"flag move {FLAG} --to live --weight 5% --reason 'it will be fine'", code=5)
    play.says("No client has seen any of it: legacy answers. The gate stays closed.")


def the_bug_is_fixed(play: Play) -> None:
    bug = _planted(play, 0.0)
    play.deploys(GOOD)
    play.says(f"It has taken the port over from {MISCOUNTS}.")
    # A comment that comes between both questions is a difference too, for once.
    play.until("the end of the difference", lambda: _is_gone(play, bug))
    play.types(f"shadow replay {bug}", most=1, only="do not differ any more")
    last = _last_difference(play)
    left = first_minute(last) - time.time()
    if left > 1:
        play.says(f"Evidence is counted by the minute, and begins anew with the next one, in {left:.0f} s.")
    play.until(
        "a report that is ready",
        lambda: _is_ready(play),
        EVIDENCE_WITHIN,
        f"shadow report --flag {FLAG} --rate {RATE} --pairs {PAIRS} --hours 0.04",
    )
    play.types(f"{_report(play)} --gate", most=9)
    kept = play.types(
        f"{_report(play)} --keep --format html --to {play.report.name} --reason 'ready for a canary'"
    )
    play.digest = kept.err.partition("digest ")[2].split()[0]


def canary_and_ramp(play: Play) -> None:
    play.types(f"guardrail set {FLAG} --signal errors --reason 'back by itself'")
    before = play.stage.answered()["new"]
    play.types(
        f"flag move {FLAG} --to live --weight 5% --report {play.digest} --reason canary --wait", most=2
    )
    play.until("answers of new", lambda: play.stage.answered()["new"] - before >= BY_NEW or None)
    play.types(
        f"ramp start {FLAG} --to live --steps 20%:3s:100,50%:3s:200 --report {play.digest}"
        " --reason 'all is well'",
        most=3,
    )
    play.types(f"ramp status {FLAG} --wait 90", most=1)
    own = play.stage.by_reason()["own_writes"]
    play.says(f"Who had just written was answered by legacy until new had it: {own:,} requests (own_writes).")


def a_bad_build(play: Play) -> None:
    began, covered = time.monotonic(), play.stage.covered()
    play.deploys(FAILS)
    play.says(f"{FAILS} answers 500 for each post that has a tag.")
    play.until("the guardrail's rollback", lambda: _rolled_back(play))
    play.says(
        f"{FLAG} went back to shadow by itself, {time.monotonic() - began:.1f} s after the deployment began."
    )
    play.types(f"guardrail list {FLAG}", most=2)
    play.types(f"flag get {FLAG}", most=2)
    count = play.stage.covered() - covered
    if not count:
        raise DemoError("the bad build has failed no request, so that nothing was shown")
    play.says(f"{count:,} requests that new failed were answered by legacy instead (fallback).")
    play.says(f"Failures that the people have seen until now: {play.crowd.look().failures}.")
    play.says("The build before it is deployed again.")
    play.deploys(GOOD)
    play.types(f"guardrail rearm {FLAG}:errors --reason 'the build was bad, and is gone'")
    play.types(
        f"flag move {FLAG} --to live --weight 50% --report {play.digest} --reason 'again' --wait", most=2
    )


def the_switch(play: Play) -> None:
    play.types("data verify", most=10, only="equal")
    play.types(f"cutover plan {CUTOVER}")
    play.types(f"cutover run {CUTOVER} --rehearse --reason 'a rehearsal'", most=2, only=" walk")
    play.says("A rehearsal does everything up to the decision, and is cancelled there on purpose.")
    for what, why in (("run", "the night"), ("back", "orders look wrong"), ("run", "they were right")):
        play.until("a plan that nothing stands against", lambda: _is_possible(play))
        report = f" --report {play.digest}" if what == "run" else ""
        play.types(f"cutover {what} {CUTOVER}{report} --reason '{why}'", most=2, only=CUTOVER)
        walk = play.stage.cutover()["walks"][0]
        play.held.append(walk["held_seconds"])
        play.says(f"Writes have waited {walk['held_seconds'] * 1000:.0f} ms at most, and then went on.")
        _go_on(play, 200)


ACTS: Final = (
    Act(
        "Both databases alike",
        ("Legacy's rows are copied into new's schema, and every change follows. No request has moved.",),
        both_alike,
    ),
    Act(
        "Shadow: a bug is found before anybody meets it",
        ("New is asked what clients ask of legacy, and both answers are compared. Clients never see new's.",),
        a_bug_is_found,
    ),
    Act(
        "The bug is fixed, and the gate opens",
        ("What was seen before the fix is no evidence for it: it is collected anew.",),
        the_bug_is_fixed,
    ),
    Act(
        "Canary and ramp",
        (
            "New answers a few visitors' reads, then more. What changes something still goes to legacy,",
            "and who has just written reads there until new has it.",
        ),
        canary_and_ramp,
    ),
    Act(
        "A bad build, and the guardrail",
        ("Half of the visitors are on new when a release of it fails. Nobody is there to look.",),
        a_bad_build,
    ),
    Act(
        "The switch, the way back, and the switch again",
        ("The authority over the data goes to new in one step. Writes wait for a moment, and none is lost.",),
        the_switch,
    ),
)


# Facts that are waited for.


def _follows(play: Play, towards: str) -> bool | None:
    done = play.run(f"data status --towards {towards} -o json")
    if done.code:
        return None
    found = json.loads(done.out)
    return (found["state"] == "following" and found["held"]) or None


def _categories(play: Play) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = play.ask("/api/v1/shadow/categories", flag=FLAG)["categories"]
    return found


def _planted(play: Play, since: float) -> str | None:
    """The id of what the bug has caused most often, once it has been seen often enough."""
    found = [
        one for one in _categories(play)
        if one["path"].endswith("comment_count") and one["last_seen"] > since and one["count"] >= FOUND
    ]  # fmt: skip
    return max(found, key=lambda one: one["count"])["id"] if found else None


def _is_gone(play: Play, bug: str | None) -> bool | None:
    return play.run(f"shadow replay {bug}").code == 0 or None


def _last_difference(play: Play) -> float:
    """Unix time."""
    return max(float(one["last_seen"]) for one in _categories(play))


def first_minute(last: float) -> float:
    """The first whole minute that has nothing of the time before `last` in it."""
    return ((last + MARGIN) // 60 + 1) * 60


def _report(play: Play) -> str:
    """The command for a report of what was seen after the last difference, as of now."""
    hours = _hours_since(_last_difference(play))
    return f"shadow report --flag {FLAG} --rate {RATE} --pairs {PAIRS} --hours {hours:.4f}"


def _hours_since(last: float) -> float:
    return (time.time() - last - SETTLES) / 3600


def _is_possible(play: Play) -> bool | None:
    """On a busy machine a stream may be behind for a moment."""
    return play.ask(f"/api/v1/cutovers/{CUTOVER}/plan")["possible"] or None


def _is_ready(play: Play) -> bool | None:
    """Whether the report is, of what was seen after the last difference."""
    last = _last_difference(play)
    if time.time() < first_minute(last):
        return None
    asked = {"hours": _hours_since(last), "rate": float(RATE.removesuffix("%")) / 100, "pairs": PAIRS}
    return play.ask("/api/v1/shadow/report", flag=FLAG, **asked)["ready"] or None


def _rolled_back(play: Play) -> bool | None:
    (rail,) = play.ask("/api/v1/guardrails", flag=FLAG)["guardrails"]
    return (rail["state"] == "tripped" and play.stage.flag()["stands"] == "shadow") or None


def _go_on(play: Play, requests: int) -> None:
    """So many more, on the side that has the authority now."""
    goal = play.crowd.look().requests + requests
    play.until("more requests", lambda: play.crowd.look().requests >= goal or None)


# A folder in which another demo was played, or was ended in between.


def _from_the_beginning(play: Play) -> None:
    if play.stage.cutover()["side"] is None and play.stage.flag()["stands"] == "legacy":
        return
    play.says("An earlier demo in this folder is taken back first.")
    play.stage.sync("new")
    play.stage.sync("legacy")
    play.until("the stream", lambda: _follows(play, "new"))
    play.until("the stream of the way back", lambda: _follows(play, "legacy"))
    if play.stage.cutover()["side"] == "new":
        play.types(f"cutover back {CUTOVER} --reason 'from the beginning'", most=1, only=CUTOVER)
    for tidy in (f"ramp abort {FLAG}", f"guardrail delete {FLAG}:errors"):
        play.run(f"{tidy} --reason 'from the beginning'")
    while (stands := play.stage.flag()["stands"]) != "legacy":
        to = "shadow" if "live" in stands else "legacy"
        play.types(f"flag move {FLAG} --to {to} --reason 'from the beginning' --wait", most=1)
