"""Rules on paths: which one fits, which paths are refused for having two readings, and what a file
must look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.core.exceptions import ConfigurationError
from api_key_manager.core.permissions import compile_expression
from api_key_manager.server.rules import (
    MAX_PERMISSIONS,
    MAX_RULES,
    NEVER,
    Rules,
    load_rules,
    plain_path,
)


def rules(folder: Path, text: str, default: str = "deny") -> Rules:
    (folder / "rules.toml").write_text(f'default = "{default}"\n{text}', encoding="utf-8")
    return load_rules(str(folder / "rules.toml"))


def rule(path: str, permissions: str = "", **more: Any) -> str:
    lines = [
        "[[rules]]",
        f"path = '{path}'",
        *(f"{name} = {value}" for name, value in more.items()),
    ]
    return "\n".join([*lines, f"permissions = '{permissions}'" if permissions else "", ""])


def test_never():
    """No grants whatever meet what a refusal asks for."""
    for grants in ((), ("*",), ("never",), ("never.*",), ("a", "never", "*.never")):
        assert not compile_expression(NEVER)(grants)


@pytest.mark.parametrize(
    ("path", "fits", "other"),
    [
        ("/a", ["/a", "/a/"], ["/", "/a/b", "/ab", "/b/a"]),
        ("/a/", ["/a", "/a/"], ["/", "/a/b"]),
        ("/", ["/"], ["/a"]),
        ("/a/*", ["/a/b", "/a/b/", "/a/*", "/a/%20b"[:0] or "/a/b%20c"], ["/a", "/a/", "/a/b/c"]),
        ("/a/*/c", ["/a/b/c"], ["/a/c", "/a/b/d", "/a/b/b/c"]),
        ("/a/**", ["/a", "/a/", "/a/b", "/a/b/c/"], ["/", "/ab", "/b"]),
        ("/**", ["/", "/a", "/a/b/"], []),
        ("/*/**", ["/a", "/a/b"], ["/"]),
        ("/a.b", ["/a.b"], ["/aXb"]),
        ("/a%20b", ["/a%20b"], ["/a+b", "/a"]),
        ("/@me", ["/@me", "/%40me"], ["/me"]),
        ("/straße", [], []),
        ("/stra%C3%9Fe", ["/stra%C3%9Fe", "/stra%c3%9fe"], ["/strasse"]),
    ],
)  # fmt: skip
def test_paths(tmp_path, path: str, fits: list[str], other: list[str]):
    """What a pattern fits, and what not."""
    if not fits:
        with pytest.raises(ConfigurationError):
            rules(tmp_path, rule(path, "p"))
        return
    known = rules(tmp_path, rule(path, "p"))
    for each in fits:
        assert known.wanted("GET", each).permissions == "p", each
    for each in other:
        assert known.wanted("GET", each).permissions == NEVER, each


def test_first_rule_counts(tmp_path):
    """Of two that fit the first one counts; where none does, the default."""
    text = rule("/a/b", "first") + rule("/a/**", "second") + rule("/open")
    for default, otherwise in (("deny", NEVER), ("allow", None)):
        known = rules(tmp_path, text, default)
        told = [known.wanted("GET", path).permissions for path in ("/a/b", "/a/c", "/open", "/x")]
        assert told == ["first", "second", None, otherwise]


def test_methods(tmp_path):
    """A rule holds for its methods; HEAD goes with GET; a method that is not in upper case, which
    services may read as if it were, is refused."""
    known = rules(tmp_path, rule("/a", "read", methods='["GET"]') + rule("/a", "write"), "allow")
    told = {
        m: known.wanted(m, "/a").permissions for m in ("GET", "HEAD", "PUT", "get", "Head", "M!")
    }
    assert told == {
        "GET": "read", "HEAD": "read", "PUT": "write", "get": NEVER, "Head": NEVER, "M!": NEVER,
    }  # fmt: skip


def test_cost(tmp_path):
    """A rule has a cost, 1 when it says none."""
    known = rules(tmp_path, rule("/a", cost=7) + rule("/b"), "allow")
    assert [known.wanted("GET", path).cost for path in ("/a", "/b", "/c")] == [7, 1, 1]


@pytest.mark.parametrize(
    "trick",
    [
        "/public/../admin", "/public/%2e%2e/admin", "/public/.%2e/admin", "/./admin", "/%2e/admin",
        "//admin", "/public//admin", "/admin//", "//", "/%61dmin", "/%41dmin", "/admin;x",
        "/admin;",
        "/admin%3bx", "/admin%3B", "/public/..;/admin", "/admin%2f", "/admin%2Fusers", "/%2fadmin",
        "/admin%5cusers", "/admin\\users", "\\admin", "/admin%00", "/admin%0a", "/admin%0d%0a",
        "/admin%7f", "/admin%", "/admin%2", "/admin%zz", "/%2561dmin", "/admin%252f", "/admin%3f",
        "/admin%23", "/admin?", "/admin#", "/admin.", "/admin..", "/...", "/admin%20", "/%20admin",
        "/admin%c0%af", "/%c1%a1dmin", "/%ff", "/%ef%bd%81dmin", "/%e2%84%80", "/%u0061dmin",
        "/admin%c2%a0", "/admin%e2%80%8b", "/adm|in", "/[admin]", "/{admin}", "admin", "", "*",
        "http://h/admin", "/admin%09", "/a b", "/é", "/admin`",
    ],
)  # fmt: skip
def test_two_readings(tmp_path, trick: str):
    """A path that a service might read as another one fits no rule, not even the open ones."""
    assert plain_path(trick) is None
    known = rules(tmp_path, rule("/admin/**", "admin") + rule("/**"), "allow")
    assert known.wanted("GET", trick).permissions == NEVER


@pytest.mark.parametrize("path", ["/Admin", "/ADMIN/x", "/admin/X/Secret", "/public/README"])
def test_case(tmp_path, path: str):
    """A path to which another rule applies for a service that ignores case is refused."""
    known = rules(
        tmp_path, rule("/admin/x/secret", "s") + rule("/admin/**", "a") + rule("/**"), "allow"
    )
    expected = None if path.startswith("/public") else NEVER
    assert known.wanted("GET", path).permissions == expected


segments = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\;%?#. "),
    min_size=1,
    max_size=8,
)


@given(st.lists(segments, min_size=1, max_size=5), st.booleans())
def test_plain_paths_decode_once(parts: list[str], slash: bool):
    """What is taken is the path decoded, and nothing is left in it that could be decoded again."""
    from urllib.parse import quote

    written = "/" + "/".join(quote(part, safe="!$&'()*+,=:@") for part in parts) + "/" * slash
    plain = plain_path(written)
    if plain is not None:
        assert plain == unquote(written).removesuffix("/")
        assert unquote(plain) == plain
    else:
        assert not "".join(parts).isascii()


@given(st.text("ab%.;/\\25eEfF cC0 1Aa", max_size=20))
def test_no_reading_leads_elsewhere(text: str):
    """However often it is decoded, whatever is merged, resolved or dropped: a path that is taken
    stays the same path."""
    import posixpath

    path = f"/{text}"
    plain = plain_path(path)
    if plain is None:
        return
    twice = unquote(unquote(path))
    assert twice.removesuffix("/") == plain.removesuffix("/")
    assert posixpath.normpath(twice) == plain
    assert "/".join(part.partition(";")[0] for part in twice.split("/")) == twice
    assert twice.replace("\\", "/") == twice


MISTAKES = [
    ("", "default"), ('default = "open"', "default"), ("default = true", "default"),
    ('default = "deny"\nrule = []', "there is no 'rule'"), ('default = "deny"\nrules = 5', "rules"),
    ('default = "deny"\nrules = [5]', "rule 1"), ("default = ", "Invalid value"),
    ('default = "deny"\n[[rules]]', "rule 1: path"),
    ('default = "deny"\n[[rules]]\npath = 5', "rule 1: path"),
    *((f'default = "deny"\n[[rules]]\npath = "{path}"', "rule 1: path") for path in (
        "", "a", "/a//b", "/a/../b", "/a?b", "/a;b", "/%61", "/a/**/b", "/a*", "/**/a", "/***",
        "/a/**b",
    )),
    *((f'default = "deny"\n[[rules]]\npath = "/a"\n{line}', f"rule 1: {field}") for line, field in (
        ("paths = 1", "there is no 'paths'"), ("methods = []", "methods"),
        ('methods = "GET"', "methods"),
        ('methods = ["get"]', "methods"), ("methods = [1]", "methods"), ("cost = 0", "cost"),
        ("cost = true", "cost"), ("cost = 1.5", "cost"), ("cost = 1000001", "cost"),
        ('permissions = ""', "permissions"), ('permissions = "a or"', "permissions"),
        ("permissions = []", "permissions"), ("permissions = 5", "permissions"),
        ('permissions = ["a", 5]', "permissions"), ('permissions = ["a or b"]', "permissions"),
        (f'permissions = "{"a" * 120}{" or b" * 80}"', "permissions"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_mistakes(tmp_path, text: str, told: str):
    """A file that cannot be used is one line that names the file, the rule and the field."""
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_rules(str(file))
    message = str(caught.value)
    assert message.startswith(f"AUTHORIZE_RULES={file} cannot be used: ")
    assert told in message
    assert "\n" not in message


def test_no_file(tmp_path):
    """A file that is not there, is a folder, is no text or too large."""
    (tmp_path / "bytes").write_bytes(b'default = "\xff"')
    (tmp_path / "large").write_bytes(b"#" * 300_000)
    for name, told in (
        ("missing", "No such file"), ("", "Is a directory"), ("bytes", "UTF-8"),
        ("large", "at most"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=told):
            load_rules(str(tmp_path / name))


def test_bounds(tmp_path):
    """As many rules, and as long an expression, as allowed."""
    known = rules(tmp_path, rule("/a", "p" * 100 + " or q" * 60) + rule("/b") * (MAX_RULES - 1))
    assert len(known.wanted("GET", "/a").permissions or "") <= MAX_PERMISSIONS
    with pytest.raises(ConfigurationError, match="rules: at most"):
        rules(tmp_path, rule("/b") * (MAX_RULES + 1))


def test_lists(tmp_path):
    """A list of permissions is needed whole."""
    known = rules(tmp_path, "[[rules]]\npath = '/a'\npermissions = ['a.b', 'c']")
    assert known.wanted("GET", "/a").permissions == "a.b and c"
