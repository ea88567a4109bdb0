"""Wiring, command line and admin API. Floor 3, and the only package that users import."""

from typing import TYPE_CHECKING, Any

from crossfade.project import Project
from dualwrite.mapping import Convert, FollowUp, Marked, Only, Table, Values
from flags.model import Side
from legacy_adapter.adapter import Adapter
from legacy_adapter.messages import Answer, Request
from shadow.rules import Rule, RuleKind

if TYPE_CHECKING:
    from crossfade.adapter_contract import AdapterContractError, Example, check_adapter
    from crossfade.mapping_contract import MappingContractError, check_mapping

__all__ = [
    "Adapter", "AdapterContractError", "Answer", "Convert", "Example", "FollowUp", "MappingContractError",
    "Marked", "Only", "Project", "Request", "Rule", "RuleKind", "Side", "Table", "Values", "check_adapter",
    "check_mapping",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The contract kits, when they are asked for: they bring a parser and a driver along, which few need."""
    if name in {"AdapterContractError", "Example", "check_adapter"}:
        from crossfade import adapter_contract  # noqa: PLC0415

        return getattr(adapter_contract, name)
    if name in {"MappingContractError", "check_mapping"}:
        from crossfade import mapping_contract  # noqa: PLC0415

        return getattr(mapping_contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
