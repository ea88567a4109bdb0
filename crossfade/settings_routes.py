"""Which routes are never reached, because an earlier one matches everything that they match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.paths import equivalent_path
from flags.model import Route


def unreached(routes: Sequence[Route]) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of positions: `later` gets no request because `earlier` takes them all.

    One earlier route must cover the later one alone; what several cover only together is not found.
    """
    for later, route in enumerate(routes):
        for earlier in range(later):
            if covers(routes[earlier], route):
                yield earlier, later
                break


def covers(wide: Route, narrow: Route) -> bool:
    """Whether every request that `narrow` matches is matched by `wide` too."""
    methods = not wide.methods or (bool(narrow.methods) and narrow.methods <= wide.methods)
    return methods and _covers_host(wide.host, narrow.host) and _covers_path(wide.path, narrow.path)


def _covers_host(wide: str | None, narrow: str | None) -> bool:
    if wide is None:
        return True
    if narrow is None:
        return False
    wide, narrow = wide.lower(), narrow.lower()
    return wide == narrow or (wide.startswith("*.") and narrow.endswith(wide[1:]))


def _covers_path(wide: str, narrow: str) -> bool:
    ours, theirs = _segments(wide), _segments(narrow)
    if ours[-1] == "**":
        ours.pop()
        if theirs[-1] == "**":
            theirs.pop()
        return len(ours) <= len(theirs) and all(map(_covers_segment, ours, theirs))
    return theirs[-1] != "**" and len(ours) == len(theirs) and all(map(_covers_segment, ours, theirs))


def _covers_segment(wide: str, narrow: str) -> bool:
    if wide.startswith("{"):
        return narrow != ""  # a name stands for one segment that is not empty
    return wide == narrow


def _segments(template: str) -> list[str]:
    return equivalent_path(template.encode()).decode()[1:].split("/")
