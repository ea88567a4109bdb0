"""Every point at which a process is killed, stopped or cut off, by name. The only list of its kind: where
`dualwrite` says something otherwise on the wire, it is to be mended here. A point that nobody passes fails
its run (`wire.NeverPassedError`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from tests.dualwrite.faults.wire import COPY_DATA, LOG, STATUS, STREAM, Point, Sender

_APPLY = "^crossfade apply "
_OTHER = "^crossfade$"
_READS = f"^{STREAM}$"

SOURCE: Final = MappingProxyType(
    {
        "before the publication is made": Point(_OTHER, Sender.WORKER, "(CREATE|ALTER) PUBLICATION"),
        "before the slot is made": Point(_OTHER, Sender.WORKER, "pg_create_logical_replication_slot"),
        "before it knows the source": Point(_READS, Sender.WORKER, "IDENTIFY_SYSTEM"),
        "before it reads": Point(_READS, Sender.WORKER, "START_REPLICATION"),
        "before a chunk is read": Point(_OTHER, Sender.WORKER, "COPY .*TO STDOUT"),
        "in a chunk that is read": Point(_OTHER, Sender.SERVER, COPY_DATA),
        "in the log": Point(_READS, Sender.SERVER, LOG),
        "before it confirms": Point(_READS, Sender.WORKER, STATUS),
        "before a beat": Point(_OTHER, Sender.WORKER, "pg_logical_emit_message"),
    }
)
"""On the way between the process and the source."""

TARGET: Final = MappingProxyType(
    {
        "before the stream is known": Point(_OTHER, Sender.WORKER, r"INSERT INTO crossfade_sync\.streams"),
        "before it takes over": Point(_APPLY, Sender.WORKER, r"UPDATE crossfade_sync\.streams SET epoch"),
        "before it marks what it writes": Point(_APPLY, Sender.WORKER, "pg_replication_origin_session_setup"),
        "before it begins to write": Point(_APPLY, Sender.WORKER, "^BEGIN"),
        "in a chunk that is written": Point(_APPLY, Sender.WORKER, COPY_DATA),
        "before a chunk is noted": Point(_APPLY, Sender.WORKER, r"UPDATE crossfade_sync\.copies"),
        "before it is whole": Point(_OTHER, Sender.WORKER, r"UPDATE crossfade_sync\.streams SET whole"),
        "before the position": Point(_APPLY, Sender.WORKER, r"UPDATE crossfade_sync\.streams SET applied"),
        "before the commit": Point(_APPLY, Sender.WORKER, "^COMMIT"),
        "the commit is not heard of": Point(_APPLY, Sender.SERVER, "^COMMIT"),
        "before it renews its lease": Point(
            "^crossfade lease ", Sender.WORKER, "SET until = clock_timestamp"
        ),
        "before a repair is noted": Point(_APPLY, Sender.WORKER, r"DELETE FROM crossfade_sync\.repairs"),
    }
)
"""On the way between the process and the target."""
