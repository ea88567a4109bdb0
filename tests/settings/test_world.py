"""What is said of certificates, which must serve, and of what may be in doubt: folders, ports, targets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from crossfade.settings import CheckReport, SettingsError, check, load_to_run


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who listens, as a target or in our place."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a certificate, its key, and another key."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("other").private_key_pem.write_to_path(tmp_path / "other.pem")
    return tmp_path


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return port_of(sock)


class World:
    """A configuration whose targets answer and whose ports are free, unless a line says otherwise."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self.path = folder / "crossfade.yaml"
        self.url = f"http://127.0.0.1:{port_of(listener)}"

    def warnings(self, more: str = "", *, new: str | None = None) -> list[str]:
        """Warnings about the file with `more` as its lines from 6 on, without the file's name."""
        report = self.report(more, new=new)
        assert (report.problems, report.exit_code) == ((), 0)
        assert report.settings is not None
        load_to_run(self.path, {})
        return [warning.removeprefix(str(self.path)) for warning in report.warnings]

    def problem(self, more: str = "", *, new: str | None = None) -> str:
        """The only problem, in the same form; who wants to run the file is told the same."""
        report = self.report(more, new=new)
        assert (report.settings, report.exit_code) == (None, 2)
        (problem,) = report.problems
        with pytest.raises(SettingsError, match=re.escape(str(problem))):
            load_to_run(self.path, {})
        return str(problem).removeprefix(str(self.path))

    def report(self, more: str, *, new: str | None) -> CheckReport:
        self.path.write_text(
            f"listen: 127.0.0.1:{free_port()}\n"
            f"admin: {{listen: 127.0.0.1:{free_port()}}}\n"
            "targets:\n"
            f'  legacy: {{url: "{self.url}"}}\n'
            f"  new: {new or '{url: ' + self.url + '}'}\n" + more
        )
        return check(self.path, {})


@pytest.fixture
def world(folder: Path, listener: socket.socket) -> World:
    return World(folder, listener)


def test_a_world_in_order_gives_no_warning(world: World, folder: Path) -> None:
    (folder / "logs").mkdir()
    assert world.warnings("tls: {cert: cert.pem, key: key.pem}\naccess_log: {path: logs/a.log}\n") == []
    assert not (folder / ".crossfade").exists()


def test_problems_come_before_any_look_at_the_world(folder: Path) -> None:
    path = folder / "crossfade.yaml"
    path.write_text("workers: 0\n")
    report = check(path, {})
    assert (len(report.problems), report.warnings, report.settings, report.exit_code) == (3, (), None, 2)


def test_a_cutover_of_tables_that_nobody_carries_is_a_problem(world: World, folder: Path) -> None:
    (folder / "migration.py").write_text(
        "from crossfade import Project, Table\n"
        "project = Project(tables=[Table('users', 'accounts', key=['id'], columns=['id', 'name'])])\n"
    )
    report = world.report(
        "routes: [{flag: shop, match: {path: /}}]\n"
        "code: migration.py\n"
        "data: {legacy: {url: 'postgresql://a/b'}, new: {url: 'postgresql://a/c'}}\n"
        "cutovers: {shop: {flags: [shop], tables: [userz, users]}}\n",
        new=None,
    )
    (problem,) = report.problems
    assert 'cutovers.shop.tables[0]: found "userz"; expected a table that' in str(problem)
    assert "carries to new: public.users" in str(problem)


@pytest.mark.parametrize(
    ("cert", "key", "problem"),
    [
        (
            "none.pem",
            "key.pem",
            ':6: tls.cert: found "{}/none.pem" (No such file or directory); expected a readable file',
        ),
        (
            "cert.pem",
            "none.pem",
            ':6: tls.key: found "{}/none.pem" (No such file or directory); expected a readable file',
        ),
        ("cert.pem", "other.pem", ':6: tls.key: found "{0}/other.pem"; expected the key of {0}/cert.pem'),
        (
            "key.pem",
            "key.pem",
            ':6: tls.cert: found "{0}/key.pem" and "{0}/key.pem"; '
            "expected a certificate and its key in PEM form",
        ),
        (".", "key.pem", ':6: tls.cert: found "{}" (Is a directory); expected a readable file'),
    ],
)
def test_certificates_that_cannot_serve(
    world: World, folder: Path, cert: str, key: str, problem: str
) -> None:
    assert world.problem(f"tls: {{cert: {cert}, key: {key}}}\n") == problem.format(folder)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(world: World, folder: Path) -> None:
    command = ["openssl", "pkey", "-aes128", "-passout", "pass:x", "-in", "key.pem", "-out", "locked.pem"]
    subprocess.run(command, cwd=folder, check=True)
    assert world.problem("tls: {cert: cert.pem, key: locked.pem}\n") == (
        f':6: tls.key: found "{folder}/locked.pem" (encrypted); expected a key without a password'
    )


def test_authorities_of_a_target_that_cannot_be_read(world: World, folder: Path) -> None:
    https = world.url.replace("http:", "https:")
    assert world.warnings(new=f"{{url: {https}, tls: {{ca: ca.pem}}}}") == []
    assert world.problem(new=f"{{url: {https}, tls: {{ca: key.pem}}}}") == (
        f':5: targets.new.tls.ca: found "{folder}/key.pem"; expected certificates in PEM form'
    )
    assert world.problem(new=f"{{url: {https}, tls: {{ca: none.pem}}}}") == (
        f':5: targets.new.tls.ca: found "{folder}/none.pem" (No such file or directory); '
        "expected a readable file"
    )


def test_folders_that_take_no_file(world: World, folder: Path) -> None:
    assert world.warnings("data_dir: key.pem/state\naccess_log: {path: logs/a.log}\n") == [
        f":6: data_dir: cannot write in {folder}/key.pem: Not a directory",
        f":7: access_log.path: cannot write in {folder}/logs: No such file or directory",
    ]


def test_a_folder_of_somebody_else(world: World) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere that takes files at all; the kernel's own tree does not.
        assert world.warnings("data_dir: /proc/crossfade\n") == [
            ":6: data_dir: cannot write in /proc: No such file or directory"
        ]
    else:
        assert world.warnings("data_dir: /etc/crossfade\n") == [
            ":6: data_dir: cannot write in /etc: Permission denied"
        ]


def test_a_port_in_use(world: World, listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = world.path
        path.write_text(
            f"listen: [127.0.0.1:{free_port()}, 127.0.0.1:{port_of(taken)}]\n"
            f"admin: {{listen: 127.0.0.1:{free_port()}}}\n"
            f"targets: {{legacy: {{url: '{world.url}'}}, new: {{url: '{world.url}'}}}}\n"
        )
        assert check(path, {}).warnings == (
            f"{path}:1: listen[1]: cannot listen on 127.0.0.1:{port_of(taken)}: Address already in use "
            "(expected if Crossfade runs already)",
        )


def test_a_target_that_is_not_there(world: World) -> None:
    port = free_port()
    assert world.warnings(new=f"{{url: 'http://127.0.0.1:{port}'}}") == [
        f":5: targets.new.url: cannot connect to 127.0.0.1 port {port}: Connection refused"
    ]


def test_a_target_that_is_silent(world: World) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        with socket.create_connection(deaf.getsockname()):  # the queue is full now
            assert world.warnings(new=f"{{url: 'http://127.0.0.1:{port_of(deaf)}'}}") == [
                f":5: targets.new.url: no answer from 127.0.0.1 port {port_of(deaf)} within 1 s"
            ]
