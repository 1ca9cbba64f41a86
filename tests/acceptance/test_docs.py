"""Every snippet of the README and the documentation runs, and prints what the page says.

A fenced block is run by the program of its language: ``python``, ``javascript``, ``go``, ``sh``
each in a folder of its own, ``bash`` against a server started for the page, in which all blocks of
the page are typed one after the other. Comments right above a block, which readers don't see, say
more:

- ``<!-- continue -->``: the block goes on where the one before it in the same language ended;
- ``<!-- server -->``: it is run beside a server of its own, whose admin token is in ``AKM_TOKEN``;
- ``<!-- skip: reason -->``: it is not run;
- ``<!-- output -->``: it is no snippet, but what the snippet before it prints on standard output.
  ``…`` stands for anything. A ``json`` block fits when names and types of all members do;
- ``<!-- same output -->``: the block prints what the snippet before it prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.programs import clean_environment, output, tool

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUNNABLE = ("python", "javascript", "go", "sh", "bash")
SHOWN = ("text", "json", "console", "")
ADMIN_TOKEN = "docs-admin-token-of-32-characters"
PUBLISHED_URL = "http://127.0.0.1:5000"

SEPARATOR = "\x1e"
"""Printed between the snippets of a chain, to tell their outputs apart."""


@dataclass
class Block:
    page: Path
    line: int
    language: str
    text: str
    markers: list[str] = field(default_factory=list)
    shows: Block | None = None
    """What it prints, if the page says so."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def skipped(self) -> bool:
        return any(marker.startswith("skip:") for marker in self.markers)


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, with the comments above them."""
    blocks: list[Block] = []
    markers: list[str] = []
    inside: Block | None = None
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line.strip() == fence:
                blocks.append(inside)
                inside, markers = None, []
            else:
                inside.text += f"{line}\n"
        elif opening := re.match(r" {0,3}(`{3,})\s*(\w*)", line):
            fence = opening[1]
            inside = Block(page, number, opening[2], "", markers)
        elif marker := re.fullmatch(r"<!--\s*(.*?)\s*-->", line):
            markers.append(marker[1])
        elif line.strip():
            markers = []
    assert inside is None, f"{page.name}: a block is not closed"
    return blocks


def snippets(page: Path) -> list[Block]:
    """The runnable blocks of a page, each with what it is said to print."""
    found: list[Block] = []
    for block in read_blocks(page):
        if "output" in block.markers:
            found[-1].shows = block
        elif block.language in RUNNABLE:
            if "same output" in block.markers:
                block.shows = found[-1].shows
            found.append(block)
    return found


def chains(language: str) -> Iterator[Any]:
    """Blocks of one language that run as one program, as test parameters."""
    for page in PAGES:
        chain: list[Block] = []
        blocks = [b for b in snippets(page) if b.language == language and not b.skipped]
        for block in blocks:
            if chain and "continue" not in block.markers:
                yield pytest.param(chain, id=chain[0].place)
                chain = []
            chain.append(block)
        if chain:
            yield pytest.param(chain, id=chain[0].place)


def check_printed(chain: list[Block], printed: str) -> None:
    """Compare what was printed with what the page shows."""
    parts = printed.split(SEPARATOR)
    assert len(parts) == len(chain), printed
    for block, part in zip(chain, parts, strict=True):
        if block.shows is None:
            continue
        shown = block.shows.text.strip()
        if block.shows.language == "json":
            assert shape(json.loads(part)) == shape(json.loads(shown)), f"{block.place}: {part}"
        else:
            pattern = r"[\s\S]*?".join(map(re.escape, shown.split("…")))
            fits = re.fullmatch(pattern, part.strip())
            assert fits, f"{block.place} prints\n{part}\nand not\n{shown}"


def shape(value: Any) -> Any:
    """A JSON value with only the types of its scalars."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


# Runs as `python -m asyncio` would: a snippet may await at its top level.
RUN_PYTHON = """
import ast, asyncio, sys
code = compile(sys.stdin.read(), "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
waiting = eval(code, {"__name__": "__main__"})
if waiting is not None:
    asyncio.run(waiting)
"""


def run_chain(chain: list[Block], command: list[str], folder: Path, text: str) -> None:
    """Run the blocks as one program, beside a server if one of them asks for it."""
    if not any("server" in block.markers for block in chain):
        check_printed(chain, output(command, folder, text))
        return
    home = folder / "server"
    home.mkdir()
    with server(home) as url:
        text = text.replace(PUBLISHED_URL, url)
        printed = output(command, folder, text, AKM_TOKEN=ADMIN_TOKEN)
    check_printed(chain, printed.replace(url, PUBLISHED_URL))


