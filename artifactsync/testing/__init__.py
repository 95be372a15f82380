"""What users test their own stores and error handling with: ``StoreContract``, ``FaultyStore``, ``FakeClock``.

``StoreContract`` needs pytest, which is imported only when it is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifactsync.testing.clock import FakeClock
from artifactsync.testing.fault_plan import Call, Fault
from artifactsync.testing.faults import FaultyStore

if TYPE_CHECKING:
    from artifactsync.testing.store_contract import StoreContract

__all__ = ["Call", "FakeClock", "Fault", "FaultyStore", "StoreContract"]


def __getattr__(name: str) -> Any:
    if name == "StoreContract":
        from artifactsync.testing.store_contract import StoreContract  # noqa: PLC0415 - it imports pytest

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
