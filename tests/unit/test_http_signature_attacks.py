"""What an attacker, or a careless client, does to a signed request: each refused, with its reason.

Replays and clocks are in tests/contract/test_signed_requests.py, where the nonces are.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Any

import pytest

from api_key_manager.core import Reason, sign
from api_key_manager.core.http_signatures import COVERED
from api_key_manager.core.policy import Rules, judge
from api_key_manager.core.presented import present
from api_key_manager.core.tokens import checksum
from tests.unit.test_http_signatures import NONCE, reason, signed
from tests.unit.test_policy import NOW, SECRET, open_key

MALFORMED, BAD_SIGNATURE = Reason.MALFORMED, Reason.BAD_SIGNATURE
PARAMETERS = {
    "created": str(NOW), "nonce": f'"{NONCE}"', "keyid": '"client"', "alg": '"hmac-sha256"',
    "tag": '"akm"',
}  # fmt: skip
BODY = b"{}"
DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(BODY).digest()).decode()}:"
LINES = {
    "@method": "POST", "@authority": "example.com", "@path": "/foo", "@query": "?a=1",
    "content-digest": DIGEST, "date": "Tue, 20 Apr 2021 02:07:55 GMT",
}  # fmt: skip


def forged(covered: Any = COVERED, parameters: Any = None, **lines: str) -> dict[str, Any]:
    """A request whose MAC is right for whatever it says it covers: only the profile can refuse."""
    values = LINES | {name.replace("_", "-"): value for name, value in lines.items()}
    parts = PARAMETERS.items() if parameters is None else parameters
    inner = "(" + " ".join(f'"{name}"' for name in covered) + ")"
    inner += "".join(f";{name}={value}" if value else f";{name}" for name, value in parts)
    base = "".join(f'"{name}": {values[name]}\n' for name in covered)
    base += f'"@signature-params": {inner}'
    mac = base64.b64encode(hmac.digest(SECRET.encode(), base.encode(), "sha256")).decode()
    return {
        "method": "POST", "url": "https://example.com/foo?a=1",
        "headers": {
            "Content-Digest": values["content-digest"], "Signature-Input": f"sig={inner}",
            "Signature": f"sig=:{mac}:", "Date": values["date"],
        },
    }  # fmt: skip


def without(name: str) -> list[tuple[str, str]]:
    return [item for item in PARAMETERS.items() if item[0] != name]


def with_headers(request: dict[str, Any], **headers: Any) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {**request, "headers": {**request["headers"], **named}}


def test_the_forge_is_right():
    """Unchanged, what the tests below start from is accepted."""
    assert reason(forged()) is Reason.VALID
    assert reason(forged(COVERED[::-1], list(PARAMETERS.items())[::-1])) is Reason.VALID


@pytest.mark.parametrize("name", COVERED)
def test_missing_component(name: str):
    """A signature that leaves out one component proves nothing of it: malformed."""
    assert reason(forged([n for n in COVERED if n != name])) is MALFORMED


@pytest.mark.parametrize("name", COVERED)
def test_component_twice(name: str):
    """Twice one component, also in another one's place: malformed."""
    assert reason(forged([*COVERED, name])) is MALFORMED
    other = next(n for n in COVERED if n != name)
    assert reason(forged([name if n == other else n for n in COVERED])) is MALFORMED


def test_another_component():
    """A sixth component, or another one in the place of one: malformed."""
    assert reason(forged([*COVERED, "date"])) is MALFORMED
    assert reason(forged([*COVERED[:4], "date"])) is MALFORMED


@pytest.mark.parametrize("parameter", [";sf", ";req", ';key="sha-256"', ";bs", ";tr"])
def test_component_parameter(parameter: str):
    """A component with a parameter means something else: malformed."""
    request = forged()
    text = request["headers"]["Signature-Input"]
    for name in COVERED:
        changed = text.replace(f'"{name}"', f'"{name}"{parameter}')
        assert reason(with_headers(request, Signature_Input=changed)) is MALFORMED


@pytest.mark.parametrize("name", PARAMETERS)
def test_missing_parameter(name: str):
    """Each parameter is required, the tag too: malformed, however right the MAC is."""
    assert reason(forged(parameters=without(name))) is MALFORMED


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_twice(name: str):
    """Two values of one parameter leave open which one counts: malformed."""
    twice = [*PARAMETERS.items(), (name, PARAMETERS[name])]
    assert reason(forged(parameters=twice)) is MALFORMED
    for other in PARAMETERS:
        if other != name:
            doubled = [*without(other), (name, PARAMETERS[name])]
            assert reason(forged(parameters=doubled)) is MALFORMED


