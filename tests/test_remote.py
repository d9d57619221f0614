"""A server that speaks vLLM's protocol decodes the same ids as the model here; one that does not is refused."""

import logging
import time

import pytest
from vllm_server import VllmServer, vllm_server

from anchorlwf.annotation.connect import connect_remote
from anchorlwf.annotation.decoders import LocalDecoder
from anchorlwf.annotation.remote import KEY_VARIABLE, Patience, RemoteDecoder
from anchorlwf.errors import ConfigError, ModelError, ServerError
from anchorlwf.model import LanguageModel

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
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        connect_remote(server.url.replace("http://", "http://me:secret@"), "embedded", patience=QUICK)


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
