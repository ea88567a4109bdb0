"""Wiring, command line and admin API. Floor 3, and the only package that users import."""

from typing import TYPE_CHECKING, Any

from crossfade.project import Project
from dualwrite.mapping import Convert, FollowUp, Marked, Table, Values
from flags.model import Side
from legacy_adapter.adapter import Adapter
from legacy_adapter.messages import Answer, Request
from shadow.rules import Rule, RuleKind

if TYPE_CHECKING:
    from crossfade.adapter_contract import AdapterContractError, Example, check_adapter

__all__ = [
    "Adapter", "AdapterContractError", "Answer", "Convert", "Example", "FollowUp", "Marked", "Project",
    "Request", "Rule", "RuleKind", "Side", "Table", "Values", "check_adapter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The contract kit, when it is asked for: it brings the proxy's parser along, which few need."""
    if name not in {"AdapterContractError", "Example", "check_adapter"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from crossfade import adapter_contract  # noqa: PLC0415

    return getattr(adapter_contract, name)
