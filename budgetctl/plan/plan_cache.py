"""Plans kept on disk, by question and planner."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from budgetctl.errors import BudgetctlError, PlanError
from budgetctl.plan.plan import Plan


class PlanCache:
    """One JSON file a plan in a folder. A file is written whole or not at all, and one that cannot be read counts as
    missing, so that several processes may share a folder.

    Args:
        folder: made when the first plan is kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, *key: object) -> Path:
        """Where the plan of this key is kept."""
        text = json.dumps([str(part) for part in key])
        return self.folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}.json"

    def load(self, *key: object) -> Plan | None:
        """The plan of this key; None when there is none that can be read."""
        try:
            return Plan.of(json.loads(self.path(*key).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError, TypeError, PlanError):
            return None

    def store(self, plan: Plan, *key: object) -> None:
        """Keep a plan.

        Raises:
            BudgetctlError: when the folder cannot be written to.
        """
        path = self.path(*key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(plan.as_dict(), file)
                os.replace(partial, path)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise BudgetctlError(
                f"{self.folder} cannot keep plans ({error.strerror or type(error).__name__}): expected a folder that can be "
                "written to; give another, or none"
            ) from error
