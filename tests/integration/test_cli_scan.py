"""`akm keys scan` on real files and real git repositories."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from api_key_manager.core.tokens import mint_secret, mint_token

ROOT = Path(__file__).parents[2]
GIT = shutil.which("git")
needs_git = pytest.mark.skipif(
    GIT is None and os.environ.get("CI") != "true", reason="git is not on PATH"
)


class Scan:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.com",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.com",
        }  # fmt: skip

    def __call__(
        self, *arguments: str | bytes, code: int, stdin: bytes = b"", **more: str
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "api_key_manager", "keys", "scan", *arguments],
            input=stdin, capture_output=True, cwd=self.folder, env={**self.environment, **more},
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done
        assert b"Traceback" not in done.stderr
        return done

    def git(self, *arguments: str) -> bytes:
        return subprocess.run(
            [str(GIT), *arguments], cwd=self.folder, env=self.environment, check=True,
            capture_output=True,
        ).stdout  # fmt: skip

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    folder = tmp_path / "work"
    folder.mkdir()
    return Scan(folder)


def test_says_where_and_what_but_never_the_secret(scan):
    """Path, line, column, kind and id; exit code 1; nothing of the random part in any output."""
    token, secret = mint_token("akm", "client-1"), mint_secret("akm")
    admin = mint_token("akm_admin", "root")
    scan.write("a.env", f"# x\nTOKEN={token}\n")
    scan.write("b/c.bin", b"\0\xff\n\0" + secret.encode() + b"\xff")
    scan.write(f"d-{token}.txt", admin)
    for form in ((), ("--json",)):
        done = scan(".", *form, code=1)
        for shown in (token, secret, admin):
            assert shown[-36:].encode() not in done.stdout + done.stderr
            assert shown[-36:-6].encode() not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    found = [(i["path"], i["line"], i["column"], i["kind"], i["key_id"]) for i in told["found"]]
    assert found == [
        ("./a.env", 2, 7, "bearer", "client-1"),
        ("./d-***REDACTED***.txt", 1, 1, "admin", "root"),
        ("./b/c.bin", 2, 2, "secret", None),
    ]
    assert b"./a.env:2:7: token of the key client-1, akm_client-1_***" in scan(".", code=1).stdout


def test_clean_and_misused(scan):
    """0 when there is nothing, 2 for a wrong call; what was found wins over what was not read."""
    scan.write("a", "nothing")
    assert scan("a", code=0).stdout == b""
    assert b"No such file" in scan("missing", "a", code=2).stderr
    scan.write("b", mint_secret("akm"))
    assert b"missing" in scan("missing", "b", code=1).stderr
    scan(code=2)
    scan("--history", "--staged", code=2)
    scan("--prefix", "akm", "--any-prefix", "a", code=2)
    assert b"prefix" in scan("--prefix", "A", "a", code=2).stderr


def test_prefixes(scan):
    """The environment's TOKEN_PREFIX, further ones by option, or any at all."""
    scan.write("a", mint_secret("acme"))
    scan("a", code=0)
    scan("a", code=1, TOKEN_PREFIX="acme")
    scan("a", "--prefix", "acme", code=1)
    scan("a", "--any-prefix", code=1)


def test_standard_input(scan):
    """By `-`, of any length, to the byte."""
    token = mint_token("akm", "k")
    done = scan("-", code=1, stdin=b"x\n" * 3_000_000 + token.encode())
    assert done.stdout.startswith(b"-:3000001:1: ")


