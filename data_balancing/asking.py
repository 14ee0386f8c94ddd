"""A question in, a checked answer of a language model out, through any OpenAI-compatible endpoint.

The answer's form is asked for as a strict JSON schema and checked again here; an answer that fails
goes back with the fault. The key comes from OPENAI_API_KEY and stands in no file and no message.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ValidationError

from core.errors import UserError

KEY = "OPENAI_API_KEY"
TRIES = 3
"""Answers that may be wrong before a question is set aside."""
RESENDS = 5
"""Times that the client sends a request again, ever later, on 408, 409, 429 and 5xx."""
TIMEOUT = 120.0
"""Seconds until an answer must be there."""
REFUSED = {400, 413, 415, 422}
"""Statuses that speak of this question; any other one would meet the next question as well."""
MAX_FAULT = 300
"""Characters of a fault that are said again."""

Message = Mapping[str, Any]
A = TypeVar("A", bound=BaseModel)


class Unanswered(Exception):
    """This one question has no usable answer; others may have."""


@runtime_checkable
class Model(Protocol):
    """Whatever answers messages with text; it may be asked from several threads at once."""

    name: str

    def say(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        """Raise `Unanswered` for this question alone, `UserError` where no question will do."""
        ...


def ask(model: Model, messages: Sequence[Message], answer: type[A], tries: int = TRIES) -> A:
    """The answer as `answer`; a wrong one goes back with its fault, `tries` times in all.

    Raises `Unanswered` with the last fault.
    """
    schema, said, fault = answer.model_json_schema(), list(messages), ""
    for _ in range(tries):
        text = model.say(said, schema)
        try:
            return answer.model_validate_json(_bare(text))
        except ValidationError as error:
            fault = _fault(error)
        again = f"That answer is not usable: {fault}. Answer again with the JSON object alone."
        said = [
            *messages,
            {"role": "assistant", "content": text[:2000] or "(nothing)"},
            {"role": "user", "content": again},
        ]
    raise Unanswered(f"no usable answer in {tries} tries: {fault}")


class Endpoint:
    """A model behind an OpenAI-compatible address, such as http://localhost:8000/v1."""

    def __init__(self, url: str, model: str, temperature: float = 0.0):
        check_address(url)
        check_listening(url)
        self.name, self.url, self.temperature = model, url, temperature
        self._openai = _openai()
        key = os.environ.get(KEY) or "none"  # local servers ask for none
        self._client = self._openai.OpenAI(
            base_url=url, api_key=key, max_retries=RESENDS, timeout=TIMEOUT
        )

    def say(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        """One answer's text; failures are told apart by whether another question could do."""
        openai = self._openai
        try:
            found = self._client.chat.completions.create(
                model=self.name,
                messages=list(messages),
                temperature=self.temperature,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)},
                },
            )
        except openai.APIConnectionError as error:
            raise UserError(
                f"{self.url} does not answer ({hide_key(str(error))}); start the server or mend "
                "--endpoint, and run the same command again."
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise Unanswered(f"refused: {hide_key(str(error))}") from error
            raise UserError(_stopped(self.url, error.status_code, str(error))) from error
        except openai.APIError as error:
            raise Unanswered(f"no answer: {hide_key(str(error))}") from error
        except ValueError as error:
            raise Unanswered(f"no JSON: {hide_key(str(error))}") from error
        return _said(found)


def check_address(url: str) -> None:
    """Raise `UserError` unless it is http(s) to a host, without a password in it, and would carry
    the key to no other machine in the clear."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
        raise UserError(f"--endpoint {url!r} is no address; write http://HOST:PORT/v1.")
    if parts.username or parts.password:
        raise UserError(f"--endpoint holds a password; put the key into {KEY} instead.")
    if parts.scheme == "http" and os.environ.get(KEY) and not _is_here(parts.hostname):
        raise UserError(
            f"--endpoint {url} would carry {KEY} over the network in the clear: write https://, or "
            f"unset {KEY} where the server asks for no key."
        )


def _has_port(parts: SplitResult) -> bool:
    """Whether its port, where it names one, is one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def check_listening(url: str) -> None:
    """Raise `UserError` where nobody listens at an address of this machine: tried once, and at
    once, for a server that is being started again is waited for later."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if not _is_here(host):
        return  # there may be a proxy on the way
    try:
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"nobody listens at {url} ({error}): start the server, or mend --endpoint."
        ) from error


def _is_here(host: str) -> bool:
    """Whether it is this machine by its address; of names only localhost is sure to be."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def hide_key(text: str) -> str:
    """One line of at most `MAX_FAULT` characters, in which the key does not stand."""
    key = os.environ.get(KEY)
    text = text.replace(key, "(key)") if key else text
    return " ".join(text.split())[:MAX_FAULT]


def _stopped(url: str, status: int, said: str) -> str:
    cures = {
        401: f"set {KEY} to a key that is good there",
        403: f"set {KEY} to a key that may use this model",
        404: "check --model and --endpoint, which usually ends in /v1",
        429: "lower --concurrency, or wait, and run the same command again",
    }
    cure = cures.get(status, "look at the server's log and run the same command again")
    return f"{url} answers {status} ({hide_key(said)}); {cure}."


def _said(found: Any) -> str:
    """The text of an answer, which the client has not checked."""
    try:
        text = found.choices[0].message.content
    except (AttributeError, LookupError, TypeError) as error:
        raise Unanswered("an answer without choices or message") from error
    if not isinstance(text, str | None):
        raise Unanswered("an answer that is no text")
    return text or ""


def _bare(text: str) -> str:
    """The JSON object of an answer that may stand in a fence or in talk."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return hide_key(f"{where}: {first['msg']}" if where else first["msg"])


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError("an endpoint needs openai: install it (pip install openai).") from error
    return openai
