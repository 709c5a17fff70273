"""Any OpenEnv server as an environment, over the WebSocket at `/ws`, where each connection is a session with its own world.

(The server's HTTP routes `/reset` and `/step` each make a world and throw it away, so they cannot be played through; `/schema` and
`/metadata` describe its actions.) Needs the extra `openenv`, and no package of OpenEnv's. A task is a seed of `reset`. Only the server
knows whether a seed decides everything: the fidelity is `none` unless the user declares `replay`, which `leafe check-env` proves. Data
from the server is bounded, checked and shown as text; it is never run and never trusted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.openenv_actions import ActionForm, NoAction
from leafe.envs.openenv_texts import readable
from leafe.envs.seeds import seeded_tasks, split_seed
from leafe.errors import EnvironmentFailure, MissingDependency, UnknownName, UserError
from leafe.imports import install_command
from leafe.records import Observation, Task

LARGEST = 8 * 2**20  # bytes of a message
PATIENCE = 5.0  # seconds to wait for room that another session may be about to leave
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OpenEnv(Environment):
    """`url` is the server's address. `action` names the field of an action that takes the text, `json` for whole actions as JSON.

    `show` names the fields of an observation that are shown, by default all of them. `reset` holds further arguments of every
    reset, `examples` some actions for `leafe check-env` to play with. An attempt succeeds when the server ends it with a reward of at
    least `success_reward`, or with a true field `success_field`. `sessions` is how many of them the server takes at once (0: any number),
    `timeout` is in seconds.
    """

    name = "openenv"
    about = "any OpenEnv server by url=ADDRESS (extra openenv); no rollback unless replay is declared"
    fidelity = Fidelity.NONE
    placement = Placement.THREAD

    def __init__(
        self,
        *,
        url: str,
        action: str = "",
        show: list[str] | None = None,
        reset: dict[str, Any] | None = None,
        instruction: str = "",
        examples: list[str] | None = None,
        horizon: int = 30,
        success_reward: float = 1.0,
        success_field: str = "",
        fidelity: str = "none",
        sessions: int = 0,
        timeout: float = 60.0,
    ) -> None:
        if fidelity not in (Fidelity.NONE, Fidelity.REPLAY):
            raise UnknownName("fidelity of an OpenEnv server", fidelity, ("none", "replay"))
        if horizon < 1 or sessions < 0 or timeout <= 0:
            given = f"horizon={horizon}, sessions={sessions}, timeout={timeout:g}"
            raise UserError(f"openenv wants a horizon of at least 1, sessions of at least 0 and a timeout above 0; found {given}")
        self.fidelity, self.instances = Fidelity(fidelity), sessions
        self._url, self._timeout = _address(url), timeout
        self._wanted, self._show, self._reset = action, show, dict(reset or {})
        self._instruction, self._horizon = instruction, horizon
        self._success_reward, self._success_field = success_reward, success_field
        self._examples = tuple(map(str, examples or ()))
        self._known: ActionForm | None = None
        self._socket: Any = None
        self._final: Observation | None = None
        _websockets()

    @property
    def actions_help(self) -> str:  # type: ignore[override]
        """The form of an action, as the server describes it."""
        return self._form.help

    @property
    def free_text(self) -> bool:  # type: ignore[override]
        """Whether any text fits the action's field; the server may still refuse it."""
        return self._form.takes_any_text

    def example_actions(self) -> Sequence[str]:
        """Those that the user gave, else what the server's schema lists."""
        return self._examples or self._form.choices

    @property
    def _form(self) -> ActionForm:
        if self._known is None:
            self._known = ActionForm.of(self._get("/schema").get("action"), self._wanted, self._url)
        return self._known

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """One task for each seed; see `seeds`. Raises `UserError` when no OpenEnv server answers."""
        seeds = [split_seed(split, number, seed) for number in range(count)]
        described = self._get("/metadata").get("description")
        text = self._instruction or f"{readable(str(described or 'Do what the observations ask for.'))}\n{self.actions_help}"
        like = Task("", self.name, text, self._horizon)
        return seeded_tasks(like, seeds, {"reset": self._reset, "instruction": text})

    def reset(self, task: Task) -> Observation:
        """Resets the session with the task's seed, in a new session where there is none."""
        self._final = None
        answer = self._ask({"type": "reset", "data": {**self._reset, "seed": int(task.payload["seed"])}})
        return Observation(self._text(_observed(answer)[0]))

    def step(self, action: str) -> Observation:
        """Takes one action; after the end the last observation is repeated."""
        if self._final is not None:
            return self._final
        if self._socket is None:
            raise EnvironmentFailure(f"the session at {self._url} is over; reset first")
        try:
            answer = self._ask({"type": "step", "data": self._form.read(action)})
        except NoAction as reason:
            return Observation(f"That is no action{reason}. {self.actions_help}")
        fields, reward, done = _observed(answer)
        said = bool(self._success_field) and fields.get(self._success_field) is True
        success = done and (said or reward >= self._success_reward)
        ending = " The episode is over." if done else ""
        observation = Observation(f"{self._text(fields)}\nReward: {reward:g}.{ending}", done, success, reward)
        self._final = observation if done else None
        return observation

    def close(self) -> None:
        """Ends the session."""
        with suppress(Exception):  # the connection may be gone already
            if self._socket is not None:
                self._socket.send(json.dumps({"type": "close"}))
                self._socket.recv(timeout=2)  # it hangs up by itself once it has closed the session
        self._drop()

    def _drop(self) -> None:
        gone, self._socket = self._socket, None
        if gone is not None:
            with suppress(Exception):
                gone.close()

    def _text(self, fields: Mapping[str, Any]) -> str:
        """The fields of an observation that are shown, one alone without its name."""
        names = self._show if self._show is not None else list(fields)
        missing = [name for name in names if name not in fields]
        if missing:
            raise UnknownName(f"field of the observations of {self._url}", missing[0], fields)
        shown = {name: fields[name] if isinstance(fields[name], str) else _json(fields[name]) for name in names}
        return readable("\n".join(shown.values() if len(shown) == 1 else (f"{name}: {text}" for name, text in shown.items())))

    def _get(self, path: str) -> dict[str, Any]:
        """A JSON object from one of the server's pages."""
        import httpx

        try:
            with httpx.Client(timeout=self._timeout, trust_env=urlsplit(self._url).hostname not in LOOPBACK) as client:
                status, text = self._page(client, path)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UserError(f"no OpenEnv server answers at {self._url} ({reason:.120}); start it, or give its url=") from None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self._url}{path} answered {status} and no JSON object: is url= that of an OpenEnv server?")
        return found

    def _page(self, client: Any, path: str) -> tuple[int, bytes]:
        """The status and the text of a page, nothing of one that is too long, has no end or is an error."""
        import httpx

        deadline, text = time.monotonic() + self._timeout, bytearray()
        with client.stream("GET", self._url + path) as answer:
            for part in answer.iter_bytes() if answer.status_code == 200 else ():
                text += part
                if len(text) > LARGEST:
                    return answer.status_code, b""
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"{path} did not end in {self._timeout:g} s")
        return answer.status_code, bytes(text)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The session's answer to a message. Raises `NoAction` for a refused one and `EnvironmentFailure` when it is lost."""
        if self._socket is None:
            self._connect()
        found = self._exchange(message)
        deadline = time.monotonic() + PATIENCE
        while _code(found) == "CAPACITY_REACHED":
            self._drop()
            if time.monotonic() > deadline:
                mend = "start it with a larger max_concurrent_envs, or say sessions=N here"
                raise UserError(f"the OpenEnv server at {self._url} has no room for another session; {mend}")
            time.sleep(0.2)
            self._connect()
            found = self._exchange(message)
        data = found["data"]
        if _code(found) == "VALIDATION_ERROR":
            raise NoAction("".join(f": {text}" for text in _complaints(data)))
        if found["type"] != "observation":
            self._drop()
            raise EnvironmentFailure(
                f"the OpenEnv server answered {found['type']!r:.40}: {readable(str(data.get('message', data)))[:300]}"
            )
        return dict(data)

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            with suppress(_websockets().exceptions.ConnectionClosed):  # a full server reports that and hangs up before it is asked
                self._socket.send(json.dumps(message))
            text = self._socket.recv(timeout=self._timeout)
            found = json.loads(text) if isinstance(text, str) else None
        except TimeoutError:
            problem = f"did not answer in {self._timeout:g} s"
        except (ValueError, RecursionError):
            problem = "answered with something that is no JSON"
        except (_websockets().exceptions.WebSocketException, OSError) as error:
            problem = f"ended the session: {error}"
        else:
            if isinstance(found, dict) and isinstance(found.get("type"), str) and isinstance(found.get("data"), dict):
                return found
            problem = "answered with something that is no message"
        self._drop()
        raise EnvironmentFailure(f"the OpenEnv server at {self._url} {problem}"[:400])

    def _connect(self) -> None:
        from websockets.sync.client import connect

        address = "ws" + self._url.removeprefix("http") + "/ws"
        here = {"proxy": None} if urlsplit(self._url).hostname in LOOPBACK else {}
        try:
            self._socket = connect(address, open_timeout=self._timeout, close_timeout=2, max_size=LARGEST, **here).__enter__()
        except (_websockets().exceptions.WebSocketException, OSError) as error:
            # Not a lost episode: a stage stops here, and the same command resumes it once the server runs again.
            reason = str(error) or type(error).__name__
            raise UserError(
                f"no OpenEnv session can be had at {address} ({reason:.120}); start the server, or give its url="
            ) from None