@pytest.mark.parametrize("more", [("expires", str(NOW + 60)), ("x", "1"), ("x", "")])
def test_another_parameter(more: tuple[str, str]):
    """`expires` and what nobody knows: malformed."""
    assert reason(forged(parameters=[*PARAMETERS.items(), more])) is MALFORMED


@pytest.mark.parametrize(
    "alg",
    ['"hmac-sha512"', '"HMAC-SHA256"', '"rsa-pss-sha512"', '"ed25519"', '"none"', '""',
     "hmac-sha256", ":aG1hYy1zaGEyNTY=:"],
)  # fmt: skip
def test_algorithm_swapped(alg: str):
    """There is one algorithm; the caller does not choose: malformed."""
    assert reason(forged(parameters=[*without("alg"), ("alg", alg)])) is MALFORMED


@pytest.mark.parametrize("tag", ['"other"', '"AKM"', '""', "akm", '"akm "'])
def test_another_tag(tag: str):
    """A signature made for something else is not one for us: malformed."""
    assert reason(forged(parameters=[*without("tag"), ("tag", tag)])) is MALFORMED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("created", f'"{NOW}"'), ("created", f"{NOW}.0"), ("created", f"0{NOW}"),
        ("created", "-1"), ("created", "-0"), ("created", f"+{NOW}"), ("created", "1e9"),
        ("created", "999999999999"), ("created", "9" * 15), ("created", "9" * 5000),
        ("created", f"@{NOW}"), ("created", "\u0661" * 10), ("created", ""),
        ("nonce", NONCE), ("nonce", '"short"'), ("nonce", f'"{"n" * 129}"'),
        ("nonce", f'"{NONCE}\\""'), ("nonce", f'"{NONCE} "'), ("nonce", f'"{NONCE};a=1"'),
        ("keyid", "client"), ("keyid", '""'), ("keyid", f'"{"k" * 129}"'), ("keyid", '"a b"'),
        ("keyid", '"cli\\"ent"'), ("keyid", '"cliént"'), ("keyid", '"a";keyid="client"'),
    ],
)  # fmt: skip
def test_misshapen_parameter(name: str, value: str):
    """A parameter of a wrong type, alphabet or length: malformed."""
    assert reason(forged(parameters=[*without(name), (name, value)])) is MALFORMED


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_missing_header(name: str):
    """Each of the three is required, the digest also of an empty body: malformed."""
    for request in (signed(), signed("GET", body=b"")):
        assert reason(request) is Reason.VALID
        headers = {n: v for n, v in request["headers"].items() if n != name}
        assert reason({**request, "headers": headers}) is MALFORMED


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_duplicate_header(name: str):
    """A header twice, the same or another value, in any of the ways it can be given: malformed."""
    request = signed()
    value = request["headers"][name]
    pairs = list(request["headers"].items())
    for more in (value, "", "x"):
        assert reason({**request, "headers": [*pairs, (name, more)]}) is MALFORMED
        assert reason({**request, "headers": [(name.lower(), more), *pairs]}) is MALFORMED
        assert reason(with_headers(request, **{name: [value, more]})) is MALFORMED
        assert reason(with_headers(request, **{name.upper(): more})) is MALFORMED
        assert reason(with_headers(request, **{name: f"{value}, {more}"})) is MALFORMED
    assert reason(with_headers(request, **{name: []})) is MALFORMED
    assert reason(with_headers(request, **{name: [value]})) is Reason.VALID


def test_mixed_case_names():
    """Header names are the same in any case; as a list of pairs, too."""
    request = signed()
    for change in (str.lower, str.upper, str.swapcase, str.title):
        headers = {change(name): value for name, value in request["headers"].items()}
        assert reason({**request, "headers": headers}) is Reason.VALID
        assert reason({**request, "headers": list(headers.items())}) is Reason.VALID


@pytest.mark.parametrize("name", ["Signature ", " Signature", "Signature\t", "signature\u00a0"])
def test_names_with_spaces(name: str):
    """A name that some readers take for ours and others do not: malformed."""
    assert reason(with_headers(signed(), **{name: "x"})) is MALFORMED


