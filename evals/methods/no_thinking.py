"""NoThinking (arXiv 2504.09858): a finished dummy thought is prefilled, and the model answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.model_texts import texts_for
from budgetctl.evals.methods.single_call import answer_in_one_call


def finished_thought(engine: Engine) -> str:
    """What is appended to the generation prompt; the open marker with it, where the template does not write it."""
    texts, marks = texts_for(engine), engine.delimiters
    opening = "" if marks.opened_by_template or marks.implicit else marks.open_text + "\n"
    return opening + texts.dummy_thought + marks.close_text + texts.after_close


class NoThinking:
    """The thought is "Okay, I think I have finished thinking." (section 2 of the paper), and part of the prompt: no thinking
    token is generated or counted."""

    name = "no-thinking"
    takes: Literal["budget", "effort", "none"] = "none"

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        thought = finished_thought(engine)
        prompts = [engine.prompt(item.prompt, prefill=thought) for item in items]
        return answer_in_one_call(self.name, engine, items, setting, seeds, max_new_tokens, prompts=prompts)
