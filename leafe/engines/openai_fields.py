"""The fields of a request to a server: every sampling setting, so that nothing is filled in from elsewhere.

vLLM takes missing fields from the model's `generation_config`, llama.cpp's server from its own defaults (top_k 40, min_p 0.05):
two servers of one model then sample differently. So each field that either of them fills in is sent with the value that switches it off.
The probe detects servers that refuse unknown fields; a `Dialect` holds what it found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from leafe.engines.repetition import repetition_field
from leafe.records import Ask, Sampling

SEEDS = 1 << 31  # some servers keep 32 bits of the seed and refuse more

# Fields that some servers refuse, in groups that are left out together if a server does not name the one it refuses.
IDS = {"return_tokens_as_token_ids": True}  # vLLM writes `token_id:17` in place of each token then
LOGPROBS = {"logprobs": True, "top_logprobs": 1}  # llama.cpp returns twenty a token by default, and none for 0
PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL = {"top_k": -1, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
REPETITION = repetition_field(2)  # sent if repeats are limited; vLLM knows it
GROUPS = (REPETITION, NEUTRAL, IDS, LOGPROBS, PENALTIES, {"seed": 0})
# The last message is the assistant's and has no end: vLLM and SGLang need these fields, llama.cpp's server continues by itself.
GO_ON = {"add_generation_prompt": False, "continue_final_message": True}
OPTIONAL = frozenset(name for group in GROUPS for name in group)


@dataclass(frozen=True)
class Dialect:
    """The fields that one server takes. `refused` are fields that are left out; `samples_by_config` is for `transformers serve`.

    That server samples only if a `generation_config` in the request asks for it, and is greedy at any temperature otherwise.
    """

    refused: frozenset[str] = frozenset()
    samples_by_config: bool = False

    def payload(self, ask: Ask, model: str) -> dict[str, Any]:
        """The body of a request. A begun reply is already the last of the messages."""
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
