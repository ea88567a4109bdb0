"""The tree of routes gives the answer that trying every route in order would give, at the cost of one."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.paths import equivalent_path
from flags.match import InvalidRouteError, Matcher
from flags.model import Route

settings.register_profile("flags", derandomize=True, deadline=None, max_examples=300)


def naive(routes: list[Route], method: str, host: str, path: str) -> int | None:
    """Try every route in the order in which they were written. `path` is in its equivalent form."""
    for order, route in enumerate(routes):
        if route.methods and method not in route.methods:
            continue
        if route.host is not None:
            name = re.sub(r":[0-9]*\Z", "", host.lower()).removesuffix(".")
            wanted = route.host.lower()
            if not (name.endswith(wanted[1:]) if wanted.startswith("*.") else name == wanted):
                continue
        pattern = ""
        for segment in route.path[1:].split("/"):
            if segment == "**":
                pattern += "(/.*)?"
            elif segment.startswith("{"):
                pattern += "/[^/]+"
            else:
                pattern += "/" + re.escape(segment)
        if re.fullmatch(pattern, path, re.DOTALL) or (route.path == "/**" and path.startswith("/")):
            return order
    return None


words = st.sampled_from(["a", "b", "items", "", "~x"])
template_segments = words | st.sampled_from(["{id}", "{x}"])


@st.composite
def routes(draw: st.DrawFn) -> Route:
    segments = draw(st.lists(template_segments, max_size=4))
    if draw(st.booleans()):
        segments.append("**")
    return Route(
        flag="f",
        path="/" + "/".join(segments),
        methods=frozenset(draw(st.lists(st.sampled_from(["GET", "POST", "get"]), max_size=2))),
        host=draw(st.sampled_from([None, None, None, "a.test", "*.a.test", "A.Test", "[::1]"])),
    )


paths = st.lists(words | st.sampled_from(["7", "{id}", "**", "*"]), min_size=1, max_size=5).map(
    lambda segments: "/" + "/".join(segments)
)
hosts = st.sampled_from(
    [
        "a.test",
        "A.TEST:80",
        "a.test.",
        "X.a.test.:80",
        "x.a.test",
        "y.x.a.test:1",
        "xa.test",
        ".a.test",
        "",
        "[::1]:8",
        "[::1]",
    ]
)


@settings(settings.get_profile("flags"))
@given(st.lists(routes(), max_size=8), st.sampled_from(["GET", "POST", "get", "PUT"]), hosts, paths)
@example([Route("f", "/{a}/b"), Route("f", "/a/**")], "GET", "", "/a/b")
@example([Route("f", "/a/c"), Route("f", "/{a}/b")], "GET", "", "/a/b")
def test_the_tree_agrees_with_trying_every_route(
    given_routes: list[Route], method: str, host: str, path: str
) -> None:
    tree = Matcher(given_routes)
    assert tree.match(method.encode(), host.encode(), path.encode()) == naive(
        given_routes, method, host, path
    )


@pytest.mark.parametrize(
    "other",
    [
        "/items/%7e", "/items/%7E", "/./items/~", "/x/../items/~", "/%69tems/~", "/items/./~",
        "/items/a/%2e%2E/~",
        "/../items/~", "/%2e/items/~", "/x/%2e./items/~",
    ],
)  # fmt: skip
def test_equivalent_paths_are_one_path(other: str) -> None:
    tree = Matcher([Route("f", "/items/~"), Route("rest", "/**")])
    assert tree.match(b"GET", b"", other.encode()) == 0


@pytest.mark.parametrize(
    "other", ["/items%2F~", "/Items/~", "//items/~", "/items/~/", "/items/%257E", "/items/~%00"]
)
def test_different_paths_stay_different(other: str) -> None:
    tree = Matcher([Route("f", "/items/~"), Route("rest", "/**")])
    assert tree.match(b"GET", b"", other.encode()) == 1


def test_a_letter_beyond_ascii_matches_in_either_spelling() -> None:
    for template in ("/café/**", "/caf%c3%a9/**"):
        tree = Matcher([Route("f", template), Route("rest", "/**")])
        for path in ("/café/x".encode(), b"/caf%C3%A9/x", b"/caf%c3%a9/x", b"/caf\xc3%A9"):
            assert tree.match(b"GET", b"", path) == 0, (template, path)


@given(
    st.lists(st.sampled_from(["a", ".", "..", "%2e", "%2E.", "%7e", "%2f", "", "é", "%c3%a9"]), max_size=7)
)
def test_the_equivalent_form_is_its_own_and_has_no_dots(segments: list[str]) -> None:
    form = equivalent_path(("/" + "/".join(segments)).encode())
    assert equivalent_path(form) == form
    assert form.startswith(b"/")
    assert not {b".", b".."} & set(form.split(b"/"))


@pytest.mark.parametrize(
    "path", ["", "items", "/a/**/b", "/a*", "/{id", "/{}", "/{1}", "/a{b}", "/a b", "/a?b", "/a#b"]
)
def test_templates_that_cannot_be_compiled(path: str) -> None:
    with pytest.raises(InvalidRouteError):
        Matcher([Route("f", path)])


@pytest.mark.parametrize("host", ["", "a.test:80", "*", "*a.test", "a..*", "a/b", "a b", "-a"])
def test_hosts_that_cannot_be_compiled(host: str) -> None:
    with pytest.raises(InvalidRouteError):
        Matcher([Route("f", "/", host=host)])


def test_many_routes_cost_nearly_what_one_costs() -> None:
    counts = (1, 200)
    trees = {
        count: Matcher([Route("f", f"/api/kind{n}/{{id}}/part{n}") for n in range(count)]) for count in counts
    }
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(20):  # alternately, so that a slow moment hits both
        for count, tree in trees.items():
            path = b"/api/kind%d/77/part%d" % (count - 1, count - 1)
            began = time.thread_time()
            for _ in range(200):
                tree.match(b"GET", b"a.test", path)
            best[count] = min(best[count], time.thread_time() - began)
    one, many = best.values()
    assert many < 2 * one, f"200 routes cost {many / one:.1f} times one"


def test_hostile_paths_do_not_explode() -> None:
    templates = [
        f"/{'/'.join(parts)}" for parts in (["a"] * n + ["{x}"] * (12 - n) + ["z"] for n in range(13))
    ]
    tree = Matcher([Route("f", template) for template in templates])

    def seconds(length: int) -> float:
        began = time.thread_time()
        assert tree.match(b"GET", b"", b"/a" * length) is None
        return time.thread_time() - began

    best = [min(seconds(length) for _ in range(5)) for length in (500, 5_000)]
    for short, long in pairwise(best):
        assert long < 40 * short + 0.002