@pytest.mark.parametrize("fold", ["\r\n ", "\r\n\t", "\n ", "\n", "\r", "\0", "\r\nSignature: x"])
@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature", "X-Other"])
def test_obs_fold_and_control_characters(name: str, fold: str):
    """A folded line, or one that was smuggled into another header: malformed."""
    request = signed()
    value = request["headers"].get(name, "a b")
    for text in (value + fold, fold + value, value[:5] + fold + value[5:]):
        assert reason(with_headers(request, **{name: text})) is MALFORMED


def test_other_headers_are_not_read():
    """What is not covered may be anything else that a header can be, as often as it likes."""
    request = signed()
    others = {"Host": "elsewhere", "X-A": ["a", "b\t c"], "Ünknown": "é", "Signature_Input": "x"}
    assert reason({**request, "headers": {**request["headers"], **others}}) is Reason.VALID


@pytest.mark.parametrize("size", [1_000, 1_000_000])
@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_huge_header(name: str, size: int):
    """A header of 1 MB is not even looked at: malformed, at the cost of its length."""
    request = signed()
    value = request["headers"][name]
    for text in ("a" * size, value + " " * size, value[:-1] + "A" * size, '("@path"' * (size // 8)):
        assert reason(with_headers(request, **{name: text})) is MALFORMED
    assert reason(with_headers(request, **{"x" * size: "y" * size})) is Reason.VALID


@pytest.mark.parametrize(
    "more",
    ["sig2=:{mac}:", "akm=:{mac}:", "akm;x=1"],
)
def test_two_signatures(more: str):
    """A second signature, also one of the same label: malformed."""
    request = signed()
    given, signature = (request["headers"][n] for n in ("Signature-Input", "Signature"))
    second = more.format(mac=signature[5:-1])
    for text in (f"{signature}, {second}", f"{second}, {signature}", f"{signature},{second}"):
        assert reason(with_headers(request, Signature=text)) is MALFORMED
    inputs = f"{given}, sig2={given[4:]}"
    assert reason(with_headers(request, Signature_Input=inputs)) is MALFORMED
    both = with_headers(request, Signature_Input=inputs, Signature=f"{signature}, {second}")
    assert reason(both) is MALFORMED


def test_labels_differ():
    """A signature under another label than its input belongs to something else: malformed."""
    request = signed()
    renamed = request["headers"]["Signature"].replace("akm=", "sig=")
    assert reason(with_headers(request, Signature=renamed)) is MALFORMED
    both = request["headers"]["Signature-Input"].replace("akm=", "sig=", 1)
    assert reason(with_headers(request, Signature=renamed, Signature_Input=both)) is Reason.VALID


@pytest.mark.parametrize("label", ["Sig", "1sig", "-sig", "", "s ig", "s" * 65, "é"])
def test_misshapen_label(label: str):
    """A label that no dictionary can have: malformed."""
    request = signed()
    headers = {
        name: request["headers"][name].replace("akm=", f"{label}=", 1)
        for name in ("Signature", "Signature-Input")
    }
    assert reason(with_headers(request, **headers)) is MALFORMED


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (" ", "  "), (" ", "\t"), ("(", "( "), (")", " )"), (";", "; "), (";", " ;"), ("=", " = "),
        ("akm=(", "akm= ("), ('"@path"', "'@path'"), ('"@path"', "@path"), ('"@path"', '"@PATH"'),
        ('"@path"', '"\\@path"'), ('"akm"', '"\\akm"'), ('"akm"', "akm"), ("akm=", " akm="),
    ],
)  # fmt: skip
def test_not_canonical(was: str, becomes: str):
    """Another way to write the same thing is not the text that was signed: malformed."""
    request = signed()
    text = request["headers"]["Signature-Input"]
    assert was in text
    assert reason(with_headers(request, Signature_Input=text.replace(was, becomes, 1))) is MALFORMED


