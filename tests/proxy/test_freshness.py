"""A session reads what it has written, whichever worker and side it comes to."""

from __future__ import annotations

import time
from dataclasses import replace

from flags.model import FlagSet, Stage
from flags.stages import settled_at
from proxy.freshness import COOKIE, Freshness
from tests.differential.wire import Answer, named
from tests.flags.test_decide import request
from tests.proxy.test_holding import ROUTES as SHOP
from tests.proxy.test_holding import flags, noting, written
from tests.support.facts import KnownFacts
from tests.support.world import Asked, World, get, post


def watched() -> FlagSet:
    known = flags()
    flag = replace(known.flags[0], transition=settled_at(Stage.LIVE))
    authority = replace(known.authorities[0], own_writes=True)
    return replace(known, flags=(flag,), authorities=(authority,))


def note_of(answer: Answer) -> bytes | None:
    cookies = [value for value in named(answer.fields, b"set-cookie") if value.startswith(COOKIE.encode())]
    return cookies[0].partition(b";")[0] if cookies else None


async def test_what_was_written_is_read_where_it_is() -> None:
    legacy: list[Asked] = []
    new: list[Asked] = []
    plays = {"legacy": noting(legacy), "new": noting(new)}
    async with World.of(SHOP, flags=watched(), **plays) as world:  # type: ignore[arg-type]
        other = await world.ask(get(b"/mine"))
        assert note_of(other) is None
        assert [asked.target for asked in new] == [b"/mine"]

        answer = await world.ask(post(b"/items", b"abc"))
        assert written(legacy) == [b"/items"]
        note = note_of(answer)
        assert note is not None
        bring = b"Cookie: a=1; " + note + b"\r\n"
        again = await world.ask(get(b"/mine", bring))
        assert [asked.target for asked in legacy] == [b"/items", b"/mine"]
        newer = note_of(again)
        assert newer is not None

        world.worker.freshness.learn("other", time.monotonic() + 1)
        await world.ask(get(b"/mine", bring))
        assert len(new) == 1
        world.worker.freshness.learn("all", time.monotonic() + 1)
        after = await world.ask(get(b"/mine", bring))
        assert len(new) == 2
        assert note_of(after) is None
        # Another host's note says nothing here.
        await world.ask(get(b"/mine", b"Cookie: crossfade_w=deadbeef.1\r\n"))
        assert len(new) == 2


def test_a_note_is_fresh_once_the_moment_has_come() -> None:
    known, facts = Freshness(), KnownFacts()
    cookie = known.note(secure=True).partition(b": ")[2].partition(b";")[0]
    head = request(b"GET / HTTP/1.1\r\nCookie: " + cookie + b"\r\nX: y")
    assert known.is_behind(head, facts, "shop")
    known.learn("shop", time.monotonic() - 5)
    assert known.is_behind(head, facts, "shop")
    known.learn("shop", time.monotonic() + 0.002)
    assert not known.is_behind(head, facts, "shop")
    known.learn("shop", 1.0)
    assert not known.is_behind(head, facts, "shop"), "it never goes back"
    for garbled in (b"crossfade_w=x", b"crossfade_w=.", b"crossfade_w=1.\xb2", b"crossfade_w=a.b"):
        assert known.is_behind(request(b"GET / HTTP/1.1\r\nCookie: " + garbled + b"\r\nX: y"), facts, "shop")
    assert not known.is_behind(request(b"GET /"), facts, "shop")


def test_new_is_too_far_behind_until_somebody_says_otherwise() -> None:
    known = Freshness()
    assert known.is_late("shop", 10_000), "nobody has said how far"
    known.learn("shop", time.monotonic() - 5)
    assert known.is_late("shop", 4_000)
    assert not known.is_late("shop", 10_000)
    assert known.is_late("other", 10_000)
