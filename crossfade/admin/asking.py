"""What the supervisor says, or said last: it may be busy for a moment, and a restart takes some."""

from __future__ import annotations

import time

from pydantic import TypeAdapter

from core.metrics import Sample
from crossfade import exposition
from crossfade.channel import Channel, Message
from crossfade.status import ProxyStatus

ANSWER_WITHIN = 2.0
"""Seconds that the supervisor has, which is busy for a moment during a restart."""
DONE_WITHIN = 5.0
"""Seconds where it asks its workers in turn, one of which may hang (`fleet.FLAGS_WITHIN`)."""
REPLAYED_WITHIN = 50.0
"""Seconds where a worker asks both sides again (`fleet.REPLAYED_WITHIN`)."""
STALE_AFTER = 10.0
"""Seconds after which the last known status proves nothing any more."""
STATUS = TypeAdapter(ProxyStatus)


class Supervisor:
    """What the supervisor says, or said last."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._status: ProxyStatus | None = None
        self._samples: list[Sample] = []
        self._heard = 0.0

    async def status(self) -> ProxyStatus | None:
        """None if the supervisor has been silent for so long that nothing is known."""
        try:
            answer = await self._channel.ask({"do": "status"}, ANSWER_WITHIN)
        except (TimeoutError, ConnectionResetError):
            return self._status if time.monotonic() - self._heard < STALE_AFTER else None
        self._heard = time.monotonic()
        self._status = STATUS.validate_python(answer["status"])
        return self._status

    async def samples(self) -> list[Sample]:
        try:
            answer = await self._channel.ask({"do": "samples"}, ANSWER_WITHIN)
        except (TimeoutError, ConnectionResetError):
            return self._samples
        self._samples = exposition.from_wire(answer["samples"])
        return self._samples

    async def ask(self, question: Message, within: float = DONE_WITHIN) -> Message:
        """Any other question. Raises TimeoutError or ConnectionResetError."""
        return await self._channel.ask(question, within)
