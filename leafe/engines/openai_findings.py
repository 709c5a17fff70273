"""The findings of the probe of a server: printed as sentences, kept with the run, and compared with what a recipe needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from leafe.engines.openai_fields import Dialect
from leafe.errors import UserError

Prompt = Literal["equal", "counted", "differs", "unknown"]
Controls = Literal["text", "tokens", "unknown"]

PROMPTS = {
    "equal": "its chat template gives the ids of the local tokenizer",
    "counted": "its chat template gives as many ids as the local tokenizer ({})",
    "differs": "its chat template gives {} ids where the local tokenizer gives {}",
    "unknown": "its chat template was not compared with a local one",
}

CONTINUES = {
    True: "it continues a reply that is begun for it",
    False: "it did not continue a reply that was begun for it, so a cut reply stays cut (sampling.closing)",
}

CONTROLS = {
    "text": "control tokens that a text spells out are text to it",
    "tokens": "it takes control tokens that a text spells out for the tokens, so a space is put into them (engine.control_tokens)",
    "unknown": "how it reads control tokens that a text spells out is not known, so a space is put into them (engine.control_tokens)",
}

BASE_ALONE = "openai"  # the kind of engine whose server somebody else started, so that it serves the base alone
MEASURED_HERE = (
    "base and arms are measured in this process, since the server serves the base only; arms=[] measures the base through it"
)
COMPARED_HERE = "measured in this process, like the trained rows of the table, since the server serves the base only"

IDS = {
    "sampled": "with the ids of sampled tokens",
    "encoded": "without ids (the local tokenizer makes them)",
    "none": "without ids (nothing can be trained on them)",
}


@dataclass(frozen=True)
class Findings:
    """The properties of a server.

    `ids` are `sampled` (returned by the server), `encoded` (made from the text by a local tokenizer) or `none`. `seeds_differ` is None
    where the temperature is zero. `prompt` compares the server's chat template with the local one: `equal` (id for id), `counted` (as many
    ids), `differs` or `unknown`. `decoded` is whether the local tokenizer makes the reply's text of the server's ids, None for unknown.
    `continues` is whether it continues a reply that is begun for it. `controls` is how the server reads control tokens that a text
    spells out. `server` is the program and its version, if it reports them. `cap` is the most of `max_context` that is used, 0 for all.
    """

    model: str
    listed: tuple[str, ...]
    dialect: Dialect
    ids: Literal["sampled", "encoded", "none"]
    logprobs: bool
    seeds_differ: bool | None
    seed_repeats: bool | None
    max_context: int | None
    prompt: Prompt
    prompt_tokens: tuple[int, int]
    decoded: bool | None
    controls: Controls = "unknown"
    server: str = ""
    continues: bool = False
    cap: int = 0

    def as_json(self) -> dict[str, Any]:
        """The findings for a file, with the sentences about them."""
        dialect = {"refused": sorted(self.dialect.refused), "samples_by_config": self.dialect.samples_by_config}
        lists = {"listed": list(self.listed), "prompt_tokens": list(self.prompt_tokens), "lines": self.lines, "flags": self.flags}
        return asdict(self) | {"dialect": dialect} | lists

    @property
    def lines(self) -> list[str]:
        """The findings, in sentences."""
        context = f"a context of {self.max_context} tokens" if self.max_context else "a context that it does not report"
        logprobs = "with log-probabilities" if self.logprobs else "without log-probabilities"
        program = f" ({self.server})" if self.server else ""
        said = [f"the server{program} serves {self.model} with {context}; replies come {IDS[self.ids]}, {logprobs}"]
        if self.listed and self.model not in self.listed:
            said.append(f"it lists {', '.join(self.listed[:4])} and answers to {self.model} all the same")
        if self.seeds_differ is not None:
            same = "one seed gives one reply" if self.seed_repeats else "one seed does not give the same reply twice"
            said.append(f"{'seeds differ' if self.seeds_differ else 'three seeds gave one and the same reply'}, and {same}")
        if self.dialect.refused:
            instead = "samples by a configuration in each request" if self.dialect.samples_by_config else "sets these itself"
            said.append(f"it refuses {', '.join(sorted(self.dialect.refused))}, and {instead}")
        prompt = PROMPTS[self.prompt].format(*self.prompt_tokens)
        return [*said, prompt, CONTROLS[self.controls], CONTINUES[self.continues], *self.flags]

    @property
    def flags(self) -> list[str]:
        """The warnings that belong beside every figure from this server."""
        found = []
        if self.ids == "encoded":
            found.append(
                "token ids were made from the text of replies by a local tokenizer; they may not be those that were sampled"
            )
        if self.seeds_differ is False:
            found.append("the server draws the same for every seed, so attempts at a task are copies of one")
        if self.prompt == "differs":
            found.append("the server's chat template is not that of the local tokenizer")
        return found


def refuse_lacking(found: Findings, *, trains: bool) -> None:
    """Raises `UserError` for the first property that a recipe needs and the server lacks."""
    if found.seeds_differ is False:
        raise UserError(
            f"the server gave one and the same reply for three seeds, so {found.model} cannot be explored or measured through it: every"
            " attempt at a task would be a copy of the first; start it with sampling on, or type engine.kind=transformers"
        )
    if not trains:
        return
    if found.ids == "none":
        raise UserError(
            "training wants the ids of the sampled tokens, which this server does not return; take vLLM or llama.cpp's server, or type"
            " engine.tokenizer=model to make ids from the text with the model's own tokenizer"
        )
    if found.prompt == "differs" or found.decoded is False:
        what = (
            PROMPTS["differs"].format(*found.prompt_tokens)
            if found.prompt == "differs"
            else "its ids are not those of the local tokenizer"
        )
        raise UserError(
            f"what this server samples cannot be trained on with the local model: {what}; serve the folder that `model` names"
        )


def differing(before: Mapping[str, Any], now: Findings) -> list[str]:
    """The properties that another process of the same run found differently, such as `["ids: sampled -> none"]`."""
    kept = ["model", "dialect", "ids", "logprobs", "prompt", "seeds_differ"]
    kept += [name for name in ("controls", "continues") if name in before]  # which older runs did not ask for
    found = now.as_json()
    changes = [f"{name}: {before.get(name)} -> {found[name]}" for name in kept if before.get(name) != found[name]]
    told = [context for context in (before.get("max_context"), now.max_context) if context]
    if len(told) == 2 and len({min(context, now.cap or context) for context in told}) == 2:  # one that was not told is not another
        changes.append(f"max_context: {told[0]} -> {told[1]}")
    return changes
