"""Servers that speak the chat-completions protocol as vLLM, llama.cpp, `transformers serve` and OpenAI do, with their limits.

Each checks the fields that it is given, refuses what the real one refuses, in its words, and samples a reply from the seed. `transport`
puts one behind an HTTP client without a network, `listening` behind a port.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

Body = dict[str, Any]
STANDARD = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "logprobs", "top_logprobs"}
OPENAI = STANDARD | {"presence_penalty", "frequency_penalty", "n", "stop", "user"}
TRANSFORMERS = OPENAI | {"generation_config", "chat_template_kwargs"}
RANGES = {
    "temperature": (0, 2),
    "top_p": (1e-9, 1),
    "max_tokens": (1, 1 << 20),
    "seed": (-(1 << 31), (1 << 31) - 1),
    "top_logprobs": (0, 20),
    "top_k": (-1, 1 << 20),
    "min_p": (0, 1),
    "repetition_penalty": (1e-9, 2),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}


class Refused(Exception):
    """A status and a body that are no completion."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def said(message: str, status: int = 400, **more: Any) -> Refused:
    return Refused(status, {"error": {"message": message, "code": status, **more}})


def babble(draw: random.Random) -> str:
    """Three things that the tiny tokenizer has seen."""
    from tiny import WORDS

    return " ".join(draw.choices(WORDS, k=3))


