"""The names of the published description: importable from a clone, and not in the wheel."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MODULES = {
    "core": "api_key_manager.core",
    "core.exceptions": "api_key_manager.core.exceptions",
    "core.manager": "api_key_manager.core.manager",
    "core.validator": "api_key_manager.core.validator",
    "config": "api_key_manager.config",
    "config.settings": "api_key_manager.config.settings",
    "vault_integration": "api_key_manager.vault_integration",
    "vault_integration.vault_client": "api_key_manager.vault_integration.vault_client",
}


@pytest.mark.parametrize(("published", "packaged"), MODULES.items())
def test_same_objects(published: str, packaged: str):
    """A published name is the package's object, so that `except` and `isinstance` agree."""
    outer, inner = importlib.import_module(published), importlib.import_module(packaged)
    assert outer.__all__
    for name in outer.__all__:
        assert getattr(outer, name) is getattr(inner, name)


def test_from_a_clone():
    """They are this checkout's, not another distribution's `core` or `config`."""
    for name in MODULES:
        assert Path(importlib.import_module(name).__file__ or "").is_relative_to(ROOT)


def test_every_exception_is_published():
    """A new exception is published too."""
    from api_key_manager.core import exceptions as inner
    from core import exceptions as outer

    raised = {
        name
        for name, value in vars(inner).items()
        if isinstance(value, type) and issubclass(value, inner.APIKeyManagerException)
    }
    assert raised <= set(outer.__all__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # From a copy: a build must not depend on, or leave, anything in the checkout.
    source = tmp_path_factory.mktemp("source")
    for name in ("core", "config", "vault_integration", "src", "tests/unit"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(source / "out")],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (path,) = (source / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_only(wheel: zipfile.ZipFile):
    """Installed from the wheel, this project occupies one name, not `core` and `config` too."""
    tops = {re.sub(r"-[0-9.]+\.", ".", name.split("/")[0]) for name in wheel.namelist()}
    assert tops == {"api_key_manager", "api_key_manager_pro.dist-info"}
    assert "api_key_manager/py.typed" in wheel.namelist()
    assert "api_key_manager/config/settings.py" in wheel.namelist()
    wheel.close()


def test_from_a_clone_that_is_not_installed(tmp_path: Path):
    """As published: clone, install the requirements, import. `-S` leaves out what is installed."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from core import AsyncAPIKeyValidator, KeyManager\n"
        "from core.exceptions import InvalidSignatureError\n"
        "print(KeyManager.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "api_key_manager.core.manager\n"
