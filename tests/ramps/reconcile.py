"""A control process as far as ramps go, to be killed: `python -m tests.ramps.reconcile URL`.

Says `looks` when it is the one that looks.
"""

from __future__ import annotations

import asyncio
import sys

from crossfade.reconciler import Reconciler
from crossfade.store.store import Store


class Talkative(Reconciler):
    async def look(self) -> None:
        await super().look()
        print("looks", flush=True)


async def main() -> None:
    store = await Store.open(sys.argv[1])
    await Talkative(store, every=0.05).run()


if __name__ == "__main__":
    asyncio.run(main())
