"""Logs: one JSON object a line on standard error, through the standard library's logging.

Only what is passed on purpose is logged: no bodies, no tokens, no keys.
"""

from __future__ import annotations

import logging
import logging.config
import time
from typing import Any

# Often enough that a log read during an outage shows it; rarely enough that the log stays readable.
REMIND_S = 30.0


def configure(level: str, **always: Any) -> None:
    """Send every logger of this process to standard error; `always` is in each line (service, replica)."""
    import structlog  # here: a command that keeps no log starts without it

    def add_constants(logger: Any, name: str, line: Any) -> Any:
        return {**line, **always}

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        add_constants,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,  # Nameko's would vanish
            "formatters": {
                "json": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        structlog.processors.JSONRenderer(),
                    ],
                    "foreign_pre_chain": shared,
                }
            },
            "filters": {"surprises": {"()": lambda: _is_a_surprise}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["surprises"]}},
            "root": {"level": level, "handlers": ["stderr"]},
            # amqp logs each heartbeat and kombu raw bodies it could not decode.
            "loggers": {name: {"level": "WARNING"} for name in ("amqp", "kombu", "pika", "alembic")},
        }
    )


def _is_a_surprise(record: logging.LogRecord) -> bool:
    """Nameko reports the errors an entrypoint expects with a traceback each; they are answers, and logged elsewhere."""
    return not (record.name == "nameko.containers" and str(record.msg).startswith("(expected)"))


class Reminder:
    """Remembers what was logged about an outage, so that a loop that retries every few seconds logs it rarely."""

    def __init__(self) -> None:
        self._said_at: dict[str, float] = {}

    def due(self, reason: str) -> bool:
        """Whether to log this now: it is new, or was last logged REMIND_S ago."""
        now = time.monotonic()
        if now - self._said_at.get(reason, -REMIND_S) < REMIND_S:
            return False
        # What is due again anyway need not be remembered: reasons that differ each time would fill the memory.
        self._said_at = {known: at for known, at in self._said_at.items() if now - at < REMIND_S}
        self._said_at[reason] = now
        return True

    def forget(self) -> None:
        """It works again: the next outage is news."""
        self._said_at.clear()


def in_a_line(error: BaseException) -> str:
    """An error's own words on one line; of a driver's error the driver's, without what SQLAlchemy adds."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
