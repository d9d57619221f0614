"""Who may come to the page: strangers, cookies, the printed address, limits, names and tokens."""

import stat

import pytest
from page_client import ADA, BOB, Rig

from anchorlwf.annotator.team import load_annotators
from anchorlwf.annotator.web.guard import HEADERS
from anchorlwf.annotator.web.settings import WebSettings, checked_hosts, kept_token
from anchorlwf.errors import ConfigError


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        (None, {}, 401),
        ("wrong" * 8, {}, 401),
        (None, {"authorization": "Bearer nonsense"}, 401),
        (None, {"authorization": f"Basic {ADA}"}, 401),
        (ADA, {"host": "evil.example"}, 403),
        (ADA, {"host": "127.0.0.1:1"}, 403),
        (ADA, {"host": "127.0.0.1"}, 403),
        (ADA, {"host": "evil.example:8642"}, 403),
        (ADA, {"origin": "http://evil.example"}, 403),
        (ADA, {"origin": "null"}, 403),
        (ADA, {"origin": "http://127.0.0.1:9999"}, 403),
        (ADA, {"origin": "http://[x"}, 403),
        (ADA, {"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_nothing_is_for_strangers(rig, token, headers, status):
    rig.ask("hello")
    stranger = rig.person(token, **headers)
    for method, path in [
        ("GET", "/"),
        ("GET", "/static/x.js"),
        ("GET", "/api/me"),
        ("GET", "/api/openapi.json"),
        ("GET", "/api/export"),
        ("POST", "/api/next"),
        ("POST", "/api/import"),
        ("GET", "/api/sessions/1"),
        ("POST", "/api/sessions/1/undo"),
        ("PUT", "/api/me"),
        ("OPTIONS", "/api/me"),
        ("GET", "/nowhere"),
    ]:
        if path == "/" and "sec-fetch-site" in headers:
            continue  # a link from elsewhere may lead to the page: its cookie stays behind (SameSite)
        reply = stranger.client.request(method, path, json={} if method == "POST" else None)
        assert reply.status_code == status, (method, path)
        assert "ada" not in reply.text


def test_a_cookie_alone_does_not_write_without_an_origin(rig):
    ada = rig.person()
    del ada.client.headers["origin"]
    assert ada.post("/api/next").status_code == 403
    assert ada.get("/api/me").status_code == 200
    script = rig.person(None, authorization=f"Bearer {ADA}")
    del script.client.headers["origin"]
    assert script.post("/api/next").status_code == 200


def test_the_printed_address_becomes_a_cookie(rig):
    visitor = rig.person(None)
    reply = visitor.get("/", token=ADA)
    # Sent on by our own page: a redirection of a link on another site would not carry a strict cookie.
    assert (reply.status_code, reply.headers["refresh"]) == (200, "0; url=/")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert rig.person(None).get("/", token="wrong").status_code == 401
    for name, value in HEADERS.items():
        assert reply.headers[name] == value


def test_too_much_and_too_fast(tiny_model, tmp_path):
    rig = Rig(tiny_model, tmp_path, body_limit=1000, upload_limit=3000, rate=0.5, burst=5)
    ada = rig.person()
    assert ada.post("/api/tokenize", {"text": "x" * 2000}).status_code == 413
    assert ada.post("/api/import", {"format": "prompts", "content": "x" * 2000}).status_code == 400
    replies = [ada.get("/api/me") for _ in range(9)]
    assert [r.status_code for r in replies].count(429) >= 4
    assert int(replies[-1].headers["retry-after"]) >= 1
    assert rig.person(BOB).get("/api/me").status_code == 200
    rig.close()


def test_annotators_come_from_a_file_with_tokens_of_their_own(tmp_path):
    path = tmp_path / "team.yaml"
    path.write_text(f"ada: {ADA}\nbob: {BOB}\n")
    assert WebSettings(load_annotators(path)).annotator_of(BOB) == "bob"
    for bad in ("", "- x", "ada: short", f"ada: {ADA}\nbob: {ADA}", "5: 6", "ada: [", f"'': {ADA}"):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            load_annotators(path)


def test_names_that_are_allowed_are_let_in_from_any_port(tiny_model, tmp_path):
    assert checked_hosts(["annotate.example.org", "box"]) == ("annotate.example.org", "box")
    for bad in ("https://annotate.example.org", "box:8642", "", "a b", "*"):
        with pytest.raises(ConfigError, match="--allow-host: expected a name such as"):
            checked_hosts([bad])
    for hosts, status in (((), 403), (("annotate.example.org",), 200)):
        rig = Rig(tiny_model, tmp_path, host="0.0.0.0", hosts=hosts)
        for host in ("annotate.example.org", "Annotate.Example.Org:443"):
            person = rig.person(host=host, origin=f"https://{host}")
            assert person.get("/api/me").status_code == status, (hosts, host)
        rig.close()


def test_the_token_survives_a_restart_and_is_its_owners_alone(tmp_path):
    first = kept_token(tmp_path / "s.db")
    assert kept_token(tmp_path / "s.db") == first
    assert stat.S_IMODE((tmp_path / "s.db.token").stat().st_mode) == 0o600
    assert kept_token(tmp_path / "t.db") != first
    assert ADA not in repr(WebSettings({"ada": "sha256:" + "0" * 64}))
