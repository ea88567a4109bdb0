"""Every metric that Crossfade exposes, declared once: name, kind, help and label names.

Dashboards and alert rules are checked against this file. A worker counts in plain Python objects
and hands out a `Sample` list when it is asked; nobody touches a lock or a file on the hot path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds in seconds of every latency histogram."""


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


REQUESTS = Metric(
    "crossfade_requests_total",
    Kind.COUNTER,
    "Requests answered, by flag, side that answered, reason of the decision and status class.",
    ("flag", "side", "reason", "code"),
)
REQUEST_SECONDS = Metric(
    "crossfade_request_seconds",
    Kind.HISTOGRAM,
    "Time from a request's complete head to the last byte of its answer handed to the client's socket.",
    ("flag", "side"),
)
ERRORS = Metric(
    "crossfade_errors_total",
    Kind.COUNTER,
    "Answers that Crossfade gave itself and exchanges it broke off, by reason (RFC 9209 words).",
    ("side", "reason"),
)
HOLDING = Metric(
    "crossfade_holding_requests", Kind.GAUGE, "Requests that wait in the workers during a cutover.", ()
)
HELD = Metric(
    "crossfade_held_requests_total",
    Kind.COUNTER,
    "Requests that have waited during a cutover, by what became of them: went_on, or why they were not sent.",
    ("flag", "outcome"),
)
CLIENT_CONNECTIONS = Metric("crossfade_client_connections", Kind.GAUGE, "Open client connections.", ())
CLIENT_CONNECTIONS_CLOSED = Metric(
    "crossfade_client_connections_closed_total",
    Kind.COUNTER,
    "Client connections closed by Crossfade outside of an exchange, by reason.",
    ("reason",),
)
UPSTREAM_CONNECTIONS = Metric(
    "crossfade_upstream_connections",
    Kind.GAUGE,
    "Connections to a target by state (idle or busy).",
    ("side", "state"),
)
UPSTREAM_CONNECTS = Metric(
    "crossfade_upstream_connects_total",
    Kind.COUNTER,
    "Connections opened to a target, by outcome.",
    ("side", "outcome"),
)
UPSTREAM_DISCARDED = Metric(
    "crossfade_upstream_discarded_total",
    Kind.COUNTER,
    "Pooled connections thrown away instead of reused, by reason.",
    ("side", "reason"),
)
RETRIES = Metric(
    "crossfade_retries_total",
    Kind.COUNTER,
    "Requests sent again because the target cannot have seen them, by reason.",
    ("side", "reason"),
)
FALLBACKS = Metric(
    "crossfade_fallbacks_total",
    Kind.COUNTER,
    "Failures of new where legacy may answer instead, by cause; the outcome is taken or over_budget.",
    ("flag", "cause", "outcome"),
)
ADAPTER_FAILURES = Metric(
    "crossfade_adapter_failures_total",
    Kind.COUNTER,
    "Messages that an adapter failed on; direction attributes is code that could not tell a request's own.",
    ("flag", "direction"),
)
COHORT_FALLBACKS = Metric(
    "crossfade_cohort_fallbacks_total",
    Kind.COUNTER,
    "Failures of new that legacy answered for, where the weight of the flag had chosen new.",
    ("flag",),
)
COHORT_SECONDS = Metric(
    "crossfade_cohort_seconds",
    Kind.HISTOGRAM,
    "As crossfade_request_seconds, for those requests alone whose side the weight of their flag chose.",
    ("flag", "side"),
)
MIRRORED = Metric(
    "crossfade_mirrored_total",
    Kind.COUNTER,
    "Requests that the other side was asked for comparison, by its status class or why there is no answer.",
    ("flag", "side", "outcome"),
)
MIRROR_SKIPPED = Metric(
    "crossfade_mirror_skipped_total",
    Kind.COUNTER,
    "Requests of mirrored flags that the other side was not asked, by reason.",
    ("flag", "reason"),
)
MIRROR_IN_FLIGHT = Metric(
    "crossfade_mirror_in_flight", Kind.GAUGE, "Requests that the other side is being asked.", ()
)
MIRROR_HELD_BYTES = Metric(
    "crossfade_mirror_held_bytes", Kind.GAUGE, "Bytes of bodies that are kept for comparison.", ()
)
PAIRS = Metric(
    "crossfade_pairs_total",
    Kind.COUNTER,
    "Pairs of answers by what a look at their bytes said: equal or unequal.",
    ("flag", "outcome"),
)
PAIRS_DROPPED = Metric(
    "crossfade_pairs_dropped_total",
    Kind.COUNTER,
    "Pairs that were to be looked at closer and were not, by reason.",
    ("reason",),
)
REQUESTS_IN_FLIGHT = Metric("crossfade_requests_in_flight", Kind.GAUGE, "Requests being answered.", ())
REQUESTS_WAITING = Metric(
    "crossfade_requests_waiting", Kind.GAUGE, "Requests waiting for a connection to a target.", ("side",)
)
RECEIVED_BYTES = Metric(
    "crossfade_request_body_bytes_total", Kind.COUNTER, "Request body bytes relayed.", ("side",)
)
SENT_BYTES = Metric(
    "crossfade_response_body_bytes_total", Kind.COUNTER, "Answer body bytes relayed.", ("side",)
)
TUNNELS = Metric(
    "crossfade_tunnels_total",
    Kind.COUNTER,
    "Connections that were upgraded (WebSocket and others).",
    ("side",),
)
ACCESS_LOG_DROPPED = Metric(
    "crossfade_access_log_dropped_total",
    Kind.COUNTER,
    "Access log lines dropped because the queue was full.",
    (),
)
WORKER_CPU_SECONDS = Metric(
    "crossfade_worker_cpu_seconds_total", Kind.COUNTER, "User and system time of the workers.", ()
)
WORKER_MEMORY_BYTES = Metric(
    "crossfade_worker_memory_bytes", Kind.GAUGE, "Resident memory of each worker.", ("worker",)
)
WORKERS = Metric("crossfade_workers", Kind.GAUGE, "Worker processes by state.", ("state",))
WORKER_EXITS = Metric(
    "crossfade_worker_exits_total", Kind.COUNTER, "Workers that ended, by reason.", ("reason",)
)
CONFIG_GENERATION = Metric(
    "crossfade_config_generation",
    Kind.GAUGE,
    "Generation of the configuration that each worker runs.",
    ("worker",),
)
RELOADS = Metric(
    "crossfade_reloads_total", Kind.COUNTER, "Reloads of the configuration, by outcome.", ("outcome",)
)

