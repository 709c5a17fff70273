"""Every setting of a run, once, as frozen models: its range, its default and its meaning.

A value that follows from other settings is a property. A configuration is checked when it is made, so that the rest of the program can
rely on it, and nothing here knows its use. `config.py` reads and writes them.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from leafe.address import server_address
from leafe.digest import canonical, digest
from leafe.records import Sampling

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
API_KEY_ENV = "OPENAI_API_KEY"
DEFAULT_METHOD = "leafe"


class Settings(BaseModel):
    """A group of settings: frozen, every key known, no value silently converted to another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EnvironmentSettings(Settings):
    """The environment that is played; `args` go to its constructor.

    `workers` is for worlds that are not played in line: how many are called at once on threads, or live in processes; 0 means as many
    threads as there are worlds that wait, or four processes a core. `timeout` is how many seconds a step may take before its attempt is
    given up and its world replaced, `recycle` after how many episodes a world is replaced; 0 is never. All three set how, not what.
    """

    name: Text
    args: dict[str, Any] = {}
    workers: int = Field(0, ge=0)
    timeout: float = Field(600.0, ge=0)
    recycle: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _args_are_json(self) -> Self:
        try:
            kept = json.loads(canonical(self.args)) == self.args
        except (TypeError, ValueError):
            kept = False
        if not kept:
            raise ValueError(f"environment.args: wanted what JSON can hold, found {self.args!r:.80}")
        return self


class TaskSettings(Settings):
    """How many tasks of which split. `seed` draws the tasks and is apart from the run's seed: runs may share their tasks."""

    train: int = Field(64, ge=1, le=1_000_000)
    test: int = Field(64, ge=1, le=1_000_000)
    train_split: Text = "train"
    test_split: Text = "test"
    seed: int = Field(0, ge=0)


class EngineSettings(Settings):
    """The engine that draws the completions.

    `device`, `threads`, `processes`, `slots`, `concurrency`, `cache_gib` and `base_url` set how and where, not what: a run may be resumed
    with others. `device` is one of torch's, `auto` a GPU where there is one. Each of `processes` holds the model, on a GPU of its own where
    there are as many; 0 is one a GPU, or for a small model on a processor one a core, two at most. `threads` is for each of them, 0 shares
    out the cores that are free. `max_context` caps a conversation, in tokens; 0 leaves it to the model or the server. `cache_gib` is the
    memory for the keys and values of all processes, 0 half of what is free.

    The rest is for servers. `control_tokens` is for a server that reads a control token spelled out in a text as the token, or that
    may do so: `break` puts a space into it, `refuse` refuses the server.
    `api_key_env` is the name of an environment variable, never a key. `tokenizer` (`model`, a folder or a Hub
    name) makes ids where the server returns none. `timeout` and `patience` are in seconds: for one answer, and for a server that is away.

    The last five are for `kind` vllm and sglang, which start the server themselves (`engines/serve_command.py`): the program, options of
    the user's own, over how many GPUs the model is split, which share of their memory it takes, and how often it is started again when it
    dies.
    """

    kind: Literal["transformers", "openai", "vllm", "sglang"] = "transformers"
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    device: Text = "auto"
    threads: int = Field(0, ge=0)
    processes: int = Field(1, ge=0)
    slots: int = Field(256, ge=1)
    concurrency: int = Field(512, ge=1)
    max_context: int = Field(0, ge=0)
    cache_gib: float = Field(0.0, ge=0)
    base_url: str = ""
    served_model: str = ""
    api_key_env: str = API_KEY_ENV
    tokenizer: str = ""
    control_tokens: Literal["break", "refuse"] = "break"
    timeout: float = Field(300.0, gt=0)
    retries: int = Field(5, ge=0)
    patience: float = Field(600.0, ge=0)
    command: tuple[str, ...] = Field((), strict=False)
    arguments: tuple[str, ...] = Field((), strict=False)
    tensor_parallel: int = Field(1, ge=1)
    memory_share: float = Field(0.9, gt=0, le=1)
    restarts: int = Field(3, ge=0)

    @field_validator("base_url")
    @classmethod
    def _address_holds_no_secret(cls, value: str) -> str:
        return server_address(value) if value else value

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # what was typed may be the key itself, so it is not repeated
            raise ValueError(
                f"engine.api_key_env: wanted the name of an environment variable, as {API_KEY_ENV}, found something else"
            )
        return value

    @model_validator(mode="after")
    def _server_is_named(self) -> Self:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("engine.kind openai wants engine.base_url, as http://localhost:8000/v1, and found none")
        if self.kind in ("vllm", "sglang") and self.base_url:
            raise ValueError(
                f"engine.kind {self.kind} starts a server of its own; leave out engine.base_url, or type engine.kind=openai"
            )
        return self


class DrawSettings(Settings):
    """How one completion is drawn; see `records.Sampling`."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(16, ge=1)
    max_repeats: int = Field(0, ge=0)

    def sampling(self) -> Sampling:
        """The same as a record."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.max_repeats)


