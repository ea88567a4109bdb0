"""Whatever stands in the file: settings, or a `SettingsError` with readable lines. Never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crossfade.orders import orders
from crossfade.settings import SettingsError, load
from tests.settings.test_good_files import EVERYTHING

SECRET = "hunter2"
PIECES = st.sampled_from(
    [
        *(
            ": ",
            "- ",
            "\n",
            "  ",
            "\t",
            "{",
            "}",
            "[",
            "]",
            ",",
            "'",
            '"',
            "#",
            "|",
            ">",
            "&a ",
            "*a",
            "!x ",
            "? ",
        ),
        *(
            "<<: ",
            "---\n",
            "...\n",
            "%YAML 9.9\n",
            "!!set ",
            "!!binary ",
            "0b_",
            "0x_",
            "1:30",
            "1e999",
            ".nan",
        ),
        *("\\UFFFFFFFF", '"\\x9b"', "${", "${A}", "$${A}", "file:", "file:.", "file:/dev/null", "file:\x7f"),
        *(
            "9" * 50,
            "9" * 5000,
            "~",
            "true",
            "2024-13-45",
            "=",
            "\x00",
            "\u2028",
            "\ufeff",
            "é",
            "\U0001f600",
        ),
        *("listen", "routes", "targets", "url", "path", "http://", "postgresql://u:p@h", "**", "{id}", "/"),
    ]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 12), PIECES | st.text(max_size=8)),
    min_size=1,
    max_size=6,
)
QUICK = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "bus").write_text(f"redis://:{SECRET}@h:6379/0\n")
    return tmp_path / "crossfade.yaml"


def read(path: Path, raw: bytes) -> None:
    """The property: a value that workers can be told, or lines that name the file and no secret."""
    path.write_bytes(raw)
    environ = {"PASSWORD": SECRET, "KEYS": SECRET, "SPEAKS_PROXY": "true", "A": SECRET}
    refused: SettingsError | None = None
    try:
        loaded = load(path, environ)
    except SettingsError as error:
        refused = error
    if refused is None:
        wanted = (loaded.proxy, loaded.routes)
        assert orders(1, *wanted).unpack() == wanted
        return
    lines = str(refused).split("\n")
    assert len(lines) == len(refused.problems) > 0
    for line in lines:
        assert line.startswith(str(path))
        assert line.isprintable()
        assert "; expected " in line or "; did you mean " in line
        assert SECRET not in line


def mutated(text: str, edits: list[tuple[float, int, str]]) -> str:
    for where, cut, insert in edits:
        at = int(where * len(text))
        text = text[:at] + insert + text[at + cut :]
    return text


# The literal passwords of the example become references: a text whose place was mutated away from
# its URL is no secret that anybody could recognise.
PUBLIC = EVERYTHING.replace(SECRET, "${PASSWORD}")


@given(EDITS)
@QUICK
def test_a_mutated_file(path: Path, edits: list[tuple[float, int, str]]) -> None:
    read(path, mutated(PUBLIC, edits).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200))
@example(b"\xff\xfea\x00")
@QUICK
def test_bytes_that_are_no_file_of_ours(path: Path, raw: bytes) -> None:
    read(path, raw)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | PIECES
KEYS = st.sampled_from(
    [
        *(
            "listen",
            "admin",
            "workers",
            "store",
            "bus",
            "data_dir",
            "targets",
            "routes",
            "code",
            "data",
            "timeouts",
        ),
        *(
            "limits",
            "forwarding",
            "tls",
            "proxy_protocol",
            "access_log",
            "legacy",
            "new",
            "url",
            "flag",
            "match",
        ),
        *("methods", "path", "host", "target", "header", "pool", "cert", "key", "trusted", "via", "sample"),
    ]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@given(st.dictionaries(KEYS, TREES, max_size=6))
@QUICK
def test_any_tree_of_known_keys(path: Path, tree: dict[str, object]) -> None:
    read(path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))
