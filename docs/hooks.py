"""Pages of the site that no file in docs/ holds: README and its like, the API, every command's help. For mkdocs.

The API's pages are read from docstrings by mkdocstrings; a command's page is what its `--help` prints. Links between
files of the repository become links between pages, or to copies of the files under `files/`.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import sam_blvit

ROOT = Path(__file__).parents[1]
PACKAGE = "sam_blvit"
COPIES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "model_card.md": f"{PACKAGE}/weights/README.md",
}
"""Pages that are files outside docs/."""
PAGES = {path: page for page, path in COPIES.items()}
COLUMNS = "100"
"""Width of the help texts."""
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    sections: list[dict[str, Any]] = [{"Commands": [f"commands/{name}.md" for name, _ in commands()]}]
    sections.append({"API": ["api/index.md", *(f"api/{name}.md" for name, _ in rooms())]})
    config.nav = [*(config.nav or []), *sections]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and copies of the files that pages link to."""
    pages = {page: (ROOT / path).read_text(encoding="utf-8") for page, path in COPIES.items()}
    pages |= {
        f"commands/{name}.md": f"# {title(words)}\n\n```text\n{help_of(words)}\n```\n" for name, words in commands()
    }
    pages |= {f"api/{name}.md": reference(name, modules) for name, modules in rooms()}
    pages["api/index.md"] = f"# {PACKAGE}\n\nNames that the package exports:\n\n{public()}\n"
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    for page in [*pages, *(file.src_uri for file in files.documentation_pages())]:
        text = pages.get(page) or (ROOT / "docs" / page).read_text(encoding="utf-8")
        for target in (target_of(page, found[1]) for found in LINK.findall(text)):
            copy = f"files/{target}"
            if target and target not in PAGES and not target.startswith("docs/") and copy not in files.src_uris:
                files.append(File.generated(config, copy, content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository at the pages of the site."""

    def linked(found: re.Match[str]) -> str:
        target = target_of(page.file.src_uri, found[2])
        if target is None:
            return found[0]
        place = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}")
        return f"{found[1]}{posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{found[3]}"

    return LINK.sub(linked, markdown)


def target_of(page: str, link: str) -> str | None:
    """The file of the repository, relative to its root, that `link` on `page` names; None for any other link."""
    if ":" in link or page.startswith(("api/", "commands/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(COPIES.get(page, f"docs/{page}")), link))
    return target if (ROOT / target).is_file() else None


@functools.cache
def commands() -> list[tuple[str, list[str]]]:
    """Name of the page and words of every command: those of `sam-blvit`, then the files in tools/ and eval/."""
    (found,) = re.findall(r"\{([\w,-]+)\}", help_of(["-m", PACKAGE]))
    files = sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("eval/*.py")])
    return [(f"sam-blvit_{name}", ["-m", PACKAGE, name]) for name in found.split(",")] + [
        (path.stem, [path.relative_to(ROOT).as_posix()]) for path in files
    ]


def title(words: list[str]) -> str:
    """A command as one types it."""
    return " ".join(["sam-blvit", *words[2:]] if words[0] == "-m" else words)


def help_of(words: list[str]) -> str:
    """What a command's --help prints."""
    environment = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words, "--help"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def rooms() -> Iterator[tuple[str, list[str]]]:
    """Each package below the top one with its modules, then the modules that lie in none."""
    for folder in sorted(path.parent for path in (ROOT / PACKAGE).glob("*/__init__.py")):
        yield folder.name, [dotted(path) for path in sorted(folder.rglob("*.py"))]
    yield "modules", [dotted(path) for path in sorted((ROOT / PACKAGE).glob("[a-z]*.py"))]


def dotted(path: Path) -> str:
    """The name that a module is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def reference(name: str, modules: list[str]) -> str:
    """The page of a package."""
    heading = f"{PACKAGE}.{name}" if name != "modules" else "Other modules"
    return f"# {heading}\n\n" + "".join(f"::: {module}\n\n" for module in modules)


def public() -> str:
    """A list of the names that `import sam_blvit` offers, linked to where they are defined."""
    sources = {dotted(path): path.read_text(encoding="utf-8") for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    lines = []
    for name in sam_blvit.__all__:
        imported = f"{PACKAGE}.{sam_blvit._MODULES[name]}"
        defines = re.compile(rf"^(?:(?:class|def) )?{name}\b(?!,|$)", re.MULTILINE)
        places = [each for each in sources if f"{each}.".startswith(f"{imported}.") and defines.search(sources[each])]
        place = places[0] if places else imported
        lines.append(f'- <autoref optional identifier="{place}.{name}"><code>{name}</code></autoref>, in `{place}`')
    return "\n".join(lines)
