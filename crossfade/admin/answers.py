"""What the admin API answers: the OpenAPI document is derived from these, and nothing is answered beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flags.model import Reason, Side, Stage


class Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(Shown):
    """`next` says what can be done now: commands, the likeliest first."""

    next: list[str]


class Refusal(Answer):
    """Not done. `error` is one word for programs, `message` is for people."""

    error: str
    message: str


# Flags.


class TransitionShown(Shown):
    origin: Stage = Field(alias="from")
    target: Stage = Field(alias="to")
    weight_ppm: int


class KillShown(Shown):
    reason: str
    by: str
    at: str


class BucketingShown(Shown):
    by: list[str]
    salt: str
    assign_cookie: str | None


class OverrideShown(Shown):
    id: str
    when: dict[str, Any]
    stage: Stage
    expires_at: float | None


class RuleShown(Shown):
    id: str
    when: dict[str, Any]
    transition: TransitionShown


class FlagShown(Shown):
    """A flag as it is stored; `stands` is where it stands, in words."""

    key: str
    version: int
    transition: TransitionShown
    bucketing: BucketingShown
    owner: str
    ticket: str
    expires_on: str | None
    description: str
    kill: KillShown | None
    overrides: list[OverrideShown]
    rules: list[RuleShown]
    fallback_ppm: int | None
    mirror_ppm: int
    needs_report: bool
    archived: bool
    stands: str
    overdue: bool


class Source(Shown):
    """`source` is `store`, or `instance`: what this instance goes on by while `trouble` is so."""

    source: str
    trouble: str | None


class FlagAnswer(FlagShown, Source, Answer):
    set_version: int


class FlagSetAnswer(Source, Answer):
    version: int
    kill: KillShown | None
    shadow_off: KillShown | None
    flags: list[FlagShown]


class CategoryShown(Shown):
    """Differences of one kind in one place. Times are Unix times."""

    id: str
    flag: str
    route: str
    path: str
    kind: str
    count: int
    mark: str
    mark_reason: str
    ruled: str
    """By which rules every kept sample is expected today, in words; else empty."""
    mark_by: str | None
    mark_expires: str | None
    first_seen: float
    last_seen: float


class CategoriesAnswer(Answer):
    categories: list[CategoryShown]


class SampleShown(Shown):
    """One pair, redacted: the request, both answers, what differs, and DeepDiff's words for it."""

    exhibit: dict[str, Any]
    differences: list[dict[str, str]]
    explanation: str


class CategoryAnswer(CategoryShown, Answer):
    samples: list[SampleShown]


class ReplayedShown(Shown):
    """One kept request that was asked again. `verdict` is empty where it could not be; `trouble` says why."""

    method: str
    target: str
    verdict: str
    still: bool
    """Whether it still differs where and how the category says."""
    differences: list[dict[str, str]]
    left_out: list[str]
    """Fields that were secret, and so were not sent."""
    trouble: str


class ReplayAnswer(Answer):
    """`gone` of the `asked` requests that could be asked again do not differ any more as they did."""

    id: str
    asked: int
    gone: int
    replayed: list[ReplayedShown]


class ExpectedShown(Shown):
    definition: dict[str, Any]
    source: str
    """`store`, or `code`: the users' file."""
    holds: bool


class RulesAnswer(Answer):
    rules: list[ExpectedShown]
    trouble: list[str]


class RuleAnswer(Answer):
    id: str


class RouteReport(Shown):
    flag: str
    route: str
    readiness: str
    reasons: list[str]
    pairs: int
    equal: int
    unequal: int
    inspected: int
    drawn: int
    upper_bound: float
    verdicts: dict[str, int]
    methods: dict[str, int]
    statuses: dict[str, int]
    """Of legacy's answers: what never came up was never compared."""
    latency: dict[str, list[int]]
    open: list[CategoryShown]
    noise: list[CategoryShown]
    accepted: list[CategoryShown]
    example: SampleShown | None


class OperationShown(Shown):
    """One operation of the OpenAPI document, and by which route it goes; `route` is empty without one."""

    method: str
    path: str
    flag: str
    route: str
    pairs: int


class ReportAnswer(Answer):
    """`digest` is over all of it but `next` and itself: an approval can name it."""

    made_at: str
    hours: float
    flag: str | None
    rate: float
    wanted_pairs: int
    alpha: float
    ready: bool
    routes: list[RouteReport]
    coverage: list[OperationShown]
    not_in_document: int
    """Pairs of requests that the OpenAPI document does not have."""
    skipped: dict[str, dict[str, int]]
    expired_rules: list[str]
    digest: str


class BlastShown(Shown):
    """What a change would move, by what this instance has seen in the last minutes."""

    flag: str
    requests: int
    of_requests: int
    keys: int
    of_keys: int


class ConvergedShown(Shown):
    """How many workers of all living instances run at least `version`; `missing` says who does not."""

    version: int
    obeying: int
    workers: int
    milliseconds: float
    missing: list[str]
    complete: bool


class ChangeAnswer(Answer):
    """`version` is that of the flag set. `audit_seq` is null where nothing was changed."""

    version: int
    changed: bool
    dry_run: bool
    differences: list[str]
    audit_seq: int | None
    blast_radius: list[BlastShown] | None = None
    converged: ConvergedShown | None = None
    warnings: list[str] = []
    """What this leads to that nobody can want."""


