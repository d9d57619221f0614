"""The door of the page: what other applications' cookies and proxies put into headers keeps nobody out, or in."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from anchorlwf.annotator.web.guard import Guard
from anchorlwf.annotator.web.settings import WebSettings

ADA, BOB = "a" * 32, 'b "b"; ü=\\, ' * 3
ORIGIN = "http://127.0.0.1:8642"
MINE = f"anchorlwf_8642={ADA}"


async def hello(scope, receive, send) -> None:
    """Says who came in."""
    await PlainTextResponse(scope["state"]["annotator"])(scope, receive, send)


def client(**headers: str) -> TestClient:
    settings = WebSettings({"ada": ADA, "bob": BOB}, rate=1e6, burst=10**6, hosts=("annotate.example.org",))
    return TestClient(Guard(hello, settings), base_url=ORIGIN, headers=headers, follow_redirects=False)


FOREIGN = [
    'j={"a":1}',
    "=",
    "a",
    "a b=c",
    "x=[1,2]",
    'q="half',
    "ü=ä",
    "\x01=\x02",
    "a=b=c",
    "$Version=1",
    "k@=1",
    "{}",
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_cookie_of_another_application_keeps_nobody_out(foreign):
    for header in (f"{foreign}; {MINE}", f"{MINE}; {foreign}", f"{foreign};{foreign};{MINE}; ", f";;{MINE}"):
        reply = client(cookie=header.encode("latin-1", "replace")).get("/api/me")
        assert (reply.status_code, reply.text) == (200, "ada"), header


def test_every_cookie_of_our_name_is_looked_at():
    # A page under another path of this host may have left one of the same name, in front of ours.
    assert client(cookie=f"anchorlwf_8642=old; {MINE}").get("/").text == "ada"
    # Some servers hand over several headers.
    headers = [("cookie", "a=1"), ("cookie", MINE)]
    assert client().request("GET", "/", headers=headers).text == "ada"


@pytest.mark.parametrize(
    "header",
    [
        *FOREIGN,
        f"anchorlwf_8641={ADA}",
        f"xanchorlwf_8642={ADA}",
        f"anchorlwf_8642x={ADA}",
        f'j="{MINE}"',
        f"j={MINE}",
        f"anchorlwf_8642={ADA}x",
        "anchorlwf_8642=",
        "anchorlwf_8642",
        ADA,
    ],
)
def test_what_only_looks_like_our_cookie_lets_nobody_in(header):
    assert client(cookie=header.encode("latin-1", "replace")).get("/api/me").status_code == 401


def test_a_token_of_any_characters_comes_back_from_its_cookie():
    visitor = client()
    reply = visitor.get("/", params={"token": BOB})
    assert (reply.status_code, reply.headers["refresh"]) == (200, "0; url=/")
    assert reply.text == '<!doctype html><title>anchorlwf</title><link rel="icon" href="data:,">'
    value = reply.headers["set-cookie"].split("; ")[0]
    assert client(cookie=f"x={{}}; {value}").get("/").text == "bob"


def test_credentials_for_a_proxy_keep_nobody_out_and_write_nothing_by_themselves():
    basic = {"authorization": "Basic YWRhOnNlY3JldA=="}
    assert client(cookie=MINE, **basic).get("/").text == "ada"
    assert client(cookie=MINE, origin=ORIGIN, **basic).post("/api/next").text == "ada"
    # A browser sends both along by itself, so without an origin they are no proof of our own page.
    assert client(cookie=MINE, **basic).post("/api/next").status_code == 403
    assert client(**basic).get("/").status_code == 401
    # A Bearer token is somebody's own doing: a wrong one is refused, whatever cookie comes with it.
    assert client(authorization=f"bearer  {ADA} ").post("/api/next").text == "ada"
    assert client(cookie=MINE, authorization="Bearer wrong").get("/").status_code == 401


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("annotate.example.org", "https://annotate.example.org", 200),
        ("annotate.example.org:443", "https://annotate.example.org", 200),
        ("annotate.example.org:80", "http://annotate.example.org", 200),
        ("Annotate.Example.org", "https://annotate.example.org", 200),
        ("annotate.example.org:443", "http://annotate.example.org", 403),
        ("annotate.example.org:80", "https://annotate.example.org", 403),
        ("annotate.example.org:443", "https://evil.example.org", 403),
        ("annotate.example.org:443", "https://annotate.example.org:8443", 403),
    ],
)
def test_a_proxy_may_name_the_port_that_a_browser_leaves_out(host, origin, status):
    assert client(cookie=MINE, host=host, origin=origin).post("/api/next").status_code == status


@pytest.mark.parametrize("length", ["9" * 5000, "9" * 21, "-1", "²", "1e3", "0x1"])
def test_no_length_of_a_request_is_a_defect_of_ours(length):
    headers = {"content-length": length.encode("latin-1"), "cookie": MINE, "origin": ORIGIN}
    assert client().request("POST", "/api/next", headers=headers, content=b"").status_code == 413
