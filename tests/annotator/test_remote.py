"""A server that speaks vLLM's protocol decodes the same ids as the model here; one that does not is refused."""

import logging
import time

import pytest
from commands import refused, run
from vllm_server import VllmServer, vllm_server

from anchorlwf.annotator.backends.connect import connect_remote
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.backends.remote import KEY_VARIABLE, Patience, RemoteDecoder
from anchorlwf.errors import ConfigError, ModelError, ServerError
from anchorlwf.model.language_model import LanguageModel

QUICK = Patience(connect=2, read=0.5, tries=3, pause=0.01)
LIMIT = 24


@pytest.fixture
def server(base: LanguageModel):
    with vllm_server(base) as running:
        yield running


@pytest.fixture(scope="module")
def local(base: LanguageModel):
    decoder = LocalDecoder(base, alternatives=5)
    yield decoder
    decoder.close()


def remote_of(server: VllmServer, patience: Patience = QUICK) -> RemoteDecoder:
    decoder = connect_remote(server.url, "embedded", alternatives=5, patience=patience)
    server.requests.clear()
    return decoder


def prompt_of(decoder, text: str) -> list[int]:
    return decoder.table.codec.encode_prompt([{"role": "user", "content": text}])


PROMPT = "Where was she born?"


def test_local_and_remote_give_identical_ids_on_fifty_prompts(server, local):
    remote = remote_of(server)
    words = ["river", "capital", "born", "12 + 7", "Repeat: a b", "year", "painter", "say", "list", "why"]
    for number in range(50):
        prompt = prompt_of(local, f"{words[number % 10]} {number}?")
        ours = list(local.stream(number, prompt, [], LIMIT))
        theirs = list(remote.stream(number, prompt, [], LIMIT))
        assert [s.token_id for s in theirs] == [s.token_id for s in ours]
        assert [s.probability for s in theirs] == pytest.approx([s.probability for s in ours], abs=1e-4)
        assert [s.alternatives[0][0] for s in theirs] == [s.token_id for s in ours]
    remote.close()


def test_judging_and_options_agree_with_the_model_here(server, local):
    remote = remote_of(server)
    prompt = prompt_of(local, PROMPT)
    answer = [s.token_id for s in local.stream("k", prompt, [], LIMIT)]
    wanted = [(answer[2] + 1) % 900, answer[0], 17]
    ours = local.judge("k", prompt, answer[:2], wanted)
    theirs = remote.judge("k", prompt, answer[:2], wanted)
    assert theirs.best_ids == ours.best_ids
    assert theirs.tied == ours.tied
    assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-4)
    ours, theirs = (d.options("k", prompt, answer[:2], 6) for d in (local, remote))
    assert [token for token, _ in theirs] == [token for token, _ in ours]
    assert [p for _, p in theirs] == pytest.approx([p for _, p in ours], abs=1e-4)
    remote.close()


@pytest.mark.parametrize("known", [0, 3])
def test_an_answer_that_fills_the_context_is_decoded_and_judged(server, local, base, known):
    remote = remote_of(server)
    prompt = (prompt_of(local, PROMPT) * 40)[: base.context_length - 4]
    ours, theirs = (list(d.stream("k", prompt, [], 100)) for d in (local, remote))
    assert [s.token_id for s in theirs] == [s.token_id for s in ours]
    wanted = [17, 900, 40, 3][known:]  # the last one where vLLM has no room for a token behind it
    ours, theirs = (d.judge("k", prompt, [17, 900, 40][:known], wanted) for d in (local, remote))
    assert (theirs.best_ids, theirs.tied) == (ours.best_ids, ours.tied)
    assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-4)
    remote.close()


def test_the_last_place_cannot_be_judged_by_a_server_that_tells_only_the_best(server, local, base):
    remote = remote_of(server)
    prompt = (prompt_of(local, PROMPT) * 40)[: base.context_length - 1]
    ranked = [token for token, _ in local.options("k", prompt, [], 100)]
    server.lacks = {"logprob_token_ids"}
    assert remote.judge("k", prompt, [], ranked[5:6]).best_ids == ranked[:1]
    with pytest.raises(ModelError, match="log-probability of every"):
        remote.judge("k", prompt, [], ranked[60:61])
    remote.close()


def test_a_server_that_caps_answers_is_asked_on(server, local):
    remote = remote_of(server)
    server.most = 4
    prompt = prompt_of(local, PROMPT)
    expected = [s.token_id for s in local.stream("k", prompt, [], LIMIT)]
    assert len(expected) > 8
    assert [s.token_id for s in remote.stream("k", prompt, [], LIMIT)] == expected
    assert [len(body["prompt"]) for body in server.requests] == list(range(len(prompt), len(prompt + expected), 4))
    remote.close()


