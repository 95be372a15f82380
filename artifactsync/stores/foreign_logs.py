"""The log lines of cloud libraries, without the secrets that they print at DEBUG level.

botocore logs signed requests with their session token, and answers of STS with the secret key in them; fsspec logs URLs
with their passwords. Whoever turns DEBUG on for a whole program sends that wherever its logs go.

Owns: a filter on those loggers. Does not own: their levels and handlers, which are the program's.
"""

from __future__ import annotations

import logging
import re

from artifactsync.errors import redact

BOTOCORE = ("botocore.auth", "botocore.endpoint", "botocore.hooks", "botocore.parsers", "botocore.regions")
"""Loggers of botocore that print requests or answers."""

FSSPEC = ("fsspec", "fsspec.http", "fsspec.ftp")
"""Loggers of fsspec that print URLs."""

_SECRET_FIELD = re.compile(
    r"(?i)((?:x-amz-security-token|secretaccesskey|sessiontoken|secret_key|accesstoken|access_token)"
    r"(?:['\"]?\s*[:=]\s*b?['\"]?|>))[^'\"\s,&<]+"
)


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        clean = _SECRET_FIELD.sub(r"\1***", redact(text))
        if clean != text:
            record.msg, record.args = clean, ()
        return True


_FILTER = _Redacting()


def hide_secrets(names: tuple[str, ...]) -> None:
    """Take secrets out of what these loggers say from now on. Idempotent."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)
