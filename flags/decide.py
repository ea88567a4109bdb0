"""The only way a target is chosen. Pure: the same snapshot and request give the same decision."""

from __future__ import annotations

from core.http import RequestHead
from flags.model import Decision
from flags.snapshot import Snapshot


def decide(snapshot: Snapshot, request: RequestHead) -> Decision:
    """Who answers `request`, and why. Decisions of one snapshot are the same objects each time."""
    order = snapshot.matcher.match(request.method, request.host, request.path)
    return snapshot.unclaimed if order is None else snapshot.decisions[order]
