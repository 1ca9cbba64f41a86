"""The README's way to a protected service works as it is typed, and the page's snippets for nginx
too; every gateway's files say what the server reads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from api_key_manager.server.gateways import PROFILES
from api_key_manager.server.rules import load_rules
from tests.acceptance.programs import clean_environment, tool
from tests.acceptance.test_docs import ADMIN_TOKEN, ROOT, read_blocks
from tests.integration.gateway_clients import Stack, make_keys, seen
from tests.integration.gateways import (
    EXAMPLES,
    configured,
    everything,
    process,
    program,
    running_nginx,
    serving_service,
)
from tests.integration.places import Place
from tests.services import free_port

PAGES = ROOT / "docs" / "gateways"
TOLD = ["X-Key-Id", "X-Key-Owner", "X-Key-Metadata", "X-Content-Digest"]
ELSEWHERE = ["X-Original-URI", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "Forwarded"]
"""Where some services look for the URL, though another one was checked."""
CREDENTIALS = ["Authorization", "X-Api-Key", "Signature-Input", "Signature", "Content-Digest"]


def section(heading: str) -> list[str]:
    """The commands of a section of the README, block by block."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = lines.index(f"## {heading}") + 1
    end = next(i for i in range(start, len(lines)) if lines[i].startswith("## "))
    return [
        block.text
        for block in read_blocks(ROOT / "README.md")
        if block.language == "bash" and start < block.line <= end
    ]


def test_readme(tmp_path: Path):
    """Typed as it stands, but for the ports and the folder, the section protects a service."""
    nginx, bash = program("nginx"), tool("bash")
    tool("curl")
    serve, service, gateway, client = section("Protect a service with nginx")
    ports = {"5000": free_port(), "8000": free_port(), "8080": free_port()}
    akm, behind, before = ports.values()
    conf = tmp_path / "nginx.conf"
    address = r"(?m)(^ +(?:server|listen) 127\.0\.0\.1:){}(?=;)"
    conf.write_text(configured("nginx.conf", address, akm, behind, before))
    env = clean_environment(tmp_path, PORT=str(akm), AKM_ADMIN_TOKEN=ADMIN_TOKEN)
    env["PATH"] += f":{Path(nginx).parent}"

    def typed(text: str) -> list[str]:
        """What a shell runs in the place of a command that stays in the foreground."""
        return [bash, "-c", f"set -e\n{text.strip()}".replace("mkdir -p ", "exec 2>&1; mkdir -p ")]

    assert serve == "AUTHORIZE_PROFILE=nginx make serve\n"
    with (
        process([sys.executable, "-m", "api_key_manager", "serve"], akm, cwd=tmp_path,
                env={**env, "AUTHORIZE_PROFILE": "nginx"}),
        process(typed("exec " + service.replace("examples", f"{ROOT}/examples")
                      .replace("8000 ", f"{behind} ")), behind, cwd=tmp_path, env=env),
        process(typed(gateway.replace(" nginx -p", " exec nginx -p")
                      .replace('"$PWD/examples/gateways/nginx.conf"', str(conf))
                      .replace("data/nginx", str(tmp_path / "nginx"))),
                before, cwd=tmp_path, env=env),
    ):  # fmt: skip
        text = client
        for written, real in ports.items():
            text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{real}")
        (api,) = (
            line
            for block in section("Server in 60 seconds")
            for line in block.splitlines()
            if line.startswith("api()")
        )
        done = subprocess.run(
            [bash, "-c", f"set -euo pipefail\n{api}\n{text}"], cwd=tmp_path, check=False,
            env={**env, "AKM_TOKEN": ADMIN_TOKEN}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split(" ")[1] for line in re.findall("HTTP/.*", done.stdout)] == ["401", "401"]
    assert '"key_id": "acme-1", "owner": "acme"' in done.stdout
    assert "root" not in done.stdout


@pytest.fixture(scope="module")
def nginx_snippets() -> dict[str, str]:
    """The snippets of the page by what they begin with."""
    blocks = [b.text for b in read_blocks(PAGES / "nginx.md") if b.language == "nginx"]
    assert len(blocks) == 2
    return {"location": blocks[0], "error_page": blocks[1]}


