"""Which runbook is for which reason. What is not named here says all that there is to say by itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_BY_RUNBOOK: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "lost-slot": (
            "gap", "slot_missing", "slot_lost", "target_ahead", "other_source", "other_timeline",
            "slot_exists", "not_published",
        ),
        "source-log": (
            "wal_level", "wal_without_limit", "slot_near_limit", "idle_slot", "no_slot", "no_sender",
        ),
        "foreign-writes": ("foreign_write",),
        "missing-right": ("missing_privilege", "no_replication"),
        "poison-row": ("poison_row", "mapping_failed"),
        "stopped-stream": (
            "column_unknown", "column_gone", "unmapped_table", "follow_up_failed",
            "refused", "missing_row", "contradiction", "no_identity", "not_alike",
        ),
    }
)  # fmt: skip
_RUNBOOKS: Final[Mapping[str, str]] = MappingProxyType(
    {reason: f"runbooks/{name}.md" for name, reasons in _BY_RUNBOOK.items() for reason in reasons}
)


def runbook(reason: str) -> str | None:
    """Its path from the root of the house, where there is one."""
    return _RUNBOOKS.get(reason)
