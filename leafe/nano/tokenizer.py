"""The bundled model's tokenizer: byte-level BPE that keeps board cells apart, with a lean chat template.

Any text can be encoded and is decoded unchanged, in Unicode's composed form (NFC). A cell of a board is one token whatever its
neighbours, so that the same place is always at the same distance; a word of the curriculum is one token; the seams of a board
(`#`, line end, `#`) are one token each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END, PAD = "<|end|>", "<|pad|>"
WHOLE = ("#\n#", "######\n#", "#\n######", "√")  # seams of boards, and the one cell that is more than a byte
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The pieces within which merges are learned. Cells and digits are pieces of their own, so no merge ever joins them, however text is split.
PIECES = r" ?[A-Z]?[a-z]+|\n|[^\S\n]|\S"


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """Learns merges from the curriculum's texts up to `vocabulary` tokens, special ones included.

    `AutoTokenizer` gives every Qwen2 checkpoint a `Qwen2Tokenizer`, which brings its own way of splitting text and takes only the
    vocabulary, the merges and the added tokens of a checkpoint. So it is one from the start, and the texts of `WHOLE` are added tokens.
    """
    learner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(WHOLE),
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in WHOLE])
    tokenizer.chat_template = TEMPLATE
    return tokenizer
