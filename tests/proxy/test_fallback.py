"""New fails and legacy answers: only where asking twice does no harm, and never uncounted."""

from __future__ import annotations

import pytest

from flags.model import Route
from proxy.config import Timeouts
from proxy.fallback import ALWAYS, WINDOW, Budgets
from tests.proxy.calm import in_a_calm_moment
from tests.proxy.flags import EVERYBODY, ROUTES, one_flag
from tests.support.world import Wire, World, echo, get, plain, post, until

TAKEN = "crossfade_fallbacks_total"
REQUESTS = "crossfade_requests_total"
FAILED = b"500 Internal Server Error"


async def failing(wire: Wire) -> None:
    """A play: new answers everything with 500."""
    while True:
        asked = await wire.request()
        wire.send(plain(b"broken", status=FAILED, method=asked.method))


async def dying(wire: Wire) -> None:
    """A play: new ends the connection instead of answering."""
    await wire.request()


async def cut_short(wire: Wire) -> None:
    """A play: new ends the connection in the middle of its answer's head."""
    await wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Le")


async def nonsense(wire: Wire) -> None:
    await wire.request()
    wire.send(b"no HTTP at all\r\n\r\n")
    await wire.gone()


async def bad_chunks(wire: Wire) -> None:
    """A play: head and first chunk come together, and the chunk is none."""
    await wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    await wire.gone()


async def silent(wire: Wire) -> None:
    await wire.request()
    await wire.gone()


@pytest.mark.parametrize(("play", "cause"), [
    (failing, "http_5xx"), (dying, "connection_terminated"), (cut_short, "http_response_incomplete"),
    (silent, "http_response_timeout"), (nonsense, "bad_status_line"),
])  # fmt: skip
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
@in_a_calm_moment
async def test_what_new_fails_legacy_answers(play, cause: str, method: bytes) -> None:
    flags, timeouts = one_flag(fallback_ppm=EVERYBODY), Timeouts(response=0.2 if play is silent else 30)
    async with World.of(ROUTES, flags=flags, new=play, legacy=echo, timeouts=timeouts) as world:
        client = await world.client()
        for _ in range(2):  # the second on the same connection
            client.send(get(b"/a", method=method))
            answer = await client.answer(method)
            assert answer.status == 200
            assert answer.body.data == (b"" if method == b"HEAD" else method + b" /a ")
        assert world.count(TAKEN, flag="items", outcome="taken") == 2
        assert world.count(TAKEN, cause=cause) == 2
        assert world.count(REQUESTS, side="legacy", reason="fallback", code="2xx") == 2
        assert world.count(REQUESTS, side="new") == 0


async def test_an_answer_whose_first_bytes_are_nonsense_is_covered_too() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=bad_chunks, legacy=echo) as world:
        client = await world.client()
        for _ in range(2):
            client.send(get(b"/a"))
            assert (await client.answer()).body.data == b"GET /a "
        assert world.count(TAKEN, cause="bad_chunk", outcome="taken") == 2


async def test_new_that_is_not_there_is_covered_too() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), legacy=echo) as world:
        await world.new.stop()
        assert (await world.ask(get(b"/a"))).body.data == b"GET /a "
        assert world.count(TAKEN, cause="connection_refused", outcome="taken") == 1


async def test_legacy_hears_the_request_as_the_client_sent_it() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=failing) as world:
        client = await world.client()
        client.send(get(b"/a?b=%20c", b"X-Odd:  \xe9\r\nAccept: */*\r\n"))
        target = await world.legacy.connection()
        asked = await target.request()
        assert asked.target == b"/a?b=%20c"
        assert asked.head.count(b"X-Odd:  \xe9\r\n") == 1
        assert asked.head.lower().count(b"x-forwarded-for:") == 1
        target.send(plain(b"saved"))
        assert (await client.answer()).body.data == b"saved"


async def test_a_connection_on_which_new_failed_in_order_is_used_again() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=failing, legacy=echo) as world:
        client = await world.client()
        for _ in range(3):
            client.send(get())
            assert (await client.answer()).status == 200
        assert len(world.new.wires) == 1


async def test_only_where_the_weight_chose_new_a_failure_speaks_of_the_cohort() -> None:
    between = one_flag(999_999, fallback_ppm=EVERYBODY)
    for flags, spoken in ((between, 1), (one_flag(fallback_ppm=EVERYBODY), 0)):
        async with World.of(ROUTES, flags=flags, new=failing, legacy=echo) as world:
            client = await world.client()
            client.send(get(b"/a", b"X-User: ada\r\n"))
            assert (await client.answer()).status == 200
            assert world.count("crossfade_cohort_fallbacks_total", flag="items") == spoken
            assert world.count(TAKEN, flag="items", outcome="taken") == 1


