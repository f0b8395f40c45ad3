"""The git revision of the running code."""

from __future__ import annotations

import subprocess
from pathlib import Path

SHORT_REVISION = 12


def git_revision() -> str | None:
    """The commit that this package is checked out at, with -dirty where files differ from it; None outside git."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", f"--abbrev={SHORT_REVISION}"]
    if not (root / ".git").exists():
        return None  # installed: a repository around it would be another project's
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