def test_nginx_snippets(tmp_path: Path, nginx_snippets: dict[str, str]):
    """A permission per location, and preflights that need no key, by the page's own lines."""
    place = Place(tmp_path)
    keys = asyncio.run(make_keys(place))
    text = (EXAMPLES / "nginx.conf").read_text()
    blocks = r"\n        location (/|= /_authorize) \{\n(.*?)\n        \}\n"
    bodies = dict(re.findall(blocks, text, re.S))
    per_path = nginx_snippets["location"]
    for name, body in bodies.items():
        dropped = "auth_request /_authorize;" if name == "/" else r"proxy_pass http://akm\S+"
        kept = "\n".join(
            line for line in body.splitlines()
            if not re.search(dropped, line) and "internal;" not in line
        )  # fmt: skip
        per_path = per_path.replace(f"    # … as in location {name}\n", f"{kept}\n")
    assert "…" not in per_path
    added = f"{nginx_snippets['error_page']}\n{per_path}\n        location / {{"
    (tmp_path / "rules.toml").write_text('default = "allow"')
    rules = str(tmp_path / "rules.toml")
    with (
        everything(place, "nginx", AUTHORIZE_RULES=rules) as (_, port),
        serving_service(tmp_path) as service,
    ):
        (tmp_path / "other").mkdir()
        change = {"        location / {": added}
        with running_nginx(tmp_path / "other", port, service, change) as gateway:
            stack = Stack(gateway, keys, place)
            answer = gateway("OPTIONS", "/documents/7", [("Origin", "https://app.example")])
            assert answer.status == 204
            assert answer.header("access-control-allow-origin") == "https://app.example"
            for uri, key, status in (
                ("/documents/7", "app", 200), ("/documents/7", "near", 403), ("/x", "near", 200),
                ("/documents/..%2fx", "app", 403), ("/x/..;/documents/7", "near", 403),
            ):  # fmt: skip
                assert gateway("GET", uri, stack.token(key)).status == status, (uri, key)
            assert seen(gateway("GET", "/documents/7", stack.token()))["uri"] == "/documents/7"
            assert gateway("GET", "/_authorize/x", stack.token()).status == 404


def test_table_of_profiles():
    """The page's table names the headers that the server reads."""
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    told = {}
    row = r"^\| (`\w+`(?:, `\w+`)*|unset) \|" + r" (.*?) \|" * 4
    for profiles, *cells in re.findall(row, text, re.M):
        for name in re.findall(r"`(\w+)`", profiles) or [""]:
            told[name] = [re.findall(r"`((?:X-|Host)[\w-]*)`", cell) for cell in cells]
    assert told == {
        name: [[header.decode()] if header else [] for header in map(_titled, profile)]
        for name, profile in PROFILES.items()
    }


def _titled(header: bytes | None) -> bytes:
    return (header or b"").title().replace(b"Original-Uri", b"Original-URI")


def test_rules_of_the_page(tmp_path: Path):
    """The page's rules are rules, and mean what it says."""
    (block,) = [b.text for b in read_blocks(PAGES / "README.md") if b.language == "toml"]
    (tmp_path / "rules.toml").write_text(block, encoding="utf-8")
    assert len(tomllib.loads(block)["rules"]) == 3
    rules = load_rules(str(tmp_path / "rules.toml"))
    wanted = [
        rules.wanted(method, path).permissions
        for method, path in (
            ("HEAD", "/documents"),
            ("POST", "/documents/7/comments"),
            ("PUT", "/status"),
        )
    ]
    assert wanted == ["documents.read", "documents.read and comments.write", None]


def test_body_snippet():
    """The snippet that compares bodies is the one that the example runs."""
    page: dict[str, Any] = {}
    example: dict[str, Any] = {"__name__": "example"}
    (block,) = [b.text for b in read_blocks(PAGES / "README.md") if b.language == "python"]
    exec(block, page)
    exec((EXAMPLES / "service.py").read_text(), example)
    digest = base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    for values, body, same in (
        ([], b"x", True), ([f"sha-256=:{digest}:"], b"x", True),
        ([f"sha-256=:{digest}:"], b"y", False),
        ([f"sha-256=:{digest}:", "sha-256=:AAAA:"], b"x", False), ([""], b"x", False),
    ):  # fmt: skip
        headers = Message()
        for value in values:
            headers["X-Content-Digest"] = value
        for known in (page, example):
            assert known["body_is_signed"](headers, body) is same


