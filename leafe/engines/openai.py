"""An engine behind HTTP: any server that speaks the OpenAI chat-completions protocol.

The server renders the chat template and draws the tokens, so the invariant of the in-process engine (a completion is a function of
the ask) holds as far as the server keeps its promise about `seed`. Sampled ids and log-probabilities are kept if the server returns
them, as vLLM and llama.cpp do. Otherwise ids are made by encoding the text again with `tokenizer`, which may split it differently from
the sampled tokens; without a tokenizer they are missing. `openai_probe.py` finds out beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from leafe.engines.base import UNCONTINUED, EngineStats, Scores
from leafe.engines.control import ControlTokens
from leafe.engines.openai_answers import Malformed, Reply, read_reply
from leafe.engines.openai_fields import Dialect
from leafe.engines.openai_http import Client, Waiting
from leafe.engines.openai_scores import TEXTS, read_scores, requests
from leafe.engines.repetition import repetition_end
from leafe.errors import EngineError, UserError
from leafe.records import Ask, Completion, Message

COMPLETIONS = "/chat/completions"
LONGEST_ANSWER = (1 << 20, 1 << 12)  # bytes, and bytes for each requested token
LONGEST_PROBABLE = 1 << 26
BORDER = 4  # tokens that a begun reply may have less of where it is joined to the prompt
Arrange = Callable[[Sequence[Message]], tuple[Message, ...]]


def longest_answer(max_tokens: int) -> int:
    """The most bytes that an answer of so many tokens may have, log-probabilities included."""
    at_least, each = LONGEST_ANSWER
    return min(at_least + each * max_tokens, LONGEST_PROBABLE)


class OpenAIEngine:
    """Asks `model` at `base_url` (such as `http://localhost:8000/v1`), at most `concurrency` requests at a time, in one event loop.

    `tokenizer` cuts back replies that repeat themselves, and where `encodes` it makes the ids of replies that come without ids, by `encode`
    if its chat template has tokens of its own. `max_context` is the context that the server reports, None if it reports none; a `cap` below
    that is enforced by `count`, which returns the tokens of a conversation. `counts_alike` is whether the server counts as many: a reply to
    fewer is none to that conversation, which the server has shortened. `arrange` turns a conversation into the messages that the server's
    chat template takes; `prompt_ids` returns the ids of its prompt, which only `score` needs.
    `continues` is whether the server continues a last message of the assistant's. `told` is called with a line when the server is away and
    when it is back, and once each if it refuses to continue a reply or shortens a conversation; `lost` returns the reason why it will not
    come back, empty while it may.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        tokenizer: Any = None,
        encodes: bool = True,
        encode: Callable[[str], Sequence[int]] | None = None,
        dialect: Dialect = Dialect(),
        continues: bool = False,
        max_context: int | None = None,
        cap: int = 0,
        count: Callable[[Sequence[Message]], int] = lambda messages: 0,
        counts_alike: bool = False,
        arrange: Arrange = tuple,
        prompt_ids: Callable[[Sequence[Message]], Sequence[int]] | None = None,
        concurrency: int = 64,
        waiting: Waiting = Waiting(),
        told: Callable[[str], None] = lambda text: None,
        lost: Callable[[], str] = lambda: "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.stats = EngineStats()
        self.concurrency = concurrency
        self.continues = continues
        self.model = model
        self.tokenizer = tokenizer
        encode = encode or (ControlTokens(tokenizer, tokenizer.all_special_tokens).ids if tokenizer is not None else None)
        self._encode = encode if encodes else None
        self.max_context: int | None = min([limit for limit in (max_context, cap) if limit], default=None)
        self._cap, self._count, self._counts_alike = cap if self.max_context == cap else 0, count, counts_alike
        self._dialect, self._arrange, self._prompt_ids = dialect, arrange, prompt_ids
        self._told, self._once_told = told, set[str]()
        self._client = Client(
            base_url, api_key=api_key, waiting=waiting, connections=concurrency, told=told, lost=lost, transport=transport
        )

    async def generate(self, ask: Ask) -> Completion:
        """One completion by the server. Raises `EngineError` when it cannot be reached, refuses, or answers something else."""
        most = ask.sampling.max_tokens
        messages = (*ask.messages, Message("assistant", ask.begun)) if ask.begun else ask.messages
        if self._cap and (length := self._count(messages)) + most > self._cap:
            self.stats.requests += 1
            return Completion("", finish="context", prompt_tokens=length)
        payload = self._dialect.payload(replace(ask, messages=self._arrange(messages)), self.model)
        answer = await self._client.post(COMPLETIONS, payload, longest=longest_answer(most))
        self.stats.requests += 1
        if answer.is_overflow:
            return Completion("", finish="context")
        if ask.begun and answer.status in (400, 422):  # as a chat template that rewrites what was begun makes it
            return self._uncontinued(f"{answer.status}: {answer.said}")
        if answer.status != 200:
            raise EngineError(f"{self._client.address(COMPLETIONS)} answered {answer.status}: {answer.said}")
        try:
            reply = read_reply(answer.body, most=most)
        except Malformed as error:
            said = self._client.complaint(answer.body, partial(read_reply, most=most), error)
            if ask.begun:
                return self._uncontinued(said)
            raise EngineError(f"{self._client.address(COMPLETIONS)} answered with {said}") from None
        if ask.begun:  # llama.cpp's server repeats it before the continuation
            reply = replace(reply, text=reply.text.removeprefix(ask.begun))
        if length := self._shortened(ask, reply.prompt_tokens):
            return Completion("", finish="context", prompt_tokens=length)
        return self._ended(self._completion(reply, most), ask.sampling.max_repeats)

    def _uncontinued(self, said: str) -> Completion:
        """The answer for a begun reply that the server did not continue, though it did when it was probed; the first is told."""
        said = self._client.hidden(said)
        self._tell_once(
            "uncontinued", f"{self._client.address(COMPLETIONS)} does not continue every reply that was cut: {said:.300}"
        )
        return UNCONTINUED

    def _shortened(self, ask: Ask, read: int) -> int:
        """The tokens of a conversation of which the server `read` fewer, 0 if it read all. The first is told."""
        if not self._counts_alike or not read:
            return 0
        begun = len(self._encode(ask.begun)) if ask.begun and self._encode else 0
        begun = max(0, begun - BORDER)
        # What is sent may have other tokens, since spaces are put into control tokens.
        if read >= (length := self._count(ask.messages) + begun) or read >= self._count(self._arrange(ask.messages)) + begun:
            return 0
        self._tell_once(
            "shortened",
            f"{self._client.address(COMPLETIONS)} read {read} of the {length} tokens of a conversation: it shortens those that its context"
            " does not hold, which end here as too long; start it with a longer context, or type its own as engine.max_context=N",
        )
        return length

    def _tell_once(self, what: str, sentence: str) -> None:
        if what not in self._once_told:
            self._once_told.add(what)
            self._told(sentence)

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        """Log-probabilities of `ids` after `messages` under the served model: see `Engine.score`.

        Raises `UserError` without `prompt_ids` and where the server gives no log-probabilities of prompts.
        """
        if self._prompt_ids is None:
            raise UserError("scoring wants the ids of prompts, and no local tokenizer makes them; name one by engine.tokenizer")
        prompt, refusal = self._prompt_ids(messages), ""
        for payload in requests(self.model, [*prompt, *ids], top):
            answer = await self._client.post(TEXTS, payload, longest=longest_answer(len(payload["prompt"])))
            self.stats.requests += 1
            if answer.is_overflow:
                raise UserError(
                    f"the text to score has {len(payload['prompt'])} tokens, more than the server takes; score a shorter one"
                )
            if answer.status != 200:
                refusal = refusal or f" ({answer.status}: {answer.said})"
                continue
            try:
                found = read_scores(answer.body, len(prompt), ids, top)
            except Malformed as error:
                read = partial(read_scores, prompt=len(prompt), ids=ids, top=top)
                said = self._client.complaint(answer.body, read, error)
                raise EngineError(f"{self._client.address(TEXTS)} answered with {said}") from None
            if found is not None:
                return found
        raise UserError(
            f"{self._client.address(TEXTS)} gives no log-probabilities of prompts, by which ids are scored{refusal}; take vLLM, or type"
            " engine.kind=transformers"
        )

    async def load(self, folder: str | Path) -> None:
        """Raises `UserError`: a server has its own weights."""
        raise UserError(
            f"a server takes no weights from here, found {str(folder)!r}; serve that folder, or type engine.kind=transformers"
        )

    def move(self, base_url: str) -> None:
        """Sets the server's address from here on, also for requests that wait for it."""
        self._client.move(base_url)

    async def close(self) -> None:
        """Closes the connections; requests in flight fail."""
        await self._client.close()

    def _completion(self, reply: Reply, most: int) -> Completion:
        ids, logprobs = (reply.ids, reply.logprobs) if reply.ids else (self._encoded(reply), ())
        sampled = len(ids) if reply.counted is None else reply.counted
        self.stats.prompt_tokens += reply.prompt_tokens
        self.stats.reused_tokens += reply.reused_tokens
        self.stats.sampled_tokens += sampled
        if reply.finish == "length" and 0 < sampled < most:  # it was cut, and not by the requested limit
            return Completion("", finish="context", prompt_tokens=reply.prompt_tokens)
        return Completion(reply.text, ids, logprobs, reply.finish, reply.prompt_tokens, 0 if reply.ids else sampled)

    def _ended(self, completion: Completion, times: int) -> Completion:
        """The reply without the repetition at its end, if the server did not stop it before the limit."""
        ids = completion.token_ids
        end = repetition_end(ids, times) if completion.finish == "length" and self.tokenizer is not None else len(ids)
        if end == len(ids):
            return completion
        text, logprobs = self.tokenizer.decode(ids[:end], skip_special_tokens=True), completion.logprobs[:end]
        return replace(completion, text=text, token_ids=ids[:end], logprobs=logprobs, finish="repetition", counted=completion.drawn)

    def _encoded(self, reply: Reply) -> tuple[int, ...]:
        """Ids made from the text, as close to the sampled ones as possible. A control token that it spells out is encoded as text."""
        if self.tokenizer is None or self._encode is None:
            return ()
        ids = list(self._encode(reply.text))
        if reply.finish == "stop" and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return tuple(ids)
