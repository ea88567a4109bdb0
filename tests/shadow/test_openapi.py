"""Which operation of an OpenAPI document a request is."""

from __future__ import annotations

from typing import Any

import pytest

from shadow.openapi import InvalidDocumentError, Operations, example_path, operations

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "servers": [{"url": "https://api.test/v2/"}],
    "paths": {
        "/items/{item-id}": {"parameters": [], "get": {}, "delete": {}},
        "/items/search": {"get": {}},
        "/caf%C3%A9/{from}-{to}.json": {"get": {}},
        "/items": {"get": {}, "post": {}, "x-internal": {}},
    },
}


def test_the_operations_are_those_of_the_document_below_its_server() -> None:
    assert operations(DOCUMENT) == (
        ("GET", "/v2/items/{item-id}"),
        ("DELETE", "/v2/items/{item-id}"),
        ("GET", "/v2/items/search"),
        ("GET", "/v2/caf%C3%A9/{from}-{to}.json"),
        ("GET", "/v2/items"),
        ("POST", "/v2/items"),
    )
    swagger = {"swagger": "2.0", "basePath": "/v1", "paths": {"/a": {"get": {}}}}
    assert operations(swagger) == (("GET", "/v1/a"),)
    assert operations({**swagger, "basePath": "/"}) == (("GET", "/a"),)


@pytest.mark.parametrize(("method", "target", "path"), [
    ("GET", b"/v2/items/7?full=1", "/v2/items/{item-id}"),
    ("GET", b"/v2/items/search", "/v2/items/search"),
    ("DELETE", b"/v2/items/search", "/v2/items/{item-id}"),
    ("GET", b"/v2/items/./7", "/v2/items/{item-id}"),
    ("GET", b"/v2/caf%c3%a9/1-2.json", "/v2/caf%C3%A9/{from}-{to}.json"),
    ("PUT", b"/v2/items", None),
    ("GET", b"/items", None),
    ("GET", b"/v2/items/7/8", None),
])  # fmt: skip
def test_a_request_is_one_operation_or_none(method: str, target: bytes, path: str | None) -> None:
    found = Operations(operations(DOCUMENT)).of(method, target)
    assert found == (None if path is None else (method, path))


def test_every_operation_has_an_example_that_is_it() -> None:
    known = Operations(operations(DOCUMENT))
    for operation in operations(DOCUMENT):
        assert known.of(operation[0], example_path(operation)) == operation


@pytest.mark.parametrize(("document", "says"), [
    (None, "openapi, with its version, is missing"),
    ({"paths": {}}, "openapi, with its version, is missing"),
    ({"openapi": "3.0.0", "paths": []}, "no paths"),
    ({"openapi": "3.0.0", "paths": {"/a": {"x": 1}, "/b": None}}, "no operations"),
    ({"openapi": "3.0.0", "paths": {"a b": {"get": {}}}}, "must start with"),
    ({"openapi": "3.0.0", "paths": {f"/{n}": {"get": {}} for n in range(2001)}}, "at most 2,000"),
])  # fmt: skip
def test_what_is_no_such_document_says_why(document: Any, says: str) -> None:
    with pytest.raises(InvalidDocumentError, match=says):
        operations(document)
