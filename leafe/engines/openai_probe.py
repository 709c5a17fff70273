"""A probe of a server before a run begins: a few requests show what it serves, what it returns, and what it refuses.

Nothing is inferred from a server's name. Fields are sent, and left out if they are refused; replies of several seeds are compared; the
lengths of prompts are compared with those of the local tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from leafe.engines.openai import COMPLETIONS, Arrange, longest_answer
from leafe.engines.openai_answers import Answer, Malformed, Reply, json_of, read_reply
from leafe.engines.openai_fields import GO_ON, GROUPS, OPTIONAL, Dialect
from leafe.engines.openai_findings import Controls, Findings, Prompt
from leafe.engines.openai_http import Client
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import EngineError, UnknownName, UserError
from leafe.records import Ask, Message, Sampling

SAID = (Message("system", "You answer in one sentence."), Message("user", "Tell me about some animal that you like."))
TOKENS = 24
SEEDS = (11, 12, 13, 11)  # the last one again
HOT = 2.0
BEGUN = "<think>\nI like cats.\n</think>\n<action>"  # of the shape that cut replies get
REPEATS = 3  # of a control token in a text, so that one token more or less does not decide
MOST_TOKENS = 8  # control tokens of a tokenizer that are tried
CONTEXT_NAMES = ("max_model_len", "n_ctx", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True)
class Question:
    """A recipe's demands on a server: the name of the model, whether it samples (or is greedy), and the local tokenizer.

    `served` is the name that the user gave; if empty, one of `names` that the server lists is taken, or the only one that it lists.
    `fallback` is whether the local tokenizer makes ids if the server returns none; `arrange` is that of the engine.
    """

    served: str
    names: tuple[str, ...]
    samples: bool = True
    tokenizer: ChatTokenizer | None = None
    fallback: bool = False
    arrange: Arrange = tuple

    def ask(self, seed: int, temperature: float) -> Ask:
        """A short request."""
        return Ask(self.arrange(SAID), Sampling(temperature, 1.0, TOKENS, max_repeats=2), seed)

    def model(self, listed: Sequence[str]) -> str:
        """The name of the model to request. Raises `UserError` if the server lists several and none was named."""
        known = self.served or next((name for name in self.names if name in listed), "")
        if not known and len(listed) > 1:
            raise UserError(f"the server lists {', '.join(listed[:8])}; give the one that is meant as engine.served_model")
        return known or next(iter(listed), self.names[0])


async def probe(client: Client, question: Question) -> Findings:
    """The findings about a server. Raises `UserError` for a server or a model that cannot be used, `EngineError` if it is broken."""
    entries = await _entries(client)
    listed = tuple(str(entry["id"]) for entry in entries)
    trial = _Trial(client, question, question.model(listed), listed)
    dialect = await trial.dialect()
    dialect, replies = await trial.seeds(dialect)
    first, texts = replies[0], [reply.text for reply in replies]
    prompt, counts = await trial.prompt(dialect, first)
    return Findings(
        model=trial.model,
        listed=listed,
        dialect=dialect,
        ids="sampled" if first.ids else "encoded" if question.fallback and question.tokenizer else "none",
        logprobs=bool(first.logprobs),
        seeds_differ=len(set(texts[:3])) > 1 if question.samples else None,
        seed_repeats=texts[0] == texts[3] if question.samples else None,
        max_context=_context(entries, trial.model),
        prompt=prompt,
        prompt_tokens=counts,
        decoded=_decodes(question.tokenizer, first),
        controls=await trial.controls(dialect, counts[0]),
        continues=prompt in ("equal", "counted") and await trial.continues(dialect, counts[0]),
    )


@dataclass
class _Trial:
    """Requests for one model."""

    client: Client
    question: Question
    model: str
    listed: Sequence[str]

    async def answer(self, dialect: Dialect, *, seed: int = SEEDS[0], temperature: float = 1.0, **more: Any) -> Answer:
        ask = self.question.ask(seed, temperature if self.question.samples else 0.0)
        return await self.client.post(COMPLETIONS, dialect.payload(ask, self.model) | more, longest=longest_answer(TOKENS))

    async def replies(self, dialect: Dialect, temperature: float = 1.0) -> list[Reply]:
        return [self.read(await self.answer(dialect, seed=seed, temperature=temperature)) for seed in SEEDS]

    def read(self, answer: Answer) -> Reply:
        where, read = self.client.address(COMPLETIONS), partial(read_reply, most=TOKENS)
        if answer.status != 200:
            raise EngineError(f"{where} answered with {answer.status}: {answer.said}")
        try:
            return read(answer.body)
        except Malformed as error:
            raise EngineError(f"{where} answered with {self.client.complaint(answer.body, read, error)}") from None

    async def dialect(self) -> Dialect:
        """All fields, less those that the server names in a refusal, or less the group whose absence helps."""
        refused: set[str] = set()
        while True:
            answer = await self.answer(Dialect(frozenset(refused)))
            if answer.status == 200:
                return Dialect(frozenset(refused))
            self.refuse_unusable(answer)
            refused |= _named(answer) - refused or await self.group(refused, answer)

    async def group(self, refused: set[str], answer: Answer) -> set[str]:
        """The group of fields that a server refuses without naming them."""
        for group in (*GROUPS, OPTIONAL):
            names = set(group)
            if names - refused and (await self.answer(Dialect(frozenset(refused | names)))).status == 200:
                return names
        raise self.refusal(answer)

    def refuse_unusable(self, answer: Answer) -> None:
        """Raises `UserError` for a failure that leaving out fields would not mend."""
        if answer.status in (401, 403):
            raise self.refusal(answer, "; put its key into the environment variable that engine.api_key_env names")
        about_model = "model" in answer.text if answer.status == 404 else self.model in answer.text
        if about_model and not _named(answer):
            known = f"; {UnknownName('model', self.model, self.listed)}" if self.listed else ""
            raise self.refusal(answer, f"{known}; give the name that it serves as engine.served_model")
        if answer.status not in (400, 422):
            hint = "; does engine.base_url end as the server requires, often in /v1?" if answer.status in (404, 405) else ""
            raise self.refusal(answer, hint)

    def refusal(self, answer: Answer, hint: str = "") -> UserError:
        return UserError(f"{self.client.address(COMPLETIONS)} refuses a first request ({answer.status}: {answer.said}){hint}")

    async def seeds(self, dialect: Dialect) -> tuple[Dialect, list[Reply]]:
        """Replies for three seeds and the first of them again.

        If all are equal, either the model is that certain, which it is not at a high temperature, or sampling has to be requested in
        another way.
        """
        replies = first = await self.replies(dialect)
        ways = ((dialect, HOT), (replace(dialect, samples_by_config=True), 1.0)) if self.question.samples else ()
        for way, temperature in ways:
            if len({reply.text for reply in replies}) > 1:
                break
            if (await self.answer(way, temperature=temperature)).status == 200:
                replies, dialect = await self.replies(way, temperature), way
        return (
            (dialect, replies) if len({reply.text for reply in replies}) > 1 else (replace(dialect, samples_by_config=False), first)
        )

    async def prompt(self, dialect: Dialect, reply: Reply) -> tuple[Prompt, tuple[int, int]]:
        """Compares the server's chat template with the local tokenizer's: by ids if it returns them (vLLM), else by their number."""
        if self.question.tokenizer is None or not reply.prompt_tokens:
            return "unknown", (reply.prompt_tokens, 0)
        local = self.question.tokenizer.prompt_ids(SAID)
        counts = (reply.prompt_tokens, len(local))
        if counts[0] != counts[1]:
            return "differs", counts
        ids = await self.prompt_ids(dialect) if reply.ids else None
        return "counted" if ids is None else "equal" if ids == local else "differs", counts

    async def controls(self, dialect: Dialect, asked: int) -> Controls:
        """How the server reads control tokens in a text, judged by how much longer than `asked` tokens a prompt with some of them is."""
        tokens = self.question.tokenizer
        if tokens is None or not asked:
            return "unknown"
        known = tokens.template.control_tokens
        for token in known[:MOST_TOKENS]:
            hostile = (*SAID[:-1], Message("user", SAID[-1].content + f" {token}" * REPEATS))
            as_text, as_tokens = _more_ids(tokens, hostile)
            if as_text == as_tokens:
                continue  # a token whose text is a single token as well decides nothing
            messages = [{"role": message.role, "content": message.content} for message in self.question.arrange(hostile)]
            answer = await self.answer(dialect, messages=messages)
            try:
                more = read_reply(answer.body, most=TOKENS).prompt_tokens - asked if answer.status == 200 else None
            except Malformed:
                more = None
            return "text" if more == as_text else "tokens" if more == as_tokens else "unknown"
        return "unknown" if known else "text"

    async def continues(self, dialect: Dialect, asked: int) -> bool:
        """Whether the server continues a reply that is begun: then a prompt of `asked` tokens grows by the begun text alone."""
        tokens = self.question.tokenizer
        begun = self.question.arrange((*SAID, Message("assistant", BEGUN)))
        messages = [{"role": message.role, "content": message.content} for message in begun]
        answer = await self.answer(dialect, messages=messages, **GO_ON)
        try:
            reply = read_reply(answer.body, most=TOKENS) if answer.status == 200 else None
        except Malformed:
            return False
        if tokens is None or reply is None:
            return False
        if reply.text.removeprefix(BEGUN).lstrip().startswith("<think>"):  # it takes the answer for thoughts
            return False
        return reply.prompt_tokens - asked == len(tokens.text_ids(BEGUN))

    async def prompt_ids(self, dialect: Dialect) -> list[int] | None:
        """The ids of the prompt, if the server returns them."""
        answer = await self.answer(dialect, return_token_ids=True)
        try:
            found = json_of(answer.body) if answer.status == 200 else None
        except Malformed:
            return None
        ids = found.get("prompt_token_ids") if isinstance(found, dict) else None
        return ids if isinstance(ids, list) else None


def _more_ids(tokens: ChatTokenizer, messages: Sequence[Message]) -> tuple[int, int]:
    """The ids that a conversation has beyond the usual one, with its control tokens read as text and as tokens."""
    template, usual = tokens.template, len(tokens.prompt_ids(SAID))
    rendered = template.text(template.turns(messages), prompt=True)
    as_tokens = tokens.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return len(tokens.prompt_ids(messages)) - usual, len(as_tokens) - usual


async def _entries(client: Client) -> list[dict[str, Any]]:
    """The models that a server lists, none if the list cannot be read: some servers fail to list models and still serve well."""
    answer = await client.look("/models")
    try:
        found = json_of(answer.body) if answer.status == 200 else None
    except Malformed:
        found = None
    entries = found.get("data") if isinstance(found, dict) else None
    named = [entry for entry in entries or () if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [entry for entry in named if isinstance(entry.get("id"), str) and entry["id"].isprintable()]


def _context(entries: Sequence[Mapping[str, Any]], model: str) -> int | None:
    """The context that a server reports for a model: vLLM and SGLang beside its name, llama.cpp among its `meta` data."""
    for entry in entries:
        meta = entry.get("meta")
        for group in (entry, meta if isinstance(meta, dict) else {}):
            values = [group[name] for name in CONTEXT_NAMES if isinstance(group.get(name), int) and group[name] > 0]
            if values and (entry["id"] == model or len(entries) == 1):
                return int(values[0])
    return None


def _decodes(tokenizer: ChatTokenizer | None, reply: Reply) -> bool | None:
    """Whether the local tokenizer makes the reply's text of the server's ids; the end of a cut one may be half a character."""
    if tokenizer is None or not reply.ids or reply.text.startswith("<think>"):
        return None
    local, theirs = (text.strip("\ufffd \n") for text in (tokenizer.decode(reply.ids), reply.text))
    return local == theirs or (reply.finish == "length" and bool(theirs) and local.startswith(theirs))


def _named(answer: Answer) -> set[str]:
    """The fields that a refusal names."""
    return {name for name in OPTIONAL if re.search(rf"\b{name}\b", answer.text)}
