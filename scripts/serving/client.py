"""What is said to a server, by the part of OpenAI's API that all three have."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from scripts.run.problems import JobError
from scripts.serving.servers import HOST

_HEALTH_SECONDS = 5.0
_MOST_BYTES = 8 << 20
_SHOWN = 500


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A continuation."""

    prompt: str
    text: str
    tokens: int | None  # as the server counts them
    seconds: float


class UnreachableError(Exception):
    """Nobody answered; the server may have ended."""


class Client:
    """Talks to the server on one port of this machine, past every proxy."""

    def __init__(self, port: int, *, answer_seconds: float) -> None:
        self._base = f"http://{HOST}:{port}"
        self._answer_seconds = answer_seconds
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def healthy(self) -> bool:
        """Whether it says that it is ready."""
        try:
            self._read("/health", None, _HEALTH_SECONDS)
        except (UnreachableError, urllib.error.HTTPError):
            return False
        return True

    def model(self) -> str:
        """What it calls the model that it serves. Raises JobError `server_answer_wrong`, or UnreachableError."""
        listed = self._json("/v1/models", None)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise _wrong("/v1/models", "it names no model") from error

    def complete(self, model: str, prompt: str, max_tokens: int) -> Answer:
        """The likeliest continuation. Raises JobError `server_answer_wrong`, or UnreachableError."""
        began = time.monotonic()
        asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        said = self._json("/v1/completions", asked)
        seconds = round(time.monotonic() - began, 3)
        try:
            text = said["choices"][0]["text"]
            tokens = (said.get("usage") or {}).get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _wrong("/v1/completions", f"it has no text: {json.dumps(said)[:_SHOWN]}") from error
        if not isinstance(text, str):
            raise _wrong("/v1/completions", f"its text is {type(text).__name__}")
        return Answer(prompt=prompt, text=text, tokens=tokens if isinstance(tokens, int) else None, seconds=seconds)

    def _json(self, place: str, body: Any) -> Any:
        try:
            return json.loads(self._read(place, body, self._answer_seconds))
        except urllib.error.HTTPError as error:
            said = error.read(_SHOWN).decode("utf-8", "replace")
            raise _wrong(place, f"status {error.code}: {' '.join(said.split())}") from error
        except ValueError as error:
            raise _wrong(place, f"it is not JSON: {error}") from error

    def _read(self, place: str, body: Any, seconds: float) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + place, data=data, headers={"Content-Type": "application/json"})
        try:
            with self._open(request, timeout=seconds) as reply:
                content: bytes = reply.read(_MOST_BYTES)
                return content
        except urllib.error.HTTPError:
            raise
        except (OSError, HTTPException) as error:  # URLError is an OSError, and so is a timeout
            raise UnreachableError(f"{self._base}{place}: {error}") from error


def _wrong(place: str, why: str) -> JobError:
    return JobError("server_answer_wrong", f"{place}: {why}.", "The server's own words are in logs/rank0.log.")
