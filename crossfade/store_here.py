"""The store, as this host reaches it: at its address, or the embedded one of the instance that runs here."""

from __future__ import annotations

from pathlib import Path

from crossfade.embedded.postgres import EmbeddedPostgres
from crossfade.store.store import Store


async def open_store(where: str, data_dir: Path) -> Store:
    """Open and migrate it. Raises StoreError or EmbeddedPostgresError while it cannot be asked."""
    url = EmbeddedPostgres(data_dir / "postgres").url() if where == "embedded" else where
    store = await Store.open(url)
    try:
        await store.migrate()
    except BaseException:
        await store.close()
        raise
    return store
