"""DeepDiff's words for what differs between two JSON bodies, for a reviewer. Bounded, and it never raises."""

from __future__ import annotations

from typing import Final

from deepdiff import DeepDiff

from shadow.exhibit import Body, Kind
from shadow.json_text import UnreadableJsonError, read

LONGEST: Final = 20_000
"""Characters of a body beyond which it would take too long."""
LONGEST_EXPLANATION: Final = 4000


def explained(legacy: Body, new: Body) -> str:
    """Empty where there is nothing that DeepDiff could say."""
    if legacy.kind is not new.kind or legacy.kind not in (Kind.JSON, Kind.MULTIPART):
        return ""
    if max(len(legacy.text), len(new.text)) > LONGEST:
        return ""
    try:
        found = DeepDiff(
            read(legacy.text), read(new.text), verbose_level=2, max_diffs=20_000, max_passes=1_000
        )
        return str(found.pretty())[:LONGEST_EXPLANATION]
    except (UnreadableJsonError, RecursionError, ValueError, TypeError, AttributeError):
        return ""
