"""What ``mkdocs.yml`` needs besides Markdown: the pages and files of this repository that lie outside ``docs/``.

Owns: a place on the site for each of them, the links to them, the pictures, and the help of the commands. Every link is
written as the repository has it, so that it leads somewhere in a clone as well; one that leads nowhere fails the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from mkdocs.structure.files import File, Files

from artifactsync.cli.application import cli

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
# Page of the repository → page of the site. A README would be taken for the first page of its section.
_PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "localstack/README.md": "localstack.md",
}
_OUTSIDE = {there: here for here, there in _PAGES.items() if here != "README.md"}
_LINK = re.compile(r"(?<!`)(?P<before>!?\[(?:[^\]\[]|\[[^\]]*\])*\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_PICTURE = re.compile(r"^!\[(?P<alt>[^\]]+)\]\((?P<path>(?:\.\./)*pictures/[\w-]+\.svg)\)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".sh": "bash", ".py": "python", ".json": "json", ".yaml": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside ``docs/``, and a page or a copy for each file that a page links to."""
    for there, here in _OUTSIDE.items():
        files.append(File.generated(config, there, content=(_ROOT / here).read_text(encoding="utf-8")))
    for page in files.documentation_pages():
        home = _in_repository(page.src_uri)
        for match in _LINK.finditer(_FENCE.sub("", page.content_string)):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(home), match["target"]))
            target = _on_site(path)
            source = _ROOT / path
            if files.get_file_from_path(target) is None and source.is_file() and not path.startswith("docs/"):
                files.append(_shown(config, source, target))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' words
    """Turn links of the repository into links of the site, put the pictures in, and the help of the commands."""
    here = page.file.src_uri
    home = _in_repository(here)

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), match["target"]))
        target = posixpath.relpath(_on_site(path), posixpath.dirname(here) or ".")
        return f"{match['before']}{target}{match['anchor'] or ''})"

    def drawn(match: re.Match[str]) -> str:
        svg = (_ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(home), match["path"]))).read_text("utf-8")
        return f'<figure class="picture" role="img" aria-label="{match["alt"]}">\n{svg.strip()}\n</figure>'

    parts = re.split(f"({_FENCE.pattern})", _PICTURE.sub(drawn, markdown), flags=re.MULTILINE | re.DOTALL)
    text = "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)
    return text.replace("<!-- the help of every command -->", _help_of_commands())


def _in_repository(src_uri: str) -> str:
    """The path of a page below the repository's root."""
    return _OUTSIDE.get(src_uri, f"docs/{src_uri}")


def _on_site(path: str) -> str:
    """Where a file of the repository is on the site, as a path below ``docs/``."""
    if path in _PAGES:
        return _PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{path}.md" if Path(path).suffix in _LANGUAGES else path


def _shown(config: MkDocsConfig, source: Path, target: str) -> File:
    if not target.endswith(".md"):
        return File.generated(config, target, abs_src_path=str(source))
    name, language = source.relative_to(_ROOT).as_posix(), _LANGUAGES[source.suffix]
    code = source.read_text(encoding="utf-8")
    text = f"---\ntitle: {source.name}\n---\n\n# {source.name}\n\n`{name}`\n\n```{language}\n{code}\n```\n"
    added = File.generated(config, target, content=text)
    added.inclusion = added.inclusion.NOT_IN_NAV
    return added


def _help_of_commands() -> str:
    """The ``--help`` of the program and of each command, as a terminal of 78 columns shows it: what fits a page."""
    top = click.Context(cli, info_name="artifactsync", terminal_width=78, max_content_width=78)
    sections = [f"```text\n{cli.get_help(top)}\n```\n"]
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        if command is not None and not command.hidden:
            context = click.Context(command, info_name=name, parent=top, terminal_width=78, max_content_width=78)
            sections.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(sections)
