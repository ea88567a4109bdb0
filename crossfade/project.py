"""What a `migration.py` says: the users' own code, as one value called `project`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from dualwrite.mapping import FollowUp, Table
from legacy_adapter.adapter import Adapter, AttributesOf
from shadow.rules import Rule


@dataclass(frozen=True, slots=True)
class Project:
    """Users' code, to be assigned to `project` in the file that `code:` names.

    `adapters` are the translations that routes name; what it means when one raises is said at
    `legacy_adapter.adapter`. `attributes` tells of each request what conditions on `attr:NAME` ask for;
    it is called only where a flag asks, and if it raises, the request has no attributes.
    """

    adapters: Mapping[str, Adapter] = field(default_factory=lambda: MappingProxyType({}))
    attributes: AttributesOf | None = None
    rules: Sequence[Rule] = ()
    """Differences between both sides' answers that are expected (`docs/shadow.md`)."""
    tables: Sequence[Table] = ()
    """How rows of one side become rows of the other (`docs/data.md`)."""
    follow_ups: Sequence[FollowUp] = ()
    """SQL that follows rows which were written, in this order."""
    holds: Mapping[str, Sequence[str | None]] = field(default_factory=lambda: MappingProxyType({}))
    """For `check_mapping`: what a column (table.column) holds where its type does not tell."""
    lossy: Collection[str] = ()
    """For `check_mapping`: columns (table.column) whose values may come home as others."""
