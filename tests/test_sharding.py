"""Training in several processes, with weights in shards or whole, and training that goes on after a kill."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_precision import known, narrow
from test_sft import TOKENIZER, lessons, moved, weights
from tiny import tiny_model

from leafe.distillation.trial import choose_packing
from leafe.errors import CorruptFile, RunConflict, UserError
from leafe.records import Message, Target
from leafe.settings import LoraSettings, TrainSettings
from leafe.training.follow import Leader, follow, leader
from leafe.training.launch import ProgressCallback, in_processes
from leafe.training.loss import CrossEntropy
from leafe.training.machine import check_machine
from leafe.training.resume import Trained
from leafe.training.sft import TrainReport, fine_tune, try_training
from leafe.training.sharding import held
from leafe.training.terms import Terms

PLAN = TrainSettings(epochs=2, learning_rate=1e-3, batch_size=8, micro_tokens=64)
SHORT = PLAN.model_copy(update={"epochs": 1})
KEPT = PLAN.model_copy(update={"save_every": 2})
SHARDED = KEPT.model_copy(update={"sharding": "fsdp"})


class Killed(Exception):
    """In the middle of a training."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def trained(base: Path, out: Path, settings: TrainSettings = KEPT, *, dies_after: int = 0) -> TrainReport | None:
    """What a training was; None where it died after some steps. Its state lies beside `out`."""

    def told(done: int, total: int) -> None:
        if done == dies_after:
            raise Killed

    try:
        return fine_tune(base, lessons(), out, settings, seed=1, told=told, state=out.with_suffix(".state"))
    except Killed:
        return None


def together(told: ProgressCallback, base: Path, out: Path) -> list[TrainReport | None]:
    """Several trainings of one group of processes, which share each of them."""
    copies = fine_tune(base, lessons(), out / "copies", SHORT, seed=1, told=told)
    short = SHARDED.model_copy(update={"epochs": 1})
    return [copies, trained(base, out / "shards", short, dies_after=3), trained(base, out / "shards", short)]


