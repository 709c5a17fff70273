"""An engine behind HTTP: any server that speaks the OpenAI chat-completions protocol.

The server renders the chat template and draws the tokens, so the invariant of the in-process engine (a completion is a function of
the ask) holds as far as the server keeps its promise about `seed`. Sampled ids are kept where the server returns them (vLLM does,
through `return_tokens_as_token_ids`). Where it does not, they are made by encoding the text again with `tokenizer`, which may split it
otherwise than it was sampled, or are missing without a tokenizer; forests meant for training should come from a server of the
first kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from leafe.engines.base import EngineStats
from leafe.errors import EngineError
from leafe.records import Ask, Completion

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
LONGEST_PAUSE = 30.0
TOO_LONG = ("context length", "context_length", "context window", "context size", "too many tokens", "prompt is too long")
TOKEN_ID = "token_id:"
SEEDS = 1 << 31  # some servers keep 32 bits of the seed and refuse more


class OpenAIEngine:
    """Asks `model` at `base_url` (such as `http://localhost:8000/v1`), at most `concurrency` requests at a time, in one event loop.

    A request is tried `retries` times more when the connection fails or the server says that it is busy or broken, with pauses
    that double from `pause` seconds; then `EngineError`. Set `token_ids` to False for servers that refuse unknown fields.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        tokenizer: Any = None,
        token_ids: bool = True,
        concurrency: int = 64,
        retries: int = 5,
        pause: float = 0.5,
        timeout: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self.model = model
        self.tokenizer = tokenizer
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._fields: dict[str, Any] = {"return_tokens_as_token_ids": True} if token_ids else {}
        self._retries, self._pause = retries, pause
        self._gate = asyncio.Semaphore(concurrency)
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        )

    async def generate(self, ask: Ask) -> Completion:
        """One completion by the server. Raises `EngineError` when the server cannot be reached or refuses."""
        payload = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in ask.messages],
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "max_tokens": ask.sampling.max_tokens,
            "seed": ask.seed % SEEDS,
            "logprobs": True,
            **self._fields,
        }
        async with self._gate:
            response = await self._post(payload)
        self.stats.requests += 1
        if response.status_code in (400, 413, 422) and any(words in response.text.lower() for words in TOO_LONG):
            return Completion("", finish="context")
        if response.status_code != 200:
            raise EngineError(f"{self._url} answered {response.status_code}: {response.text[:200].strip()}")
        return self._completion(response)

    async def close(self) -> None:
        """Closes the connections; requests in flight fail."""
        self._retries = 0
        await self._client.aclose()

    async def _post(self, payload: Mapping[str, Any]) -> httpx.Response:
        """The first answer that is not worth another try."""
        attempt = 0
        while True:
            response, reason = None, ""
            try:
                response = await self._client.post(self._url, json=payload)
                if response.status_code not in RETRIED:
                    return response
                reason = f"answered {response.status_code}: {response.text[:200].strip()}"
            except httpx.TransportError as error:
                reason = f"cannot be reached ({type(error).__name__}: {error})"
            except RuntimeError as error:  # httpx's word for a client that was closed
                raise EngineError("the engine is closed") from error
            if attempt >= self._retries:
                raise EngineError(f"{self._url} {reason}; gave up after {attempt + 1} attempts. Is the server running?")
            await asyncio.sleep(self._wait(attempt, response))
            attempt += 1

    def _wait(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds before the next attempt: what the server asked for, or a pause that doubles."""
        asked = response.headers.get("retry-after", "") if response is not None else ""
        wanted = float(asked) if asked.replace(".", "", 1).isdigit() else self._pause * 2.0**attempt
        return min(wanted, LONGEST_PAUSE)

    def _completion(self, response: httpx.Response) -> Completion:
        try:
            body = response.json()
            choice = body["choices"][0]
            text = str(choice["message"].get("content") or "")
            entries = [
                (str(entry["token"]), float(entry["logprob"])) for entry in (choice.get("logprobs") or {}).get("content") or ()
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"{self._url} answered something that is no chat completion: {response.text[:200]}") from error
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        ids, logprobs = self._ids(text, entries, ended=finish == "stop")
        usage = body.get("usage") or {}
        prompt = int(usage.get("prompt_tokens") or 0)
        self.stats.prompt_tokens += prompt
        self.stats.reused_tokens += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self.stats.sampled_tokens += int(usage.get("completion_tokens") or len(ids))
        return Completion(text, ids, logprobs, "length" if finish == "length" else "stop", prompt)

    def _ids(self, text: str, entries: list[tuple[str, float]], *, ended: bool) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The ids and their log-probabilities, or as much of them as can be had."""
        if entries and all(token.startswith(TOKEN_ID) for token, _ in entries):
            return tuple(int(token[len(TOKEN_ID) :]) for token, _ in entries), tuple(round(value, 5) for _, value in entries)
        if self.tokenizer is None:
            return (), ()
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if ended and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        values = tuple(round(value, 5) for _, value in entries)
        return tuple(ids), values if len(values) == len(ids) else ()
