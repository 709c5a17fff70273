"""What a request to a server holds: every setting of sampling, so that nothing is filled in from elsewhere.

vLLM takes what a request leaves out from the model's `generation_config`, llama.cpp's server from its own defaults (top_k 40, min_p 0.05):
two servers of one model then sample in two ways. So each field that either of them fills is sent with the value that switches it off.
Servers that refuse a field that they do not know are found out by the probe; a `Dialect` holds what it found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from leafe.engines.repetition import repetition_field
from leafe.records import Ask, Sampling

SEEDS = 1 << 31  # some servers keep 32 bits of the seed and refuse more

# Fields that some servers refuse, in groups that are left out together where a server does not say which one it means.
IDS = {"return_tokens_as_token_ids": True}  # vLLM writes `token_id:17` in place of each token then
LOGPROBS = {"logprobs": True, "top_logprobs": 1}  # llama.cpp returns twenty a token where none are asked for, and none for 0
PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL = {"top_k": -1, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
REPETITION = repetition_field(2)  # sent where a limit on repeats is asked for; vLLM knows it
GROUPS = (REPETITION, NEUTRAL, IDS, LOGPROBS, PENALTIES, {"seed": 0})
# The last message is the assistant's and has no end: vLLM and SGLang are told so, llama.cpp's server does so by itself.
GO_ON = {"add_generation_prompt": False, "continue_final_message": True}
OPTIONAL = frozenset(name for group in GROUPS for name in group)


@dataclass(frozen=True)
class Dialect:
    """What one server takes. `refused` are fields that are left out; `samples_by_config` is for `transformers serve`.

    That server samples only where a `generation_config` in the request says so, and is greedy at any temperature otherwise.
    """

    refused: frozenset[str] = frozenset()
    samples_by_config: bool = False

    def payload(self, ask: Ask, model: str) -> dict[str, Any]:
        """The body of a request. Where a reply is begun it is the last of the messages already."""
        sampling = ask.sampling
        fields = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in ask.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            **IDS,
            **LOGPROBS,
            **PENALTIES,
            **NEUTRAL,
            **repetition_field(sampling.max_repeats),
            "seed": ask.seed % SEEDS,
            **(GO_ON if ask.begun else {}),
        }
        if self.samples_by_config:
            fields["generation_config"] = _generation_config(sampling)
        return {name: value for name, value in fields.items() if name not in self.refused}


def _generation_config(sampling: Sampling) -> str:
    settings = {"do_sample": sampling.temperature > 0, "top_k": 0, "repetition_penalty": 1.0}
    if sampling.temperature > 0:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return json.dumps(settings)
