"""Read a YAML file into plain values that remember where they stand in it.

YAML is composed, not loaded: the nodes carry line and column, which every later complaint needs,
and composing runs no code. What YAML 1.1 would quietly turn into something else (`1:30` into 90,
`010` into 8, `2024-01-01` into a date) stays text, so that it is refused with the words that were
written.

`${NAME}` in a value stands for an environment variable, `file:/path` as a whole value for the
content of a file. What comes in that way is presumed secret: it is marked `Substituted`, and
complaints show the reference, never the content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

Loc = tuple[str | int, ...]
"""A way into the document: keys and list positions, as pydantic gives them."""

_REFERENCE = re.compile(r"(\$?)\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_FILE_BYTES = 65_536
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+")
_USERINFO = re.compile(r"//[^/\s]*@")
_CREDENTIAL = re.compile(r"(?i)((?:pass|pw|secret|token|key)[a-z_]*=)[^&;\s]*")
_HINTS = (
    ("'\\t'", "expected spaces, not tabs, for indentation"),
    ("mapping values are not allowed", 'expected one "key: value" a line, and quotes around text with ": "'),
    ("could not find expected ':'", 'expected "key: value"'),
    ("expected <block end>", "expected the keys of one mapping to start in one column"),
    ("undefined alias", 'expected quotes around text that starts with "*"'),
    ("another document", "expected one document in the file"),
    ("but got '{'", 'expected quotes around "${NAME}" where it stands within braces or brackets'),
    ("unexpected end of stream", "expected a closing quote"),
    ("<stream end>", "expected a closing bracket or brace"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one place: where, what was found, and what would be right."""

    file: str
    line: int | None
    column: int | None
    field: str
    """Such as `routes[2].match.path`; empty when the file as a whole is meant."""
    found: str
    right: str
    """A clause: "expected …" or "did you mean …?"."""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.field + ': ' if self.field else ''}found {self.found}; {self.right}"


class Substituted(str):
    """Text that came from the environment or another file; `written` is the reference to it."""

    __slots__ = ("written",)

    written: str

    def __new__(cls, content: str, written: str) -> Substituted:
        text = super().__new__(cls, content)
        text.written = written
        return text


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column, counted from 1."""

    line: int
    column: int


@dataclass(slots=True, eq=False)
class Entry:
    """One value of the document, plain, with its place."""

    place: Place
    value: object
    children: dict[str | int, Entry] = field(default_factory=dict)
    keys: dict[str | int, Place] = field(default_factory=dict)
    """Where the names of the children stand."""
    faulty: bool = False
    """Something was wrong here already; whatever else may follow from it is not worth a line."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read: its values, its places, and what was wrong with it on this level."""

    file: str
    root: Entry
    problems: tuple[Problem, ...]
    readable: bool = True
    """False when there is nothing to look at beyond `problems`."""

    def problem(self, loc: Loc, found: str | None, right: str) -> Problem | None:
        """What is wrong at `loc`; None when that place has been complained about already.

        `found` None shows the value that stands there.
        """
        entry, place = self.root, self.root.place
        reached: Loc = ()
        for part in loc:
            if isinstance(part, int) and part not in entry.children:
                break  # one value given where a list may stand: it is named without a position
            reached += (part,)
            if part not in entry.children:
                return Problem(self.file, place.line, place.column, spell(loc), found or "nothing", right)
            parent, entry = entry, entry.children[part]
            if entry.faulty:
                return None
            place = parent.keys.get(part, entry.place) if entry.children else entry.place
        return Problem(self.file, place.line, place.column, spell(reached), found or show(entry.value), right)

    def unknown_key(self, loc: Loc, right: str) -> Problem | None:
        """A key that stands at `loc` and means nothing."""
        problem = self.problem(loc, "an unknown key", right)
        if problem is None:
            return None
        entry = self.root
        for part in loc[:-1]:
            entry = entry.children[part]
        place = entry.keys.get(loc[-1], entry.place)
        return Problem(self.file, place.line, place.column, problem.field, problem.found, right)

    def where(self, loc: Loc) -> str:
        """`file:line: field` of what stands at `loc`, or of its nearest parent."""
        problem = self.problem(loc, "", "")
        return (
            f"{self.file}: {spell(loc)}" if problem is None else f"{self.file}:{problem.line}: {spell(loc)}"
        )