class ConvergedAnswer(ConvergedShown, Answer):
    pass


class StepShown(Shown):
    what: str
    decided: bool


class ExplainAnswer(Answer):
    flag: str
    side: Side
    stage: Stage | None
    reason: Reason
    mirror: Side | None
    set_version: int
    steps: list[StepShown]


# What moves by itself.


class RampStepShown(Shown):
    weight_ppm: int
    hold: float
    min_requests: int


class RampShown(Shown):
    """`step` counts from 1; 0 is before the first one. Times are Unix times."""

    id: int
    flag: str
    state: str
    step: int
    steps: list[RampStepShown]
    plan: dict[str, Any]
    step_started_at: float
    requests: float
    held_reason: str | None
    started_at: float
    started_by: str
    reason: str
    ended_at: float | None


class RampAnswer(RampShown, Answer):
    dry_run: bool = False


class RampsAnswer(Answer):
    ramps: list[RampShown]


class WalkShown(Shown):
    """A walk of a cutover. Moments are Unix time by the store's clock; the rest is in seconds."""

    id: int
    towards: str
    generation: int
    state: str
    rehearsal: bool
    message: str | None
    """Why it was cancelled, or what is still to be seen to."""
    abort: str | None
    started_by: str
    reason: str
    started_at: float
    held_seconds: float | None
    """How long requests have waited, at the most."""
    ended_at: float | None
    took: float
    found: dict[str, Any]


class CutoverShown(Shown):
    name: str
    side: str | None
    """Which has the authority; None while nobody has prepared it, and once it is finished."""
    finished: str | None
    """Which side has the data, where it is finished."""
    generation: int
    phase: str | None
    flags: list[str]
    walks: list[WalkShown]
    """The latest first."""


class CutoverAnswer(CutoverShown, Answer):
    pass


class CutoversAnswer(Answer):
    cutovers: Sequence[CutoverShown]


class LossAnswer(Answer):
    """What `back` with `accept_loss` would lose. Moments are Unix time by legacy's clock."""

    name: str
    why: str
    """Why there is no way back that loses nothing."""
    upto: float | None
    """When the last change came from new; None if none ever did."""
    seconds: float | None
    """Since then."""
    position: str | None
    """Up to which new's log has come."""
    bytes_behind: int | None
    """Of new's log that has not; None where new cannot be asked."""
    in_words: str


class BlockerShown(Shown):
    reason: str
    message: str
    remedy: str


class CutoverPlanAnswer(Answer):
    """What stands against the next walk, all of it. `lag` is how long the stream needs now, in seconds."""

    name: str
    towards: str
    possible: bool
    blockers: list[BlockerShown]
    asks: list[BlockerShown]
    """What a walk that is no rehearsal asks of who begins it: a report, a role that this one has not got."""
    lag: float | None
    lag_back: float | None
    tables: list[str]
    flags: list[str]
    held_last: float | None
    """How long requests have waited the last time, in seconds."""


class GuardrailShown(Shown):
    id: str
    flag: str
    state: str
    definition: dict[str, Any]
    evidence: dict[str, Any]
    trigger: str
    message: str
    armed_at: float
    tripped_at: float | None


class GuardrailAnswer(GuardrailShown, Answer):
    dry_run: bool = False


class GuardrailsAnswer(Answer):
    guardrails: list[GuardrailShown]


class DeletedAnswer(Answer):
    id: str
    deleted: bool


# Who may do what, what was done, who runs what.


class PersonShown(Shown):
    name: str
    role: str
    created_at: str
    revoked_at: str | None
    last_used: str | None


class PeopleAnswer(Answer):
    people: list[PersonShown]


class TokenAnswer(Answer):
    """`token` is shown here and nowhere else."""

    name: str
    role: str
    token: str


class RevokedAnswer(Answer):
    name: str
    revoked: bool


class AuditRowShown(Shown):
    seq: int
    at: str
    actor: dict[str, Any]
    action: str
    kind: str
    objects: list[str]
    outcome: str
    refusal: str | None
    from_version: int | None
    to_version: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str
    ticket: str | None
    evidence: dict[str, Any] | None
    request_id: str | None
    hash: str


class AuditAnswer(Answer):
    rows: list[AuditRowShown]


class VerifyAnswer(Answer):
    """Intact: how many `rows`, and the last one's `hash`. Else: the row `seq` where it breaks, and `why`."""

    intact: bool
    rows: int | None = None
    hash: str | None = None
    seq: int | None = None
    why: str | None = None


class WorkerShown(Shown):
    worker: int
    pid: int
    state: str
    version: int
    taken: int | None = None
    """By which it decides; later than `version` while it ends what has to be over first."""


class InstanceShown(Shown):
    id: str
    host: str
    address: str
    flags_version: int
    kills: list[str]
    workers: list[WorkerShown]
    age_seconds: float


class InstancesAnswer(Answer):
    instances: list[InstanceShown]


class FeedAnswer(Answer):
    """How this instance hears of changes: the store it asks and the bus that it listens to."""

    instance: str
    store: str | None
    store_trouble: str | None
    bus: str
    bus_trouble: str | None
