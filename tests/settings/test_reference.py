"""`docs/configuration.md` names every key with its default, and its example is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from crossfade.settings import load
from crossfade.settings_form import Address, FileForm, Section, section_in

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
WITHOUT_A_FIXED_DEFAULT = {"workers", "target"}


def leaves(form: type[Section], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key that holds no section, with its default."""
    for name, field in form.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field.default


def row_of(key: str) -> str:
    """The table row of a key: under the heading of its section, or with its whole name at the top level."""
    first, *rest_of_key = key.split(".")
    for heading in (first, ".".join([first, *rest_of_key[:1]])):
        chapter = re.search(rf"^## .*`{re.escape(heading)}`.*\n((?:(?!^## ).*\n)*)", TEXT, re.MULTILINE)
        rest = key.removeprefix(heading + ".")
        if chapter and (row := re.search(rf"^\|[^|]*`{re.escape(rest)}`.*$", chapter[1], re.MULTILINE)):
            return row[0]
    row = re.search(rf"^\|[^|]*`{re.escape(key)}`.*$", TEXT, re.MULTILINE)
    assert row, f"no row for {key}"
    return row[0]


@pytest.mark.parametrize(("key", "default"), [*leaves(FileForm)], ids=lambda value: str(value)[:40])
def test_every_key_is_described_with_its_default(key: str, default: object) -> None:
    row = row_of(key)
    if default in (None, PydanticUndefined) or key in WITHOUT_A_FIXED_DEFAULT:
        return
    if isinstance(default, list | dict):
        default = default[0] if default else "none"
    if isinstance(default, bool | Address):
        default = str(default).lower()
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    cells = [cell.strip(' `"') for cell in row.split("|")]
    assert str(default) in cells, f"{default} in {row}"


def test_the_example_is_accepted(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "crossfade.yaml"
    path.write_text(example)
    settings = load(path, {})
    assert [route.flag for route in settings.routes] == ["items.read", "items.write"]
    assert settings.warnings == ()