def names(pattern: str, text: str) -> list[str]:
    """What a pattern finds, in any case and order."""
    return sorted(name.lower() for name in re.findall(pattern, text, re.M))


def lower(*known: str) -> list[str]:
    return sorted(name.lower() for name in known)


def test_nginx_file():
    """nginx sets every header that is read, and replaces every one that the service believes."""
    question, request = re.split(r"location = /_authorize", (EXAMPLES / "nginx.conf").read_text())[
        ::-1
    ]
    sets = names(r"proxy_set_header (X-Original-\S+) \$", question)
    assert sets == sorted(header.decode() for header in PROFILES["nginx"].headers)
    assert set(lower(*TOLD)) <= set(names(r"proxy_set_header (\S+) \$", request))
    assert set(lower(*ELSEWHERE)) <= set(names(r'proxy_set_header (\S+) "";', request))


def test_caddy_file():
    """Caddy removes what a client sends and copies what the server says, in this order."""
    text = (EXAMPLES / "Caddyfile").read_text()
    removed = names(r"^\s+request_header -(\S+)", text.split("forward_auth 1")[0])
    assert removed == lower(*TOLD, *ELSEWHERE, "X-Forwarded-Uri", "X-Forwarded-Method")
    (copied,) = re.findall(r"copy_headers (.*)", text)
    assert lower(*copied.split()) == lower(*TOLD)
    assert "route {" in text.split("request_header")[0]


def load_yaml(name: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="no reader of YAML is installed")
    return yaml.safe_load((EXAMPLES / name).read_text())


def test_traefik_files():
    """Traefik strips, asks with the credentials, believes no client, copies what it is told."""
    dynamic = load_yaml("traefik-dynamic.yaml")["http"]
    middlewares = dynamic["middlewares"]
    auth = middlewares["authorize"]["forwardAuth"]
    assert dynamic["routers"]["service"]["middlewares"] == ["strip", "authorize", "hide-credential"]
    stripped = middlewares["strip"]["headers"]["customRequestHeaders"]
    assert stripped == dict.fromkeys([*TOLD, *ELSEWHERE], "")
    assert auth["authResponseHeaders"] == TOLD
    assert auth["authRequestHeaders"] == [*CREDENTIALS, "X-Request-Id"]
    assert auth["trustForwardHeader"] is False
    (entry,) = load_yaml("traefik.yaml")["entryPoints"].values()
    assert entry == {"address": "127.0.0.1:8080"}


def test_envoy_file():
    """Envoy strips before it asks, sends what is read, and lets nobody pass unchecked."""
    document = load_yaml("envoy.yaml")["static_resources"]
    manager = document["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    strip, ask, hide, router = (f["typed_config"] for f in manager["http_filters"])
    assert router["@type"].endswith("Router")
    removed = [m["remove"] for m in strip["mutations"]["request_mutations"]]
    assert sorted(removed) == lower(*TOLD, *ELSEWHERE, "X-Forwarded-Host", "X-Forwarded-Uri")
    assert [m["remove"] for m in hide["mutations"]["request_mutations"]] == lower(*CREDENTIALS[:2])
    sent = {pattern["exact"] for pattern in ask["allowed_headers"]["patterns"]} | {"host"}
    assert {header.decode() for header in PROFILES["envoy"].headers} <= sent
    assert set(lower(*CREDENTIALS[1:])) | {"x-forwarded-for"} <= sent
    copied = ask["http_service"]["authorization_response"]["allowed_upstream_headers"]["patterns"]
    assert sorted(pattern["exact"] for pattern in copied) == lower(*TOLD)
    assert ask["http_service"]["path_prefix"] == "/v1/authorize"
    assert ask["failure_mode_allow"] is False
    assert manager["use_remote_address"] is True