FLAGS_VERSION = Metric(
    "crossfade_flags_version",
    Kind.GAUGE,
    "Version of the flag set that each worker decides by.",
    ("worker",),
)
FLAGS_AGE_SECONDS = Metric(
    "crossfade_flags_age_seconds",
    Kind.GAUGE,
    "Time since the store last said that it has no newer flags; traffic goes on by those that are held.",
    (),
)
FLAGS_REFUSED = Metric(
    "crossfade_flags_refused_total",
    Kind.COUNTER,
    "Flag sets from the store that were not taken: invalid, older or empty.",
    ("reason",),
)
KILL_ACTIVE = Metric(
    "crossfade_kill_active",
    Kind.GAUGE,
    "1 for each flag that is killed; * is everything.",
    ("flag",),
)
AUTHORITY = Metric(
    "crossfade_authority",
    Kind.GAUGE,
    "1 for the side that has the authority over the data of a cutover, 0 for the other.",
    ("cutover", "side"),
)
AUTHORITY_PHASE = Metric(
    "crossfade_authority_phase",
    Kind.GAUGE,
    "1 for what a cutover asks of the workers (open, hold, turn), 0 for the others.",
    ("cutover", "phase"),
)
WORKER_METRICS = (
    REQUESTS, REQUEST_SECONDS, COHORT_SECONDS, COHORT_FALLBACKS, FALLBACKS, ADAPTER_FAILURES, ERRORS,
    CLIENT_CONNECTIONS, CLIENT_CONNECTIONS_CLOSED, UPSTREAM_CONNECTIONS, UPSTREAM_CONNECTS,
    UPSTREAM_DISCARDED, RETRIES, REQUESTS_IN_FLIGHT, REQUESTS_WAITING, RECEIVED_BYTES, SENT_BYTES,
    TUNNELS, ACCESS_LOG_DROPPED, WORKER_CPU_SECONDS, MIRRORED, MIRROR_SKIPPED, MIRROR_IN_FLIGHT,
    MIRROR_HELD_BYTES, PAIRS, PAIRS_DROPPED, HOLDING, HELD,
)  # fmt: skip
"""Counted in each worker, summed over workers before they are exposed."""
SUPERVISOR_METRICS = (
    WORKER_MEMORY_BYTES, WORKERS, WORKER_EXITS, CONFIG_GENERATION, RELOADS, FLAGS_VERSION,
    FLAGS_AGE_SECONDS, FLAGS_REFUSED, KILL_ACTIVE, AUTHORITY, AUTHORITY_PHASE,
)  # fmt: skip
"""Known to the supervisor only."""

