"""No message shows a key: passwords and queries in addresses, and the key of the environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.errors import KEY_VARIABLE, redacted, wrong

SECRET = "s3cr3t-k3y"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://{SECRET}@host/v1", "http://***@host/v1"),
        (f"http://me:{SECRET}@host:80/v1 is busy", "http://***@host:80/v1 is busy"),
        (f"postgresql+psycopg://me:{SECRET}@ss@host/name", "postgresql+psycopg://***@host/name"),
        (f"'http://me:a/{SECRET}@host/'", "'http://***@host/'"),
        (f"http://host/v1?api_key={SECRET}", "http://host/v1?***"),
        (f"see http://host/v1?a=b&token={SECRET}, then", "see http://host/v1?*** then"),
        (f"http://me:a?{SECRET}@host/v1", "http://***"),
        (f"http://host/v1#{SECRET}", "http://host/v1#***"),
        (
            f"http://{SECRET}@host/v1?key={SECRET} or http://{SECRET}@other",
            "http://***@host/v1?*** or http://***@other",
        ),
        ("Is it http://host/v1? Yes: me@host, a?b#c", "Is it http://host/v1? Yes: me@host, a?b#c"),
        ("model 'qwen/Qwen3@main': expected a folder", "model 'qwen/Qwen3@main': expected a folder"),
    ],
)
def test_addresses_lose_what_may_be_a_secret_and_nothing_else(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters="'\"<>"), min_size=1)


@given(before=st.text(), scheme=st.sampled_from(["http", "https", "postgresql+psycopg", "socks5"]), user=WORD)
def test_no_password_of_an_address_is_shown(before, scheme, user):
    assert SECRET not in redacted(f"{before} {scheme}://{user}:{SECRET}@host/v1")
    assert SECRET not in redacted(f"{before} {scheme}://host/v1?{user}={SECRET}")


def test_every_error_message_passes_through_it(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    text = wrong(f"http://a:b@h?{SECRET}", f"x{SECRET}y", f"Bearer {SECRET}", f"Mend {SECRET}.")
    assert SECRET not in text
    assert text == "http://***@h?*** expected x***y, got Bearer ***. Mend ***."


@pytest.mark.parametrize("key", ["", "x", "none"])
def test_what_is_no_secret_tears_no_words_apart(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert redacted("none of six boxes") == "none of six boxes"
