"""Writes what the embedded reasoner answers on so many tensor-parallel ranks: ``python -m tests.vllm.ranks RANKS FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from budgetctl.reasoner.load import WEIGHTS
from budgetctl.reasoner.tasks import take_questions

KNOBS: list[dict[str, Any] | None] = [
    {"thinking_budget": 12},
    None,
    {"effort": "low"},
    {"effort": 0.7, "thinking_budget": 40},
    {"thinking_target": 20, "target_tolerance": 3},
    {"min_thinking_tokens": 30},
]


def answers(ranks: int) -> list[list[int]]:
    """New ids of 18 questions, every third of them greedy."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(WEIGHTS),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=12,
        tensor_parallel_size=ranks,
        distributed_executor_backend="mp" if ranks > 1 else "uni",
        logits_processors=["budgetctl.integrations.vllm:BudgetLogitsProcessor"],
    )
    asked = take_questions("test", 18, min_level=7)
    params = [
        SamplingParams(
            temperature=float(at % 3 > 0), seed=at, max_tokens=160, extra_args=KNOBS[at % len(KNOBS)]
        )
        for at in range(len(asked))
    ]
    chats = [[{"role": "user", "content": question.prompt}] for question in asked]
    return [list(o.outputs[0].token_ids) for o in engine.chat(chats, params, use_tqdm=False)]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(answers(int(sys.argv[1]))))
