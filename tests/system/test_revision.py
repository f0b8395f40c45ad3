"""The commit that the code is checked out at, or none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sam_blvit.system import revision as module
from sam_blvit.system.revision import git_revision

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *who, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit that the package is checked out in."""
    root = tmp_path / "checkout"
    installed_in(root, monkeypatch)
    git(root, "init", "--quiet")
    git(root, "add", "sam_blvit")
    git(root, "commit", "--quiet", "--message", "All there is")
    return root


def installed_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the package lie in `root`."""
    path = root / "sam_blvit" / "measure" / "revision.py"
    path.parent.mkdir(parents=True)
    path.write_text("")
    monkeypatch.setattr(module, "__file__", str(path))


@needs_git
def test_the_commit_of_this_repository_is_the_one_that_git_names() -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("these tests are not run from a checkout")
    revision = git_revision()
    assert revision is not None
    revision = revision.removesuffix("-dirty")
    assert len(revision) == 12
    assert git(root, "rev-parse", "HEAD").startswith(revision)


@needs_git
def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert git_revision() == git(checkout, "rev-parse", "HEAD")[:12]


@needs_git
def test_a_tag_does_not_stand_for_its_commit(checkout: Path) -> None:
    git(checkout, "tag", "--annotate", "v1", "--message", "first")
    assert git_revision() == git(checkout, "rev-parse", "HEAD")[:12]


@needs_git
def test_a_checkout_with_a_changed_file_is_dirty(checkout: Path) -> None:
    Path(module.__file__).write_text("changed = True\n")
    assert git_revision() == git(checkout, "rev-parse", "HEAD")[:12] + "-dirty"


def test_a_package_outside_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(tmp_path / "site-packages", monkeypatch)
    assert git_revision() is None


@needs_git
def test_a_package_installed_inside_somebody_elses_repository_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_in(checkout / "venv" / "site-packages", monkeypatch)
    assert git_revision() is None


@needs_git
def test_a_repository_without_a_commit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(tmp_path / "new", monkeypatch)
    git(tmp_path / "new", "init", "--quiet")
    assert git_revision() is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(tmp_path / "checkout", monkeypatch)
    (tmp_path / "checkout" / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() is None
