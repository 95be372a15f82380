"""`make sbom`: what `pip install artifactsync[all]` brings, as a CycloneDX document that is the same on every day.

Owns: the environment that is described. Does not own: the form (cyclonedx-bom).

Invariant: no time, no random number and no path of this machine is in it: two runs that get the same packages write
the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Install the wheel with all extras into a fresh environment, and describe that."""
    dist = ROOT / "dist"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "build", "--quiet", "--wheel", "--outdir", folder, ROOT], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, made], check=True)
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", made / "bin" / "python"]
        subprocess.run([*install, f"{wheel}[all]"], check=True)
        target = dist / f"{wheel.name.split('-py3')[0]}.cdx.json"
        dist.mkdir(exist_ok=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"),
                *("--pyproject", ROOT / "pyproject.toml", "--mc-type", "library", "--output-file", target),
                made / "bin" / "python",
            ],
            check=True,
        )
        _finish(target, version=wheel.name.split("-")[1], folder=folder)
    print(f"{target.relative_to(ROOT)}: {len(json.loads(target.read_text())['components'])} packages")


def _finish(document: Path, *, version: str, folder: str) -> None:
    """Put in our version, which pyproject.toml has not; take out where the wheel lay, which no reader has."""
    text = json.loads(document.read_text(encoding="utf-8"))
    text["metadata"]["component"]["version"] = version
    for component in [text["metadata"]["component"], *text["components"]]:
        references = component.get("externalReferences", [])
        component["externalReferences"] = [each for each in references if folder not in each["url"]]
    assert folder not in json.dumps(text)
    document.write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