def test_processes_with_copies_and_with_shards_give_the_weights_of_one_though_they_were_killed(base: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    alone = trained(base, tmp_path / "alone", SHORT)
    copies, died, shards = in_processes(
        2, partial(together, base=base, out=tmp_path), lambda done, total: steps.append((done, total))
    )
    change = moved(weights(base), weights(tmp_path / "alone"))
    assert alone is not None and copies is not None and died is None and shards is not None
    assert steps == [(done, alone.steps) for done in range(1, alone.steps + 1)]
    for name, report in {"copies": copies, "shards": shards}.items():
        assert moved(weights(tmp_path / "alone"), weights(tmp_path / name)) < 1e-3 * change
        assert (report.loss, report.by_kind) == (pytest.approx(alone.loss, rel=1e-5), pytest.approx(alone.by_kind, rel=1e-5))
        assert replace(report, loss=0, by_kind={}, processes=1, sharding="none", held=1) == replace(alone, loss=0, by_kind={})
    assert copies.machine == {"processes": 2, "sharding": "none", "held": 1.0}
    assert shards.machine == {"processes": 2, "sharding": "fsdp", "held": 0.5}
    # Cut for two processes, and taken on by one.
    assert len(list((tmp_path / "shards.state").rglob("*.safetensors"))) == 2
    (tmp_path / "shards.state").rename(tmp_path / "one.state")
    assert trained(base, tmp_path / "one", KEPT.model_copy(update={"epochs": 1})) is not None
    assert moved(weights(tmp_path / "alone"), weights(tmp_path / "one")) < 1e-3 * change


def test_a_training_goes_on_where_its_model_and_its_state_were_moved_to(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    assert trained(Path("base"), Path("resumed"), dies_after=5) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    steps: list[int] = []
    fine_tune(
        tmp_path / "there" / "base",
        lessons(),
        tmp_path / "resumed",
        KEPT,
        seed=1,
        told=lambda done, total: steps.append(done),
        state=tmp_path / "there" / "resumed.state",
    )
    assert trained(base, tmp_path / "whole") is not None
    assert steps[0] > 1 and moved(weights(tmp_path / "whole"), weights(tmp_path / "resumed")) == 0


class Plain:
    """A loss of one's own, without a text of its own."""

    merges = True

    def __call__(self, logits: torch.Tensor, terms: Terms) -> torch.Tensor:
        return CrossEntropy()(logits, terms)


def test_a_training_by_a_loss_of_ones_own_goes_on(base: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def told(done: int, total: int) -> None:
        steps.append(done)
        if steps == [1, 2, 3]:
            raise Killed

    for times in range(2):
        with pytest.raises(Killed) if not times else nullcontext():
            fine_tune(base, lessons(), tmp_path / "own", KEPT, seed=1, told=told, loss=Plain(), state=tmp_path / "own.state")
    assert steps[3] == 3 and trained(base, tmp_path / "whole") is not None
    assert moved(weights(tmp_path / "whole"), weights(tmp_path / "own")) == 0


MANY: dict[str, dict[str, Any]] = {
    "copies": {"sharding": "none"},
    "shards": {},
    "an adapter": {"lora": LoraSettings(rank=2, alpha=4), "checkpointing": True},
    "mixed": {"dtype": "mixed"},
    "masks": {"attention": "dense"},
}


def many(told: ProgressCallback, base: Path, out: Path) -> dict[str, TrainReport | None]:
    """A training of each kind, in one group of processes."""
    return {name: trained(base, out / name, SHARDED.model_copy(update=more)) for name, more in MANY.items()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_all_kinds_of_training_give_the_weights_of_one_process(processes: int, base: Path, tmp_path: Path) -> None:
    found = in_processes(processes, partial(many, base=base, out=tmp_path), lambda done, total: None)
    for name, more in MANY.items():
        report = found[name]
        assert trained(base, tmp_path / "alone", KEPT.model_copy(update={**more, "sharding": "none", "save_every": 0})) is not None
        change = moved(weights(base), weights(tmp_path / "alone"))
        assert moved(weights(tmp_path / "alone"), weights(tmp_path / name)) < 1e-3 * change, name
        assert (report is not None and report.held < 1 / processes + 0.02) or name == "copies"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_that_was_killed_ends_with_the_same_weights_and_figures(dtype: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.attention_dropout = 0.2  # chance has to go on where it was
    model.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    plan = KEPT.model_copy(update={"dtype": dtype, "lora": None if dtype == "bfloat16" else LoraSettings(rank=2, alpha=4)})
    whole = trained(tmp_path / "base", tmp_path / "whole", plan)
    for dies_after in (3, 7):  # in the first epoch and in the second
        assert trained(tmp_path / "base", tmp_path / "killed", plan, dies_after=dies_after) is None
        (tmp_path / "killed.state" / "step-00000099").mkdir()  # begun, and not finished
    torch.manual_seed(99)
    assert trained(tmp_path / "base", tmp_path / "killed", plan) == whole
    assert moved(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == 0


@pytest.mark.parametrize("first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_may_go_on_with_its_state_elsewhere(first: bool, base: Path, tmp_path: Path) -> None:
    """In halves or whole: what a killed training kept in one way is read in the other."""
    ways = {kept: KEPT.model_copy(update={"offload": kept}) for kept in (False, True)}
    for kept, plan in ways.items():
        trained(base, tmp_path / f"alone-{kept}", plan)
    assert trained(base, tmp_path / "moved", ways[first], dies_after=5) is None
    assert trained(base, tmp_path / "moved", ways[not first]) is not None
    whole, halves, end = (weights(tmp_path / name) for name in ("alone-False", "alone-True", "moved"))

    def apart(other: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(weight - other[name]).flatten() for name, weight in whole.items()]).norm())

    assert apart(end) <= 1.5 * apart(halves) < 0.5 * apart(weights(base))


def test_a_state_that_is_not_as_it_was_or_another_trainings_is_refused(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "out", dies_after=3)
    with pytest.raises(RunConflict, match="holds the state of another training"):
        trained(base, tmp_path / "out", KEPT.model_copy(update={"learning_rate": 2e-3}))
    (part,) = (tmp_path / "out.state").rglob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=r"not as the training left it: it has \d+ bytes and had"):
        trained(base, tmp_path / "out")
    (tmp_path / "out.state" / "state.json").write_text("{}")
    with pytest.raises(CorruptFile, match=r"delete .* and the training begins anew"):
        trained(base, tmp_path / "out")


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": (Message("user", "another question"),)},
        {"group": "a group"},
        {"targets": {"weight": -1.0}},
        {"targets": {"logprob": -1.0}},
        {"targets": {"reference": -1.0}},
        {"targets": {"top": ((0, 1.0),)}},
    ],
    ids=str,
)
def test_a_state_belongs_to_all_that_its_examples_say(changed: dict[str, Any], base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "out", dies_after=3)
    first, *others = lessons()
    if wanted := changed.get("targets"):
        changed = {"targets": tuple(Target(one, **wanted) for one in first.target_ids)}
    with pytest.raises(RunConflict, match="holds the state of another training"):
        fine_tune(base, [replace(first, **changed), *others], tmp_path / "out", KEPT, seed=1, state=tmp_path / "out.state")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"processes": 1},
            r"wants two processes or more, and found one; set train\.processes=2, or start this command with torchrun",
        ),
        ({"dtype": "bfloat16"}, r"goes with train\.dtype=auto or float32 or mixed, found bfloat16; set train\.dtype=auto"),
        ({"optimizer": "adafactor"}, r"goes with train\.optimizer=auto .*, found adafactor"),
    ],
)
def test_what_shards_do_not_go_with_is_refused_before_anything_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_machine(TrainSettings(**{"sharding": "fsdp", "processes": 2, **values}))


