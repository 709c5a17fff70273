"""Methods by name: those that ship, those that other packages offer, and any class as `module:Class`.

Another package offers its classes through the entry point group `leafe.methods`. Nothing is imported before it is asked for, and nothing
here knows what a method does: only the required members are checked, so that a class that lacks some is refused in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from leafe.errors import LeafeError, UnknownName, UserError
from leafe.imports import import_here, offered, told

Answer = TypeVar("Answer")
GROUP = "leafe.methods"
SHIPPED = {
    "ace": "leafe.methods.ace:Ace",
    "early_experience": "leafe.methods.early_experience:EarlyExperience",
    "flex": "leafe.methods.flex:Flex",
    "ga_rollback": "leafe.methods.ga_rollback:GaRollback",
    "grpo": "leafe.methods.grpo:Grpo",
    "leafe": "leafe.methods.leafe:Leafe",
    "opd": "leafe.methods.on_policy_distillation:OnPolicyDistillation",
    "preference": "leafe.methods.preference:Preferences",
    "reasoning_bank": "leafe.methods.reasoning_bank:ReasoningBank",
    "reset_groups": "leafe.methods.reset_groups:ResetGroups",
    "soft_targets": "leafe.methods.soft_targets:SoftTargets",
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


class KnownMethod(Protocol):
    """The members that a method's class must have; `leafe.methods.base.Method` explains each."""

    name: str
    summary: str
    Settings: type[BaseModel]

    def stages(self, lab: Any, run: Any, settings: Any) -> Any:
        """Its stages, in their order."""
        ...

    def trains(self, settings: Any) -> bool:
        """Whether it trains anything under these settings."""
        ...

    def check(self, config: Any, settings: Any) -> None:
        """Raises `UserError` for settings that cannot go together."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """A method as it is listed: where it comes from, and its summary or, in `fault`, why it cannot be used."""

    name: str
    origin: str
    summary: str = ""
    fault: str = ""


def trains(spec: str, settings: BaseModel) -> bool:
    """Whether a method trains anything under its settings."""
    method = find(spec)
    return asked(method, "trains()", lambda: bool(method.trains(settings)))


def scores(spec: str, settings: BaseModel) -> Any:
    """What a method has scored under its settings (`leafe.stages.Scored`), None for nothing and for a class that does not say."""
    method = find(spec)
    says = getattr(method, "scores", lambda settings: None)
    return asked(method, "scores()", lambda: says(settings))


def samples_here(spec: str) -> bool:
    """Whether a method samples in this process while it trains, whatever the engine; a class that does not say does not."""
    return bool(getattr(find(spec), "samples_here", False))


def method_names() -> list[str]:
    """Every name that `find` knows."""
    return sorted({name for name, _, _ in _offered()})


def listed() -> list[Listed]:
    """Every method that is known by name, those that cannot be used included."""
    found = []
    for name, source, package in sorted(_offered()):
        try:
            found.append(Listed(name, _origin(source, package), find(name).summary))
        except UserError as error:
            found.append(Listed(name, _origin(source, package), fault=str(error)))
    return found


def origin(spec: str) -> str:
    """Where a method comes from: its class and, where one offers it, the package."""
    return next((_origin(source, package) for name, source, package in _offered() if name == spec), spec)


def _origin(source: str, package: str) -> str:
    return f"{source}, {package}" if package else source


def find(spec: str) -> KnownMethod:
    """A method by its name or as `module:Class`. Raises `UnknownName` or `UserError`, in one sentence, for an unknown or a broken one."""
    if ":" in spec:
        return _made(spec, spec)
    sources = sorted(source for name, source, _ in _offered() if name == spec)
    if not sources:
        raise UnknownName("method", spec, method_names())
    if len(sources) > 1:
        raise UserError(
            f"two methods are called {spec!r}: {' and '.join(sources)}; uninstall one of them, or choose one, as method={sources[0]}"
        )
    method = _made(spec, sources[0])
    if method.name != spec:
        raise UserError(f"the method {sources[0]} is offered as {spec!r} and calls itself {method.name!r:.60}; it wants one name")
    return method


def _offered() -> set[tuple[str, str, str]]:
    """Names, each with its class as `module:Class` and the package that it is in; a name may come more than once, a class once a name."""
    shipped = dict.fromkeys(SHIPPED.items(), "which comes with leafe")
    others = {
        (point.name, point.value.partition("[")[0].replace(" ", "")): f"of the package {point.dist.name}" if point.dist else ""
        for point in offered(GROUP)
    }
    return {(name, source, package) for (name, source), package in {**others, **shipped}.items()}


def _made(spec: str, source: str) -> KnownMethod:
    found: Any = _loaded(spec, source)
    if not _is_class(found):
        raise UserError(f"the method {spec!r} wants a class, and {source} is {found!r:.80}")
    if lacking := _lacking(found):
        raise UserError(f"the method {spec!r} ({source}) lacks {' and '.join(lacking)}; derive it from leafe.methods.base.Method")
    if not (isinstance(found.name, str) and NAME.fullmatch(found.name)):
        wanted = "a name of letters, digits, '_' and '-', a letter first, 40 at most"
        raise UserError(f"the method {spec!r} ({source}) wants {wanted}, found {found.name!r:.80}")
    if not (_is_class(found.Settings) and issubclass(found.Settings, BaseModel)):
        raise UserError(
            f"the method {spec!r} ({source}) wants Settings derived from leafe.settings.Settings, found {found.Settings!r:.80}"
        )
    if not isinstance(found.summary, str):
        raise UserError(f"the method {spec!r} ({source}) wants a summary in words, found {found.summary!r:.80}")
    try:
        method: KnownMethod = found()
    except Exception as error:  # whatever a foreign constructor raises
        raise UserError(f"the method {spec!r} ({source}) cannot be made: {one_line(error)}") from error
    return method


def _is_class(found: object) -> bool:
    return isinstance(found, type)


def _lacking(found: type) -> list[str]:
    """Required members that this class lacks, or has as abstract ones only."""
    abstract = getattr(found, "__abstractmethods__", ())
    return [
        part
        for part in ("name", "summary", "Settings", "stages", "trains", "check")
        if part in abstract or not hasattr(found, part)
    ]


def asked(method: KnownMethod, what: str, call: Callable[[], Answer]) -> Answer:
    """The result of a call of a method's own code. Raises `UserError` for whatever it raises; `what` names the call."""
    try:
        return call()
    except LeafeError:
        raise
    except Exception as error:
        raise UserError(f"{what} of the method {method.name!r} ends with {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error of other people's code on one line, with its place; of one of ours the message alone."""
    named = f"{type(error).__name__}: {error}"
    text = str(error) if isinstance(error, LeafeError) else named if isinstance(error, ImportError) else told(error)
    return " ".join(text.split())[:300]


def _loaded(spec: str, source: str) -> Any:
    module, _, name = source.partition(":")
    try:
        found = import_here(module)
    except (Exception, SystemExit) as error:  # whatever a foreign module does when it is run
        raise UserError(f"the method {spec!r} cannot be used: importing {module!r} ends with {one_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"the method {spec!r} cannot be used: {module!r} has no class {name!r}; write module:Class")
        found = getattr(found, part)
    return found
