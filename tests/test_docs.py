"""README, docs/ and their like: links resolve, named files exist, commands are accepted, and README's example runs.

Commands are parsed by the real command line and not run. `...` in a command stands for flags that are left out.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sam_blvit import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "sam_blvit/weights/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"(?:tools|eval|studies)/\w+\.py")
RUNS = [path.relative_to(ROOT).as_posix() for folder in ("tools", "eval") for path in (ROOT / folder).glob("*.py")]
LEFT_OUT = {
    "sam-blvit finetune": "--data D --teacher T --holdout 1 --output O",
    "sam-blvit calibrate": "--annotations A --images I --output O",
    "tools/finetune.py": "--data D --teacher T --holdout 1 --output O",
    "tools/cache_teacher.py": "--data D --teacher T --output O",
    "eval/run_lvis.py": "--annotations A --images I --output O",
    "eval/run_coco.py": "--annotations A --images I --output O",
    "eval/calibrate.py": "--annotations A --images I --output O",
}
"""Flags that a command needs, which `...` may stand for."""
PLACEHOLDERS = {"SETTINGS.yaml": "configs/finetune_tiny.yaml", "K": "0.25", "NAME": "accelerate"}
FOREIGN_FLAGS = {
    *("standalone", "nproc-per-node", "nnodes", "rdzv-backend", "rdzv-endpoint", "nodes"),  # torchrun, sbatch
    *("index-url", "no-deps", "help", "version", "tyro-print-completion"),  # pip, every command
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCE.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in `language`; '' are those that name none, which hold commands."""
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of `page` may name."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """Commands of this repository in code blocks and in inline code."""
    lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]
    for line in [*lines, *(span for span in spans if " " in span)]:
        for part in line.split(" && "):
            if re.match(r"sam-blvit |make \w|(python|torchrun|sbatch|\.\.\.) .*\w|(tools|eval|studies)/\w+\.py ", part):
                yield part


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands(page)})


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """Parse words as `sam-blvit` or a script of this repository does, without acting."""

    def act(program: str, words: list[str]) -> None:
        monkeypatch.setattr(cli, "_call", cli.parsed)
        monkeypatch.chdir(ROOT)
        if program == "sam-blvit":
            cli.main(words)
        else:
            monkeypatch.setattr(sys, "argv", [program, *words])
            runpy.run_path(program, run_name="__main__")

    return act


@every_page
def test_links_resolve(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_every_page_of_docs_is_in_the_navigation(page: Path) -> None:
    if page.parent.name == "docs":
        assert f": {page.name}\n" in (ROOT / "mkdocs.yml").read_text()


@every_page
def test_named_files_exist(page: Path) -> None:
    named = r"(?<![\w/.])(?:configs|tools|eval|tests|studies|docs|notebooks)/[\w/]+\.(?:yaml|py|sbatch|md|ipynb)\b"
    assert [name for name in re.findall(named, page.read_text()) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_accepted(page: str, command: str, parse: Callable[[str, list[str]], None]) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command, comments=True)]
    shortened = "..." in words
    words = [word for word in words if word != "..."]
    program, *rest = words if words[0] in {"make", "sam-blvit"} else script(words)
    if shortened:
        name = f"{program} {rest[0]}" if program == "sam-blvit" else program
        needed = LEFT_OUT.get(name, "").split()
        given = {*rest, *(["--holdout"] if "--val-manifest" in rest else [])}  # one of the two
        pairs = zip(needed[::2], needed[1::2], strict=True)
        rest += [word for pair in pairs if pair[0] not in given for word in pair]
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "sam-blvit" and len(rest) == 1:  # the name of a command in a sentence
        with pytest.raises(SystemExit):
            parse(program, [*rest, "--help"])
    elif program in {"sam-blvit", *RUNS} and rest != ["--help"]:
        parse(program, rest)
    elif program.startswith("studies/"):
        names = {word for word in rest if word.startswith("--")}
        source = "".join(path.read_text() for path in sources_of(program))
        assert [name for name in names if name[2:].replace("-", "_") not in source and name not in source] == []


def script(words: list[str]) -> list[str]:
    """The script that a line of python, torchrun or sbatch runs, and its own words; an empty name for any other."""
    if words[:2] == ["python", "-m"]:
        return [words[2].replace(".", "/"), *words[3:]]
    for place, word in enumerate(words):
        if word == "tools/slurm/finetune.sbatch":
            return ["tools/finetune.py", *words[place + 1 :]]
        if SCRIPT.fullmatch(word):
            return words[place:]
    return [""]


def sources_of(program: str) -> list[Path]:
    """The files of a script or package in studies/, and of the settings that it shares with training."""
    path = ROOT / program
    return [*([path] if path.is_file() else path.glob("*.py")), *(ROOT / "sam_blvit" / "config").rglob("*.py")]


def test_every_flag_that_pages_name_exists(
    parse: Callable[[str, list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse("sam-blvit", ["--help"])
    (names,) = re.findall(r"\{([\w,-]+)\}", capsys.readouterr().out)
    asked = [("sam-blvit", [name, "--help"]) for name in names.split(",")]
    for program, words in [*asked, *((name, ["--help"]) for name in RUNS)]:
        with pytest.raises(SystemExit):
            parse(program, words)
    sources = "".join(path.read_text() for path in (ROOT / "studies").rglob("*.py"))
    known = set(re.findall(r"--([a-z][a-z-]*)", capsys.readouterr().out + sources)) | FOREIGN_FLAGS
    fields = set(re.findall(r"^ +(\w+): ", sources, re.MULTILINE))
    for page in PAGES:
        flags = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", page.read_text()))
        assert {flag for flag in flags - known if flag.replace("-", "_") not in fields} == set(), page


def test_the_example_in_the_readme_runs() -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(example, names)
    assert getattr(names["masks"], "shape", None) == (1, 400, 600)


@every_page
def test_python_in_pages_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