@dataclass
class FakeServer:
    """`kind` is whose ways it has: `vllm`, `llama`, `transformers`, `openai`, or `mute`, which refuses without saying what.

    `play` makes the reply of the messages and a random generator. `broken` answers in place of the server while it returns something.
    """

    kind: str = "vllm"
    model: str = "policy"
    context: int = 2048
    key: str = ""
    ignores_seeds: bool = False
    template_ids: int = 0
    play: Callable[[list[Body], random.Random], str] = lambda messages, draw: babble(draw)
    broken: Callable[[Body], tuple[int, Any] | None] = lambda body: None
    asked: list[Body] = field(default_factory=list)
    max_logprobs: int = 20  # as vLLM's default
    tokenizer: Any = None  # the tiny one unless given

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            from tiny import tiny_tokenizer  # which takes torch and seconds

            self.tokenizer = tiny_tokenizer()

    def answer(self, method: str, path: str, body: bytes, authorization: str = "") -> tuple[int, Any]:
        """Status and body for a request."""
        try:
            if self.key and authorization != f"Bearer {self.key}":
                raise said(f"Incorrect API key provided: {authorization}", 401)
            if (method, path) == ("GET", "/v1/models"):
                return self.models()
            scores = path == "/v1/completions" and self.kind == "vllm"
            if method != "POST" or not (scores or path == "/v1/chat/completions"):
                raise Refused(404, {"detail": "Not Found"})
            request = json.loads(body)
            self.asked.append(request)
            if scores:
                return self.broken(request) or (200, self.scored(request))
            return self.broken(request) or (200, self.completion(request))
        except Refused as refused:
            return refused.status, refused.body

    def models(self) -> tuple[int, Any]:
        if self.kind == "transformers":
            return 500, b"Internal Server Error"
        context = {"vllm": {"max_model_len": self.context}, "llama": {"meta": {"n_ctx": self.context}}}.get(self.kind, {})
        return 200, {"object": "list", "data": [{"id": self.model, "object": "model", **context}]}

    def completion(self, request: Body) -> Body:
        self.check(request)
        prompt = self.tokenizer.apply_chat_template(request["messages"], **self.ending(request), return_dict=False)
        prompt = [*prompt, *[7] * self.template_ids]
        most = request["max_tokens"]
        self.fits(len(prompt), most)
        ids = [*self.encoded(self.play(request["messages"], self.draw(request))), self.tokenizer.eos_token_id]
        cut, ids = len(ids) > most, ids[:most]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text(ids)},
            "finish_reason": "length" if cut else "stop",
            "logprobs": self.logprobs(request, ids),
        }
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
        more = {"prompt_token_ids": prompt} if self.kind == "vllm" and request.get("return_token_ids") else {}
        return {"object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage, **more}

    def scored(self, request: Body) -> Body:
        """The log-probabilities of a prompt's ids but the first, each with as many of the most probable ones as are asked for."""
        most, prompt = request.get("prompt_logprobs"), request["prompt"]
        if most is None:
            raise said("this fake gives log-probabilities as `prompt_logprobs` alone")
        if most > self.max_logprobs:
            raise said(f"Requested prompt logprobs of {most}, which is greater than max allowed: {self.max_logprobs}")
        self.fits(len(prompt), request["max_tokens"])
        places = [
            {str(one): {"logprob": -1.0 - place} for place, one in enumerate({asked: 0} | dict.fromkeys(range(most)))}
            for asked in prompt[1:]
        ]
        return {
            "object": "text_completion",
            "model": self.model,
            "choices": [{"index": 0, "text": "x", "prompt_logprobs": [None, *places]}],
        }

    def ending(self, request: Body) -> dict[str, bool]:
        """How the prompt ends: llama.cpp goes on with a last message of the assistant's by itself, vLLM where it is told to."""
        begun = request["messages"][-1]["role"] == "assistant"
        if self.kind == "vllm" and request.get("continue_final_message") and request.get("add_generation_prompt", True):
            raise said("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        if (self.kind == "llama" and begun) or (self.kind == "vllm" and request.get("continue_final_message")):
            return {"continue_final_message": True}
        return {"add_generation_prompt": bool(request.get("add_generation_prompt", True))}

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def draw(self, request: Body) -> random.Random:
        config = json.loads(request.get("generation_config", "{}"))
        greedy = request["temperature"] == 0 or (self.kind == "transformers" and not config.get("do_sample"))
        seed = 0 if greedy or self.ignores_seeds else request.get("seed", random.random())
        return random.Random(f"{seed} {request['messages']}")

    def check(self, request: Body) -> None:
        """Raises what the real server answers to a field that it does not know or a value out of range."""
        if request["model"] != self.model and self.kind != "llama":
            raise said(f"The model `{request['model']}` does not exist.", 404, type="NotFoundError")
        known = {"openai": OPENAI, "transformers": TRANSFORMERS, "mute": OPENAI}.get(self.kind, set(request))
        unknown = sorted(set(request) - known)
        if unknown and self.kind == "transformers":
            raise Refused(422, {"detail": f"Unexpected fields in the request: {set(unknown)}"})
        if unknown:
            raise said("Bad request" if self.kind == "mute" else f"Unrecognized request argument supplied: {unknown[0]}")
        for name, (low, high) in RANGES.items():
            value = request.get(name, low)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise said(f"{name} must be in [{low}, {high}], got {value!r}")
        if not all(set(message) == {"role", "content"} for message in request["messages"]):
            raise said("messages want role and content")

    def fits(self, prompt: int, most: int) -> None:
        if self.kind == "llama" and prompt >= self.context:
            message = f"request ({prompt} tokens) exceeds the available context size ({self.context} tokens), try increasing it"
            raise said(message, type="exceed_context_size_error", n_prompt_tokens=prompt, n_ctx=self.context)
        if self.kind == "vllm" and prompt + most > self.context:
            raise said(
                f"This model's maximum context length is {self.context} tokens. However, you requested {most} output tokens and your"
                f" prompt contains at least {prompt} input tokens. Please reduce the length of the input prompt."
            )

    def logprobs(self, request: Body, ids: list[int]) -> Body | None:
        """As llama.cpp, which gives each token's `id`, or as vLLM, which can write it in place of the token."""
        if (
            not request.get("logprobs")
            or self.kind == "transformers"
            or (self.kind == "llama" and not request.get("top_logprobs", 20))
        ):
            return None
        renamed = self.kind == "vllm" and request.get("return_tokens_as_token_ids")
        entries = [
            {
                "token": f"token_id:{token}" if renamed else self.tokenizer.decode([token]),
                "logprob": -0.1234567,
                **({"id": token} if self.kind == "llama" else {}),
            }
            for token in ids
        ]
        return {"content": entries}

    def transport(self) -> httpx.MockTransport:
        """The server for a client in the same process, without a network."""
        import httpx  # which a server in a process of its own does without

        def handle(request: httpx.Request) -> httpx.Response:
            status, body = self.answer(request.method, request.url.path, request.content, request.headers.get("authorization", ""))
            return httpx.Response(status, content=encoded(body))

        return httpx.MockTransport(handle)

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[str]:
        """The server behind a port; yields its base address."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply()

            def do_POST(self) -> None:
                self.reply()

            def reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, answer = fake.answer(self.command, self.path, body, self.headers.get("authorization", ""))
                content = encoded(answer)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def encoded(body: Any) -> bytes:
    """A body as it goes over the wire."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()
