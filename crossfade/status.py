"""What a running instance says about itself, to the command line and to the admin API."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker process. Times are seconds, sizes are bytes."""

    worker: int
    """Its place; a replaced worker's successor has the same one."""
    pid: int
    state: str
    """starting, ready or draining; `waiting` is a place whose worker will be started again soon."""
    generation: int
    """Of the configuration that it runs."""
    flags_version: int
    """Of the flag set that it obeys; 0 without one."""
    flags_taken: int
    """Of the one that it decides by. Later than `flags_version` while it ends what has to be over first."""
    age_seconds: float
    start_seconds: float
    """From the start of the process until it accepted."""
    connections: int
    in_flight: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class FlagsAck:
    """That a worker decides by a version of the flags, or why it does not."""

    worker: int
    pid: int
    version: int
    milliseconds: float
    """From the order to the answer."""
    error: str | None = None
    taken: bool = True
    """Whether it decides by them; what is under way by those before may not be over, which is an `error`."""


@dataclass(frozen=True, slots=True)
class FlagsStatus:
    """The flags that this instance runs."""

    store: str
    """Where they come from: embedded, none, or the address without its password."""
    version: int
    """0 without any."""
    age_seconds: float | None
    """Since the store last said that there is no newer version; None if it never did."""
    kills: list[str]
    """Flags killed on this host that the store does not know of yet; `*` is everything."""
    trouble: str | None
    """What is wrong with the flags or the way to them, in one line."""


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """One instance: the supervisor and its children."""

    version: str
    pid: int
    state: str
    """starting, serving, reloading, restarting or draining."""
    ready: bool
    not_ready: list[str]
    """Why not, empty when ready."""
    generation: int
    config: str
    listen: list[str]
    admin: str
    started_at: str
    """When the program was first started, ISO 8601."""
    uptime_seconds: float
    start_seconds: float
    """How long the first or the last start took until all workers accepted."""
    restarts: int
    control_pid: int
    """The process of the admin API, 0 while there is none."""
    sync_pids: dict[str, int]
    """The processes that work on a stream, or stand by, by the side that it goes to."""
    worker_exits: dict[str, int]
    """Workers that have ended, by reason."""
    workers: list[WorkerStatus]
    flags: FlagsStatus
