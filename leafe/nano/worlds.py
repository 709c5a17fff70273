"""The worlds that a small model can be taught: two that ship with a checkpoint, and any environment that has an expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from leafe.envs.base import Environment, Fidelity
from leafe.envs.registry import make
from leafe.envs.settled import drawn, let_go
from leafe.errors import UserError
from leafe.nano.curriculum import Curriculum, Stage, Teacher
from leafe.nano.household_tutor import HouseholdTutor
from leafe.nano.sokoban_teacher import SokobanTeacher
from leafe.nano.world_teacher import OracleTutor, WorldTeacher
from leafe.prompts import load_prompts
from leafe.records import Task
from leafe.worlds.household.environment import Household


@dataclass(frozen=True)
class World:
    """The default build for a world: its curriculum, its number of steps, and the number of tokens for its texts.

    `name` is the shipped checkpoint that the build makes, empty where none ships.
    """

    curriculum: Curriculum
    steps: int
    vocabulary: int
    name: str = ""


def _sokoban(stage: Stage) -> Teacher:
    return SokobanTeacher(longest=stage.longest, jumbled=stage.jumbled)


def _evenly_strewn() -> Household:
    """Things lie anywhere, so the model learns to search and to read, and no regularity."""
    return Household(rooms=1, places=12, items=8, goals="two", skew=0.0)


def _household(stage: Stage) -> Teacher:
    return WorldTeacher(_evenly_strewn, HouseholdTutor(), longest=stage.longest)


def _any(spec: str, args: Mapping[str, Any], split: str, stage: Stage) -> Teacher:
    return WorldTeacher(partial(make, spec, args), OracleTutor(), longest=stage.longest, split=split)


# Copying an old turn is learned in some hundred steps from short and jumbled episodes, and hardly ever from long plain ones.
SOKOBAN = Curriculum("sokoban", (Stage(0.35, 3, 0.5), Stage(0.15, 8, 0.5), Stage(0.1, 12, 0.5), Stage(0.4, 16, 0.4)), _sokoban)
HOUSEHOLD = Curriculum("household", (Stage(0.3, 4), Stage(0.2, 7), Stage(0.5, 10)), _household)
SHIPPED = {"sokoban": World(SOKOBAN, 4600, 512, "nano"), "household": World(HOUSEHOLD, 2400, 1024, "nano-household")}


def world(spec: str, args: Mapping[str, Any], *, split: str) -> World:
    """The world of a name or `module:Class`; `args` and `split` are for environments that do not ship with a checkpoint.

    Raises `UserError` when there is no such environment, or it has nothing to teach with.
    """
    if spec in SHIPPED and not args:
        return SHIPPED[spec]
    environment = make(spec, args)
    tasks = drawn(environment, split, 8, 0)
    longest = max(task.horizon for task in tasks)
    _check(spec, environment, tasks[0])
    let_go(environment)
    stages = (Stage(0.3, max(1, longest // 4)), Stage(0.3, max(1, longest // 2)), Stage(0.4, longest))
    return World(Curriculum(environment.name, stages, partial(_any, spec, dict(args), split)), 3000, 1024)


def _check(spec: str, environment: Environment, task: Task) -> None:
    environment.reset(task)
    lacking = [name for name in ("expert", "example_actions") if not getattr(environment, name)()]
    if environment.fidelity is Fidelity.NONE:
        lacking.append("fidelity")
    if lacking:
        wanted = "actions from expert() and example_actions(), and fidelity snapshot or replay"
        raise UserError(f"to be taught {spec} wants {wanted}; missing: {', '.join(lacking)}; give the class what is missing")
    if load_prompts("terse", environment.name).system:
        raise UserError(f"{spec} has a system prompt and a small model reads none; take a larger model with prompts=full")
