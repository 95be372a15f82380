"""JSON from a remote, where anything may have been written.

Invariant: bytes that are no JSON raise ``ValueError``, however they are made; nested ones without end too.
"""

from __future__ import annotations

import json
from typing import Any


def read_json(data: bytes | str) -> Any:
    """Read one JSON value.

    Raises:
        ValueError: it is none, or is nested deeper than this interpreter can follow.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error
