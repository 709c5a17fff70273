"""What other trainers put the loss on, restated from their released code, to hold exported files against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

Row = Mapping[str, Any]


def decoded(tokenizer: Any, ids: Sequence[int], trained: Sequence[bool]) -> list[str]:
    """The stretches of text that are trained on."""
    runs: list[list[int]] = []
    for index, token in enumerate(ids):
        if trained[index]:
            if index == 0 or not trained[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [str(tokenizer.decode(run)) for run in runs]


def chat_ids(tokenizer: Any, messages: Sequence[Any], prompt: bool = False) -> list[int]:
    """A conversation by the tokenizer's own template."""
    return list(tokenizer.apply_chat_template(list(messages), add_generation_prompt=prompt, tokenize=True, return_dict=False))


def trl_trains(tokenizer: Any, row: Row) -> list[str]:
    """TRL 1.16.0, trl/trainer/sft_trainer.py, `SFTTrainer.__init__` and `_prepare_dataset` (`tokenize_fn`, `build_labels`).

    Where `prompt` and `completion` are columns and `completion_only_loss` is not set, it holds; the completion begins where the ids of the
    prompt and those of both part.
    """
    assert "prompt" in row and "completion" in row  # else `completion_only_loss` is off
    prompt = chat_ids(tokenizer, row["prompt"], prompt=True)
    both = chat_ids(tokenizer, [*row["prompt"], *row["completion"]])
    start = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, both, strict=False))))
    return decoded(tokenizer, both, [index >= start for index in range(len(both))])


class MultiTurnSFTDataset:
    """verl 0.9.1, verl/utils/dataset/multiturn_sft_dataset.py: every assistant message is trained on, its opening is not.

    `rows` stands for the parquet files, which the original reads by pandas.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: Any) -> None:
        self.messages_key = "messages"
        self.rows, self.tokenizer = rows, tokenizer
        self._read_files_and_process()

    def _read_files_and_process(self) -> None:
        self.messages = [row[self.messages_key] for row in self.rows]
        user = [{"role": "user", "content": ""}]
        once, twice = chat_ids(self.tokenizer, user), chat_ids(self.tokenizer, [*user, *user])
        self.system_prompt = once[: -(len(twice) - len(once))]
        self.generation_prompt = chat_ids(self.tokenizer, user, prompt=True)[len(once) :]

    def _process_single_message(
        self, index: int, message: Any, full_message: Any, *, tools: Any = None, enable_thinking: Any = None
    ) -> tuple[Any, Any, Any, dict[str, Any]]:
        import numpy as np  # the original has tensors, which may be multiplied as well

        ids = np.array(chat_ids(self.tokenizer, [message]))
        if index != 0 and message["role"] != "system":
            ids = ids[len(self.system_prompt) :]
        loss_mask = np.full(len(ids), int(message["role"] == "assistant"))
        loss_mask[: len(self.generation_prompt)] = 0
        return ids, loss_mask, np.ones(len(ids)), {}

    def trains(self) -> Iterator[list[str]]:
        """What is trained on, for each conversation; the original gives it out as `loss_mask`."""
        for messages in self.messages:
            ids: list[int] = []
            trained: list[bool] = []
            for index, message in enumerate(messages):
                found = self._process_single_message(index=index, message=message, full_message=messages, tools=None)
                ids += list(found[0])
                trained += [bool(bit) for bit in found[1]]
            yield decoded(self.tokenizer, ids, trained)


def llama_factory_trains(row: Row, *, mask_history: bool) -> list[str]:
    """LLaMA-Factory 0.9.5, data/converter.py (`SharegptDatasetConverter`) and data/processor/supervised.py (`_encode_data_example`).

    Messages are human, gpt, human, gpt, ...; another order or an odd count is dropped. Every reply is a target, with `mask_history` the
    last one only.
    """
    messages = row["conversations"]
    in_turn = all(message["from"] == ("human", "gpt")[index % 2] for index, message in enumerate(messages))
    if not in_turn or len(messages) % 2:
        return []
    replies = [message["value"] for message in messages[1::2]]
    return replies[-1:] if mask_history else replies