@pytest.mark.parametrize("request_", [
    post(b"/a", b"x"), post(b"/a"), get(b"/a", method=b"DELETE"), post(b"/a", b"x", method=b"PUT"),
    post(b"/a", b"x", method=b"GET"),
    get(b"/a", b"Transfer-Encoding: chunked\r\n") + b"1\r\nx\r\n0\r\n\r\n",
    get(b"/a", b"Upgrade: websocket\r\nConnection: upgrade\r\n"),
])  # fmt: skip
@pytest.mark.parametrize("play", [failing, dying])
async def test_what_may_act_or_has_a_body_is_asked_once(request_: bytes, play) -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=play, legacy=echo) as world:
        assert (await world.ask(request_)).status in (500, 502)
        assert world.count(TAKEN) == 0
        assert not world.legacy.wires


@pytest.mark.parametrize("play", [failing, dying])
async def test_a_get_of_a_route_that_writes_is_asked_once(play) -> None:
    routes = (Route("items", "/**", writes=True),)
    async with World.of(routes, flags=one_flag(fallback_ppm=EVERYBODY), new=play, legacy=echo) as world:
        assert (await world.ask(get(b"/cart/add"))).status in (500, 502)
        assert world.count(TAKEN) == 0
        assert not world.legacy.wires


async def test_where_the_flag_does_not_ask_for_it_the_failure_reaches_the_client() -> None:
    async with World.of(ROUTES, flags=one_flag(), new=failing, legacy=echo) as world:
        assert (await world.ask(get())).body.data == b"broken"
        assert world.count(TAKEN) == 0


async def test_after_a_byte_of_the_answer_nothing_is_asked_again() -> None:
    async def half(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=half, legacy=echo) as world:
        client = await world.client()
        client.send(get())
        await client.through(b"half")
        await client.end()
        assert world.count(TAKEN) == 0
        assert not world.legacy.wires


async def test_after_an_interim_answer_nothing_is_asked_again() -> None:
    async def hints(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + plain(b"broken", status=FAILED))
        await wire.gone()

    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=hints, legacy=echo) as world:
        client = await world.client()
        client.send(get())
        assert b" 103 " in await client.through(b"\r\n\r\n")
        assert (await client.answer()).status == 500
        assert not world.legacy.wires


async def test_when_legacy_fails_too_its_answer_is_the_clients() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=dying, legacy=dying) as world:
        client = await world.client()
        client.send(get())
        assert (await client.answer()).status == 502
        assert world.count(TAKEN) == 1
        assert world.count("crossfade_errors_total", side="legacy", reason="connection_terminated") == 1


async def test_a_client_that_leaves_while_legacy_is_asked_leaves_nothing_behind() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=EVERYBODY), new=failing) as world:
        client = await world.client()
        client.send(get())
        target = await world.legacy.connection()
        await target.request()
        client.reset()
        await target.end()
        await until(lambda: world.idle, "nothing under way")


async def test_beyond_the_budget_the_failure_is_shown_and_counted() -> None:
    async with World.of(ROUTES, flags=one_flag(fallback_ppm=0), new=failing, legacy=echo) as world:
        client = await world.client()
        statuses = []
        for _ in range(ALWAYS + 5):
            client.send(get())
            statuses.append((await client.answer()).status)
        assert statuses == [200] * ALWAYS + [500] * 5
        assert world.count(TAKEN, outcome="over_budget") == 5
        assert world.count(REQUESTS, side="new", code="5xx") == 5


def test_a_budget_covers_a_share_of_what_new_was_asked() -> None:
    budgets = Budgets()
    assert all(budgets.take("a", 0, 0, 0.0) for _ in range(ALWAYS))
    assert not budgets.take("a", 0, 10_000, 1.0)
    assert budgets.take("b", 0, 0, 1.0), "another flag has a budget of its own"
    budgets = Budgets()
    assert budgets.take("a", 100_000, 0, 0.0)  # 10 %
    taken = sum(budgets.take("a", 100_000, 1000, 1.0) for _ in range(1000))
    assert 100 <= taken <= 100 + ALWAYS + 12
    assert budgets.take("a", 100_000, 1000, WINDOW + 0.1), "a new window begins"
