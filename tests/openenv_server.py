"""A safe to be opened, as an OpenEnv server: `Safe` is the game, `serve_fake` speaks the protocol, and as a script the real package does.

python tests/openenv_server.py PORT [SESSIONS]      # wants openenv-core
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

LETTERS = "abc"
ACTION = {
    "properties": {
        "metadata": {"type": "object"},
        "word": {"type": "string", "description": "Two of the letters a, b and c."},
    },
    "required": ["word"],
}
ABOUT = {"name": "Safe", "description": "Open the safe with the right two letters."}


class Safe:
    """Two letters open it; each try tells how many stand where they should."""

    def reset(self, seed: int | None = None) -> dict[str, Any]:
        self.code = "".join(random.Random(seed).choice(LETTERS) for _ in range(2))
        self.tries = 0
        return self.seen("A safe with two letters.")

    def step(self, word: str) -> tuple[dict[str, Any], float, bool]:
        if word == "smash":
            raise RuntimeError("the safe is broken")
        self.tries += 1
        right = sum(said == wanted for said, wanted in zip(word, self.code, strict=False))
        done = word in (self.code, "leave")
        text = "Open!" if word == self.code else f"{right} of the letters are right."
        return self.seen(text), float(word == self.code), done

    def seen(self, text: str) -> dict[str, Any]:
        return {"text": text, "tries": self.tries}


def _answer(game: Safe, message: dict[str, Any]) -> dict[str, Any]:
    """What OpenEnv's server says to a message."""
    data = message["data"]
    if message["type"] == "reset":
        return {"type": "observation", "data": {"observation": game.reset(data.get("seed")), "reward": None, "done": False}}
    if set(data) != {"word"} or len(data["word"]) > 40:
        complaint = [{"msg": "String should have at most 40 characters"}]
        return {"type": "error", "data": {"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": complaint}}
    try:
        fields, reward, done = game.step(data["word"])
    except RuntimeError as error:
        return {"type": "error", "data": {"message": str(error), "code": "EXECUTION_ERROR"}}
    return {"type": "observation", "data": {"observation": fields, "reward": reward, "done": done}}


Spoil = Callable[[dict[str, Any]], "str | bytes | None"]


@contextmanager
def serve_fake(*, sessions: int = 64, spoil: Spoil = lambda answer: None, pages: dict[str, Any] | None = None) -> Iterator[str]:
    """A server of the protocol on a free port; yields its address. `spoil` may answer otherwise, `pages` replaces what GET gives."""
    from websockets.datastructures import Headers
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
    from websockets.sync.server import ServerConnection, serve

    room = threading.BoundedSemaphore(sessions)
    known = {"/schema": {"action": ACTION}, "/metadata": ABOUT} if pages is None else pages

    def page(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/ws":
            return None
        found = known.get(request.path)
        status = HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND
        body = (found if isinstance(found, str) else json.dumps(found)).encode()
        headers = Headers([("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")])
        return Response(status, status.phrase, headers, body)

    def session(connection: ServerConnection) -> None:
        if not room.acquire(blocking=False):
            connection.send(json.dumps({"type": "error", "data": {"message": "full", "code": "CAPACITY_REACHED"}}))
            return
        try:
            game = Safe()
            for text in connection:
                message = json.loads(text)
                if message["type"] == "close":
                    return
                answer = _answer(game, message)
                spoiled = spoil(answer)
                connection.send(json.dumps(answer) if spoiled is None else spoiled)
        except ConnectionClosed:
            return
        finally:
            room.release()

    with serve(session, "127.0.0.1", 0, process_request=page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def serve_real(port: int, sessions: int) -> None:
    """The same game behind the published package, until killed."""
    import uvicorn
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
    from pydantic import Field

    class Word(Action):
        word: str = Field(max_length=40, description="Two of the letters a, b and c.")

    class Seen(Observation):
        text: str
        tries: int

    class SafeEnvironment(Environment):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self.safe = Safe()

        def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Seen:
            return Seen(**self.safe.reset(seed))

        def step(self, action: Word, timeout_s: float | None = None, **more: Any) -> Seen:
            fields, reward, done = self.safe.step(action.word)
            return Seen(**fields, reward=reward, done=done)

        @property
        def state(self) -> State:
            return State(step_count=self.safe.tries)

    app = create_fastapi_app(SafeEnvironment, Word, Seen, max_concurrent_envs=sessions)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    serve_real(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 64)