URL = "https://example.com/a%2Fb/c?x=%7E&y=1"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a/b/c?x=%7E&y=1",  # decoded
        "https://example.com/a%2fb/c?x=%7E&y=1",  # the other case of a digit
        "https://example.com/a%252Fb/c?x=%7E&y=1",  # encoded twice
        "https://example.com/%61%2Fb/c?x=%7E&y=1",
        "https://example.com/a%2Fb/./c?x=%7E&y=1",
        "https://example.com/a%2Fb/../a%2Fb/c?x=%7E&y=1",
        "https://example.com//a%2Fb/c?x=%7E&y=1",
        "https://example.com/a%2Fb/c/?x=%7E&y=1",
        "https://example.com/a%2Fb/c;z?x=%7E&y=1",
        "https://example.com/a%2Fb/C?x=%7E&y=1",
        "https://example.com/a%2Fb/c%3Fx=%7E&y=1",  # the query in the path
        "https://example.com/a%2Fb?/c?x=%7E&y=1",  # the path in the query
        "https://example.com/a%2Fb/c?x=~&y=1",
        "https://example.com/a%2Fb/c?x=%7e&y=1",
        "https://example.com/a%2Fb/c?y=1&x=%7E",
        "https://example.com/a%2Fb/c?x=%7E&y=1&",
        "https://example.com/a%2Fb/c?x=%7E&y=1&y=2",
        "https://example.com/a%2Fb/c?x=%7E;y=1",
        "https://example.com/a%2Fb/c??x=%7E&y=1",
        "https://example.com/a%2Fb/c",
        "https://example.com/a%2Fb/c?",
        "https://example.com:8443/a%2Fb/c?x=%7E&y=1",
        "https://example.com./a%2Fb/c?x=%7E&y=1",
        "https://example.org/a%2Fb/c?x=%7E&y=1",
        "http://example.com:443/a%2Fb/c?x=%7E&y=1",
    ],
)
def test_percent_encoding_and_other_tricks_in_the_url(url: str):
    """What was signed is what was sent: another way to write a path or query does not match."""
    request = signed(url=URL)
    assert reason(request) is Reason.VALID
    assert reason({**request, "url": url}) is BAD_SIGNATURE


def test_the_same_url():
    """Case of the host, the default port and a bare question mark are the same request."""
    request = signed(url="https://example.com/")
    for url in ("https://EXAMPLE.com:443", "HTTPS://example.com/?", "https://example.com?"):
        assert reason({**request, "url": url}) is Reason.VALID


@pytest.mark.parametrize("method", ["GET", "post", "POST2", "PUT"])
def test_method_swapped(method: str):
    """Another method, also in another case, does not match."""
    assert reason({**signed(), "method": method}) is BAD_SIGNATURE


@pytest.mark.parametrize("method", ["", "GET /", "GE T", "GET\n", "G" * 33, "GÉT", None, 5, b"GET"])
def test_misshapen_method(method: Any):
    """What is no method: malformed."""
    assert reason({**signed(), "method": method}) is MALFORMED


def digest_of(body: bytes, algorithm: str = "sha256") -> str:
    return base64.b64encode(hashlib.new(algorithm, body).digest()).decode()


def test_wrong_digest():
    """A digest put in after signing does not match, whether or not the body is seen."""
    request = with_headers(signed(), Content_Digest=f"sha-256=:{digest_of(b'other')}:")
    assert reason(request) is BAD_SIGNATURE
    assert reason({**request, "body_sha256": hashlib.sha256(b"other").hexdigest()}) is BAD_SIGNATURE
    del request["body_sha256"]
    assert reason(request) is BAD_SIGNATURE


@pytest.mark.parametrize(("signed_body", "body"), [(b"{}", b"{ }"), (b"", b"{}"), (b"{}", b"")])
def test_body_changed_added_or_removed(signed_body: bytes, body: bytes):
    """Who sees the body finds that it is another one: bad_signature, and nothing of the key."""
    request = signed(body=signed_body)
    assert reason({**request, "body_sha256": hashlib.sha256(body).hexdigest()}) is BAD_SIGNATURE


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "g" * 64, "é" * 64, 5, b"0" * 64, []])
def test_unreadable_body_hash(value: Any):
    """A hash of the body that can be none is malformed, and never taken for "not given"."""
    assert reason({**signed(), "body_sha256": value}) is MALFORMED


def test_body_hash_in_either_case():
    """Hex digits of the hash are read in either case."""
    request = signed()
    assert reason({**request, "body_sha256": request["body_sha256"].upper()}) is Reason.VALID


