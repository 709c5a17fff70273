"""From a configuration to its server: the key, the probe and the engine that follows from what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from leafe.engines.loading import load_tokenizer
from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_findings import CONTROLS, Findings
from leafe.engines.openai_http import Client, Waiting
from leafe.engines.openai_probe import Question, probe
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.loops import wait_for
from leafe.nano import CHECKPOINTS
from leafe.progress import Progress
from leafe.records import Message
from leafe.settings import API_KEY_ENV, EngineSettings, RunConfig
from leafe.training.checkpoint import locate


def probe_server(config: RunConfig, base: Path, progress: Progress) -> Findings:
    """What the server of a configuration is, told in lines. Raises `UserError` or `EngineError`, as `probe` does."""
    settings, tokens = config.engine, _tokenizer(config, base)
    question = Question(
        served=settings.served_model,
        names=(config.model, str(base)),
        samples=config.sampling.act.temperature > 0,
        tokenizer=tokens,
        arrange=partial(_arranged, tokens),
        fallback=bool(settings.tokenizer),
    )

    async def ask() -> Findings:
        client = Client(settings.base_url, api_key=_key(settings), waiting=_waiting(settings), told=progress.say)
        try:
            return await probe(client, question)
        finally:
            await client.close()

    found = wait_for(ask())
    for line in found.lines:
        progress.say(line)
    if settings.control_tokens == "refuse" and found.controls != "text":
        what = CONTROLS[found.controls].partition(", so")[0]
        raise UserError(
            f"engine.control_tokens=refuse: {what}; start the server so that texts are text to it, or type engine.control_tokens=break"
        )
    return found


def served_engine(config: RunConfig, base: Path, progress: Progress, found: Findings) -> OpenAIEngine:
    """An engine on the server that was probed."""
    settings, tokens = config.engine, _tokenizer(config, base)
    return OpenAIEngine(
        settings.base_url,
        found.model,
        api_key=_key(settings),
        tokenizer=tokens.tokenizer if found.ids == "encoded" else None,
        encode=tokens.text_ids,
        dialect=found.dialect,
        max_context=found.max_context,
        cap=settings.max_context,
        count=lambda messages: len(tokens.prompt_ids(messages)),
        arrange=partial(_arranged, tokens, breaks=found.controls != "text"),
        prompt_ids=tokens.prompt_ids,
        concurrency=settings.concurrency,
        waiting=_waiting(settings),
        told=progress.say,
    )


def _key(settings: EngineSettings) -> str | None:
    """The key for a server. Raises `UserError` where a variable was named and is not set; only the usual one may be missing."""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key and settings.api_key_env != API_KEY_ENV:
        sentence = "the environment variable that engine.api_key_env names is not set"
        raise UserError(f"{sentence}; type: export NAME=KEY, with its name and the key")
    return key or None


def _waiting(settings: EngineSettings) -> Waiting:
    return Waiting(settings.timeout, settings.retries, settings.patience)


def _tokenizer(config: RunConfig, base: Path) -> ChatTokenizer:
    """The local tokenizer beside a server: the one that is named, or the model's."""
    named = config.engine.tokenizer
    return ChatTokenizer(load_tokenizer(base if named in ("", "model") else locate(named, CHECKPOINTS)))


def _arranged(tokens: ChatTokenizer, messages: Sequence[Message], *, breaks: bool = False) -> tuple[Message, ...]:
    """A conversation as the chat template takes it: the server's is the same, and does not put up with other ones either.

    `breaks` is whether a space is put into the control tokens that texts spell out.
    """
    template = tokens.template
    told = template.broken if breaks else str
    return tuple(Message(role, told(content)) for role, content in template.turns(messages))  # type: ignore[arg-type]