def test_a_server_that_stops_at_another_token_is_refused(server):
    remote = remote_of(server)
    prompt = prompt_of(remote, PROMPT)
    first = next(iter(remote.stream("k", prompt, [], 1))).token_id
    server.ends = {first}
    with pytest.raises(ModelError, match=rf"expected an end-of-turn token .*, got an end after token {first}"):
        list(remote.stream("k", prompt, [], LIMIT))
    remote.close()


def test_it_asks_for_ids_plain_greedy_and_log_probabilities(server):
    remote = remote_of(server)
    prompt = prompt_of(remote, PROMPT)
    list(remote.stream("k", prompt, [], 3))
    [body] = server.requests
    assert body["prompt"] == prompt
    assert (body["temperature"], body["repetition_penalty"], body["return_token_ids"]) == (0.0, 1.0, True)
    assert body["stream"] is True
    remote.close()


@pytest.mark.parametrize(
    ("lacks", "reason"),
    [
        ("token_ids", "token ids"),
        ("logprobs", "log-probabilities"),
        ("prompt_logprobs", "prompt_logprobs"),
        ("as_ids", "named by id"),
    ],
)
def test_a_server_that_leaves_something_out_is_refused_with_the_reason(server, lacks, reason):
    server.lacks = {lacks}
    with pytest.raises(ModelError, match=reason) as caught:
        connect_remote(server.url, "embedded", patience=QUICK)
    assert "transformers serve" in str(caught.value)


def test_a_server_that_tokenises_again_is_refused(server):
    server.retokenises = True
    with pytest.raises(ModelError, match="taken as they are"):
        connect_remote(server.url, "embedded", patience=QUICK)


def test_wrong_names_and_addresses_are_refused(server):
    with pytest.raises(ModelError, match=r"served model: expected served, got nobody"):
        connect_remote(server.url, "embedded", served="nobody", patience=QUICK)
    with pytest.raises(ModelError, match="got no such folder"):
        connect_remote(server.url, "/no/such/folder", patience=QUICK)
    with pytest.raises(ServerError, match="list of models"):
        connect_remote("http://127.0.0.1:9/v1", "embedded", patience=QUICK)
    with pytest.raises(ServerError, match="list of models"):
        connect_remote("http://127.0.0.1:99999/v1", "embedded", patience=QUICK)


SECRET = "s3cr3t-k3y"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"http://{SECRET}@HOST", "got a password in it"),
        (f"http://me:{SECRET}@HOST", "got a password in it"),
        (f"http://{SECRET}:@HOST", "got a password in it"),
        (f"http://HOST?api_key={SECRET}", "got a query or fragment behind it"),
        (f"http://HOST/?{SECRET}", "got a query or fragment behind it"),
        (f"http://HOST#{SECRET}", "got a query or fragment behind it"),
        ("http://HOST?", "got a query or fragment behind it"),
        (f"http://me:{SECRET}/x@HOST", "expected one of http or https, got another"),
        (f"http://{SECRET}%40HOST", "expected one of http or https, got another"),
        (f"{SECRET}@HOST", "expected one of http or https, got another"),
        (f"ftp://{SECRET}@HOST", "expected one of http or https, got another"),
        (f"http:///{SECRET}", "expected one of http or https, got another"),
        (f"http://HOST\n{SECRET}", "expected one of http or https, got another"),
        ("", "expected one of http or https, got another"),
    ],
)
def test_a_url_that_may_hold_a_key_is_refused_before_it_is_sent_or_shown(server, tmp_path, caplog, url, problem):
    url = url.replace("HOST", server.url.removeprefix("http://"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "Who?"}\n')
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(ConfigError, match=problem) as caught:
            connect_remote(url, "/no/such/folder", patience=QUICK)
        arguments = ["annotate", tmp_path / "p.jsonl", "--out", tmp_path / "r.jsonl", "--remote", url, "--debug"]
        ended = [run(*arguments, *how) for how in (["--web"], ["--annotator", "terminal"])]
    for done in ended:
        assert done.code == 2, done
        assert problem in done.err
        assert KEY_VARIABLE in done.err
    shown = "".join([caplog.text, str(caught.value), *(done.out + done.err for done in ended)])
    assert SECRET not in shown
    # Neither asked, nor made: nothing but the prompts lies there.
    assert server.asked == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\r", f"{SECRET} x", f"{SECRET}é", f"{SECRET}\ud800"])
def test_a_key_that_no_header_holds_is_refused_without_showing_it(server, monkeypatch, key):
    monkeypatch.setattr("anchorlwf.annotator.backends.remote.api_key", lambda: key)
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE}: expected visible ASCII characters") as caught:
        connect_remote(server.url, "embedded", patience=QUICK)
    assert SECRET not in str(caught.value)
    assert server.asked == 0


