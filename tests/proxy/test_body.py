"""Bodies: wherever the bytes are cut, the payload is the same and ends at the same byte."""

from __future__ import annotations

import time

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.body import BadFramingError, ChunkedBody, LengthBody, UntilCloseBody, chunk, last_chunk
from tests.support.world import segments


def read(pieces: list[bytes], body: ChunkedBody | LengthBody) -> tuple[bytes, int]:
    """The payload and how many bytes it took, over all pieces."""
    payload, used = b"", 0
    for piece in pieces:
        found, end = body.feed(b"before" + piece, 6)
        payload += found
        used += end - 6
        if body.done:
            break
        assert end == len(piece) + 6  # what is not finished keeps everything
    return payload, used


sizes = st.builds(
    lambda n, zeros, upper, extension: (n, b"0" * zeros + (b"%X" if upper else b"%x") % n + extension),
    st.integers(1, 40),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([b"", b";a", b";a=b", b' ;a="b;c"', b";"]),
)
chunk_lists = st.lists(sizes, max_size=6)
trailer_sections = st.lists(st.sampled_from([b"X: y\r\n", b"Digest:\r\n", b"a:\xe9\r\n"]), max_size=3).map(
    b"".join
)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """The bytes on the wire, the payload, the trailers."""
    wire = payload = b""
    for number, line in draw(chunk_lists):
        data = draw(st.binary(min_size=number, max_size=number))
        wire += line + b"\r\n" + data + b"\r\n"
        payload += data
    trailers = draw(trailer_sections)
    return (
        wire + draw(st.sampled_from([b"0", b"000", b"0;x"])) + b"\r\n" + trailers + b"\r\n",
        payload,
        trailers,
    )


@given(chunked_bodies(), st.lists(st.integers(0, 300), max_size=12), st.binary(max_size=5))
def test_every_segmentation_of_a_chunked_body_is_the_same_body(
    made: tuple[bytes, bytes, bytes], cuts: list[int], behind: bytes
) -> None:
    wire, payload, trailers = made
    body = ChunkedBody(1000)
    assert read(segments(wire + behind, cuts), body) == (payload, len(wire))
    assert body.done
    assert body.trailers == trailers


@given(chunked_bodies())
def test_byte_by_byte_and_every_single_cut(made: tuple[bytes, bytes, bytes]) -> None:
    wire, payload, _ = made
    assert read(segments(wire, range(len(wire))), ChunkedBody(1000)) == (payload, len(wire))
    for cut in range(1, len(wire)):
        body = ChunkedBody(1000)
        assert read([wire[:cut], wire[cut:]], body) == (payload, len(wire))
        assert body.done


@given(chunked_bodies())
def test_h11_reads_our_spelling_of_it(made: tuple[bytes, bytes, bytes]) -> None:
    wire, payload, trailers = made
    body = ChunkedBody(1000)
    found, _ = body.feed(wire)
    again = (chunk(found) if found else b"") + last_chunk(body.trailers)
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + again)
    assert isinstance(server.next_event(), h11.Request)
    heard = b""
    while isinstance(event := server.next_event(), h11.Data):
        heard += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert heard == payload
    assert len(list(event.headers)) == trailers.count(b"\r\n")


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_garbage_raises_bad_framing_and_nothing_else(pieces: list[bytes]) -> None:
    assert outcome(pieces) in {
        "incomplete",
        "bad_chunk",
        "bad_trailer",
        "trailers_too_large",
    } or b"0" in b"".join(pieces)


@given(
    chunked_bodies(), st.integers(0, 300), st.sampled_from([b"\n", b"\r", b" ", b"\0", b"g", b"-", b"\r\n"])
)
def test_a_wound_never_changes_the_verdict_with_the_segmentation(
    made: tuple[bytes, bytes, bytes], at: int, dirt: bytes
) -> None:
    wire = made[0][:at] + dirt + made[0][at:]
    whole = outcome([wire])
    assert outcome(segments(wire, range(len(wire)))) == whole
    assert outcome(segments(wire, range(0, len(wire), 3))) == whole


def outcome(pieces: list[bytes]) -> tuple[bytes, int, bytes] | str:
    body = ChunkedBody(1000)
    try:
        payload, used = read(pieces, body)
    except BadFramingError as problem:
        return problem.reason
    return (payload, used, body.trailers) if body.done else "incomplete"


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n", b"x\r\n", b"+1\r\na\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1_0\r\n", b" 1\r\na\r\n", b";\r\n",
        b"1\na\r\n", b"1\r\nab\r\n", b"1\r\na\n0\r\n", b"1\r\na\r0\r\n\r\n", b"1\r\naXX0\r\n",
        b"1;a\n\r\n", b"1;a\rb\r\n",
        b"\xd9\xa1\r\n", b"1\r\r\n", b"1;\0\r\n", b"f" * 16 + b"\r\n", b"0" * 5000,
        b"1;" + b"x" * 5000 + b"\r\n",
        b"0\r\nA : b\r\n\r\n", b"0\r\n A: b\r\n\r\n", b"0\r\nA: b\n\r\n", b"0\r\nA\r\n\r\n",
        b"0\r\nA: b\rc\r\n\r\n",
        b"0\r\nContent-Length: 1\r\n\r\n", b"0\r\nA: b\r\nTRANSFER-ENCODING: x\r\n\r\n",
        b"0\r\nHost: a\r\n\r\n",
        b"0\r\nA: " + b"x" * 2000, b"0\r\n\nGET", b"0\r\n\n\n",
    ],
)  # fmt: skip
def test_what_is_no_chunked_body(wire: bytes) -> None:
    assert outcome([wire]) in {"bad_chunk", "bad_trailer", "trailers_too_large"}
    assert outcome(segments(wire, range(len(wire)))) in {"bad_chunk", "bad_trailer", "trailers_too_large"}


@given(st.integers(0, 50), st.binary(max_size=100), st.lists(st.integers(0, 100)))
def test_a_length_is_taken_exactly(length: int, wire: bytes, cuts: list[int]) -> None:
    body = LengthBody(length)
    if length == 0:
        assert body.done
        return
    payload, used = read(segments(wire, cuts), body)
    assert payload == wire[:length]
    assert used == min(length, len(wire))
    assert body.done == (len(wire) >= length)


def test_a_body_without_an_end_takes_everything() -> None:
    body = UntilCloseBody()
    assert body.feed(b"abc", 1) == (b"bc", 3)
    assert body.feed(b"abc") == (b"abc", 3)
    assert not body.done


def test_many_tiny_chunks_cost_linear_time() -> None:
    def seconds(count: int) -> float:
        wire = b"1\r\nx\r\n" * count
        best = 1e9
        for _ in range(3):
            began = time.thread_time()
            ChunkedBody(1000).feed(wire)
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(40_000) < 40 * seconds(4_000)