def read_document(path: Path, environ: Mapping[str, str] | None) -> Document:
    """Read `path`. Never raises for what stands in the file: that is in `problems`.

    With `environ` None, text stays as it is written: neither variables nor files are put in its place.
    """
    file = str(path)
    nothing = Entry(Place(1, 1), {})

    def unreadable(line: int | None, column: int | None, found: str, right: str) -> Document:
        return Document(file, nothing, (Problem(file, line, column, "", found, right),), readable=False)

    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        return unreadable(None, None, f"no readable file ({_cause(error)})", "expected a YAML file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return unreadable(line, None, "bytes that are not UTF-8", "expected UTF-8 text")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return Document(file, nothing, ())
        reading = _Reading(file, path.parent, environ)
        root = reading.entry(node, ())
    except yaml.MarkedYAMLError as error:
        # An open quote is better shown where it opens than where the file ends.
        at_end = error.problem_mark is None or "end of stream" in str(error.problem)
        mark = (error.context_mark if at_end else None) or error.problem_mark
        found = f"invalid YAML ({error.problem or error.context})"
        right = next((hint for sign, hint in _HINTS if sign in found), "expected valid YAML")
        return unreadable(mark.line + 1 if mark else None, mark.column + 1 if mark else None, found, right)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return unreadable(line, None, f"the character #x{error.character:04x}", "expected printable text")
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" is a bare ValueError of chr()
        return unreadable(None, None, f"invalid YAML ({_cause(error)})", "expected valid YAML")
    except RecursionError:
        return unreadable(
            None, None, "lists or mappings nested too deep", "expected the form of docs/configuration.md"
        )
    return Document(file, root, tuple(reading.problems))


def spell(loc: Loc) -> str:
    """`("routes", 2, "match")` as `routes[2].match`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return _printable(text)


def show(value: object) -> str:
    """`value` as complaints quote it: without secrets, on one line, not without end."""
    if isinstance(value, Substituted):
        return f'"{_printable(value.written)}" (its content is not shown)'
    if isinstance(value, str):
        return f'"{_printable(mask(value))}"'
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return (
        _printable(json.dumps(value))
        if not isinstance(value, int) or abs(value) < 10**30
        else "a huge number"
    )


def mask(text: str) -> str:
    """`text` without what stands in the places where URLs carry credentials."""
    return _CREDENTIAL.sub(r"\1***", _USERINFO.sub("//***@", text))


class _Reading:
    """One pass over the nodes of one file."""

    def __init__(self, file: str, directory: Path, environ: Mapping[str, str] | None) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._directory = directory
        self._environ = environ
        self._done: dict[int, Entry] = {}
        self._open: set[int] = set()

    def entry(self, node: yaml.Node, loc: Loc) -> Entry:
        if (done := self._done.get(id(node))) is not None:
            return done  # an alias; reading it once also keeps a bomb of aliases small
        place = _place(node)
        if id(node) in self._open:
            self._report(
                place, loc, "an alias to what contains it", "expected an alias to something before it"
            )
            return Entry(place, None, faulty=True)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            entry = self._mapping(node, place, loc)
        elif isinstance(node, yaml.SequenceNode):
            items: dict[str | int, Entry] = {
                i: self.entry(item, (*loc, i)) for i, item in enumerate(node.value)
            }
            entry = Entry(place, [item.value for item in items.values()], items)
        else:
            entry = self._scalar(node, place, loc)
        self._open.discard(id(node))
        if not (isinstance(node, yaml.ScalarNode) or node.tag in _CONTAINERS):
            self._report(place, loc, f"the tag {node.tag}", "expected no tag")
            entry.faulty = True
        self._done[id(node)] = entry
        return entry

    def _mapping(self, node: yaml.MappingNode, place: Place, loc: Loc) -> Entry:
        entry = Entry(place, {})
        merged: list[Entry] = []
        for key_node, value_node in node.value:
            at = _place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(at, loc, "a list or mapping as a key", "expected plain text before the colon")
                continue
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged += self._merged(value_node, at, loc)
                continue
            key = str(key_node.value)
            if key in entry.children:
                first = entry.keys[key].line
                found = f"the key a second time (first on line {first})"
                self._report(at, (*loc, key), found, "expected every key once")
                continue
            entry.children[key] = self.entry(value_node, (*loc, key))
            entry.keys[key] = at
        for other in merged:
            for name, child in other.children.items():
                entry.children.setdefault(name, child)
                entry.keys.setdefault(name, other.keys[name])
        entry.value = {name: child.value for name, child in entry.children.items()}
        return entry

    def _merged(self, node: yaml.Node, at: Place, loc: Loc) -> list[Entry]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(source, yaml.MappingNode) for source in sources):
            self._report(at, (*loc, "<<"), "no mapping to merge", "expected an alias of a mapping")
            return []
        return [self.entry(source, (*loc, "<<")) for source in sources]

    def _scalar(self, node: yaml.Node, place: Place, loc: Loc) -> Entry:
        text = str(node.value)
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        plain: object = text
        match kind:
            case "null":
                plain = None
            case "bool":
                plain = yaml.SafeLoader.bool_values.get(text.lower(), text)
            case "int" if _INTEGER.fullmatch(text) and len(text) < 100:
                plain = int(text.replace("_", ""), 0)
            case "float" if ":" not in text and not text.endswith("_"):
                plain = _float(text)
            case "str" | "int" | "float" | "timestamp" | "value" | "merge":
                pass
            case _:
                self._report(place, loc, f"the tag {_printable(node.tag)}", "expected no tag")
                return Entry(place, None, faulty=True)
        if not isinstance(plain, str) or self._environ is None:
            return Entry(place, plain)
        if plain.startswith("file:"):
            return self._from_file(plain, place, loc)
        if "${" in plain:
            return self._from_environment(plain, self._environ, place, loc)
        return Entry(place, plain)

    def _from_environment(self, text: str, environ: Mapping[str, str], place: Place, loc: Loc) -> Entry:
        wrong: list[tuple[str, str]] = []

        def content(reference: re.Match[str]) -> str:
            escaped, name, closed = reference.groups()
            if escaped:
                return reference[0][1:]  # $${NAME} writes ${NAME}
            if not closed or not _VARIABLE.fullmatch(name):
                wrong.append((show(reference[0]), 'expected "${NAME}"'))
            elif name not in environ:
                wrong.append((show(reference[0]), f"expected {name} to be set in the environment"))
            return environ.get(name, "")

        replaced = _REFERENCE.sub(content, text)
        for found, right in wrong:
            self._report(place, loc, found, right)
        return Entry(place, Substituted(replaced, text), faulty=bool(wrong))

    def _from_file(self, text: str, place: Place, loc: Loc) -> Entry:
        try:
            source = self._directory / text.removeprefix("file:")
            if source.exists() and not source.is_file():
                raise OSError("not a regular file")
            with source.open("rb") as opened:
                raw = opened.read(_SECRET_FILE_BYTES + 1)
            if len(raw) > _SECRET_FILE_BYTES:
                raise OSError(f"more than {_SECRET_FILE_BYTES} bytes")
            return Entry(place, Substituted(raw.decode().rstrip("\r\n"), text))
        except (OSError, ValueError) as error:
            self._report(place, loc, f"{show(text)} ({_cause(error)})", "expected a readable text file")
            return Entry(place, Substituted("", text), faulty=True)

    def _report(self, place: Place, loc: Loc, found: str, right: str) -> None:
        self.problems.append(Problem(self._file, place.line, place.column, spell(loc), found, right))


_CONTAINERS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _float(text: str) -> float | str:
    if text.lower().lstrip("+-") in {".inf", ".nan"}:
        return float(text.lower().replace(".", "", 1))
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return text


def _cause(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _printable(str(error))


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