@pytest.mark.parametrize("chain", list(chains("python")))
def test_python(chain: list[Block], tmp_path: Path):
    """A Python snippet runs in an empty folder, with warnings as errors."""
    text = f"print({SEPARATOR!r}, end='')\n".join(block.text for block in chain)
    run_chain(chain, [sys.executable, "-W", "error", "-c", RUN_PYTHON], tmp_path, text)


@pytest.mark.parametrize("chain", list(chains("javascript")))
def test_javascript(chain: list[Block], tmp_path: Path):
    """A JavaScript snippet runs in Node.js, Web Crypto and the clone's signer included."""
    text = f"process.stdout.write({SEPARATOR!r});\n".join(block.text for block in chain)
    node = [tool("node"), "--input-type=module", "-"]
    modules = tmp_path / "node_modules"
    modules.mkdir()
    shutil.copytree(ROOT / "clients" / "javascript", modules / "api-key-manager-signer")
    run_chain(chain, node, tmp_path, text)


@pytest.mark.parametrize("chain", list(chains("go")))
def test_go(chain: list[Block], tmp_path: Path):
    """A Go snippet is a program."""
    go = tool("go")
    (tmp_path / "main.go").write_text(chain[0].text, encoding="utf-8")
    check_printed(chain, output([go, "run", "main.go"], tmp_path))


@pytest.mark.parametrize("chain", list(chains("sh")))
def test_sh(chain: list[Block], tmp_path: Path):
    """A shell snippet runs in any POSIX shell with openssl."""
    tool("openssl")
    text = "set -eu\n" + f"printf '{SEPARATOR}'\n".join(block.text for block in chain)
    check_printed(chain, output([tool("sh"), "-s"], tmp_path, text))


def listening(log: Path) -> str:
    """The URL that the server says it listens on, as soon as it does."""
    said = re.search(r"http://[0-9.]+:\d+", log.read_text(encoding="utf-8"))
    return said[0] if said else ""


def ready(url: str) -> bool:
    if not url:
        return False
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            status: int = answer.status
            return status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server that was started in an empty folder, as the README says; gives its URL."""
    env = clean_environment(folder, PORT="0", AKM_ADMIN_TOKEN=ADMIN_TOKEN)
    log = folder / "server.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "api_key_manager", "serve"],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not ready(url := listening(log)):
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, f"the server is not ready:\n{log.read_text(encoding='utf-8')}"
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


COMMANDS = {
    page: [b for b in snippets(page) if b.language == "bash" and not b.skipped] for page in PAGES
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name) for page, blocks in COMMANDS.items() if blocks],
)
@pytest.mark.skipif(os.name == "nt", reason="the commands are those of a POSIX shell")
def test_commands(page: Path, tmp_path: Path):
    """The commands of a page, typed one after the other beside a fresh server, all end well."""
    blocks = COMMANDS[page]
    bash = tool("bash")
    for program in ("curl", "openssl"):
        if any(program in block.text for block in blocks):
            tool(program)
    # As in a clone, where these commands are typed.
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with server(tmp_path) as url:
        text = "set -euo pipefail\n"
        for block in blocks:
            text += f"printf '{SEPARATOR}# {block.place}\\n'\n{block.text}"
        done = subprocess.run(
            [bash, "-c", text.replace(PUBLISHED_URL, url)], cwd=tmp_path, check=False, timeout=120,
            env=clean_environment(tmp_path, AKM_TOKEN=ADMIN_TOKEN), stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8",
        )  # fmt: skip
        said = (tmp_path / "server.log").read_text(encoding="utf-8")
    printed = done.stdout.replace(url, PUBLISHED_URL)
    assert done.returncode == 0, f"{printed}\n{done.stderr}\n\nThe server said:\n{said}"
    parts = [part.partition("\n")[2] for part in printed.split(SEPARATOR)[1:]]
    check_printed(blocks, SEPARATOR.join(parts))
    assert "Traceback" not in said, said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks(page: Path):
    """Every block says its language, and is run, or is shown for a reason."""
    for block in read_blocks(page):
        assert block.language in (*RUNNABLE, *SHOWN, "nginx", "toml", "yaml"), block.place
        if block.skipped:
            reason = next(m for m in block.markers if m.startswith("skip:"))
            assert len(reason) > 15, f"{block.place}: why is it skipped?"