def test_a_state_wants_a_folder_and_an_optimiser_that_can_be_kept(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.save_every goes with train\.optimizer=auto, found adafactor"):
        check_machine(TrainSettings(save_every=1, optimizer="adafactor"))
    with pytest.raises(UserError, match=r"train\.save_every wants a folder"):
        fine_tune(base, lessons(), tmp_path, KEPT, seed=1)


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A group with this process alone in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_weights_that_were_to_be_in_shards_and_are_not_are_found_out(group_of_one: None) -> None:
    model = tiny_model("llama")
    with pytest.raises(
        UserError, match=r"wanted all weights and moments cut .* found \d+ of \d+ whole, among them model\.embed_tokens"
    ):
        held(Trained(model, torch.optim.AdamW(model.parameters())))


@pytest.mark.slow
def test_a_training_in_shards_is_tried_in_shards_and_nothing_kept(base: Path) -> None:
    files = {path: path.read_bytes() for path in base.parent.rglob("*") if path.is_file()}
    tried = try_training(base, SHARDED.model_copy(update={"processes": 2}))
    assert (tried.steps, tried.processes, tried.sharding, tried.held) == (1, 2, "fsdp", 0.5)
    assert files == {path: path.read_bytes() for path in base.parent.rglob("*") if path.is_file()}


def cramped(told: ProgressCallback, base: Path, out: Path) -> None:
    """A training in shards of a model for a device without room."""
    known()
    fine_tune(base, lessons(), out / "out", SHARDED, seed=1, told=told, state=out / "state")


@pytest.mark.slow
def test_a_training_in_shards_that_does_not_fit_is_told_only_what_shards_go_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit into the memory.*checkpointing=true, then train\.lora\.rank=16$"):
        in_processes(2, partial(cramped, base=narrow(tmp_path / "base", 8), out=tmp_path), lambda done, total: None)


def test_a_small_copy_may_be_tried_in_place_of_a_model_that_no_gpu_holds() -> None:
    model = tiny_model("llama")
    assert choose_packing(model, "tree", "cpu").kind == choose_packing(model, "tree").kind
    model.forward = None  # which a trial on the model itself would call
    assert choose_packing(model, "tree", "cpu").cap.longest is None


def test_others_do_the_jobs_of_the_first_process_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    done: list[Any] = []
    with Leader() as first:
        assert leader() is first
        monkeypatch.setenv("RANK", "1")
        other = threading.Thread(target=follow, args=(done.append,))
        other.start()
        first.tell("one")
        first.tell({"two": 2})
    other.join(30)
    assert not other.is_alive() and done == ["one", {"two": 2}] and leader() is None
