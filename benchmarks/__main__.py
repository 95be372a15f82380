"""``python -m benchmarks`` runs every benchmark of this folder; with names, only those."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> int:
    names = sys.argv[1:] or sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if "def measure(" in path.read_text() and path.stem != "__main__"
    )
    for name in names:
        try:
            module = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"benchmarks.{name}":
                raise
            print(f"there is no benchmark {name!r}", file=sys.stderr)
            return 2
        module.measure()
    return 0


if __name__ == "__main__":
    sys.exit(main())
