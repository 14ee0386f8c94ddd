"""Log records in; lines without secrets out, for people or as JSON."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

Style = Literal["text", "json"]
SECRETS = (
    (re.compile(r"dd_[A-Za-z0-9_-]{16,}"), "dd_***"),
    (re.compile(r"(://[^\s:/@]*):[^\s@/]+@"), r"\1:***@"),
    (re.compile(r"(?i)(bearer|basic) +[^\s\"',]+"), r"\1 ***"),
    (re.compile(r"(?i)(password|passwd|secret|api[_-]?key)([\"']?\s*[=:]\s*[\"']?)[^\s\"',&]+"),
     r"\1\2***"),
)  # fmt: skip
"""Tokens of ours, a password in an address, a header, a setting: what a library's fault may say."""
PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
requests = logging.getLogger("diffdoctor.requests")


def hide(text: str) -> str:
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class Text(logging.Formatter):
    """A line for people, and the lines of a fault."""

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))


class Json(logging.Formatter):
    """An object a line; `extra={"fields": {...}}` of a call stands in it by name."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            line[name] = hide(value) if isinstance(value, str) else value
        if record.exc_info:
            line["error"] = hide(self.formatException(record.exc_info))
        return json.dumps(line)


def set_up(style: Style) -> None:
    """To stderr; as JSON also a line for every request, with its route's pattern and no more."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if style == "json" else Text(PLAIN))
    logging.basicConfig(handlers=[handler], force=True)
    requests.setLevel(logging.INFO if style == "json" else logging.WARNING)


def answered(method: str, route: str, status: int, seconds: float) -> None:
    fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
    requests.info("answered", extra={"fields": fields})
