"""Files that the processes of one machine fetch once, and that go when all of them have read them.

Owns: how long such a file stays. Does not own: fetching it, or the lock under which that is done
(``run.folder_lock``).

Invariant: what is removed may still be mapped, and stays readable to whoever has it so; a process that comes too late
fetches it again.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_COUNT = "readers"


def forget_others(folder: Path, names: Collection[str]) -> None:
    """Remove the folders below ``folder`` that are called otherwise: of earlier loads, whose processes may be dead."""
    with suppress(OSError):
        for other in folder.iterdir():
            if other.name not in names:
                shutil.rmtree(other, ignore_errors=True)


def leave(folder: Path, *, readers: int) -> None:
    """This process has read what is in ``folder``; the last of so many ``readers`` removes it."""
    with suppress(OSError):
        with (folder / _COUNT).open("ab") as file:
            file.write(b".")
            count = file.tell()
        if count >= readers:
            shutil.rmtree(folder, ignore_errors=True)
