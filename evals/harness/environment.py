"""What a run was made with: versions, revision, device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import budgetctl


def environment(device: torch.device, *packages: str) -> dict[str, Any]:
    """JSON values, with the versions of further ``packages`` that are installed; ``git_revision`` is None unless this code is from a checkout, ``-dirty`` where files were changed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "budgetctl": budgetctl.__version__,
            **{name: version for name in packages if (version := installed_version(name)) is not None},
        },
        "git_revision": git_revision(Path(budgetctl.__file__).parent),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name or None,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def installed_version(module: str) -> str | None:
    """Of the package that has this module, whatever its own name; None where none is installed."""
    for name in importlib.metadata.packages_distributions().get(module, []):
        return importlib.metadata.version(name)
    return None


def git_revision(folder: Path) -> str | None:
    """Of the checkout that tracks the files of ``folder``; None where none does."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if shutil.which("git") is None or git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return revision and (revision + "-dirty" if changed else revision)