@pytest.mark.parametrize(
    "value",
    [
        "", "sha-256", "sha-256=", "sha-256=::", f"SHA-256=:{digest_of(BODY)}:",
        f"sha-512=:{digest_of(BODY, 'sha512')}:",
        f"sha-512=:{digest_of(BODY, 'sha512')}:, sha-256=:{digest_of(BODY)}:",
        f"sha-256=:{digest_of(BODY)}:, sha-512=:{digest_of(BODY, 'sha512')}:",
        f"sha-256=:{digest_of(BODY)}:, sha-256=:{digest_of(BODY)}:",
        f"md5=:{digest_of(BODY, 'md5')}:", f"sha-256=:{digest_of(BODY)}:;x=1",
        f"sha-256={digest_of(BODY)}", f'sha-256="{digest_of(BODY)}"', f"sha-256=:{'0' * 64}:",
        f"sha-256=:{digest_of(BODY)[:-1]}:", f"sha-256=:{digest_of(BODY)}", f"sha-256=:{'A' * 40}:",
    ],
)  # fmt: skip
def test_other_digests(value: str):
    """The digest is one sha-256, whatever else was signed with the right MAC: malformed."""
    assert reason(forged(content_digest=value)) is MALFORMED


def unusable(text: str) -> list[str]:
    """Base64 that is cut, too long, of another alphabet, or not the one way to write its bytes."""
    other_last = text[:42] + chr(ord(text[42]) + 1) + "="
    return [
        "", text[:-1], text[:-4], text + "=", text + "AAAA", text[:-2] + "==", "A" * 44, "A" * 43,
        other_last, text[:10] + "-" + text[11:], text[:10] + "_" + text[11:], " " + text,
        text[:20] + " " + text[20:], text[:20] + "\n" + text[20:], "=" + text[1:], "é" + text[1:],
        base64.b64encode(b"x" * 31).decode(), base64.b64encode(b"x" * 33).decode(), "A" * 4096,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Signature", "Content-Digest"])
def test_truncated_and_oversize_base64(name: str):
    """32 bytes, written in the one way that there is; anything else is malformed."""
    request = signed()
    found = re.fullmatch(r"(.*=:)(.*)(:)", request["headers"][name])
    assert found is not None
    for text in unusable(found[2]):
        assert reason(with_headers(request, **{name: found[1] + text + found[3]})) is MALFORMED


def test_never_a_weaker_signature_instead():
    """A static or timestamped signature in a request's place is not tried: bad_signature."""
    request = signed()
    for weaker in (sign(SECRET, "client"), sign(SECRET, "client", NOW, NONCE)):
        text = base64.b64encode(bytes.fromhex(weaker)).decode()
        assert reason(with_headers(request, Signature=f"akm=:{text}:")) is BAD_SIGNATURE


def test_a_request_signature_is_no_other():
    """Nor is a request's signature taken for one over key, timestamp and nonce."""
    mac = base64.b64decode(signed()["headers"]["Signature"][5:-1]).hex()
    for more in ((), (NOW,), (NOW, NONCE)):
        assert judge(open_key(), present("client", mac, *more), NOW, Rules()).reason is (
            BAD_SIGNATURE
        )


@pytest.mark.parametrize(
    "more",
    [{"key_id": "client"}, {"signature": "a" * 64}, {"timestamp": NOW}, {"nonce": NONCE},
     {"token": "akm_x_y"}],
)  # fmt: skip
def test_two_credentials(more: dict[str, Any]):
    """A request beside any part of another credential leaves open which one is meant: malformed."""
    assert not present(request=signed()).malformed
    assert present(request=signed(), **more).malformed


def test_another_member():
    """A member that nobody knows is not ignored: malformed."""
    assert reason({**signed(), "body": "{}"}) is MALFORMED


def test_who_was_meant_is_kept():
    """An unreadable request reaches the audit log with the id that it names, if it names one."""
    request = signed()
    for spoilt in (
        with_headers(request, Signature="akm=:AAAA:"),
        {**request, "url": "/"},
        {**request, "x": 1},
        forged(parameters=without("tag")),
    ):
        assert (present(request=spoilt).malformed, present(request=spoilt).key_id) == (
            True, "client",
        )  # fmt: skip
    text = request["headers"]["Signature-Input"]
    twice = text.replace("client", "another")
    for nobody in (
        {**request, "headers": {}},
        {},
        5,
        {"headers": "x"},
        with_headers(request, Signature_Input=[text, twice]),
        with_headers(request, Signature_Input=text + " " * 1000),
        with_headers(request, Signature_Input=text.replace("client", "a b")),
    ):
        assert (present(request=nobody).malformed, present(request=nobody).key_id) == (True, "")


def test_an_id_that_looks_like_a_secret():
    """Text that ends like a minted secret is no id, and is not kept for the log."""
    text = "x" * 31
    request = forged(parameters=[*without("keyid"), ("keyid", f'"{text}{checksum(text)}"')])
    given = present(request=request)
    assert (given.malformed, given.key_id) == (True, "")
