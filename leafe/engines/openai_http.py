"""Requests to a server that may be busy, broken or away, and error messages that do not contain the key.

There are three kinds of trouble. A server that is *away* (no connection, a gateway's status, too many requests) is waited for, up
to `patience` seconds, which is more than a restart takes. A request that *fails* (lost in the middle, timed out, answered 500) is sent
again, `retries` times. Anything else is an answer, which this file does not judge. A request that times out while others succeed is a
sign that the server is overloaded: from then on it is sent fewer requests at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from time import monotonic
from types import TracebackType
from typing import Any

import httpx

from leafe.address import server_address
from leafe.engines.openai_answers import Answer, Malformed
from leafe.errors import EngineError, UserError

AWAY = frozenset({429, 502, 503, 504, 529})
FAILED = frozenset({408, 409, 425, 500})
LONGEST_PAUSE = 30.0
LONGEST_PAUSE_AWAY = 5.0  # a server that is back is noticed soon
JSON = {"Content-Type": "application/json"}
BROUGHT_BACK = "what was done is kept, and the same command goes on from there"


@dataclass(frozen=True)
class Waiting:
    """The longest wait for an answer (seconds), the retries of a failed request, the longest absence of a server (seconds)."""

    timeout: float = 300.0
    retries: int = 5
    patience: float = 600.0
    pause: float = 0.5


@dataclass
class _Trouble:
    """The failures of one request so far."""

    away_since: float | None = None
    failures: int = 0
    pauses: int = 0

    def pause(self, waiting: Waiting, answer: Answer | None) -> float:
        """Seconds before the next attempt: doubling, or longer if the server asks for it; never zero, whatever it asks for."""
        own = min(waiting.pause * 2.0 ** min(self.pauses, 10), LONGEST_PAUSE if self.away_since is None else LONGEST_PAUSE_AWAY)
        self.pauses += 1
        asked = answer.retry_after if answer else ""
        wanted = float(asked) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", asked) else 0.0
        return min(max(own, wanted), LONGEST_PAUSE)


class _Gate:
    """A semaphore whose number of places can be reduced while it is in use."""

    def __init__(self, places: int) -> None:
        self._places, self._owed = places, 0
        self._free = asyncio.Semaphore(places)

    async def __aenter__(self) -> None:
        await self._free.acquire()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._owed:
            self._owed -= 1
        else:
            self._free.release()

    def narrow(self) -> None:
        """Removes one place, but never the last one."""
        if self._places > 1:
            self._places, self._owed = self._places - 1, self._owed + 1


@cache
def trusted() -> ssl.SSLContext:
    """The certificates that servers are checked by, which take longer to read than to use."""
    return httpx.create_ssl_context()


@dataclass
class Client:
    """One server at `base_url`, sent at most `connections` requests at a time. `told` is called once when it is away, and once it is back.

    `lost` returns the reason why a server that is away will not come back, empty while it may.

    Raises `UserError` for an address or a key that cannot be used. Belongs to one event loop.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    waiting: Waiting = Waiting()
    connections: int = 64
    transport: httpx.AsyncBaseTransport | None = None
    told: Callable[[str], None] = lambda text: None
    lost: Callable[[], str] = lambda: ""

    def __post_init__(self) -> None:
        self.move(self.base_url)
        self._client = httpx.AsyncClient(
            transport=self.transport,
            verify=trusted(),
            timeout=httpx.Timeout(self.waiting.timeout, pool=None),
            limits=httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections),
            headers={"Accept-Encoding": "identity", **_authorization(self.api_key)},
        )
        self._gate = _Gate(self.connections)
        self._is_away = self._is_slow = False
        self._answered = 0

    def move(self, base_url: str) -> None:
        """Sets the server's address from here on, also for requests that wait for it."""
        try:
            self._url = httpx.URL(server_address(base_url))
        except (ValueError, httpx.InvalidURL) as error:
            raise UserError(str(error)) from None

    def address(self, path: str) -> str:
        """The address of a path on the server, for messages."""
        return str(self._at(path))

    async def post(self, path: str, payload: Mapping[str, Any], *, longest: int) -> Answer:
        """The answer to a request in JSON. Raises `EngineError` when none can be had or it is longer than `longest` bytes."""
        return await self._insist("POST", path, payload, longest)

    async def look(self, path: str, *, longest: int = 1 << 22) -> Answer:
        """The answer of a path, a failure included; only a server that is away is waited for."""
        return await self._insist("GET", path, None, longest, settled=FAILED)

    async def close(self) -> None:
        """Closes the connections; requests in flight fail."""
        await self._client.aclose()

    def _at(self, path: str) -> httpx.URL:
        return self._url.copy_with(path=self._url.path.rstrip("/") + path)

    async def _insist(
        self,
        method: str,
        path: str,
        payload: Mapping[str, Any] | None,
        longest: int,
        *,
        settled: frozenset[int] = frozenset(),
    ) -> Answer:
        """Repeats a request until there is an answer or the retries are used up; a `settled` status counts as an answer."""
        trouble = _Trouble()
        while True:
            answer, before = None, self._answered
            try:
                async with self._gate:
                    before = self._answered
                    answer = await self._once(method, path, payload, longest)
                if answer.status not in (AWAY | FAILED) - settled or answer.is_overflow:
                    self._heard()
                    return answer
                away, reason = answer.status in AWAY, f"answered {answer.status}: {answer.said}"
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                away, reason = True, f"cannot be reached ({type(error).__name__}: {error})"
            except (httpx.TimeoutException, TimeoutError):
                away, reason = False, f"did not answer within {self.waiting.timeout:g} seconds (engine.timeout)"
                self._relieve(self._answered > before)
            except httpx.TransportError as error:
                away, reason = False, f"did not answer ({type(error).__name__}: {error})"
            self._count(trouble, away, f"{self.address(path)} {self.hidden(reason)}")
            await asyncio.sleep(trouble.pause(self.waiting, answer))

    def _count(self, trouble: _Trouble, away: bool, reason: str) -> None:
        """Records a failure. Raises `EngineError` once there are too many."""
        if why := self.lost():
            raise EngineError(why)
        if not away:
            trouble.away_since = None
            trouble.failures += 1
            if trouble.failures > self.waiting.retries:
                times = f"{trouble.failures} times (engine.retries={self.waiting.retries})"
                raise EngineError(f"{reason}, {times}", BROUGHT_BACK)
            return
        now = monotonic()
        trouble.away_since = now if trouble.away_since is None else trouble.away_since
        waited = f"{self.waiting.patience:g} seconds (engine.patience)"
        if now - trouble.away_since >= self.waiting.patience:
            raise EngineError(f"{reason}, for {waited}; is the server running?", f"start it: {BROUGHT_BACK}")
        if not self._is_away:
            self._is_away = True
            self.told(f"{reason}; waiting for it, at most {waited}")

    def _relieve(self, overburdened: bool) -> None:
        """Sends fewer requests at once to a server that answers some of them too late."""
        if not overburdened:
            return
        self._gate.narrow()
        if not self._is_slow:
            self._is_slow = True
            self.told(f"{self._url} does not answer all in time (engine.timeout); it is sent less at once (engine.concurrency)")

    def _heard(self) -> None:
        self._answered += 1
        if self._is_away:
            self._is_away = False
            self.told(f"{self._url} is back")

    async def _once(self, method: str, path: str, payload: Mapping[str, Any] | None, longest: int) -> Answer:
        """One request and its answer, of at most `longest` bytes."""
        body, content = bytearray(), None if payload is None else json.dumps(payload).encode()
        try:
            async with (
                asyncio.timeout(self.waiting.timeout),
                self._client.stream(method, self._at(path), content=content, headers=JSON) as response,
            ):
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > longest:
                        raise EngineError(f"{self.address(path)} answered with more than {longest} bytes")
                return Answer(response.status_code, bytes(body), response.headers.get("retry-after", ""), self.api_key or "")
        except httpx.DecodingError as error:
            raise EngineError(f"{self.address(path)} answered with a body that cannot be decompressed: {error}") from None
        except RuntimeError as error:  # httpx raises this for a closed client
            if isinstance(error, EngineError):
                raise
            raise EngineError("the engine is closed") from error

    def hidden(self, text: str) -> str:
        """A text from the server without the key, which some servers repeat."""
        return text.replace(self.api_key, "***") if self.api_key else text

    def complaint(self, body: bytes, read: Callable[[bytes], object], error: Malformed) -> str:
        """The words about an answer that `read` found malformed, made of its body without the key, of which they may quote a part."""
        if self.api_key and (key := self.api_key.encode()) in body:
            try:
                read(body.replace(key, b"***"))
                return "an answer that is malformed where it repeats the key"
            except Malformed as again:
                error = again
        return self.hidden(str(error))


def _authorization(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        raise UserError("the key in the environment variable that engine.api_key_env names holds spaces or signs that no key has")
    return {"Authorization": f"Bearer {api_key}"}
