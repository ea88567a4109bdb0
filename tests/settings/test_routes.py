"""A route that is never reached is noticed, and none that is reached is called unreached."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfade.settings import load
from crossfade.settings_routes import covers
from flags.match import Matcher
from flags.model import Route
from tests.settings.test_bad_files import TARGETS


def route(text: str) -> Route:
    """`GET,HEAD /path @host` as a route; `*` is any method, no `@host` any host."""
    methods, path, *host = text.split()
    names = frozenset() if methods == "*" else frozenset(methods.split(","))
    return Route("f", path, names, host[0][1:] if host else None)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("* /**", "GET /a/{id} @x"),
        ("* /api/**", "* /api"),
        ("* /api/**", "* /api/"),
        ("* /api/**", "* /api/items/**"),
        ("* /{a}/**", "* /b/{c}/**"),
        ("GET,HEAD /a", "GET /a"),
        ("* /{any}", "* /a"),
        ("* /{any}", "* /{other}"),
        ("* /a @*.x", "* /a @b.x"),
        ("* /a @*.x", "* /a @*.B.X"),
        ("* /%7euser", "* /~user"),
    ],
)
def test_what_covers(wide: str, narrow: str) -> None:
    assert covers(route(wide), route(narrow))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("GET /a", "* /a"),
        ("GET /a", "GET,HEAD /a"),
        ("* /a", "* /{any}"),
        ("* /{any}", "* /"),
        ("* /{any}", "* /**"),
        ("* /{any}/**", "* /**"),
        ("* /a/b", "* /a"),
        ("* /a @x", "* /a"),
        ("* /a @*.x", "* /a @x"),
        ("* /a @x", "* /a @*.x"),
    ],
)
def test_what_does_not_cover(wide: str, narrow: str) -> None:
    assert not covers(route(wide), route(narrow))


SEGMENTS = st.sampled_from(["a", "b", "", "{x}", "~", "%7E"])
ROUTES = st.builds(
    lambda segments, rest, methods, host: Route("f", "/" + "/".join([*segments, *rest]), methods, host),
    st.lists(SEGMENTS, min_size=1, max_size=3),
    st.sampled_from([[], ["**"]]),
    st.frozensets(st.sampled_from(["GET", "PUT"]), max_size=2),
    st.sampled_from([None, "x", "b.x", "*.x", "*.b.x"]),
)
REQUESTS = [
    (method, host, "/" + path)
    for method in (b"GET", b"PUT", b"POST")
    for host in (b"x", b"b.x:80", b"c.b.x", b"y", b"")
    for path in ["", *(f"{a}{b}" for a in ("a", "b", "~", "z", "") for b in ("", "/", "/a", "/a/b/c", "//b"))]
]


@given(ROUTES, ROUTES)
@settings(max_examples=400, deadline=None)
def test_a_covered_route_never_gets_a_request(wide: Route, narrow: Route) -> None:
    if covers(wide, narrow):
        both = Matcher([wide, narrow])
        assert all(both.match(method, host, path.encode()) != 1 for method, host, path in REQUESTS)


def test_warnings_name_both_routes(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(
        TARGETS
        + """\
routes:
  - {flag: api, match: {path: "/api/**"}}
  - {flag: items.read, match: {methods: [GET], path: "/api/items/{id}"}}
  - {flag: api, match: {path: "/v2/**"}, target: new}
"""
    )
    assert load(path, {}).warnings == (
        f"{path}:6: routes[1]: never reached; "
        "routes[0] (flag api) comes first and matches all of its requests",
        f"{path}:7: routes[2].target: new, but routes[0] of the same flag api has legacy; "
        "one flag will mean one side",
    )
