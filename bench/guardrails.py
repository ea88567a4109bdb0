"""How often guardrails are wrong and how quick they are, in simulated ramps: `python -m bench.guardrails`.

Counts, no times: the numbers do not depend on the machine. Takes some minutes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import replace

from bench.table import table
from flags.guardrail import Guardrail, Signal
from tests.ramps.traffic import Canary, bad_answers_before_the_trip, bursts, rises

ERRORS = Guardrail("bench", "bench", Signal.ERRORS)
SHARE_BAD = 0.02


def false_alarms(ramps: int, bad_answers: int) -> str:
    """The share of ramps that are wrongly taken back, for new as good as legacy and just at the tolerance."""
    rows = []
    for worse, alpha in itertools.product((1.0, ERRORS.tolerance), (0.05, 0.001)):
        guardrail = replace(ERRORS, alpha=alpha)
        wrong = sum(
            rises(seed, guardrail, bad_answers=bad_answers, share_bad=SHARE_BAD, worse=worse).value
            >= 1 / alpha
            for seed in range(ramps)
        )
        rows.append([f"{worse:g} times", f"{alpha:g}", f"{wrong} of {ramps:,}", f"{wrong / ramps:.3%}"])
    return table(["new fails", "alpha", "taken back", "share"], rows)


def bursty_alarms(ramps: int) -> str:
    """The same where new's share comes in bursts, and one of two instances is worse on both sides."""
    rows = []
    for share_bad, worse, alpha in itertools.product((0.02, 0.2), (1.0, ERRORS.tolerance), (0.05, 0.001)):
        guardrail = replace(ERRORS, alpha=alpha)
        wrong = sum(
            bursts(seed, guardrail, looks=300, share_bad=share_bad, worse=worse).value >= 1 / alpha
            for seed in range(ramps)
        )
        found = [f"{share_bad:.0%}", f"{worse:g} times", f"{alpha:g}", f"{wrong} of {ramps:,}"]
        rows.append([*found, f"{wrong / ramps:.3%}"])
    return table(["legacy fails", "new fails", "alpha", "taken back", "share"], rows)


def detection(runs: int) -> str:
    """Bad answers that new has served when it is found out; looked at every half second."""
    rows = []
    cases: list[tuple[str, Canary, int]] = [
        ("5 %, 10 times worse, 50 a second", Canary(rate=50.0), 0),
        ("5 %, 10 times worse, 200 a second", Canary(rate=200.0), 0),
        ("5 %, 10 times worse, 1,000 a second", Canary(rate=1000.0), 0),
        ("the same, a second until new is asked no more", Canary(rate=1000.0, delay=1.0), 0),
        ("5 %, 10 times worse, after 500,000 good requests", Canary(), 500_000),
        ("5 %, 10 times worse, legacy fails 0.1 %", Canary(rate=1000.0, share_bad=0.001), 0),
        ("1 %, 10 times worse", Canary(weight_ppm=10_000, rate=1000.0), 0),
        ("20 %, 10 times worse", Canary(weight_ppm=200_000), 0),
        ("5 %, 5 times worse", Canary(worse=5.0), 0),
        ("5 %, 3 times worse", Canary(worse=3.0), 0),
    ]
    for name, canary, good in cases:
        count = runs if not good else max(10, runs // 10)
        found = sorted(
            bad_answers_before_the_trip(seed, ERRORS, canary, good_requests=good) for seed in range(count)
        )
        rows.append([name, f"{statistics.median(found):g}", str(found[len(found) * 9 // 10]), str(found[-1])])
    return table(["canary", "median", "9 of 10", "most"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.guardrails", description=__doc__)
    parser.add_argument("--ramps", type=int, default=10_000)
    parser.add_argument("--bad-answers", type=int, default=300, help="after each of which is looked")
    parser.add_argument("--runs", type=int, default=500)
    options = parser.parse_args()
    print(f"tolerance {ERRORS.tolerance:g}, alpha {ERRORS.alpha:g} unless said otherwise\n")
    print(f"Looked at after each of {options.bad_answers} bad answers, at changing weights:\n")
    print(false_alarms(options.ramps, options.bad_answers))
    print("\nThe same in bursts, 300 looks:\n")
    print(bursty_alarms(options.ramps // 10))
    print("\nBad answers of new until the trip:\n")
    print(detection(options.runs))


if __name__ == "__main__":
    main()
