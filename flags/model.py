"""The words of a routing decision. Frozen values; no clock, no I/O.

A route names the requests that one flag governs. What the flag decides for a request is a
`Decision`, which always carries its reason; the reason is also the metric label and the log word.

A flag stands between two neighbouring stages (`flags/stages.py` has their table): `weight_ppm` of the
keys are in the upper one, `target`, and the rest in the lower one, `origin`. 0 is nobody and 1,000,000
everybody, exactly; a flag with either is *settled*.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from flags.conditions import Condition

NO_ROUTE = "-"
"""The flag name that stands in metrics and logs for a request that no route matched."""
EVERYBODY = 1_000_000
"""Parts per million: a weight that admits every key."""


class Side(StrEnum):
    """The backend that answers a client."""

    LEGACY = "legacy"
    NEW = "new"

    __hash__ = str.__hash__
    """An enum's own hash is a Python function, and sides are looked up for each request."""


class Stage(StrEnum):
    """How far a flag has come: who answers, and who is asked besides."""

    LEGACY = "legacy"
    SHADOW = "shadow"
    LIVE = "live"
    NEW = "new"

    __hash__ = str.__hash__


class Reason(StrEnum):
    """Why a request went where it went."""

    ROUTE = "route"
    """The matching route names this side in the configuration, and no flag of that name is known."""
    NO_ROUTE = "no_route"
    """No route matched; legacy answers everything that nobody has claimed."""
    GLOBAL_KILL = "global_kill"
    """Everything goes to legacy, because a person said so."""
    FLAG_KILL = "flag_kill"
    """Everything of this flag goes to legacy, because a person or a guardrail said so."""
    OVERRIDE = "override"
    """An override names this request's stage."""
    RULE = "rule"
    """The first rule that matches decided, by its own weight."""
    STAGE = "stage"
    """The flag is settled: its stage holds for everybody."""
    WEIGHT = "weight"
    """The bucket of the request's key, against the flag's weight."""
    NO_KEY = "no_key"
    """The request has none of the attributes to bucket by, so it stays at the lower stage."""
    FALLBACK = "fallback"
    """New failed, and legacy answered instead."""
    OWN_WRITES = "own_writes"
    """The session has written, and new may not have it yet."""
    LAG = "lag"
    """New is further behind than reads by it may be."""
    AUTHORITY = "authority"
    """This side may change the data, and no flag, override or kill says otherwise."""


class Phase(StrEnum):
    """What a cutover asks of workers at the moment."""

    OPEN = "open"
    """Requests go to the side that has the authority."""
    ARM = "arm"
    """As OPEN, but what changes something goes on only under the worker's lease: a hold is near."""
    HOLD = "hold"
    """What changes something waits in the workers; what reads goes on."""
    TURN = "turn"
    """As HOLD, and what reads goes where it will go afterwards: both sides have the same by now."""

    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """Which adapter stands between the clients of a route and one side.

    `untranslated` lets a message that the adapter fails on go on as it came; otherwise it is refused.
    """

    side: Side
    adapter: str
    untranslated: bool = False


class UnsafeMirror(StrEnum):
    """How requests that change something may be mirrored all the same."""

    DRY_RUN = "dry_run"
    """With a header field that makes the other side undo what it did."""
    SANDBOX = "sandbox"
    """To another place, whose data nobody needs."""
    IDEMPOTENCY_KEY = "idempotency_key"
    """Where the client has sent such a key, by which the other side does a thing once."""


@dataclass(frozen=True, slots=True)
class Route:
    """The requests that one flag governs.

    `methods` empty means any method; methods are compared exactly, as HTTP demands.
    `path` is a template: literal segments, `{name}` for one segment, and a last `**` for any rest.
    `host` is a name without port, `*.example.com` for its subdomains, or None for any host.
    `side` answers as long as no flag of this name is known.
    """

    flag: str
    path: str
    methods: frozenset[str] = frozenset()
    host: str | None = None
    side: Side = Side.LEGACY
    adapters: tuple[AdapterUse, ...] = ()
    """At most one for a side; without one the side is spoken to as the client speaks."""
    mirror_unsafe: UnsafeMirror | None = None
    """None: only requests that change nothing are mirrored."""
    mirror_field: str = ""
    """The field line that asks for a dry run, or the name of the field with the key."""
    writes: bool = False
    """Its requests change something whatever their method."""


