"""A small real HTTP server that speaks vLLM's completion protocol over a model of ours, answering from real logits.

What it sends and refuses was compared with vLLM 0.32.0 (docs/vllm.md). `faults` makes it misbehave, one entry per
request: a status, "hang", or what happens after two tokens, "break", "dead" (an engine's end) or "abort" (a shutdown).
"""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from anchorlwf.model.language_model import LanguageModel


class VllmServer(ThreadingHTTPServer):
    """Knobs: what it leaves out, and what it remembers of the requests."""

    daemon_threads = True

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.faults: list[Any] = []
        self.lacks: set[str] = set()
        self.key: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.asked = 0  # requests of any kind
        self.says = "busy"  # with a fault that is a status or "no json"
        self.models: Any = {"data": [{"id": "served", "max_model_len": model.context_length}]}
        self.retokenises = False
        self.delay = 0.0
        self.most: int | None = None  # tokens of an answer, as max_new_tokens of a generation config caps them
        self.ends: set[int] = set()  # tokens it stops at of its own accord
        self.gone = threading.Event()
        self.sent = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    server: VllmServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        pass

    def _reply(self, status: int, data: Any, **headers: str) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _let_in(self) -> bool:
        self.server.asked += 1
        key = self.server.key
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            self._reply(401, {"error": {"message": "invalid key"}})
            return False
        return True

    def do_GET(self) -> None:
        if self._let_in():
            self._reply(200, self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        self.server.requests.append(body)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            self._reply(
                fault, {"error": {"message": self.server.says}}, **({"Retry-After": "1"} if fault == 429 else {})
            )
            return
        if fault == "no json" or isinstance(fault, dict):
            self._reply(200, fault if isinstance(fault, dict) else self.server.says)
            return
        if fault == "hang":
            time.sleep(2)
            return
        prompt = body["prompt"]
        if not (isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)):
            self._reply(400, {"error": {"message": "prompt must be token ids"}})
            return
        if refused := self._refused(body, prompt):
            self._reply(400, {"error": {"message": refused, "type": "BadRequestError", "code": 400}})
            return
        if self.server.retokenises:
            prompt = [*prompt, prompt[-1]]
        if body.get("stream"):
            self._stream(body, prompt, fault)
        else:
            self._whole(body, prompt)

    def _refused(self, body: dict[str, Any], prompt: list[int]) -> str | None:
        context = self.server.model.context_length
        if body["logprobs"] > 20:
            return f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: 20"
        if len(prompt) > context:
            return f"This model's maximum context length is {context} tokens. Your prompt contains {len(prompt)}."
        if len(prompt) == context:
            return "max_tokens must be at least 1, got 0."
        if body["max_tokens"] > context - len(prompt):
            return f"max_tokens={body['max_tokens']} is too large"
        return None

    def _whole(self, body: dict[str, Any], prompt: list[int]) -> None:
        choice = self._choice(body, prompt, [])
        choice |= {"finish_reason": "stop" if choice.pop("_id") in body["stop_token_ids"] else "length"}
        if body.get("prompt_logprobs") is not None and "prompt_logprobs" not in self.server.lacks:
            choice["prompt_logprobs"] = self._prompt_logprobs(prompt, body["prompt_logprobs"])
        self._reply(200, {"choices": [choice]})

    def _stream(self, body: dict[str, Any], prompt: list[int], fault: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        ids: list[int] = []
        try:
            finish = None
            while finish is None:
                choice = self._choice(body, prompt, ids)
                ids.append(choice.pop("_id"))
                cut = len(ids) >= min(body["max_tokens"], self.server.most or body["max_tokens"])
                ends = {*body["stop_token_ids"], *self.server.ends}
                finish = "stop" if ids[-1] in ends else "length" if cut else None
                finish = "abort" if fault == "abort" and len(ids) == 2 else finish
                echoed = prompt if len(ids) == 1 else None
                self._line({"choices": [{**choice, "finish_reason": finish, "prompt_token_ids": echoed}]})
                self.server.sent += 1
                time.sleep(self.server.delay)
                if fault == "break" and len(ids) == 2:
                    return
                if fault == "dead" and len(ids) == 2:
                    self._line({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
                    break
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.gone.set()

    def _line(self, data: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()

    @torch.inference_mode()
    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with self.server.lock:
            return self.server.model.net(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def _choice(self, body: dict[str, Any], prompt: list[int], ids: list[int]) -> dict[str, Any]:
        row = self._logprobs(prompt + ids)[-1]
        token = int(row.argmax())
        values, names = row.topk(body["logprobs"])
        name = (lambda i: f"token_id:{i}") if body.get("return_tokens_as_token_ids") else str
        listed = {name(int(i)): float(v) for i, v in zip(names, values, strict=True)}
        if body.get("logprob_token_ids") and "logprob_token_ids" not in self.server.lacks:
            listed = {name(i): float(row[i]) for i in [token, *body["logprob_token_ids"]]}
        choice = {
            "index": 0,
            "text": "ignored",
            "_id": token,
            "token_ids": [token],
            "prompt_token_ids": prompt,
            "logprobs": {"tokens": [name(token)], "token_logprobs": [float(row[token])], "top_logprobs": [listed]},
        }
        if "as_ids" in self.server.lacks:
            choice["logprobs"]["top_logprobs"] = [{"the": -0.1}]
        for field in self.server.lacks & set(choice):
            choice[field] = None
        return choice

    def _prompt_logprobs(self, prompt: list[int], top: int) -> list[Any]:
        rows = self._logprobs(prompt)
        found: list[Any] = [None]
        for row, token in zip(rows[:-1], prompt[1:], strict=True):
            values, names = row.topk(top)
            entry = {
                str(int(i)): {"logprob": float(v), "rank": r + 1}
                for r, (i, v) in enumerate(zip(names, values, strict=True))
            }
            entry.setdefault(str(token), {"logprob": float(row[token]), "rank": int((row > row[token]).sum()) + 1})
            found.append(entry)
        return found


@contextmanager
def vllm_server(model: LanguageModel):
    """Runs while the context lasts."""
    server = VllmServer(model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
