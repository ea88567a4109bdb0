"""Whatever arrives in whatever pieces: a translated route gives the same answers, and forgets nothing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from flags.model import AdapterUse, Route, Side
from legacy_adapter.adapter import Plugs
from legacy_adapter.messages import Answer, Request
from proxy.body import LAST_CHUNK, chunk
from tests.support.world import Wire, World, get, plain, post, segments


class Mirrored:
    """Bodies are turned round on the way there, and back on the way back; some cannot be."""

    def request(self, request: Request) -> Request:
        if b"!" in request.body:
            raise ValueError("not that")
        return replace(request, body=request.body[::-1])

    def answer(self, answer: Answer, request: Request) -> Answer:
        if b"?" in answer.body:
            raise ValueError("not that")
        return replace(answer, body=answer.body[::-1])


def in_chunks(*pieces: bytes) -> bytes:
    return b"".join(chunk(piece) for piece in pieces if piece) + LAST_CHUNK


BODIES = st.binary(max_size=40) | st.sampled_from([b"!", b"?", b"a!b", b"a?b"])


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """A request as it is sent, and the status and body that must answer it."""
    body = draw(BODIES)
    if draw(st.booleans()):
        sent = post(b"/x", body)
    else:
        at = draw(st.integers(0, len(body)))
        sent = get(b"/x", b"Transfer-Encoding: chunked\r\n", b"POST") + in_chunks(body[:at], body[at:])
    if b"!" in body or b"?" in body:
        return sent, 502, b""
    return sent, 200, body


async def repeating(wire: Wire) -> None:
    """A play: the backend answers with what it was sent, framed in either way."""
    number = 0
    while True:
        asked = await wire.request()
        number += 1
        if number % 2:
            wire.send(plain(asked.body))
        else:
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(asked.body))


@settings(max_examples=40)
@given(st.lists(exchanges(), min_size=1, max_size=6), st.lists(st.integers(0, 900), max_size=6))
async def test_a_pipeline_in_pieces(asked: list[tuple[bytes, int, bytes]], cuts: list[int]) -> None:
    routes = (Route("items", "/**", adapters=(AdapterUse(Side.NEW, "mirrored"),), side=Side.NEW),)
    async with World.of(routes, plugs=Plugs({"mirrored": Mirrored()}), new=repeating) as world:
        client = await world.client()
        client.send(*segments(b"".join(sent for sent, _, _ in asked), cuts))
        for _, status, body in asked:
            answer = await client.answer()
            assert answer.status == status
            assert status != 200 or answer.body.data == body
        failures = sum(status == 502 for _, status, _ in asked)
        assert world.count("crossfade_adapter_failures_total") == failures
        world.faults.clear()
