"""The contract kit for mappings: what both databases make of values that legacy's columns may hold.

    from crossfade import check_mapping

    def test_mapping():
        check_mapping(project, LEGACY_DATABASE_URL, NEW_DATABASE_URL)

Legacy's columns are looked at (types, lengths, NULL, enums, checks), and values are thought up that they
take. Each goes to new and back, through your functions and through copies of both sides' columns; both
databases are left as they were. Say in `Project(holds=...)` what a column holds where its type does not tell,
and in `Project(lossy=...)` which columns may come home changed. `crossfade data check-mapping` does the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from crossfade.project import Project
from dualwrite.pg_connect import connect
from dualwrite.round_trip import Tried, Unfit, try_mappings
from flags.model import Side


class MappingContractError(AssertionError):
    """What does not come home, or does not get there. `unfit` has each value."""

    def __init__(self, unfit: Sequence[Unfit]) -> None:
        super().__init__("\n".join(map(str, unfit)))
        self.unfit = unfit


def check_mapping(project: Project, legacy: str, new: str, *, seed: int = 0) -> None:
    """`legacy` and `new` are URLs of databases with both schemas; rows are not needed.

    Raises MappingContractError with all that is unfit, InvalidMappingError and psycopg.Error.
    """
    tried = asyncio.run(try_project(project, legacy, new, seed=seed))
    if tried.unfit:
        raise MappingContractError(tried.unfit)


async def try_project(project: Project, legacy: str, new: str, *, seed: int = 0) -> Tried:
    """What `check_mapping` judges."""
    async with await connect(legacy) as here, await connect(new) as there:
        sides = {Side.LEGACY: here, Side.NEW: there}
        return await try_mappings(sides, project.tables, project.holds, project.lossy, seed)
