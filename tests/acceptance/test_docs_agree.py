"""What the documentation lists is what the code has: nothing missing, nothing made up."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.core import exceptions, permissions, sign_request
from api_key_manager.core.exceptions import OUTCOMES, Reason
from api_key_manager.core.signing import sign, timestamped_message

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TESTS = ROOT / "tests"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ {0,3}(`{3,}).*?^ {0,3}\1\s*?$", "", text, flags=re.MULTILINE | re.DOTALL)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table whose heading row begins with ``heading``."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            break
    else:
        raise AssertionError(f"there is no table that begins with {heading}")
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def sections(text: str, marks: str) -> dict[str, str]:
    """The text under each heading of one level."""
    parts = re.split(rf"^{marks} (.+)$", text, flags=re.MULTILINE)
    return {
        heading: re.split(r"^#{1,3} ", body, flags=re.MULTILINE)[0]
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
    }


class TestReasons:
    def test_table(self):
        """Every reason with its exception and status, and no other."""
        told = {
            cells[0].strip("`"): (cells[1].strip("`"), int(cells[2]))
            for cells in rows(read("reasons.md"), "reason")
        }
        known = {str(r): (o.exception.__name__, o.status) for r, o in OUTCOMES.items()}
        assert told == {str(Reason.VALID): ("", 200), **known}

    def test_advice(self):
        """Each row says what it means and what to do."""
        for cells in rows(read("reasons.md"), "reason"):
            assert all(len(cell) > 4 for cell in cells[3:5]), cells[0]

    def test_order(self):
        """The order of the judge names every reason that it can give."""
        order = sections(read("reasons.md"), "##")["Order"]
        named = set(re.findall(r"`(\w+)`", order))
        assert named == {str(reason) for reason in Reason} - {
            "valid", "unavailable",
        }  # fmt: skip

    def test_other_errors(self):
        """Slugs of exceptions are their own."""
        for slug, name, _ in rows(read("reasons.md"), "slug"):
            error = getattr(exceptions, name.strip("`"))
            assert error.default_reason == slug.strip("`")

    def test_tree(self):
        """The tree of exceptions is the one that the code draws."""
        drawn = re.search(r"APIKeyManagerException\n.*?\n\n", exceptions.__doc__ or "", re.DOTALL)
        assert drawn is not None
        tree = "\n".join(line.removeprefix("    ") for line in drawn[0].strip().splitlines())
        assert tree in read("library.md")


class TestSigning:
    def test_vectors(self):
        """The table's signatures are what the library signs."""
        told = rows(read("signing.md"), "scheme | timestamp")
        assert len(told) == 3
        for _, timestamp, nonce, signature in told:
            seconds = int(timestamp) if timestamp else None
            made = sign("super-secret-key", "client-123", seconds, nonce.strip("`") or None)
            assert made == signature.strip("`")

    def test_bytes(self):
        """The message that is shown in hex is the one of the third vector."""
        shown = re.search(r"^```text\n([0-9a-f\s]+)```", read("signing.md"), re.MULTILINE)
        assert shown is not None
        message = timestamped_message("client-123", 1767225600, "q1w2e3r4t5y6u7i8o9p0aA")
        assert bytes.fromhex(shown[1]) == message

    def test_snippets_show_the_vectors(self):
        """Every language's snippets print all three signatures, in the order of the table."""
        signatures = [row[3].strip("`") for row in rows(read("signing.md"), "scheme | timestamp")]
        expected = "\n".join(["<!-- output -->", "```text", *signatures, "```"])
        assert read("signing.md").count(expected) == 6

    def test_lines_of_a_request(self):
        """The lines that are shown of a signed request are those whose MAC it carries."""
        shown = re.search(r"^```text\n(\"@method\".*?)\n```", read("clients.md"), re.M | re.S)
        assert shown is not None
        made = sign_request(
            "super-secret-key", "client-123", "POST", "https://api.example.com/orders?limit=10",
            b'{"item": 7}', created=1767225600, nonce="q1w2e3r4t5y6u7i8o9p0aA",
        )  # fmt: skip
        lines = shown[1].replace("sha-256=:…:", made["Content-Digest"]).encode()
        mac = hmac.digest(b"super-secret-key", lines, "sha256")
        assert made["Signature"] == f"akm=:{base64.b64encode(mac).decode()}:"


def test_make_targets():
    """Contributors read of every target that make lists."""
    listed = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = {cells[0].strip("`") for cells in rows(text, "command")}
    assert {f"make {name}" for name in listed} - {"make help"} <= told