class SamplingSettings(Settings):
    """One way of drawing for actions, another for reflections; `closing` are the tokens for the answer of a cut reply."""

    act: DrawSettings = DrawSettings()
    reflect: DrawSettings = DrawSettings(max_tokens=48)
    closing: int = Field(0, ge=0)


class HistorySettings(Settings):
    """How much of its own history a policy reads at a turn.

    `all` of it; the `last` ones, where turns older than the last `turns` are shortened to their actions; or what does `fit` into the
    context, the oldest thoughts left out first, then the oldest observations. The task, the first observation and every action stay.
    """

    keep: Literal["all", "last", "fit"] = "all"
    turns: int = Field(4, ge=1)


class ExploreSettings(Settings):
    """The budget of one task, and when it looks back. `reflect_every` 0 means at the end only.

    `turns` counts the policy's turns; `tokens`, those that it writes, reflections included, ends it as well where it is not 0.

    With `new_luck` a branch in a random world does not repeat the draws of the attempt that it left: then no reflection can teach the draw.
    After `stop_when_solved` successes (0: never) a task is left, and its unused turns go to unsolved ones. `memory` is how
    many of the latest experiences the explorer `retry` puts into the prompt.
    """

    turns: int = Field(64, ge=1)
    tokens: int = Field(0, ge=0)
    max_attempts: int = Field(16, ge=1)
    max_depth: int = Field(4, ge=0)
    reflect_every: int = Field(0, ge=0)
    reflect_on_failure: bool = True
    new_luck: bool = False
    stop_when_solved: int = Field(0, ge=0)
    memory: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _reflects_at_all(self) -> Self:
        if not self.reflect_every and not self.reflect_on_failure:
            raise ValueError("explore.reflect_every: wanted at least 1 where explore.reflect_on_failure is false, found 0")
        return self


class DistillSettings(Settings):
    """Which turns become examples. `qualify` is the outcome that a branch must have; `beta` weighs rehearsal against correction.

    `rehearse` says what rehearsal is uniform over: `successes`, each turn of them once, or `tasks`, where each success of a task with `c`
    of them weighs 1/c, scaled so that the mean weight of a rehearsal example stays `beta`.
    `logprobs` keeps the log-probabilities that targets were sampled with, for losses that read them.
    """

    qualify: Literal["success", "improved", "any"] = "improved"
    branches_per_task: int = Field(3, ge=0)
    success_share: Share = 1.0
    beta: float = Field(1.0, ge=0)
    rehearse: Literal["successes", "tasks"] = "successes"
    logprobs: bool = False


