"""A report as people read it: whole, escaped, and the same facts in each form."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from shadow.exhibit import Body, Kind
from shadow.explain import explained
from shadow.report import as_html, as_markdown

CATEGORY = {
    "id": "abc", "path": "$.price", "kind": "value", "count": 7, "mark": "open", "mark_reason": "",
    "ruled": "",
}  # fmt: skip
ANSWER = {
    "status": 200,
    "seconds": 0.01,
    "trouble": "",
    "body": {"kind": "json", "text": '{"a": "<b>"}', "length": 9, "trouble": ""},
}
ROUTE: dict[str, Any] = {
    "flag": "items", "route": "/items/{id}", "readiness": "not_ready",
    "reasons": ["$.price differs (value), 7 times"],
    "pairs": 1200, "equal": 1000, "unequal": 200, "inspected": 50, "drawn": 12, "upper_bound": 0.0123,
    "verdicts": {"diff": 7, "noise": 43}, "methods": {"GET": 1200}, "statuses": {"200": 1190, "404": 10},
    "latency": {"legacy": [0, 900, 300, 0], "new": [0, 100, 1000, 100]},
    "open": [CATEGORY], "noise": [], "accepted": [{**CATEGORY, "mark": "accepted", "mark_reason": "a | b"}],
    "example": {
        "exhibit": {"asked": {"method": "GET", "target": "/items/1?<x>"}, "legacy": ANSWER, "new": ANSWER},
        "differences": [{"path": "$.price", "kind": "value", "legacy": "1|`2", "new": "<script>x</script>"}],
        "explanation": "",
    },
}  # fmt: skip
REPORT: dict[str, Any] = {
    "made_at": "2026-11-24T00:00:00+00:00", "hours": 24.0, "flag": None, "rate": 0.001, "wanted_pairs": 1000,
    "alpha": 0.05, "ready": False, "routes": [ROUTE], "skipped": {"items": {"unsafe_method": 3}},
    "expired_rules": ["old"], "digest": "d" * 64, "not_in_document": 12,
    "coverage": [
        {"method": "GET", "path": "/items/{id}", "flag": "items", "route": "/items/{id}", "pairs": 1188},
        {"method": "POST", "path": "/<x>", "flag": "", "route": "", "pairs": 0},
    ],
}  # fmt: skip


class Balanced(HTMLParser):
    """Knows whether every element is closed."""

    VOID = {"meta", "rect", "br"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_escaped() -> None:
    page = as_html(REPORT)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page), "it needs nothing else"
    for words in (
        "NOT READY", "0 of 1 routes are ready", "$.price differs", "1,200 pairs", "unsafe_method 3", "1.230%",
        "the rule old has expired", "a | b", "d" * 64, "prefers-color-scheme: dark", "@media print",
    ):  # fmt: skip
        assert words in page
    assert "legacy p50 at most" in page


def test_markdown_for_a_pull_request() -> None:
    text = as_markdown(REPORT)
    assert (
        "| `/items/{id}` | items | NOT READY | 1,200 | 1.230% | 1 | $.price differs (value), 7 times |"
        in text
    )
    assert "1\\|'2" in text, "neither a bar nor a backtick may end a cell"
    assert "not mirrored, items: unsafe_method 3" in text


def test_what_came_up_is_shown_because_the_rest_was_not_compared() -> None:
    assert "Seen: GET 1,200; legacy answered 200 1,190, 404 10." in as_html(REPORT)
    nothing = {**ROUTE, "methods": {}, "statuses": {}}
    assert "Seen: nothing." in as_html({**REPORT, "routes": [nothing]})


def test_operations_that_nobody_asked_are_named() -> None:
    page, text = as_html(REPORT), as_markdown(REPORT)
    said = (
        "1 of the 2 operations of the OpenAPI document were compared. 12 pairs are of requests that it does"
    )
    assert said in page
    assert said in text
    assert "- never compared: `POST /<x>` (no route)" in text
    assert page.index("POST /&lt;x&gt;") < page.index("GET /items/{id}</code></td><td>items")
    without = {**REPORT, "coverage": [], "not_in_document": 0}
    assert "OpenAPI" not in as_html(without) + as_markdown(without)


def test_nothing_compared_is_nothing_ready() -> None:
    empty = {**REPORT, "routes": [], "skipped": {}, "expired_rules": []}
    assert "Nothing was compared, so nothing is ready." in as_html(empty)
    assert "Nothing was compared" in as_markdown(empty)


def test_a_ready_report_says_so() -> None:
    ready = {**ROUTE, "readiness": "ready", "reasons": [], "open": [], "example": None, "latency": {}}
    assert "All 1 routes are ready." in as_markdown({**REPORT, "ready": True, "routes": [ready]})


def test_deepdiff_explains_what_is_left() -> None:
    one = Body(Kind.JSON, '{"items": [{"price": 1.50}], "a": 1}')
    other = Body(Kind.JSON, '{"items": [{"price": 1.75}], "b": 1}')
    said = explained(one, other)
    assert "price" in said
    assert "1.75" in said
    assert explained(one, Body(Kind.TEXT, "x")) == ""
    assert explained(one, Body(Kind.JSON, "{")) == ""
    assert explained(Body(Kind.JSON, "[" * 150 + "]" * 150), one) is not None
