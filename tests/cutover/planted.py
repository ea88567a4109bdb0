"""Other code in the control process: broken on purpose, or stopping where a scene wants it to."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

from tests.support.crossfade_process import PATIENCE

IN_CONTROL = """
import sys
if "crossfade.control" in sys.orig_argv:
    import asyncio
    from dataclasses import replace
    from crossfade.cutover import conductor
    from crossfade.cutover.conductor import Conductor
    from crossfade.cutover.walk import State
    from crossfade.store import cutovers
    from dualwrite import fence
    from flags.model import Authority
"""


def planted(folder: Path, code: str) -> dict[str, str]:
    """The environment in which a control process runs `code` before anything else."""
    patch = folder / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(IN_CONTROL + textwrap.dedent(code).replace("\n", "\n    "))
    return {"PYTHONPATH": str(patch)}


class Stop:
    """Where a walk stops until it is told to go on. `code` is to be planted."""

    def __init__(self, folder: Path, code: str) -> None:
        self._there, self._go = folder / "there", folder / "go"
        self.code = textwrap.dedent(_STOP.format(there=str(self._there), go=str(self._go))) + textwrap.dedent(
            code
        )

    async def reached(self) -> None:
        # Comparing comes first, and has no deadline.
        async with asyncio.timeout(3 * PATIENCE):
            while not self._there.exists():  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.005)

    def go_on(self) -> None:
        """From now on nobody stops there."""
        self._go.touch()

    def again(self) -> None:
        """The next walk stops there once more."""
        self._there.unlink()
        self._go.unlink()


_STOP = """
    from pathlib import Path

    async def stop_here():
        Path({there!r}).touch()
        while not Path({go!r}).exists():
            await asyncio.sleep(0.005)
"""
AFTER_ARMING = """
    arm = Conductor._arm

    async def arm_and_stop(self, walk, authority):
        walk = await arm(self, walk, authority)
        await stop_here()
        return walk

    Conductor._arm = arm_and_stop
"""
IN_THE_HOLD = """
    hold = conductor._STEPS[State.HOLDING]

    async def hold_and_stop(self, walk, ground):
        walk = await hold(self, walk, ground)
        await stop_here()
        return walk

    conductor._STEPS[State.HOLDING] = hold_and_stop
"""