@dataclass(frozen=True, slots=True)
class Translation:
    """By which adapter a request and its answer are translated."""

    adapter: str
    otherwise: Decision | None = None
    """What holds when the adapter fails on the request and it may go on as it came."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who answers one request, why, under which flag, and by which version of the routes."""

    side: Side
    reason: Reason
    flag: str
    version: int
    stage: Stage | None = None
    """None where no flag decided."""
    mirror: Side | None = None
    """Who is asked besides, for comparison."""
    mirror_ppm: int = EVERYBODY
    """The share of the requests of which that is asked, drawn by lot."""
    mirror_adapter: str | None = None
    """By which adapter the side that is asked besides is spoken to."""
    fallback: Decision | None = None
    """What holds when new fails and the request may be asked again; None where that is not wanted."""
    fallback_ppm: int = 0
    """The share of new's answers that may be replaced so."""
    translation: Translation | None = None
    """None, and then free, where the side is spoken to as the client speaks."""
    writes: bool = False
    """It changes data of which only one side may change anything (`Authority`)."""
    noted: bool = False
    """Its answer tells the client to bring a note, by which its session reads what it wrote."""
    hold: bool = False
    """It waits until it is settled which side that is."""
    leased: bool = False
    """It waits only where the worker has no lease."""


@dataclass(frozen=True, slots=True)
class Transition:
    """`weight_ppm` of the keys are at `target`, the upper neighbour of `origin`, where the rest is."""

    origin: Stage
    target: Stage
    weight_ppm: int

    @property
    def settled(self) -> Stage | None:
        """The stage that holds for everybody, None in between."""
        if self.weight_ppm == 0:
            return self.origin
        return self.target if self.weight_ppm == EVERYBODY else None


@dataclass(frozen=True, slots=True)
class Kill:
    """Something is off until somebody takes this back. `at` is ISO 8601, UTC."""

    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class Bucketing:
    """Which attribute is the key: the first of `by` that a request has.

    `salt` keeps flags independent of each other and never changes while a weight is between.
    `assign_cookie` names a cookie that gives an identity to clients that have no key.
    """

    by: tuple[str, ...]
    salt: str
    assign_cookie: str | None = None


@dataclass(frozen=True, slots=True)
class Override:
    """Requests for which `when` holds are at `stage`, until `expires_at` (Unix time; None: for good)."""

    id: str
    when: Condition
    stage: Stage
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests for which `when` holds follow `transition` instead of the flag's own."""

    id: str
    when: Condition
    transition: Transition


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag as its owner wrote it. `version` counts its changes."""

    key: str
    version: int
    transition: Transition
    bucketing: Bucketing
    owner: str = ""
    ticket: str = ""
    expires_on: str | None = None
    """The ISO date by which the migration behind it should be over; later it is shown as overdue."""
    description: str = ""
    kill: Kill | None = None
    overrides: tuple[Override, ...] = ()
    rules: tuple[Rule, ...] = ()
    fallback_ppm: int | None = None
    """The share of new's answers that legacy may replace when new fails; None: clients see the failure."""
    mirror_ppm: int = EVERYBODY
    """The share of the requests at `shadow` or `live` of which the other side is asked too."""
    needs_report: bool = False
    """New answers no more of its keys than before but by a report that says that its routes are ready."""
    archived: bool = False
    """Its routes follow the configuration again, and its key is never used for another flag."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Which side may change some data, and so answers what changes it. Only a cutover moves it.

    `flags` are those whose routes change or read this data. What changes something goes to `side`, whatever
    the flag, an override or a kill says. What only reads goes by its flag while legacy has the authority (new
    is fed by it), and to new once new has it: legacy would be behind.
    """

    cutover: str
    """By which it is moved."""
    flags: tuple[str, ...]
    side: Side
    generation: int
    """How often it has been moved."""
    phase: Phase = Phase.OPEN
    own_writes: bool = False
    """While legacy has the authority, sessions that have written read from there until new has it, too."""
    max_lag_ms: int | None = None
    """While legacy has the authority, everybody reads from there where new is further behind than this."""

    @property
    def holds(self) -> bool:
        """Whether what changes something waits, with or without a lease."""
        return self.phase in (Phase.HOLD, Phase.TURN)

    @property
    def read_from_new(self) -> bool:
        """Whether what only reads has to go to new."""
        return (self.side is Side.NEW) is not (self.phase is Phase.TURN)


@dataclass(frozen=True, slots=True)
class FlagSet:
    """All flags at one version; flags are in the order of their keys.

    `shadow_off` says who has stopped all mirroring and why: no side is asked besides, whatever the stages.
    """

    version: int
    kill: Kill | None = None
    flags: tuple[Flag, ...] = ()
    shadow_off: Kill | None = None
    authorities: tuple[Authority, ...] = ()
    """In the order of their cutovers; a flag is in one of them at most."""

    def authority(self, cutover: str) -> Authority | None:
        return next((one for one in self.authorities if one.cutover == cutover), None)

    def authority_over(self, key: str) -> Authority | None:
        """The one that the flag `key` is under."""
        return next((one for one in self.authorities if key in one.flags), None)

    def flag(self, key: str) -> Flag | None:
        return next((flag for flag in self.flags if flag.key == key), None)
