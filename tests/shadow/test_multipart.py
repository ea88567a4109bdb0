"""Bodies of many parts, read part by part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.mirrored import Leg
from shadow.compare import compare
from shadow.exhibit import Kind
from shadow.multipart import MOST_PARTS, UnreadableMultipartError, parts_of
from tests.shadow.test_redact import shown

FORM = "multipart/form-data; boundary=b"


def part(content: bytes, *fields: bytes) -> bytes:
    return b"--b\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + content + b"\r\n"


def named(name: str, content: bytes, *fields: bytes) -> bytes:
    return part(content, f'Content-Disposition: form-data; name="{name}"'.encode(), *fields)


def read(body: bytes, content_type: str = FORM) -> Any:
    return parts_of(body, content_type, lambda data: f"hash of {len(data)}")


def test_a_form_is_an_object_by_the_names_of_its_fields() -> None:
    body = (
        named("user", b"ada")
        + named("tag", b"one")
        + named("tag", b"two")
        + named("facts", b'{"a": [1.50]}', b"Content-Type: application/json")
        + part(
            b"\x89PNG",
            b"Content-Type: image/png",
            b"Content-Disposition: form-data; name=photo; filename*=UTF-8''%C3%A4.png",
        )
        + b"--b--\r\n"
    )
    found = read(body)
    facts = found["facts"]["content"]["a"][0]
    assert found == {
        "user": "ada",
        "tag": ["one", "two"],
        "facts": {"headers": {"content-type": "application/json"}, "content": {"a": [facts]}},
        "photo": {
            "headers": {"content-type": "image/png"},
            "filename": "ä.png",
            "content": {"bytes": 4, "hash": "hash of 4"},
        },
    }
    assert str(facts) == "1.50"


def test_other_kinds_are_an_array_and_what_stands_around_the_parts_is_not_shown() -> None:
    body = b"hello\r\n" + part(b"abc", b"Content-Range: bytes 0-2/9") + part(b"") + b"--b--\r\ngoodbye"
    assert read(body, 'multipart/byteranges; boundary="b"') == [
        {"headers": {"content-range": "bytes 0-2/9"}, "content": "abc"},
        {"content": ""},
    ]


@pytest.mark.parametrize(("body", "content_type", "trouble"), [
    (part(b"x") + b"--b--", "multipart/mixed", "no_boundary"),
    (part(b"x") + b"--b--", f"multipart/mixed; boundary={'b' * 71}", "no_boundary"),
    (b"nothing", FORM, "cut_multipart"),
    (part(b"x"), FORM, "cut_multipart"),
    (part(b"x") + part(b"y"), FORM, "cut_multipart"),
    (b"--b\r\nno end of head\r\n--b--", FORM, "bad_multipart"),
    (b"--bc\r\n\r\nx\r\n--b--", FORM, "bad_multipart"),
    (part(b"x") * (MOST_PARTS + 1) + b"--b--", FORM, "too_many_parts"),
])  # fmt: skip
def test_what_cannot_be_read_is_told(body: bytes, content_type: str, trouble: str) -> None:
    with pytest.raises(UnreadableMultipartError, match=trouble):
        read(body, content_type)


CONTENT = st.text(st.characters(codec="ascii", categories=("L", "N", "Zs")), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(["a", "b c", "ä"]), CONTENT), min_size=1, max_size=5))
def test_what_was_written_is_read(fields: list[tuple[str, str]]) -> None:
    found = read(b"".join(named(name, text.encode()) for name, text in fields) + b"--b--")
    said = {name: [text for other, text in fields if other == name] for name, _ in fields}
    assert {name: value if isinstance(value, list) else [value] for name, value in found.items()} == said


def leg(body: bytes, boundary: bytes = b"b", side: str = "legacy") -> Leg:
    field = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
    return Leg(side, 1000.0, 0.01, 200, field, body.replace(b"--b", b"--" + boundary))


def test_another_boundary_is_no_difference_and_another_part_is_one_with_a_place() -> None:
    one = named("user", b"ada") + named("note", b"hello") + b"--b--"
    other = one.replace(b"hello", b"goodbye")
    alike = shown(leg(one), leg(one, b"another", "new"))
    assert not compare(alike.legacy, alike.new).differences
    apart = shown(leg(one), leg(other, b"another", "new"))
    found = compare(apart.legacy, apart.new).differences
    assert [(each.path, each.legacy, each.new) for each in found] == [("$.note", "hello", "goodbye")]


def test_one_that_cannot_be_read_is_compared_by_its_hash() -> None:
    found = shown(leg(named("user", b"ada")))
    assert (found.legacy.body.kind, found.legacy.body.trouble) == (Kind.BINARY, "cut_multipart")
    assert not compare(found.legacy, found.new).differences
