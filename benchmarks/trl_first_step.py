"""GRPO's first step by leafe and by TRL's `GRPOTrainer` on the same attempts, and the differences of loss and gradients.

    pip install --target DIR --no-deps trl==1.16.0 datasets pandas multiprocess dill xxhash aiohttp pytz python-dateutil six tzdata
    python benchmarks/trl_first_step.py DIR

TRL gets the attempts by its `rollout_func`, with the tokens of observations masked. It computes its own advantages, log-probabilities and
normalisation. `tests/test_grpo.py` keeps its figures.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from first_step import EVERY, GROUPS, LONGEST, SIZE, VARIANTS, Variant, first_step, network, norm, old_logprobs  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402
from transformers import PrinterCallback  # noqa: E402


def theirs(variant: Variant) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of TRL's first step."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    found: dict[str, Any] = {}

    class First(GRPOTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            found["loss"] = float(loss)
            found["gradients"] = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
            return loss

    model = network()

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        seen = [0] * len(GROUPS)
        played = []
        for prompt in prompts:
            played.append(GROUPS[int(prompt)][seen[int(prompt)]])
            seen[int(prompt)] += 1
        return {
            "prompt_ids": [list(one.prompt) for one in played],
            "completion_ids": [one.ids for one in played],
            "logprobs": [old_logprobs(model, one) for one in played],
            "env_mask": [one.mask for one in played],
            "outcome": [one.reward for one in played],
        }

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder,
            per_device_train_batch_size=len(EVERY),
            num_generations=SIZE,
            max_completion_length=LONGEST,
            max_steps=1,
            beta=0.0,
            epsilon=0.2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # TRL's default is on
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **variant.trl,
        )
        trainer = First(
            model,
            args=settings,
            reward_funcs=lambda completions, outcome, **more: outcome,
            train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(len(GROUPS))]),
            processing_class=tiny_tokenizer(),
            rollout_func=rollouts,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return found["loss"], found["gradients"]


def main() -> None:
    sys.path.extend(sys.argv[1:2])  # after the installed packages
    print(f"{'loss':28} {'ours':>12} {'TRL':>12} {'norm':>10} {'TRL':>10}  largest difference, relative to the largest gradient")
    for name, variant in VARIANTS.items():
        loss, gradients = first_step(variant)
        their_loss, their_gradients = theirs(variant)
        largest = max(float(gradient.abs().max()) for gradient in their_gradients.values())
        apart = max(float((gradients[key] - gradient).abs().max()) for key, gradient in their_gradients.items())
        print(
            f"{name:28} {loss:12.8f} {their_loss:12.8f} {norm(gradients):10.6f} {norm(their_gradients):10.6f}  {apart / largest:.1e}"
        )


if __name__ == "__main__":
    main()
