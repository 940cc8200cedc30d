"""How much work each step of a plan is, by the model's own length predictor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from budgetctl.errors import BudgetError
from budgetctl.plan.plan import Plan

if TYPE_CHECKING:
    from budgetctl.integrations.transformers import Installation


@torch.no_grad()
def weigh_by_length(plan: Plan, installation: Installation) -> Plan:
    """The plan with each step weighing as much as the thought that is predicted for its text, asked as a question of its own.

    One forward pass over the texts of the steps; nothing is generated. The prediction is the natural length that effort is
    a share of, in tokens.

    Raises:
        BudgetError: when the installation has no length predictor.
    """
    forecast = installation.forecast
    if forecast is None:
        raise BudgetError(
            "weights by predicted length need a length predictor and none is installed: pass predictor=... to install, or "
            "give the steps weights"
        )
    tokenizer, model = installation.tokenizer, installation.model
    texts = [step.text for step in plan.steps]
    if getattr(tokenizer, "chat_template", None):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in texts
        ]
    opened = installation.delimiters.opened_by_template or installation.delimiters.implicit
    opening = [] if opened else list(installation.delimiters.open_ids)
    rows = [[*ids, *opening] for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    scores = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    lengths = forecast.natural_length(forecast.outlook(scores)).tolist()
    steps = tuple(replace(step, weight=length) for step, length in zip(plan.steps, lengths, strict=True))
    return replace(plan, steps=steps)
