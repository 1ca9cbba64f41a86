"""The image and the compose file: what can be told without an engine, and the check of health."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import hiredis
import pytest
import yaml

from api_key_manager import __version__
from api_key_manager.config import Settings
from api_key_manager.core.exceptions import VaultError
from api_key_manager.server import listening
from api_key_manager.vault_integration import VaultClient
from scripts.cluster import gateway
from scripts.cluster.redis import ask
from tests.integration.gateways import process, program
from tests.integration.test_server_serve import make_certificate, started
from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "api-key-manager:latest"
HEALTHCHECK = "/opt/akm/healthcheck.py"
# What the container itself decides; a value from a developer's .env would break it.
OWN = {"HOST", "PORT", "ALLOW_PLAIN_HTTP", "DATABASE_URL", "AKM_MASTER_KEY_FILE"}
SECRET = {"AKM_ADMIN_TOKEN", "AKM_MASTER_KEY", "VAULT_TOKEN", "REDIS_URL"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as pairs of instruction and arguments."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def final() -> list[tuple[str, str]]:
    """The last stage: what is in the image."""
    found = instructions()
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def the(name: str) -> str:
    """The arguments of an instruction that the last stage has once."""
    (found,) = [rest for instruction, rest in final() if instruction == name]
    return found


def env() -> dict[str, str]:
    pairs = re.findall(r'(\w+)=("[^"]*"|\S+)', the("ENV"))
    return {name: value.strip('"') for name, value in pairs}


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return loaded


class TestImage:
    def test_not_root(self):
        """The user is a number, which a cluster can tell from root, and no root."""
        user, _, group = the("USER").partition(":")
        assert int(user) > 0
        assert int(group) > 0
        assert final().index(("USER", f"{user}:{group}")) > max(
            i for i, (name, _) in enumerate(final()) if name in ("RUN", "COPY")
        )
        (made,) = [rest for name, rest in final() if name == "RUN"]
        assert f"-o {user} -g {group}" in made

    @pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD", "HEALTHCHECK"])
    def test_no_shell(self, name: str):
        """A shell as process 1 would keep SIGTERM for itself."""
        words = json.loads(re.sub(r"^.*?(?=\[)", "", the(name)))
        assert words
        assert all(isinstance(word, str) for word in words)

    def test_what_is_started(self):
        """`docker run` serves, and its arguments are those of `akm`."""
        assert json.loads(the("ENTRYPOINT")) == ["akm"]
        assert json.loads(the("CMD")) == ["serve"]
        assert "EXPOSE" in dict(final())
        assert the("EXPOSE") == env()["PORT"] == "5000"

    def test_settings(self):
        """What the image sets are settings of allowed values, and none of them is a secret."""
        values = {name: value for name, value in env().items() if name in Settings.model_fields}
        assert set(values) == OWN
        settings = Settings.load(**values)
        assert settings.HOST == "0.0.0.0"

    def test_no_secrets(self):
        """Neither the environment nor a build argument holds any: both can be read off an image."""
        assert not set(env()) & SECRET
        arguments = [rest.partition("=")[0] for name, rest in instructions() if name == "ARG"]
        assert arguments == ["PYTHON_IMAGE"]

    def test_data_and_master_key_apart(self):
        """Each lies on a volume of its own, and the working folder, where .env is read, on none."""
        volumes = {PurePosixPath(volume) for volume in json.loads(the("VOLUME"))}
        data = PurePosixPath(env()["DATABASE_URL"].removeprefix("sqlite:///"))
        key = PurePosixPath(env()["AKM_MASTER_KEY_FILE"])
        assert {data.parent, key.parent} == volumes
        assert len(volumes) == 2
        assert not volumes & {PurePosixPath(the("WORKDIR")), *PurePosixPath(the("WORKDIR")).parents}

    def test_pins(self):
        """All that is installed is pinned by hash, except this package; all stages share a base."""
        images = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
        assert set(images) == {"${PYTHON_IMAGE}"}
        (default,) = [rest.partition("=")[2] for name, rest in instructions() if name == "ARG"]
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", default)
        runs = [rest for name, rest in instructions() if name == "RUN"]
        commands = [command for rest in runs for command in rest.split("&&")]
        installs = [command for command in commands if re.search(r"\bpip\b.* install\b", command)]
        assert len(installs) == 3
        for command in installs:
            if "--no-deps" in command:
                assert command.rstrip().endswith("wheels/*.whl")
                continue
            assert "--require-hashes" in command
            assert "--only-binary=:all:" in command
        assert all("--no-build-isolation" in c for c in commands if " wheel " in c)

    @pytest.mark.parametrize("name", ["requirements.txt", "docker/requirements-build.txt"])
    def test_hashes(self, name: str):
        """Every line of what is installed has a version and hashes, and names no other index."""
        text = (ROOT / name).read_text(encoding="utf-8")
        pins = re.findall(r"^[a-z].*?(?=^[a-z]|\Z)", text, re.MULTILINE | re.DOTALL)
        assert pins
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins)
        assert not re.search(r"^--?(?!hash)|://", re.sub(r"^\s+.*", "", text, flags=re.M), re.M)

    def test_build_tools_are_those_of_the_checks(self):
        """The backend that builds the image's wheel is the one that built it here."""
        pin = re.compile(r"^([a-z0-9-]+==\S+)", re.MULTILINE)
        build = set(pin.findall((ROOT / "docker/requirements-build.txt").read_text("utf-8")))
        assert build <= set(pin.findall((ROOT / "requirements-dev.txt").read_text("utf-8")))

    def test_version(self):
        """The label says what is inside."""
        assert f'org.opencontainers.image.version="{__version__}"' in the("LABEL")


