"""What the admin API takes, strictly: bodies, and the queries of what is only read.

What they mean is checked where it is used.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from flags.model import EVERYBODY, Stage
from flags.stages import SHARE_FORM, ppm_of
from shadow.verdict import Mark

LONGEST_WAIT = 60.0
MOST_ROWS = 1000


def weight(value: Any) -> int:
    """Parts per million from `5%` or `0.01%`, or from a whole number of them. Raises ValueError."""
    if isinstance(value, str):
        return ppm_of(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= EVERYBODY:
        raise ValueError(f"{SHARE_FORM}, or parts per million from 0 to {EVERYBODY}")
    return value


Weight = Annotated[
    int,
    BeforeValidator(weight),
    WithJsonSchema(
        {
            "description": "A share, or parts per million",
            "anyOf": [
                {"type": "string", "examples": ["5%", "0.01%"]},
                {"type": "integer", "minimum": 0, "maximum": EVERYBODY},
            ],
        }
    ),
]


class Said(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Nothing(Said):
    """There is nothing to say."""


class Why(Said):
    reason: str = ""
    ticket: str | None = None


class Body(Why):
    """What every change of flags may say."""

    expected_version: int | None = None
    dry_run: bool = False
    wait: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = 0.0
    """Seconds to wait until every worker runs the change."""
    report: Annotated[str | None, Field(max_length=64)] = None
    """The digest of a kept report, for flags that ask for one."""


class MoveBody(Body):
    to: Stage
    weight: Weight = EVERYBODY


class CreateBody(Body):
    flag: dict[str, Any]


class EditBody(Body):
    """What is left out stays. `fallback` and `mirror` are shares; `no_fallback` switches that off."""

    bucketing: dict[str, Any] | None = None
    overrides: list[dict[str, Any]] | None = None
    rules: list[dict[str, Any]] | None = None
    fallback: Weight | None = None
    no_fallback: bool = False
    mirror: Weight | None = None
    needs_report: bool | None = None
    owner: str | None = None
    flag_ticket: str | None = None
    expires_on: str | None = None
    description: str | None = None


class ApplyBody(Body):
    flags: list[dict[str, Any]]


class ExplainBody(Said):
    method: str = "GET"
    target: str = "/"
    headers: list[tuple[str, str]] = []
    client: str = "127.0.0.1"
    attributes: dict[str, str] = {}


class RampBody(Why):
    expected_version: int | None = None
    dry_run: bool = False
    report: Annotated[str | None, Field(max_length=64)] = None
    to: Stage
    steps: list[dict[str, Any]]
    windows: list[dict[str, Any]] = []


class AbortBody(Why):
    stay: bool = False
    """Leave the weight where it is."""


class CutoverBody(Why):
    rehearse: bool = False
    """Do everything up to the decision, and then cancel."""
    report: Annotated[str | None, Field(max_length=64)] = None
    accept_loss: bool = False
    """Only for the way back: without what new still has."""
    confirm: Annotated[str | None, Field(max_length=200)] = None
    """The cutover's name once more, where data is lost."""


class GuardrailBody(Why):
    dry_run: bool = False
    flag: str
    definition: dict[str, Any]


class ReportQuery(Said):
    """`hours` back from now; `rate`, `pairs` and `alpha` are what a release asks for."""

    flag: str | None = None
    hours: Annotated[float, Field(gt=0, le=24 * 3650)] = 24.0
    rate: Annotated[float, Field(gt=0, le=1)] = 0.001
    pairs: Annotated[int, Field(ge=1)] = 1000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05


class KeepBody(ReportQuery, Why):
    """A report that is made now and kept."""


class CategoriesQuery(Said):
    flag: str | None = None


class MarkBody(Why):
    mark: Mark
    expires: date | None = None


class ReplayBody(Said):
    """`headers` are sent instead of those of their names, such as the credentials that are not kept."""

    headers: Annotated[list[tuple[str, str]], Field(max_length=50)] = []


class RuleBody(Why):
    rule: dict[str, Any]


class PersonBody(Said):
    name: str
    role: str
    reason: str = ""


class RevokeBody(Said):
    reason: str = ""


class RampsQuery(Said):
    ended: bool = False


class GuardrailsQuery(Said):
    flag: str | None = None


class HistoryQuery(Said):
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 100


class AuditQuery(Said):
    """`after` is a row's number; without it the last rows come."""

    after: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 50


class ConvergedQuery(Said):
    version: Annotated[int, Field(ge=0)]
    wait: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = 0.0
