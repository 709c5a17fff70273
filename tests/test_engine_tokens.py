"""Conversations as token ids: always what the tokenizer's own chat template gives, whatever the template does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEMPLATE, tiny_tokenizer

from leafe.engines.tokens import ChatTokenizer
from leafe.errors import UserError
from leafe.records import Message

ROLE = "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "concatenative": TEMPLATE,
    "default system": LOOP
    + "{% if loop.first and m.role != 'system' %}<|system|>be good<|end|>{% endif %}"
    + ROLE
    + "{% endfor %}"
    + PROMPT,
    "trimmed": LOOP + "{{ '<|' + m.role + '|>' + m.content | trim + '<|end|>\n' }}{% endfor %}" + PROMPT,
    "earlier turns dropped": LOOP + "{% if m.role != 'assistant' or loop.last %}" + ROLE + "{% endif %}{% endfor %}" + PROMPT,
    "thoughts dropped": LOOP
    + "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    + "{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% else %}"
    + ROLE
    + "{% endif %}{% endfor %}"
    + PROMPT,
    "no special tokens": LOOP
    + "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    "long conversations cut": "{% if messages | length > 14 %}<|end|>{% endif %}" + TEMPLATE,
}
PIECEWISE = {"concatenative", "default system", "trimmed"}

contents = st.one_of(
    st.text(max_size=12), st.sampled_from(["go left", " x ", "<think>a</think>b", "<|end|>", "<|user|>go", "\n\n", "e\u0301"])
)
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), contents), min_size=1, max_size=20)


@cache
def encoder(name: str) -> ChatTokenizer:
    return ChatTokenizer(tiny_tokenizer(template=TEMPLATES[name]))


def rendered(tokenizer: Any, messages: list[Message]) -> list[int]:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


@pytest.mark.parametrize("name", TEMPLATES)
@given(system=st.none() | contents, conversation=turns)
def test_prompt_ids_equal_the_tokenizers_own_chat_template(
    name: str, system: str | None, conversation: list[tuple[Any, str]]
) -> None:
    messages = [Message("system", system)] if system is not None else []
    for role, content in conversation:
        messages.append(Message(role, content))
        assert encoder(name).prompt_ids(messages) == rendered(encoder(name).tokenizer, messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_templates_whose_messages_stand_alone_are_put_together_from_pieces(name: str) -> None:
    fresh = ChatTokenizer(tiny_tokenizer(template=TEMPLATES[name]))
    fresh.prompt_ids([Message("user", "x"), Message("assistant", "y")] * 10)
    assert fresh.piecewise == (name in PIECEWISE)


def test_decoding_drops_special_tokens() -> None:
    tokens = encoder("concatenative")
    ids = tokens.tokenizer("go left<|end|>", add_special_tokens=False)["input_ids"]
    assert tokens.decode(ids) == "go left"
    assert tokens.stop_ids == {ids[-1]}


def test_a_tokenizer_without_chat_template_is_refused_in_one_sentence() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatTokenizer(tokenizer)
