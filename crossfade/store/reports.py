"""Reports that somebody has kept: what a change may rest on whose flag asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import extract, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store.tables import shadow_reports
from flags.change import Refused

HOLDS_FOR: Final = 24 * 3600
"""Seconds after which a report is too old to move anybody by."""


async def check(connection: AsyncConnection, digest: str | None, flags: Sequence[str]) -> None:
    """Raise Refused (report_needed) unless that report is kept, is not too old, and has `flags` as ready."""
    names = ", ".join(flags)
    if digest is None:
        raise Refused(
            "report_needed", f"{names} asks for a report before new may answer more: --report DIGEST"
        )
    age = extract("epoch", func.clock_timestamp() - shadow_reports.c.kept_at)
    wanted = select(shadow_reports.c.ready, age).where(shadow_reports.c.digest == digest)
    row = (await connection.execute(wanted)).first()
    if row is None:
        raise Refused("report_needed", f"nobody has kept a report with the digest {digest[:64]!r}")
    ready, seconds = row
    if seconds > HOLDS_FOR:
        raise Refused(
            "report_needed",
            f"that report is {seconds / 3600:.0f} hours old; it holds for {HOLDS_FOR // 3600}",
        )
    missing = [flag for flag in flags if flag not in ready]
    if missing:
        raise Refused("report_needed", f"that report does not say that {', '.join(missing)} is ready")
