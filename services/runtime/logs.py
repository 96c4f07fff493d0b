"""Log lines for people (text) or machines (JSON), with a last defence against identities (promise 5).

The defence is not the rule: code must not log an identity in the first place. It catches what a library's message or a
traceback quotes from a file's header.
"""

import asyncio
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final

from opentelemetry import trace

from schemas.settings import Settings

QUIET: Final = {
    "aiohttp.server": logging.CRITICAL,  # quotes malformed requests at length; the client hears 400
    "aiokafka": logging.ERROR,  # repeats every failed reconnection; ours are logged once
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "faststream": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "kafka": logging.ERROR,
    "llama_index": logging.WARNING,
    "matplotlib": logging.WARNING,
    "openai": logging.WARNING,
    "opentelemetry": logging.ERROR,  # an unreachable collector must not fill the log
    "PIL": logging.WARNING,
    "py.warnings": logging.ERROR,
    "pydicom": logging.ERROR,  # its warnings quote header values
    "pynetdicom": logging.ERROR,  # logs identifiers of the peer's data sets below that
    "urllib3": logging.WARNING,
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UID = re.compile(r"(?<![\w.])(?!1\.2\.840\.10008\.)[0-2](?:\.(?:0|[1-9]\d*)){4,}\b")
_NAME = re.compile(r"(?<!\w)[^\W\d_][\w'.-]{0,64}\^{1,4}[^\W\d_][\w'. ^=-]{0,320}")
_KEYWORD = r"(?i)\b(Patient'?s?[ _]?(?:Name|ID|Birth[ _]?Date)|OtherPatientIDs|AccessionNumber)\b"
_ELEMENT = re.compile(_KEYWORD + r"(['\"]?\s*[:=]\s*)('[^']*'|\"[^\"]*\"|[^\s,;)}\]]+)")
_TAG = re.compile(r"\((0010|0008),\s?(0010|0020|0030|1000|1001|0050)\)[^\n]*")

MOST_CHARACTERS: Final = 4096
"""Of a message or a traceback: what a peer sends must not decide how long a line is."""


REPEATED_AFTER_S: Final = 30.0
"""A line of the Kafka client is shown once in this time: each of a process's consumers says the same at every attempt."""
KINDS_KEPT: Final = 500


def setup(settings: Settings, service: str) -> None:
    """Send this process's log to standard error; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_level != "DEBUG":
        handler.addFilter(ClientNoise())
    handler.setFormatter(JsonLines(service) if settings.log_format == "json" else TextLines(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    logging.captureWarnings(capture=True)
    if settings.log_level != "DEBUG":
        for name, level in QUIET.items():
            logging.getLogger(name).setLevel(level)


def redact(text: str) -> str:
    """Mask what looks like an identity: instance UIDs, person names (PS3.5 6.2.1), patient elements. Registered UIDs stay."""
    text = _TAG.sub(r"(\1,\2) [removed]", text)
    text = _ELEMENT.sub(r"\1\2[removed]", text)
    text = _UID.sub("[uid]", text)
    return _NAME.sub("[name]", text) if "^" in text else text


def _escape(text: str) -> str:
    """Control characters and line separators as backslash escapes: no forged lines, no commands to a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _escape_line_wise(text: str) -> str:
    return "\n".join(map(_escape, text.split("\n")))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " [cut]"


def _cut_traceback(text: str) -> str:
    """Its end says what happened and where."""
    return text if len(text) <= MOST_CHARACTERS else "[cut] " + text[-MOST_CHARACTERS:]


class ClientNoise(logging.Filter):
    """Passes what the libraries below the bus say once, with the count of what was left out since.

    A batch that is cut off when its process ends is delivered again: that is no fault and needs no traceback.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is shown; its text gets the count."""
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError) and "faststream" in record.name:
            return False
        if not record.name.startswith("aiokafka"):
            return True
        kind = (record.name, str(record.msg))
        at, left_out = self._shown.get(kind, (-REPEATED_AFTER_S, 0))
        if record.created - at < REPEATED_AFTER_S:
            self._shown[kind] = (at, left_out + 1)
            return False
        if len(self._shown) > KINDS_KEPT:
            self._shown.clear()
        self._shown[kind] = (record.created, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like this)"
        return True


class TextLines(logging.Formatter):
    """`08:00:01 INFO  inference  message`, with the trace id where a span is current."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback's lines after it."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        trace_id = _trace_id()
        head = f"{at} {record.levelname:<7} {self._service:<12}"
        line = f"{head} {_escape(_cut(record.getMessage()))}" + (f" trace={trace_id}" if trace_id else "")
        return redact("\n".join([line, *map(_escape_line_wise, self._traceback(record))]))

    def _traceback(self, record: logging.LogRecord) -> list[str]:
        return [_cut_traceback(self.formatException(record.exc_info))] if record.exc_info else []


class JsonLines(logging.Formatter):
    """One JSON object a line with time (UTC), level, service, logger, message, and trace_id and exception where there are any."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": redact(_cut(record.getMessage())),
            "trace_id": _trace_id(),
            "exception": redact(_cut_traceback(self.formatException(record.exc_info))) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in fields.items() if value}, ensure_ascii=False)


def _trace_id() -> str:
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else ""
