"""`migration.py`: loaded by its path, whole or with one line that says where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfade import Answer, Project, Request
from crossfade.settings import check
from crossfade.users_code import UsersCodeError, check_names, read
from crossfade.users_code import load as load_text
from flags.model import AdapterUse, Route, Side
from tests.settings.test_bad_files import TARGETS

GOOD = """\
from dataclasses import dataclass

from crossfade import Answer, Project, Request


@dataclass
class Tagging:
    tag: str

    def request(self, request: Request) -> Request:
        return request.with_header("X-Tag", self.tag)

    def answer(self, answer: Answer, request: Request) -> Answer:
        return answer


project = Project(adapters={"tag": Tagging("one")}, attributes=lambda request: {"a": "b"})
"""


def load(path: Path) -> Project:
    return load_text(path, read(path))


def written(folder: Path, text: str) -> Path:
    path = folder / "migration.py"
    path.write_text(text)
    return path


def test_what_the_file_says_is_what_is_used(tmp_path: Path) -> None:
    project = load(written(tmp_path, GOOD))
    asked = project.adapters["tag"].request(Request("GET", "/"))
    assert asked == Request("GET", "/", headers=(("X-Tag", "one"),))
    assert project.adapters["tag"].answer(Answer(200), asked) == Answer(200)
    assert project.attributes is not None
    assert project.attributes(asked) == {"a": "b"}


def test_a_file_that_has_changed_is_loaded_anew(tmp_path: Path) -> None:
    load(written(tmp_path, GOOD))
    project = load(written(tmp_path, GOOD.replace('"one"', '"another"')))
    assert project.adapters["tag"].request(Request("GET", "/")).header("x-tag") == "another"


def test_a_file_may_use_another_beside_it(tmp_path: Path) -> None:
    (tmp_path / "shop_words_of_this_test.py").write_text("WORD = 'beside'\n")
    text = "from shop_words_of_this_test import WORD\n" + GOOD.replace('"one"', "WORD")
    project = load(written(tmp_path, text))
    assert project.adapters["tag"].request(Request("GET", "/")).header("x-tag") == "beside"


@pytest.mark.parametrize(("text", "says"), [
    ("import json\n\nx = (", ":3: SyntaxError: '(' was never closed"),
    ("x = 1\ny = x / 0\n", ":2: ZeroDivisionError: division by zero"),
    ("import no_such_package_at_all\n", ":1: ModuleNotFoundError: No module named 'no_such_package_at_all'"),
    ("import sys\nsys.exit('enough')\n", ":2: SystemExit: enough"),
    ("", ": expected project = crossfade.Project(...), found nothing"),
    ("project = {}\n", ": expected project = crossfade.Project(...), found a dict"),
    ("from crossfade import Project\nproject = Project(adapters={'a': 3})\n",
     ": the adapter a has no function request"),
    ("from crossfade import Project\nproject = Project(attributes={})\n",
     ": attributes must be a function, not a dict"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsersCodeError) as caught:
        load(path)
    assert str(caught.value) == f"{path}{says}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsersCodeError, match="No such file"):
        load(tmp_path / "migration.py")


def test_names_must_be_there_and_once(tmp_path: Path) -> None:
    path = tmp_path / "migration.py"
    project = load(written(tmp_path, GOOD))
    routes = [Route("items", "/a", adapters=(AdapterUse(Side.NEW, "tag"), AdapterUse(Side.LEGACY, "other")))]
    check_names(project, ["other"], routes, path)
    with pytest.raises(UsersCodeError, match="a route of items names the adapter other; there is tag"):
        check_names(project, [], routes, path)
    with pytest.raises(UsersCodeError, match="the adapter tag is declared in adapters: too"):
        check_names(project, ["tag"], [], path)
    check_names(Project(), [], [], path)


def test_check_runs_the_file_and_names_the_key(tmp_path: Path) -> None:
    config = tmp_path / "crossfade.yaml"
    config.write_text(TARGETS + "code: migration.py\n")
    path = written(tmp_path, "raise OSError('out of paper')\n")
    report = check(config, {})
    assert report.exit_code == 2
    assert [str(problem) for problem in report.problems] == [
        f"{config}:4: code: found {path}:1: OSError: out of paper; expected a file that can be used"
    ]
    written(tmp_path, GOOD)
    assert check(config, {}).problems == ()
