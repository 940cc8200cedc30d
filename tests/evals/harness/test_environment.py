"""The revision is that of a checkout that tracks the code, and of no other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from budgetctl.evals.harness.environment import environment, git_revision


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_revision(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    (tmp_path / "other.txt").write_text("x")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-qm", "one")
    assert git_revision(package) is None  # installed into somebody's checkout
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-qm", "two")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_revision(package) == head
    (tmp_path / "other.txt").write_text("y")
    assert git_revision(package) == f"{head}-dirty"


def test_versions_are_those_that_run() -> None:
    about = environment(torch.device("cpu"))
    assert about["versions"]["torch"] == torch.__version__
    assert about["device"] == "cpu"
    assert about["threads"] == torch.get_num_threads()