GUARDRAIL_STATE = Metric(
    "crossfade_guardrail_state",
    Kind.GAUGE,
    "1 for the state of each guardrail: ok, insufficient_data, tripped, dry_run_tripped.",
    ("flag", "guardrail", "state"),
)
GUARDRAIL_EVIDENCE = Metric(
    "crossfade_guardrail_evidence_log10",
    Kind.GAUGE,
    "How likely new is worse than tolerated; at log10(1/alpha) the guardrail trips.",
    ("flag", "guardrail"),
)
RAMP_STEP = Metric(
    "crossfade_ramp_step",
    Kind.GAUGE,
    "The step in force of each ramp under way; 0 before the first.",
    ("flag",),
)
RAMP_STATE = Metric(
    "crossfade_ramp_state", Kind.GAUGE, "1 for the state of each ramp under way.", ("flag", "state")
)
ROLLBACKS = Metric(
    "crossfade_rollbacks_total",
    Kind.COUNTER,
    "Times that a guardrail took everybody back (or to legacy), by the signal that it watches.",
    ("flag", "trigger"),
)
RECONCILER_LOOKS = Metric(
    "crossfade_reconciler_looks_total",
    Kind.COUNTER,
    "Looks at ramps and guardrails by this process, by outcome; one process of all does it.",
    ("outcome",),
)
COMPARED = Metric(
    "crossfade_compared_total",
    Kind.COUNTER,
    "Pairs of answers that were looked at closer, by verdict.",
    ("flag", "verdict"),
)
COMPARING_FAILED = Metric(
    "crossfade_comparing_failed_total",
    Kind.COUNTER,
    "Times that comparing had to wait (store, bus, fault), and messages that nobody understands.",
    ("what",),
)
FLAG_PROPAGATION_SECONDS = Metric(
    "crossfade_flag_propagation_seconds",
    Kind.HISTOGRAM,
    "Time from a change of flags in the store until all workers of this instance decide by it.",
    ("source",),
)
CUTOVERS = Metric(
    "crossfade_cutovers_total",
    Kind.COUNTER,
    "Walks that this process has ended, by the side that they went to and how they ended.",
    ("cutover", "towards", "outcome"),
)
CUTOVER_HOLD = Metric(
    "crossfade_cutover_hold_seconds",
    Kind.HISTOGRAM,
    "Time from the order to hold until the order to go on, of the walks that this process has ended.",
)
SYNC_LAG = Metric(
    "crossfade_sync_lag_seconds",
    Kind.GAUGE,
    "Time that the target is behind: how long the last beat took, and more while none comes.",
    ("stream",),
)
SYNC_STATE = Metric(
    "crossfade_sync_state",
    Kind.GAUGE,
    "1 for the state that a stream is in (copying, following, stopped), 0 for the others.",
    ("stream", "state"),
)
SYNC_COPIED = Metric(
    "crossfade_sync_rows_copied",
    Kind.GAUGE,
    "Rows that this process has copied.",
    ("stream", "copy"),
)
SYNC_AGAIN = Metric(
    "crossfade_sync_again_total",
    Kind.COUNTER,
    "Times that a stream began again after something that passed by itself.",
    ("stream",),
)
SYNC_SLOT_BYTES = Metric(
    "crossfade_sync_slot_retained_bytes",
    Kind.GAUGE,
    "Bytes of log that the source keeps for the stream's slot.",
    ("stream",),
)
SYNC_SLOT_SHARE = Metric(
    "crossfade_sync_slot_limit_ratio",
    Kind.GAUGE,
    "Share of max_slot_wal_keep_size that the slot has used up; at 1 the source drops what is still needed.",
    ("stream",),
)
SYNC_SLOT_STATUS = Metric(
    "crossfade_sync_slot_status",
    Kind.GAUGE,
    "1 for the wal_status of the stream's slot (reserved, extended, unreserved, lost), 0 for the others.",
    ("stream", "status"),
)
SYNC_HELD = Metric(
    "crossfade_sync_held",
    Kind.GAUGE,
    "1 in the process that works on a stream, 0 in those that stand by.",
    ("stream",),
)
SYNC_PAUSES = Metric(
    "crossfade_sync_pauses_total",
    Kind.COUNTER,
    "Times that a copy waited: lag (of the stream), source_slow, ceiling (copy_rows_per_second).",
    ("stream", "reason"),
)
SYNC_LEFT = Metric(
    "crossfade_sync_copy_left_seconds",
    Kind.GAUGE,
    "Time until the copy under way is done, at its rate.",
    ("stream",),
)
SYNC_QUARANTINED = Metric(
    "crossfade_sync_quarantined_rows",
    Kind.GAUGE,
    "Rows that the target did not take and that wait in quarantine.",
    ("stream",),
)
SYNC_STRANGERS = Metric(
    "crossfade_sync_foreign_writers",
    Kind.GAUGE,
    "Who else, by table, user and application, has written into the stream's tables within the last hour.",
    ("stream",),
)
SYNC_METRICS = (
    SYNC_LAG, SYNC_STATE, SYNC_COPIED, SYNC_AGAIN, SYNC_HELD, SYNC_PAUSES, SYNC_LEFT,
    SYNC_SLOT_BYTES, SYNC_SLOT_SHARE, SYNC_SLOT_STATUS, SYNC_QUARANTINED,
    SYNC_STRANGERS,
)  # fmt: skip
"""Known to the processes that sync only."""
CONTROL_METRICS = (
    FLAG_PROPAGATION_SECONDS,
    GUARDRAIL_STATE, GUARDRAIL_EVIDENCE, RAMP_STEP, RAMP_STATE, ROLLBACKS, RECONCILER_LOOKS,
    COMPARED, COMPARING_FAILED, CUTOVERS, CUTOVER_HOLD,
)  # fmt: skip
"""Known to the control process only."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket of `LATENCY_BUCKETS` plus one for what lies beyond, not cumulated."""

    buckets: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled value of one metric, as a worker hands it out."""

    metric: str
    labels: tuple[str, ...]
    value: float | Histogram
