"""From a configuration to its server: the key, the probe and the engine that follows from what was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx

from leafe.engines.loading import load_tokenizer
from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_findings import CONTROLS, Findings
from leafe.engines.openai_http import Client, Waiting
from leafe.engines.openai_probe import Question, probe
from leafe.engines.tokens import ChatTokenizer
from leafe.errors import EngineError, UserError
from leafe.loops import wait_for
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.progress import Progress
from leafe.records import Message
from leafe.settings import API_KEY_ENV, EngineSettings, RunConfig


@dataclass(frozen=True)
class Door:
    """A server's address, the name under which it serves the model, and how it is reached; `lost` is as the engine's."""

    base_url: str
    api_key: str | None
    served: str = ""
    transport: httpx.AsyncBaseTransport | None = None
    lost: Callable[[], str] = lambda: ""


def door_of(settings: EngineSettings) -> Door:
    """The door of the server that a recipe names. Raises `UserError` where its key is missing."""
    return Door(settings.base_url, _key(settings), settings.served_model)


def probe_server(config: RunConfig, base: Path, progress: Progress) -> Findings:
    """The properties of a configuration's server, reported in lines. Raises `UserError` or `EngineError`, as `probe` does."""
    found = wait_for(probe_door(config, base, progress, door_of(config.engine)))
    tell(found, config.engine, progress)
    return found


async def probe_door(config: RunConfig, base: Path, progress: Progress, door: Door) -> Findings:
    """The properties of the server behind a door, which serves the folder `base`. Raises `UserError` or `EngineError`, as `probe` does."""
    settings, tokens = config.engine, _tokenizer(config, base)
    question = Question(
        served=door.served,
        names=(config.model, str(base)),
        samples=config.sampling.act.temperature > 0,
        tokenizer=tokens,
        arrange=partial(_arranged, tokens),
        fallback=bool(settings.tokenizer),
    )

    client = Client(door.base_url, door.api_key, _waiting(settings), transport=door.transport, told=progress.say, lost=door.lost)
    try:
        return replace(await probe(client, question), cap=settings.max_context)
    except EngineError as error:  # before anything is begun, so that nothing was kept
        raise EngineError(error.why) from None
    finally:
        await client.close()


def tell(found: Findings, settings: EngineSettings, progress: Progress) -> None:
    """Reports the findings. Raises `UserError` for those that the settings refuse."""
    for line in found.lines:
        progress.say(line)
    if settings.control_tokens == "refuse" and found.controls != "text":
        what = CONTROLS[found.controls].partition(", so")[0]
        raise UserError(
            f"engine.control_tokens=refuse: {what}; start the server so that texts are text to it, or type engine.control_tokens=break"
        )


def served_engine(config: RunConfig, base: Path, progress: Progress, found: Findings, *, door: Door | None = None) -> OpenAIEngine:
    """An engine on the server that was probed, which serves the folder `base`."""
    settings, tokens = config.engine, _tokenizer(config, base)
    door = door or door_of(settings)
    return OpenAIEngine(
        door.base_url,
        found.model,
        api_key=door.api_key,
        tokenizer=None if found.decoded is False else tokens.tokenizer,  # whose ids would not be the server's
        encodes=found.ids == "encoded",
        encode=tokens.text_ids,
        dialect=found.dialect,
        continues=found.continues,
        max_context=found.max_context,
        cap=settings.max_context,
        count=lambda messages: len(tokens.prompt_ids(messages)),
        counts_alike=found.prompt in ("equal", "counted"),
        arrange=partial(_arranged, tokens, breaks=found.controls != "text"),
        prompt_ids=tokens.prompt_ids,
        concurrency=settings.concurrency,
        waiting=_waiting(settings),
        told=progress.say,
        lost=door.lost,
        transport=door.transport,
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
    """A conversation as the chat template takes it: the server's is the same, and accepts no other form either.

    `breaks` is whether a space is put into the control tokens that texts spell out.
    """
    template = tokens.template
    told = template.broken if breaks else str
    return tuple(Message(role, told(content)) for role, content in template.turns(messages))  # type: ignore[arg-type]