def _address(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"openenv wants the address of a server, as url=http://localhost:8000; found {url!r:.120}")
    return f"{scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _observed(answer: Mapping[str, Any]) -> tuple[dict[str, Any], float, bool]:
    """The fields, the reward and the ending of an answer. Raises `EnvironmentFailure` for one of another form."""
    fields, reward, done = answer.get("observation"), answer.get("reward"), answer.get("done", False)
    if not isinstance(fields, dict) or not isinstance(done, bool) or not isinstance(reward, (int, float, type(None))):
        raise EnvironmentFailure(f"the OpenEnv server answered with something that is no observation: {_json(answer):.200}")
    if reward is not None and not math.isfinite(reward):
        raise EnvironmentFailure(f"the OpenEnv server answered with the reward {reward}")
    return fields, float(reward or 0), done


def _code(found: Mapping[str, Any]) -> str:
    return str(found["data"].get("code", "")) if found["type"] == "error" else ""


def _complaints(data: Mapping[str, Any]) -> Iterator[str]:
    """A server's first complaint about an action."""
    errors = data.get("errors")
    for error in errors[:1] if isinstance(errors, list) else []:
        if isinstance(error, dict):
            yield readable(str(error.get("msg", "")))[:200]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _websockets() -> Any:
    try:
        import websockets.exceptions
    except ImportError:
        raise MissingDependency("websockets, which openenv needs,", install_command("openenv")) from None
    return websockets
