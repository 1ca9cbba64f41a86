"""The patterns that docs/leaks.md gives to other scanners."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from api_key_manager.core.tokens import mint_secret, mint_token

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "leaks.md").read_text()


def block(language: str, start: str) -> str:
    return next(
        text
        for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
        if text.startswith(start)
    )


def patterns() -> list[str]:
    gitleaks = tomllib.loads(block("toml", "[[rules]]"))["rules"][0]["regex"]
    trufflehog = re.search(r"key: '(.*)'", block("yaml", "detectors"))
    python = re.search(r're\.compile\(r"(.*)"\)', block("python", "import re"))
    assert trufflehog
    assert python
    return [gitleaks, trufflehog[1], python[1]]


@pytest.mark.parametrize("pattern", patterns(), ids=["gitleaks", "trufflehog", "python"])
def test_finds_all_of_ours(pattern):
    """Whatever is minted is found whole, also among other text; they use nothing but RE2."""
    assert "(?=" not in pattern
    assert "(?!" not in pattern
    minted = [mint_secret("akm"), mint_token("akm", "a.b:c-1"), mint_token("akm_admin", "x" * 128)]
    for token in minted:
        assert re.findall(pattern, f"KEY='{token}' # {token}") == [token, token]
    assert not re.search(pattern, "akm_secret_ akm_secret_0123456789 akm_keys_scan")


def test_hook_definition():
    """The hook that is shipped runs the command that the page names, by the id that it names."""
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text()
    assert "entry: akm keys scan\n" in hook
    found = re.search(r"^- id: (\S+)$", hook, re.MULTILINE)
    assert found
    assert f"- id: {found[1]}\n" in PAGE