class TestContext:
    """What `.dockerignore` lets through to the builder."""

    def allowed(self, path: str) -> bool:
        text = (ROOT / ".dockerignore").read_text(encoding="utf-8")
        passes = True
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            pattern = line.removeprefix("!")
            below = [str(parent) for parent in PurePosixPath(path).parents]
            names = [path, *below] if "**/" not in pattern else [f"/{path}", f"/{'/'.join(below)}"]
            if any(fnmatch.fnmatchcase(name, pattern.replace("**/", "*/")) for name in names):
                passes = line.startswith("!")
        return passes

    def test_what_is_copied(self):
        """Each source of a COPY exists, and gets there."""
        sources = [
            word
            for name, rest in instructions()
            if name == "COPY" and "--from" not in rest
            for word in rest.split()[:-1]
        ]
        assert len(sources) >= 6
        for source in sources:
            path = ROOT / source
            assert path.exists(), source
            files = [path] if path.is_file() else sorted(path.rglob("*.py"))
            for file in files:
                assert self.allowed(file.relative_to(ROOT).as_posix()), file

    @pytest.mark.parametrize(
        "path",
        [
            ".env", ".env.production", "data/akm.db", "akm.db", "master.key", ".git/config",
            ".venv/bin/python", "tests/conftest.py", "src/__pycache__/x.pyc", "backup.db",
        ],
    )  # fmt: skip
    def test_what_stays_out(self, path: str):
        """Data, keys, settings and the history never reach the builder."""
        assert not self.allowed(path)


class TestCompose:
    def service(self) -> dict[str, Any]:
        """What `docker compose up` starts, beside Vault: the only ones outside of a profile."""
        plain = {name for name, s in compose()["services"].items() if "profiles" not in s}
        assert plain == {"akm", "vault"}
        found: dict[str, Any] = compose()["services"]["akm"]
        return found

    def test_same_image(self):
        """It builds what the published commands build, under the same name."""
        service = self.service()
        assert service["build"] == {"context": ".", "dockerfile": "docker/Dockerfile"}
        assert service["image"] == IMAGE
        page = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
        for published in (
            "docker-compose up -d",
            f"docker build -f docker/Dockerfile -t {IMAGE} .",
            f"docker run -p 5000:5000 {IMAGE}",
        ):
            assert published in page

    def test_plain_http_stays_here(self):
        """Plain HTTP is allowed since only this machine reaches the port."""
        service = self.service()
        assert service["environment"]["ALLOW_PLAIN_HTTP"] == "true"
        assert service["ports"] == ["127.0.0.1:5000:5000"]

    def test_volumes_apart(self):
        """The master key is not on the volume of the data."""
        service = self.service()
        volumes = dict(reversed(volume.split(":")) for volume in service["volumes"])
        assert set(volumes) == set(json.loads(the("VOLUME")))
        assert set(volumes.values()) == {"data", "keys"} <= set(compose()["volumes"])

    def test_hardened(self):
        """Nothing can be written but the volumes and /tmp, and no privilege is held or gained."""
        service = self.service()
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        (tmpfs,) = service["tmpfs"]
        assert re.match(r"/tmp:size=\d+m,", tmpfs)
        assert not {"privileged", "cap_add", "network_mode", "pid", "user"} & set(service)

    def test_settings(self):
        """Every setting is passed on, so that .env works here too; the container's own are set.

        A new setting needs its line in docker-compose.yml. The master key comes from its file.
        """
        environment = self.service()["environment"]
        assert set(environment) == set(Settings.model_fields) - {"AKM_MASTER_KEY"}
        given = {name: value for name, value in environment.items() if value is not None}
        assert given == {name: env()[name] for name in OWN}

    def test_stop(self):
        """A stop gets more time than the server needs for what it has accepted."""
        seconds = int(self.service()["stop_grace_period"].removesuffix("s"))
        assert seconds >= 2 * listening._GRACE_SECONDS

    def test_health(self):
        """Engines that ignore the image's check run the same one."""
        image = the("HEALTHCHECK")
        check = self.service()["healthcheck"]
        assert check["test"] == ["CMD", *json.loads(image[image.index("[") :])]
        for option in ("interval", "timeout", "start_period", "retries"):
            assert f"--{option.replace('_', '-')}={check[option]}" in image