@pytest.mark.skipif(os.name != "posix", reason="links, sockets and modes of POSIX")
def test_links_sockets_and_git_are_passed_over(scan, tmp_path):
    """A link in a folder is not followed, in circles or out; sockets and pipes do not block."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text(mint_secret("akm"))
    scan.write(".git/config", mint_secret("akm"))
    scan.write("sub/.git/x", mint_secret("akm"))
    (scan.folder / "out").symlink_to(outside)
    (scan.folder / "file").symlink_to(outside / "secret")
    (scan.folder / "sub" / "loop").symlink_to(scan.folder)
    (scan.folder / "self").symlink_to("self")
    os.mkfifo(scan.folder / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(scan.folder / "s"))
        assert scan(".", code=0).stderr == b""
    scan("file", code=1)  # named, so meant


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_named(scan):
    """One unreadable file or folder stops nothing else, and ends in 2."""
    scan.write("a", "x").chmod(0)
    scan.write("b/c", "x").parent.chmod(0)
    done = scan(".", code=2)
    assert b"./a: Permission denied" in done.stderr
    assert b"./b: Permission denied" in done.stderr
    (scan.folder / "b").chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_any_bytes(scan):
    """A name that is no UTF-8, or would command a terminal, is printed harmlessly."""
    for name in (b"\xff\xfe", b"a\x1b[2J\nb"):
        with open(os.fsencode(scan.folder) + b"/" + name, "wb") as file:
            file.write(mint_secret("akm").encode())
    done = scan(".", code=1)
    assert b"./\\xff\\xfe:1:1: " in done.stdout
    assert b"\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2


@needs_git
def test_history(scan):
    """What was committed once is found with its commit: deleted, on a branch, in a tag, stashed."""
    scan.git("init", "-q", "-b", "main")
    scan.git("commit", "-q", "--allow-empty", "-m", "start")
    scan("--history", code=0)
    token = mint_token("akm", "old")
    scan.write("conf/a.txt", f"a\n{token}\n")
    scan.git("add", ".")
    scan.git("commit", "-q", "-m", "add")
    commit = scan.git("rev-parse", "HEAD").decode().strip()
    scan.git("rm", "-q", "-r", ".")
    scan.git("commit", "-q", "-m", "remove")
    scan.git("checkout", "-q", "-b", "side")
    scan.write("b.bin", b"\0" + mint_token("akm", "side").encode())
    scan.git("add", ".")
    scan.git("commit", "-q", "-m", "side")
    scan.git("checkout", "-q", "main")
    scan.git("commit", "-q", "--allow-empty", "-m", f"oops {mint_token('akm', 'message')}")
    scan.git("tag", "-a", "v1", "-m", mint_token("akm", "tagged"))
    scan.write("c", "x")
    scan.git("add", "c")
    scan.write("c", mint_token("akm", "stashed"))
    scan.git("stash", "-q")
    scan(".", code=0)
    told = json.loads(scan("--history", "--json", code=1).stdout)["found"]
    by_id = {item["key_id"]: item for item in told}
    assert set(by_id) == {"old", "side", "message", "tagged", "stashed"}
    assert (by_id["old"]["path"], by_id["old"]["line"]) == ("conf/a.txt", 2)
    assert by_id["old"]["commit"] == commit
    assert token[-36:].encode() not in scan("--history", str(scan.folder), code=1).stdout


@needs_git
@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_hostile_repository_runs_nothing(scan, tmp_path):
    """A repository that somebody handed over names programs in its configuration: none is run."""
    scan.git("init", "-q")
    scan.write("a", mint_token("akm", "k"))
    scan.git("add", "a")
    tree = scan.git("write-tree").decode().strip()
    signature = "-----BEGIN PGP SIGNATURE-----\n \n AAAA\n -----END PGP SIGNATURE-----"
    person = "t <t@example.com> 1 +0000"
    raw = f"tree {tree}\nauthor {person}\ncommitter {person}\ngpgsig {signature}\n\nm\n"
    raw_path = scan.write("../commit", raw)
    commit = scan.git("hash-object", "-t", "commit", "-w", str(raw_path)).decode().strip()
    scan.git("update-ref", "HEAD", commit)
    ran = tmp_path / "ran"
    program = scan.write("../program", f"#!/bin/sh\ntouch {ran}\nexit 1\n")
    program.chmod(0o700)
    for name, value in (
        ("gpg.program", program), ("log.showSignature", "true"), ("core.fsmonitor", program),
        ("core.pager", program), ("diff.external", program), ("protocol.ext.allow", "always"),
    ):  # fmt: skip
        scan.git("config", name, str(value))
    (found,) = json.loads(scan("--history", "--json", code=1).stdout)["found"]
    assert found["commit"] == commit
    scan("--staged", code=0)
    assert not ran.exists()
    scan.git("log")
    assert ran.exists()


@needs_git
def test_staged_as_a_hook(scan):
    """A plain git hook refuses the commit that would add a token, and lets the next one pass."""
    scan.git("init", "-q")
    hook = scan.write(
        ".git/hooks/pre-commit",
        f"#!/bin/sh\nexec {sys.executable} -m api_key_manager keys scan --staged\n",
    )
    hook.chmod(0o700)
    scan.write("a", mint_token("akm", "k"))
    scan.git("add", "a")
    scan.write("a", "harmless in the folder, not in what is staged")
    refused = subprocess.run(
        [str(GIT), "commit", "-m", "x"], cwd=scan.folder, env=scan.environment,
        capture_output=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert b"a:1:1: token of the key k" in refused.stdout + refused.stderr
    scan.git("add", "a")
    scan.git("commit", "-q", "-m", "x")
    scan("--staged", code=0)


def test_no_git(scan):
    """Without git, or outside of a repository, one line says so."""
    done = scan("--history", code=2, PATH=str(scan.folder))
    assert b"git is not on PATH" in done.stderr
    if GIT is not None:
        told = scan("--history", code=2, GIT_CEILING_DIRECTORIES=str(scan.folder.parent)).stderr
        assert b"not a git repository" in told


def test_starts_light(scan):
    """No server, database or settings: a hook is run for every commit."""
    program = (
        "import sys\nfrom api_key_manager.cli import main\n"
        "sys.argv = ['akm', 'keys', 'scan', '-']\n"
        "code = main()\n"
        "heavy = {'fastapi', 'sqlalchemy', 'pydantic_settings', 'httpx', 'cryptography', 'rich'}\n"
        "print(*sorted(heavy & set(sys.modules)))\nsys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"", capture_output=True, check=True,
        env={**scan.environment, "DATABASE_URL": "nonsense"},
    )  # fmt: skip
    assert done.stdout.strip() == b""


@needs_git
def test_this_repository_is_clean():
    """So that the hook can be used here; known values are on lines that say so."""
    names = subprocess.run(
        [str(GIT), "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True
    ).stdout.split(b"\0")
    there = [name for name in names if name and (ROOT / os.fsdecode(name)).is_file()]
    if not there:
        pytest.skip("this is no git repository")
    Scan(ROOT)(*there, code=0)
