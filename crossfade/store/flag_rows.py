"""The flag set as rows: read whole at one moment, and written where it has changed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import extract, func, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from crossfade.store.connection import StoreError, StoreReason
from crossfade.store.tables import flag_set, flags
from flags.document import InvalidFlagError, authority_to_json, flag_to_json, from_json, kill_to_json
from flags.model import FlagSet

_WHOLE = select(
    flag_set.c.version,
    flag_set.c.kill,
    flag_set.c.shadow_off,
    flag_set.c.authorities,
    select(func.jsonb_agg(aggregate_order_by(flags.c.document, flags.c.key))).scalar_subquery(),
    extract("epoch", func.clock_timestamp()),
    extract("epoch", flag_set.c.updated_at),
)
"""One statement: it sees one moment, so no flag in it is newer than the version."""


async def read(connection: AsyncConnection) -> tuple[FlagSet, float]:
    """The whole flag set, and the time by the store's clock (seconds of Unix time)."""
    document, now, _ = await read_as_written(connection)
    try:
        return from_json(document), now
    except InvalidFlagError as error:
        raise StoreError(
            StoreReason.UNREADABLE,
            f"the store holds a flag that this Crossfade does not understand ({error}); run the version that "
            "wrote it. Traffic goes on by the last flags that each worker has",
        ) from error


async def version(connection: AsyncConnection) -> int:
    """The version alone, which is what a poll asks for."""
    found: int = (await connection.execute(select(flag_set.c.version))).scalar_one()
    return found


async def read_as_written(connection: AsyncConnection) -> tuple[dict[str, Any], float, float]:
    """The set as the JSON that it is kept as, the time now, and when the set was changed last."""
    version, kill, off, authorities, documents, now, changed_at = (await connection.execute(_WHOLE)).one()
    found = {
        "version": version, "kill": kill, "shadow_off": off, "authorities": authorities,
        "flags": documents or [],
    }  # fmt: skip
    return found, float(now), float(changed_at)


async def write(connection: AsyncConnection, before: FlagSet, after: FlagSet) -> None:
    """Write what differs. Flags are never removed: an archived one keeps its key."""
    was = {flag.key: flag for flag in before.flags}
    rows = [
        {"key": flag.key, "version": flag.version, "document": flag_to_json(flag), "updated_at": func.now()}
        for flag in after.flags
        if flag != was.get(flag.key)
    ]
    for row in rows:
        written = insert(flags).values(row)
        await connection.execute(written.on_conflict_do_update(index_elements=["key"], set_=row))
    kill = None if after.kill is None else kill_to_json(after.kill)
    off = None if after.shadow_off is None else kill_to_json(after.shadow_off)
    authorities = [authority_to_json(one) for one in after.authorities]
    values = {
        "version": after.version, "kill": kill, "shadow_off": off, "authorities": authorities,
        "updated_at": func.now(),
    }  # fmt: skip
    await connection.execute(update(flag_set).values(values))