@pytest.mark.parametrize("fault", [400, 403, 503, "no json"])
def test_a_server_that_repeats_the_key_does_not_make_us_show_it(server, monkeypatch, fault):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    remote = remote_of(server)
    # Cut after so many characters, half of a key would remain.
    server.says = "x" * (190 if fault != "no json" else 75) + f"{SECRET}"
    server.faults = [fault] * 3
    with pytest.raises((ModelError, ServerError)) as caught:
        remote.judge("k", prompt_of(remote, PROMPT), [], [5])
    assert SECRET[:4] not in str(caught.value)
    remote.close()


MALFORMED = {
    "choices": {"choices": {"a": 1}},
    "choice": {"choices": [3]},
    "top": {"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [["a"]]}}]},
    "none": {"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [None], "top_logprobs": [{}]}}]},
    "nan": {"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": [float("nan")], "top_logprobs": [{}]}}]},
    "text": {"choices": [{"token_ids": ["a"], "logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{}]}}]},
}


@pytest.mark.parametrize("how", MALFORMED)
def test_an_answer_of_another_shape_is_refused_with_the_reason(server, how):
    remote = remote_of(server)
    server.faults = [MALFORMED[how]]
    with pytest.raises(ModelError, match=r"remote model: expected .*Use vLLM"):
        remote.options("k", prompt_of(remote, PROMPT), [], 1)
    remote.close()


@pytest.mark.parametrize("listed", [[], {}, [3], {"data": 3}, {"data": ["a"]}, {"data": {"a": 1}}, "x", None])
def test_a_list_of_models_of_another_shape_is_refused(server, listed):
    server.models = listed
    with pytest.raises((ServerError, ModelError), match="expected a list of models"):
        connect_remote(server.url, "embedded", patience=QUICK)


def test_the_key_of_a_store_is_not_shown(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Who?"}\n')
    for url in (f"nosuch://me:{SECRET}@host/name", f"postgresql://me:{SECRET}@host:abc/x", f"mysql://{SECRET}@h/x"):
        done = run("annotate", tmp_path / "p.jsonl", "--out", tmp_path / "r.jsonl", "--web", "--store", url)
        refused(done, "--store: expected SQLite or PostgreSQL")
        assert SECRET not in done.err


@pytest.mark.parametrize(
    "faults", [[503], [429], [500, 503], ["hang"], ["break"], ["break", 503, "break"], ["dead"], ["abort", 503]]
)
def test_a_server_in_trouble_is_asked_again(server, local, faults):
    remote = remote_of(server)
    prompt = prompt_of(local, PROMPT)
    expected = [s.token_id for s in local.stream("k", prompt, [], LIMIT)]
    server.faults = list(faults)
    assert [s.token_id for s in remote.stream("k", prompt, [], LIMIT)] == expected
    assert len(server.requests) == len(faults) + 1
    remote.close()


def test_patience_ends(server):
    remote = remote_of(server)
    server.faults = [503] * 9
    with pytest.raises(ServerError, match=r"within 3 tries.*503"):
        list(remote.stream("k", prompt_of(remote, PROMPT), [], 4))
    assert len(server.requests) == 3
    server.faults = [400]
    with pytest.raises(ModelError, match="status 400"):
        list(remote.stream("k", prompt_of(remote, PROMPT), [], 4))
    remote.close()


def test_pauses_grow_and_honour_what_the_server_asks():
    patience = Patience(pause=0.25)
    assert 0.25 <= patience.before(1, None) <= 0.32
    assert 1 <= patience.before(3, None) <= 1.25
    assert 8 <= patience.before(50, None) <= 10
    assert 3 <= patience.before(1, "3") <= 3.75


def test_closing_a_stream_hangs_up(server):
    remote = remote_of(server, Patience(connect=2, read=5))
    server.delay = 0.05
    stream = remote.stream("k", prompt_of(remote, PROMPT), [], 400)
    taken = []
    for step in stream:
        taken.append(step)
        stream.close()
    assert len(taken) == 1
    sent = server.sent
    time.sleep(0.4)
    assert server.sent <= sent + 3, "the server went on decoding for nobody"
    remote.close()


def test_the_key_comes_from_the_environment_and_appears_nowhere(server, monkeypatch, caplog):
    server.key = "sk-very-secret"
    with pytest.raises(ModelError, match=KEY_VARIABLE) as caught:
        connect_remote(server.url, "embedded", patience=QUICK)
    monkeypatch.setenv(KEY_VARIABLE, server.key)
    with caplog.at_level(logging.DEBUG):
        remote = remote_of(server)
        server.faults = [400]
        with pytest.raises(ModelError) as other:
            list(remote.stream("k", prompt_of(remote, PROMPT), [], 2))
    for text in (caplog.text, str(caught.value), str(other.value), repr(remote), repr(vars(remote))):
        assert server.key not in text
    remote.close()
