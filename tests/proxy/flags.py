"""One flag over every path, as scenes of the data plane need it."""

from __future__ import annotations

from flags.model import Bucketing, Flag, FlagSet, Route, Stage, Transition

ROUTES = (Route("items", "/**"),)
EVERYBODY = 1_000_000


def one_flag(
    weight_ppm: int = EVERYBODY,
    *,
    by: tuple[str, ...] = ("header:x-user",),
    cookie: str | None = None,
    fallback_ppm: int | None = None,
    mirror_ppm: int = EVERYBODY,
    version: int = 1,
) -> FlagSet:
    """A set of one flag, from shadow to live."""
    return FlagSet(
        version,
        flags=(
            Flag(
                "items",
                version,
                Transition(Stage.SHADOW, Stage.LIVE, weight_ppm),
                Bucketing(by, "salt", cookie),
                fallback_ppm=fallback_ppm,
                mirror_ppm=mirror_ppm,
            ),
        ),
    )
