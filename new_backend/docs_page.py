"""Renders an OpenAPI document as one page of plain HTML: no script, no font, no other server."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem; }
code, .method { font: 14px ui-monospace, monospace; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; }
th, td { border-top: 1px solid var(--line); }
th { font-weight: 600; }
"""


def render(document: dict[str, Any]) -> bytes:
    info = document["info"]
    operations = [
        operation(method.upper(), path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]
    shapes = [shape(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])}: API</title>
<style>{STYLE}</style>
<h1>{escape(info["title"])}</h1>
<p>{escape(info["description"])} The same as <a href="/api/openapi.json">OpenAPI 3.1</a>.</p>
<h2>Operations</h2>
{"".join(operations)}
<h2>Shapes</h2>
{"".join(shapes)}
</html>
"""
    return page.encode()


def operation(method: str, path: str, described: dict[str, Any]) -> str:
    lock = "Needs a token or the session's cookie." if described["security"] else "Open to everybody."
    parameters = [
        (code(parameter["name"]), parameter["in"], kind(parameter["schema"]) + note(parameter))
        for parameter in described["parameters"]
    ]
    if "requestBody" in described:
        parameters.append(("", "body", content(described["requestBody"])))
    answers = [
        (code(status), content(answer), sentence(answer["description"]))
        for status, answer in described["responses"].items()
    ]
    return f"""<details id="{escape(described["operationId"])}">
<summary><span class="method">{method}</span> {code(path)} {escape(described["summary"])}</summary>
<p>{lock}</p>
{table(("Input", "In", "Type"), parameters)}{table(("Status", "Content", "Meaning"), answers)}</details>
"""


def shape(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (code(field), "" if field in required else "optional", kind(described))
        for field, described in schema.get("properties", {}).items()
    ]
    return f"""<details id="shape-{escape(name)}">
<summary>{code(name)} {escape(schema.get("description", ""))}</summary>
{table(("Field", "", "Type"), rows)}</details>
"""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Cells are HTML already."""
    if not rows:
        return ""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{''.join(lines)}</table>\n"


def content(described: dict[str, Any]) -> str:
    return ", ".join(
        kind(described_type["schema"]) if "schema" in described_type else escape(media_type)
        for media_type, described_type in described.get("content", {}).items()
    )


LIMITS = ("minimum", "maximum", "minLength", "maxLength", "maxItems", "format", "pattern", "default")


def kind(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to the shapes it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(kind(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(code(str(value)) for value in schema["enum"])
    if "const" in schema:
        return code(str(schema["const"]))
    words = escape(schema.get("type", "anything"))
    if "items" in schema:
        words += f" of {kind(schema['items'])}"
    limits = [
        f"{name} {code(str(schema[name]))}" for name in LIMITS if schema.get(name) not in (None, "", [])
    ]
    return words + (f" ({', '.join(limits)})" if limits else "")


def note(parameter: dict[str, Any]) -> str:
    return f". {escape(parameter['description'])}" if "description" in parameter else ""


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def sentence(text: str) -> str:
    """Escaped text, in which `backticks` mark code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
