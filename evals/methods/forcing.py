"""Budget forcing after s1, and the two calls of Qwen's documentation: the thought is stopped from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.grade import grade
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.model_texts import ModelTexts, texts_for
from budgetctl.evals.methods.rows import Rows


def budget_of(method: str, setting: Setting) -> int:
    """The setting's budget in tokens.

    Raises:
        EvalError: it has none.
    """
    if setting.budget is None:
        raise EvalError(f"method {method!r} without a thinking budget: expected one; give budgets")
    return setting.budget


class Forcing:
    """Think up to the budget, have the close written where the thought is still open, and answer.

    Everything that stands in the thought counts as thinking tokens, what the method wrote among it; the second call reads
    prompt and thought again (``read_tokens``).
    """

    name: str
    takes: Literal["budget", "effort", "none"] = "budget"

    def think(self, rows: Rows, budget: int, texts: ModelTexts) -> None:
        """The thought, up to ``budget`` tokens."""
        rows.think(budget)

    def texts_at_close(self, texts: ModelTexts) -> tuple[str, str]:
        """What is written before the close, and after it."""
        raise NotImplementedError

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order."""
        budget = budget_of(self.name, setting)
        texts = texts_for(engine)
        rows = Rows(engine, [engine.prompt(item.prompt) for item in items], seeds, max_new_tokens)
        self.think(rows, budget, texts)
        before, after = (rows.encoded(text) for text in self.texts_at_close(texts))
        for row in rows.rows:
            if row.thinking:
                row.close(before, after)
        rows.finish()
        return [
            grade(
                engine,
                item,
                row.completion(budget),
                method=self.name,
                setting=setting,
                seed=row.seed,
                read_tokens=row.read_tokens,
            )
            for item, row in zip(items, rows.rows, strict=True)
        ]


class BudgetForcing(Forcing):
    """s1 (arXiv 2501.19393, section 3): at the budget the close and "Final Answer:" are written."""

    name = "s1"

    def texts_at_close(self, texts: ModelTexts) -> tuple[str, str]:
        return "", texts.final_answer


class BudgetForcingWithWait(BudgetForcing):
    """The same, and where the thought would end before the budget, the close is taken back and "Wait" written, up to
    ``waits`` times (s1 reports 1, 2, 4 and 6; the same place).

    A "Wait" is written where it and one more token fit into the budget. Each is a call of its own.

    Args:
        waits: most often that a thought is extended.
    """

    name = "s1-wait"

    def __init__(self, waits: int = 2) -> None:
        self.waits = waits

    def think(self, rows: Rows, budget: int, texts: ModelTexts) -> None:
        wait = rows.encoded(texts.wait)
        rows.think(budget, stop_at_close=True)
        for _ in range(self.waits):
            early = [
                row
                for row in rows.rows
                if bool(row.state.closed) and not row.finished and int(row.state.used) + len(wait) < budget
            ]
            for row in early:
                row.reopen(wait)
            rows.think(budget, early, stop_at_close=True)


class TwoPass(Forcing):
    """The truncation recipe of Qwen3's documentation (Qwen docs, "thinking budget"): one call of as many tokens as the
    budget has; if the thought is then open, a sentence that says that time is up and the close are appended; a second call
    writes the answer.

    The sentence stands in the thought and is counted there, beyond the budget.
    """

    name = "two-pass"

    def texts_at_close(self, texts: ModelTexts) -> tuple[str, str]:
        return texts.early_stop, texts.after_close
