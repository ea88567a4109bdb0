"""Forth and back, under load, and nobody notices."""

from __future__ import annotations

from tests.cutover.scene import Night


async def test_forth_and_back_and_forth_again(eve: Night) -> None:
    plan = await eve.does("plan", code=6)
    assert {one["reason"] for one in plan["blockers"]} >= {"not_prepared", "no_stream"}
    await eve.prepare()
    plan = await eve.does("plan")
    assert plan["possible"], plan
    async with eve.people(rest=0.01) as load:
        await load.grows_by(100)
        for what, side in (("run", "new"), ("back", "legacy"), ("run", "new")):
            answer = await eve.does(what)
            assert answer["side"] == side
            print(answer["walks"][0])
            await load.grows_by(100)
            load.must_be_fine()
    load.must_be_fine()
    await eve.nothing_is_lost(load)
    await eve.both_are_equal()