class LoraSettings(Settings):
    """A low-rank adapter in place of full training; no `targets` means every linear layer. With `keep` it lies beside the merged weights
    as well, in `adapter`, and engine.kind=vllm loads it into the server of the base."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    targets: tuple[str, ...] = Field((), strict=False)
    keep: bool = False


Optimizer = Literal[
    "auto",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
]


ADAMW = ("auto", "adamw_torch", "adamw_torch_fused")


class TrainSettings(Settings):
    """Supervised training. A batch is `batch_size` examples; `micro_tokens` is what one forward pass may hold, `auto` 8192 on a processor
    and on a GPU what its memory has room for.

    `attention`: `tree` in blocks, `flex` by FlexAttention (on a GPU), `dense` with a mask, for models that take nothing else; `auto` is the
    fastest of them that passes a trial on the model. `compile` compiles each layer, which goes with FlexAttention.
    `dtype`: `float32`; `mixed` computes in bfloat16 with float32 weights; `bfloat16` has bfloat16 weights and leaves the rest of each to
    the optimiser; `auto` is float32 on a processor, on a GPU mixed where that fits, else bfloat16. `optimizer` is a name of transformers.
    `checkpointing` computes activations twice to hold fewer of them, `auto` for large models on a GPU. With `offload` the optimiser's state
    lies in the processor's memory, with the rest of bfloat16 weights, and its steps are taken there; `auto` where it does not fit on the
    GPU. `processes` on this machine share every step; with `sharding` `fsdp` each holds a part of the weights, with `none` all of them. The
    state that a killed training resumes from is written every `save_every` steps, 0 for never; a learner's after so many batches, 0 for
    every pass.
    """

    epochs: float = Field(2.0, gt=0)
    learning_rate: float = Field(1e-6, gt=0)
    batch_size: int = Field(128, ge=1)
    micro_tokens: int | Literal["auto"] = "auto"
    warmup_share: Share = 0.05
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    attention: Literal["auto", "tree", "flex", "dense"] = "auto"
    compile: Literal["none", "layers"] = "none"
    dtype: Literal["auto", "float32", "mixed", "bfloat16"] = "auto"
    optimizer: Optimizer = "auto"
    checkpointing: bool | Literal["auto"] = "auto"
    offload: bool | Literal["auto"] = "auto"
    processes: int = Field(1, ge=1)
    sharding: Literal["none", "fsdp"] = "none"
    save_every: int = Field(0, ge=0)
    lora: LoraSettings | None = None

    @field_validator("micro_tokens", mode="before")
    @classmethod
    def _is_a_count_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 16):
            raise ValueError(f"train.micro_tokens: wanted auto or a whole number of at least 16, found {value!r:.80}")
        return value

    @field_validator("checkpointing", "offload", mode="before")
    @classmethod
    def _is_a_choice_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        if value != "auto" and not isinstance(value, bool):
            raise ValueError(f"train.{info.field_name}: wanted auto, true or false, found {value!r:.80}")
        return value

    @model_validator(mode="after")
    def _can_be_offloaded(self) -> Self:
        if self.offload is not True:
            return self
        for key, value, wanted in (
            ("dtype", self.dtype, ("bfloat16", "auto")),
            ("optimizer", self.optimizer, ADAMW),
            ("sharding", self.sharding, ("none",)),
            ("lora", self.lora, (None,)),
        ):
            if value not in wanted:
                what = "no train.lora, whose state is small" if key == "lora" else f"train.{key}={wanted[0]}, found {value}"
                raise ValueError(f"train.offload=true goes with {what}; leave train.offload out, and it is auto")
        return self


class EvaluateSettings(Settings):
    """How Pass@k is measured: `samples` attempts a task, of which the first `watched` are kept as transcripts and played again beside the
    environment's expert, if it has one, to find setbacks; intervals from `resamples` bootstrap draws over tasks.
    """

    samples: int = Field(64, ge=1)
    watched: int = Field(2, ge=0)
    resamples: int = Field(2000, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)

    @property
    def ks(self) -> tuple[int, ...]:
        """The powers of two up to `samples`."""
        return tuple(2**power for power in range(self.samples.bit_length()))


class ScaleSettings(Settings):
    """Resources beyond this process. They set where, not what: a run may be resumed with others.

    `workers` hold the worlds, many each; 0 keeps them here, or with `ray` takes one for `cpus` cores of the cluster, 64 at most. Without
    `ray` they are processes of this machine, with it actors: `local` starts a cluster for this run alone, `auto` joins the one that this
    machine belongs to, anything else is an address. `replicas` of the in-process engine live in actors too, with `cpus` cores and `gpus`
    GPUs each; 0 keeps the engine here.
    """

    workers: int = Field(0, ge=0)
    ray: str = ""
    cpus: float = Field(1.0, ge=0)
    replicas: int = Field(0, ge=0)
    gpus: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _replicas_have_a_cluster(self) -> Self:
        if self.replicas and not self.ray:
            raise ValueError(
                f"scale.replicas wants scale.ray, as local or auto, found {self.replicas} without; on one machine engine.processes does"
            )
        return self


class RunConfig(Settings):
    """A whole run, except for its method's own settings: `config.py` makes the class that has the method's section as well.

    `remind` ends what the policy reads at each turn with a reminder of the form that its replies should have. `report_to` names trackers
    that get the figures of all stages as they come up.
    """

    section: ClassVar[str] = ""  # the method's own

    name: Name
    method: Text = DEFAULT_METHOD
    seed: int = Field(1, ge=0)
    model: Text = "nano"
    environment: EnvironmentSettings
    prompts: Text = "terse"
    remind: bool = False
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field((), strict=False)
    history: HistorySettings = HistorySettings()
    tasks: TaskSettings = TaskSettings()
    engine: EngineSettings = EngineSettings()
    sampling: SamplingSettings = SamplingSettings()
    explore: ExploreSettings = ExploreSettings()
    distill: DistillSettings = DistillSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    scale: ScaleSettings = ScaleSettings()

    @property
    def own(self) -> BaseModel:
        """The settings of the method's own section."""
        return getattr(self, self.section) if self.section else Settings()

    @model_validator(mode="after")
    def _replicas_are_ours(self) -> Self:
        if self.scale.replicas and self.engine.kind != "transformers":
            raise ValueError(f"scale.replicas: wanted 0 where engine.kind is {self.engine.kind}, found {self.scale.replicas}")
        return self

    @model_validator(mode="after")
    def _replies_fit(self) -> Self:
        for key, draw in {"act": self.sampling.act, "reflect": self.sampling.reflect}.items():
            if draw.max_repeats == 1:
                raise ValueError(f"sampling.{key}.max_repeats: wanted 0 for no limit, or at least 2, found 1")
            if self.engine.max_context and draw.max_tokens >= self.engine.max_context:
                wanted = f"less than engine.max_context, which is {self.engine.max_context}"
                raise ValueError(f"sampling.{key}.max_tokens: wanted {wanted}, found {draw.max_tokens}")
        return self

    @property
    def digest(self) -> str:
        """The configuration's identity: equal exactly where `differing_fields` finds nothing."""
        return digest(self.model_dump(mode="json", exclude=MACHINE))


# Settings of how and where a run is done, not of its results.
MACHINE: dict[str, Any] = {
    "report_to": True,
    "scale": True,
    "environment": {"workers", "timeout", "recycle"},
    "engine": {"device", "threads", "processes", "slots", "concurrency", "base_url", "cache_gib", "api_key_env", "timeout"}
    | {"retries", "patience", "command", "tensor_parallel", "memory_share", "restarts"},
    "train": {"attention", "checkpointing", "compile", "micro_tokens", "offload", "processes", "sharding", "save_every"},
}