class TestComposeVault:
    def service(self) -> dict[str, Any]:
        found: dict[str, Any] = compose()["services"]["vault"]
        return found

    def test_hardened(self):
        """Only this machine reaches it, and it can do nothing to its surroundings."""
        service = self.service()
        assert service["ports"] == ["127.0.0.1:8200:8200"]
        assert service["environment"]["VAULT_TOKEN"] == "${VAULT_TOKEN:-dev-token}"
        assert service["read_only"] is True
        assert (service["cap_drop"], service["cap_add"]) == (["ALL"], ["IPC_LOCK"])
        assert service["user"] not in ("root", "0", 0)
        # The server asks it for nothing until it is told to.
        assert TestCompose().service()["environment"]["VAULT_ENABLED"] is None
        assert "depends_on" not in TestCompose().service()

    def test_published_snippet(self, tmp_path: Path):
        """Its command starts a Vault in which the published call finds what was put there."""
        found = shutil.which("vault") or shutil.which("bao")
        if found is None:
            pytest.skip("neither vault nor bao is on PATH")
        (tmp_path / "vault").symlink_to(found)
        port = free_port()
        shell, flag = self.service()["entrypoint"]
        (script,) = self.service()["command"]
        script = script.replace("$$", "$").replace("0.0.0.0:8200", f"127.0.0.1:{port}")
        address = f"http://127.0.0.1:{port}"
        env = {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path),
            "VAULT_ADDR": address, "BAO_ADDR": address, "VAULT_TOKEN": "dev-token",
            "BAO_TOKEN": "dev-token",
        }  # fmt: skip
        started = subprocess.Popen(
            [shell, flag, script], env=env, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with VaultClient(address=address, token="dev-token") as vault:
                deadline = time.monotonic() + 30
                while True:
                    try:
                        vault.write("api-keys", {"client-123": "hunter2"})
                        vault.encrypt("akm", b"x", b"y")
                        break
                    except VaultError:
                        assert time.monotonic() < deadline
                        time.sleep(0.1)
                assert vault.get_secret("api-keys", "client-123") == "hunter2"
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


class TestComposeCluster:
    def services(self) -> dict[str, dict[str, Any]]:
        """What the profile adds."""
        found = {n: s for n, s in compose()["services"].items() if "profiles" in s}
        assert all(service["profiles"] == ["cluster"] for service in found.values())
        return found

    def test_parts(self):
        """PostgreSQL, Redis, three nodes of our image, one upgrade before them, nginx."""
        services = self.services()
        assert set(services) == {"postgres", "redis", "upgrade", "node", "gateway"}
        assert services["node"]["deploy"] == {"replicas": 3}
        for name in ("node", "upgrade"):
            assert services[name]["image"] == IMAGE
            assert services[name]["build"] == TestCompose().service()["build"]

    def test_hardened(self):
        """Each runs as somebody, writes to its volume and to memory only, and gains nothing."""
        for name, service in self.services().items():
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service), name
            ours = service["image"] == IMAGE  # which says itself who it is
            assert ours == ("user" not in service), name
            assert service.get("user") not in ("root", "0", 0), name

    def test_one_way_in(self):
        """Only nginx is published, on this machine, and it reaches no store."""
        services = self.services()
        assert {n for n, s in services.items() if "ports" in s} == {"gateway"}
        (published,) = services["gateway"]["ports"]
        assert re.fullmatch(r"127\.0\.0\.1:\d+:5000", published)
        assert published not in TestCompose().service()["ports"]
        assert services["gateway"]["networks"] == ["edge"]
        assert set(services["node"]["networks"]) == {"edge", "stores"}
        for name in ("postgres", "redis", "upgrade"):
            assert services[name]["networks"] == ["stores"]
        assert compose()["networks"]["stores"] == {"internal": True}

    def test_settings(self):
        """A node gets every setting; of its own it has the stores, and the key that all share."""
        node = self.services()["node"]["environment"]
        assert set(node) == set(Settings.model_fields)
        alone = TestCompose().service()["environment"]
        own = {name for name, value in node.items() if value != alone.get(name, "")}
        assert own == {
            "DATABASE_URL", "REDIS_URL", "AKM_MASTER_KEY", "AKM_MASTER_KEY_FILE",
            "AKM_ADMIN_TOKEN", "TRUSTED_PROXIES", "WORKERS",
        }  # fmt: skip
        assert self.services()["upgrade"]["environment"] == node
        subnet = compose()["networks"]["edge"]["ipam"]["config"][0]["subnet"]
        assert node["TRUSTED_PROXIES"] == subnet

    def test_no_secrets(self):
        """Passwords and keys come from outside, have no default, and stand in no argument."""
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        taken = re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text)
        defaults = {
            (name, rest) for name, rest in taken if name not in ("CLUSTER_SUBNET", "VAULT_TOKEN")
        }
        names = ("CLUSTER_PASSWORD", "CLUSTER_MASTER_KEY", "CLUSTER_ADMIN_TOKEN")
        # ":-" and not ":?", which would refuse the plain `up` too.
        assert defaults == {(name, ":-") for name in names}
        page = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
        assert all(f"{name}=%s" in page for name in names)
        for service in self.services().values():
            words = " ".join(service.get("command", []))
            assert not re.search(r"(?<!\$)\$\{", words)

    def test_redis(self, tmp_path: Path):
        """Redis starts by its command: with the password, keeping what it is told, evicting
        nothing; and not at all without a password."""
        program("redis-server")
        shell, *words = self.services()["redis"]["command"]
        words = [word.replace("$$", "$") for word in words]
        port = free_port()
        words[-1] = words[-1].replace("\nEND", f"\nport {port}\nbind 127.0.0.1\nEND")
        path = {"PATH": os.environ["PATH"]}
        refused = subprocess.run(
            [shell, *words], cwd=tmp_path, env=path, capture_output=True, text=True, check=False,
            timeout=20,
        )  # fmt: skip
        assert refused.returncode
        assert "set CLUSTER_PASSWORD in .env" in refused.stderr
        with process([shell, *words], port, cwd=tmp_path, env=path | {"REDISCLI_AUTH": "pw"}):
            wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "save": ""}
            for name, value in wanted.items():
                assert ask(port, "CONFIG", "GET", name, password="pw") == [name, value]
            with pytest.raises(hiredis.ReplyError, match="NOAUTH"):
                ask(port, "PING")

    def test_nginx(self, tmp_path: Path):
        """nginx takes the configuration, whose location is that of `make cluster`."""
        text = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8")
        location = re.compile(r"^ {8}location / \{\n.*?^ {8}\}\n", re.MULTILINE | re.DOTALL)
        (here,) = location.findall(text)
        assert location.findall(gateway.CONFIG.format(folder="", port=1)) == [here]
        # An upstream that follows names takes nginx 1.27.3, and the engine to know them.
        text = re.sub(r"server node:5000 resolve", "server 127.0.0.1:5000", text)
        text = text.replace(" /tmp/", f" {tmp_path}/").replace(
            "listen 5000", f"listen {free_port()}"
        )
        (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [program("nginx"), "-t", "-p", str(tmp_path), "-e", "stderr",
             "-c", str(tmp_path / "nginx.conf")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def check_health(**settings: str) -> subprocess.CompletedProcess[str]:
    """Run the image's own command, from where its script lies here."""
    image = the("HEALTHCHECK")
    program, *words = json.loads(image[image.index("[") :])
    assert (program, words[-1]) == ("python3", HEALTHCHECK)
    assert ("COPY", f"docker/healthcheck.py {HEALTHCHECK}") in final()
    command = [sys.executable, *words[:-1], str(ROOT / "docker" / "healthcheck.py")]
    return subprocess.run(
        command, env=settings, capture_output=True, text=True, timeout=20, check=False
    )


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The port of something that answers everything with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"problems": ["a task died"]}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


class TestHealth:
    def test_of_a_server(self, tmp_path: Path):
        """A server with the image's settings is healthy, and no longer once it has stopped."""
        with started(tmp_path, HOST="0.0.0.0", ALLOW_PLAIN_HTTP="true") as server:
            port = str(urlsplit(server.url).port)
            done = check_health(HOST="0.0.0.0", PORT=port)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert server.stop() == 0
        done = check_health(HOST="0.0.0.0", PORT=port)
        assert done.returncode == 1
        assert done.stderr.startswith(f"no answer from 127.0.0.1:{port}")

    def test_over_tls(self, tmp_path: Path):
        """The certificate is one for the outside, and need not name this address."""
        certificate, key = make_certificate(tmp_path)
        settings = {"TLS_CERT": str(certificate), "TLS_KEY": str(key)}
        with started(tmp_path, HOST="0.0.0.0", **settings) as server:
            port = str(urlsplit(server.url).port)
            assert check_health(HOST="0.0.0.0", PORT=port, **settings).returncode == 0
            assert check_health(HOST="0.0.0.0", PORT=port).returncode == 1

    def test_not_ready(self):
        """A server that answers, and has a problem, is not healthy; the engine shows which."""
        with answering(503) as port:
            done = check_health(PORT=port)
        assert done.returncode == 1
        assert done.stderr == '503 {"problems": ["a task died"]}\n'
