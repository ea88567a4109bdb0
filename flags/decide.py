"""The only way a target is chosen. Pure: the same snapshot, request and facts give the same decision.

Order: global kill, flag kill, overrides that have not expired, the first rule that matches, the flag's
own transition. The kills and whatever holds for everybody were decided when the snapshot was compiled.
"""

from __future__ import annotations

from core.http import RequestHead
from flags.attributes import Facts
from flags.model import Decision
from flags.snapshot import Snapshot


def decide(snapshot: Snapshot, request: RequestHead, facts: Facts) -> Decision:
    """Who answers `request`, and why. `facts` is asked only where a flag needs it."""
    order = snapshot.matcher.match(request.method, request.host, request.path)
    if order is None:
        return snapshot.unclaimed
    plan = snapshot.plans[order]
    return plan if isinstance(plan, Decision) else plan.decide(request, facts)