def test_permissions_table():
    """Each row of grants and wishes is judged as the page says."""
    told = rows(read("permissions.md"), "grant")
    assert len(told) > 5
    for grant, asked, met in told:
        assert permissions.meets(grant.strip("`"), asked.strip("`")) is (met == "yes"), grant


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of ``akm`` by its full name."""
    import typer

    from api_key_manager.cli.app import app

    def walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command

    yield from walk(typer.main.get_command(app), "akm")


class TestCommandLine:
    def test_commands(self):
        """Every command has its section, and no other has one."""
        told = set(sections(read("cli.md"), "###"))
        assert told == {name for name, _ in commands()}

    @pytest.mark.parametrize(("name", "command"), [pytest.param(*c, id=c[0]) for c in commands()])
    def test_options(self, name: str, command: Any):
        """A section names every option of its command, and none that it does not take."""
        known = {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
            if option.startswith("-")
        }
        section = prose(sections(read("cli.md"), "###")[name])
        code = " ".join(re.findall("`(.*?)`", section))
        told = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", code))
        assert told == known - {"--help"}

    def test_exit_codes(self):
        """The table of exit codes is that of the module that gives them."""
        from api_key_manager.cli import errors

        told = {int(cells[0]) for cells in rows(read("cli.md"), "code")}
        assert told == {
            0, errors.REFUSED, errors.MISUSE, errors.INTERRUPTED, errors.NOBODY_READS,
        }  # fmt: skip


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str | None]:
    """Every operation of the server's OpenAPI document, with its scope."""
    import asyncio

    from api_key_manager.config import Settings
    from api_key_manager.server.app import build_app
    from api_key_manager.wiring import open_deployment

    async def describe() -> dict[str, Any]:
        settings = Settings.load(DATABASE_URL="memory://")
        async with open_deployment(settings, background=False) as deployment:
            document: dict[str, Any] = build_app(deployment).openapi()
            return document

    return {
        (method.upper(), path): operation.get("x-scope")
        for path, methods in asyncio.run(describe())["paths"].items()
        for method, operation in methods.items()
    }


class TestServer:
    def test_table(self, operations: dict[tuple[str, str], str | None]):
        """Every path and method with its scope, and no other."""
        told: dict[tuple[str, str], str | None] = {}
        for cells in rows(read("server.md"), "path"):
            for method, path in re.findall(r"`([A-Z]+) (/\S+)`", cells[0]):
                told[method, path] = None if cells[1] == "none" else cells[1].strip("`")
        # They describe the others, and not themselves.
        for path in ("/docs", "/openapi.json"):
            assert told.pop(("GET", path)) is None
        assert told == operations

    def test_refusals(self):
        """The table of errors has the statuses and reasons of the OpenAPI document, and two more:
        the one for a method that it doesn't have, and that of a node that is not ready."""
        from api_key_manager.server.refusals import REFUSALS

        told = {
            int(cells[0]): set(re.findall(r"`(\w+)`", cells[1]))
            for cells in rows(read("server.md"), "status")
        }
        known = {status: set(refusal.reasons) for status, refusal in REFUSALS.items()}
        known[503].add("not_ready")
        assert told == {**known, 405: {"method_not_allowed"}}

    def test_each_is_explained(self, operations: dict[tuple[str, str], str | None]):
        """Each operation is named in the text below the table, too."""
        explained = read("server.md").split("\n## Who may call\n")[1]
        for method, path in operations:
            assert f"`{method} {path}`" in explained, f"{method} {path}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links(page: Path):
    """Every link to a file or to a heading of this repository leads somewhere."""
    text = re.sub(r"`[^`\n]*`", "", prose(page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert there.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(there), f"{target}: there is no such heading"


def test_index():
    """From the index every page is one link away, or stands on the page of its folder."""

    def linked(page: Path) -> set[Path]:
        text = prose(page.read_text(encoding="utf-8"))
        targets = re.findall(r"\]\(([^)\s#]+)", text)
        return {(page.parent / target).resolve() for target in targets}

    index = DOCS / "index.md"
    known = linked(index)
    for folder in [page for page in known if page.name == "README.md" and DOCS in page.parents]:
        known |= {page for page in linked(folder) if page.parent == folder.parent}
    assert {page for page in PAGES if DOCS in page.parents} <= known | {index}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_linked_from_somewhere(page: Path):
    """A page that nothing links to is found by nobody."""
    if page.parent != DOCS or page.name == "index.md":
        return
    others = "".join(p.read_text(encoding="utf-8") for p in PAGES if p != page)
    assert f"]({page.name}" in others or f"](docs/{page.name}" in others


def claims(text: str) -> Iterator[list[str]]:
    """The rows of each table whose last column names tests."""
    lines = iter(text.splitlines())
    for line in lines:
        if re.search(r"\| (proved|shown) by \|$", line):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


@pytest.mark.parametrize(("page", "least"), [("outages.md", 20), ("security/threat-model.md", 70)])
def test_claims_are_proved(page: str, least: int):
    """Each row that says what becomes of something names tests, and there are these tests."""
    files: dict[str, str] = {}
    for file in TESTS.rglob("test_*.py"):
        files[file.name] = files.get(file.name, "") + file.read_text(encoding="utf-8")
    found = list(claims(read(page)))
    assert len(found) >= least
    for cells in found:
        named = re.findall(r"`(\w+\.py)::(\w+)`", cells[-1])
        assert named, cells[0]
        for where, name in named:
            there = re.search(rf"^ *(?:async )?def {name}\(", files.get(where, ""), re.MULTILINE)
            assert there, f"{where}::{name}"


def test_client_methods():
    """Each method of the API client is in the table, and no other."""
    from api_key_manager.client.operations import Operations

    told = {
        name
        for cells in rows(read("clients.md"), "method")
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    known = {name for name in dir(Operations) if not name.startswith("_")}
    assert told == known - {"page"}
