"""Budgets that are stated in the prompt and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.forcing import budget_of
from budgetctl.evals.methods.model_texts import texts_for
from budgetctl.evals.methods.no_thinking import finished_thought
from budgetctl.evals.methods.single_call import Besides, answer_in_one_call

#: Asked for an estimate; the form of the reply is TALE's, the wording is ours.
_ESTIMATE = (
    "How many tokens does a complete and correct solution of the question below need at the least, reasoning included? "
    "Do not solve it. Reply with the number in double square brackets, such as [[12]].\n\nQuestion: {question}"
)
_ESTIMATED = re.compile(r"\[\[\s*(\d+)\s*\]\]")
ESTIMATE_TOKENS = 32


class PromptBudget:
    """TALE-EP (arXiv 2412.18547, section 5.2): the model estimates the tokens that it needs, and is then told to use less.

    The estimate is asked for greedily behind a finished thought, which keeps it cheap; its tokens are overhead, and the
    second prompt is read anew. A reply without an estimate states no budget. ``extra`` tells the estimate.
    """

    name = "prompt-budget"
    takes: Literal["budget", "effort", "none"] = "none"

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, in two batches."""
        thought = finished_thought(engine)
        replies = engine.generate(
            [engine.prompt(_ESTIMATE.format(question=item.prompt), prefill=thought) for item in items],
            seeds=None,
            max_new_tokens=ESTIMATE_TOKENS,
        )
        texts = [engine.tokenizer.decode(list(reply.new_ids)) for reply in replies]
        estimates = [int(found[1]) if (found := _ESTIMATED.search(text)) else None for text in texts]
        prompts = [
            engine.prompt(item.prompt if n is None else f"{item.prompt}\n{_use_less(n)}")
            for item, n in zip(items, estimates, strict=True)
        ]
        besides = [
            Besides(len(reply.new_ids), len(prompt), reply.seconds, {"estimated_budget": n})
            for reply, prompt, n in zip(replies, prompts, estimates, strict=True)
        ]
        return answer_in_one_call(
            self.name, engine, items, setting, seeds, max_new_tokens, prompts=prompts, besides=besides
        )


def _use_less(tokens: int) -> str:
    """TALE's line."""
    return f"Let's think step by step and use less than {tokens} tokens:"


class PromptLimit:
    """The budget in words, as Plan-and-Budget (arXiv 2505.16122) states its budgets: "using up to {b} words".

    Tokens become words by the model's own rate (``words_a_token``); nothing holds the model to them.
    """

    name = "prompt-limit"
    takes: Literal["budget", "effort", "none"] = "budget"

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        words = max(1, round(budget_of(self.name, setting) * texts_for(engine).words_a_token))
        limit = f"Please only think a little, and directly solve it using up to {words} words."
        prompts = [engine.prompt(f"{item.prompt}\n{limit}") for item in items]
        besides = [Besides(extra={"stated_words": words})] * len(items)
        return answer_in_one_call(
            self.name, engine, items, setting, seeds, max_new_tokens, prompts=prompts, besides=besides
        )
