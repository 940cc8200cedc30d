"""budgetctl as a model of lm-evaluation-harness: ``python -m budgetctl.evals.lm_eval run --model budgetctl ...``.

The command line is that of ``lm_eval``, with one more model type. Its model arguments are those of lm-eval's ``hf``, all of
budgetctl's knobs (``thinking_budget=256``, ``effort=low``, ``kv_budget=25%``, ...), ``predictor`` and ``thoughts``. Knobs act
on tasks that generate; log-likelihoods are those of the model. lm-eval judges the answer after the thought alone: the
thoughts go to the file ``thoughts``, a line for each, and their mean length to lm-eval's results.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import EvalError
from budgetctl.integrations.transformers import KNOBS, install
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS
from budgetctl.segments import split_sequence
from budgetctl.state import thinking_state

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError:  # said when it is used
    HFLM, register_model = object, None

#: ``pretrained`` of the reasoner that ships with budgetctl.
EMBEDDED = "embedded"


class StopInAnswer(StoppingCriteria):
    """Ends a row whose answer holds any of some texts; what stands in the thought does not count.

    Args:
        texts: of at least one character each.
        tokenizer: of the model.
        delimiters: markers of the thought.
        prompt_length: padded width of the prompt in tokens.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: Any, delimiters: ThinkingDelimiters, prompt_length: int
    ) -> None:
        self.texts, self.tokenizer = texts, tokenizer
        self.delimiters, self.prompt_length = delimiters, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **others: object) -> torch.Tensor:
        """[B] bool for rows [B, T]."""
        state = thinking_state(input_ids, self.delimiters, prompt_length=self.prompt_length)
        sizes = torch.where(state.closed, state.answer_tokens, state.generated)
        sizes = torch.where(state.thinking, 0, torch.minimum(sizes, state.generated))
        ended = []
        for row, size in zip(input_ids, sizes.tolist(), strict=True):
            text = self.tokenizer.decode(row[len(row) - size :], skip_special_tokens=False) if size else ""
            ended.append(any(stop in text for stop in self.texts))
        return torch.tensor(ended, device=input_ids.device)


class BudgetctlLM(HFLM):
    """A transformers model whose thoughts keep a budget.

    Args:
        pretrained: directory or hub id; ``embedded`` is the reasoner that ships with budgetctl.
        predictor: directory or hub id of its length predictor.
        thoughts: JSON lines, appended.
        others: budgetctl's knobs, and the arguments of lm-eval's ``hf``.

    Raises:
        EvalError: lm-eval is not installed.
        BudgetctlError: for a knob or a predictor that does not fit the model.
    """

    def __init__(
        self,
        pretrained: str = EMBEDDED,
        predictor: str | None = None,
        thoughts: str = "runs/lm-eval/thoughts.jsonl",
        **others: Any,
    ) -> None:
        if register_model is None:
            raise EvalError(
                "lm_eval is not installed: expected it for this model type; pip install 'budgetctl-llm[lm-eval]'"
            )
        given = {name: others.pop(name, None) for name in KNOBS}
        self.knobs = {name: value for name, value in given.items() if value is not None}
        source: str | Path | None = predictor
        if pretrained == EMBEDDED:
            pretrained, source = str(WEIGHTS), predictor or PREDICTOR
            others.setdefault("dtype", "float32")
        super().__init__(pretrained=pretrained, **others)
        self.installation = install(self.model, self.tokenizer, source)
        self.thoughts = Path(thoughts)
        self._run = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._lengths: list[int] = []

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """Prompts [B, T] and their answers, without the thoughts; padded on the right."""
        width = context.shape[1]
        temperature = generation_kwargs.pop("temperature", 0.0)
        sampled = generation_kwargs.pop("do_sample", None)
        sampled = temperature > 0 if sampled is None else sampled
        texts = [text for text in stop if text]
        delimiters = self.installation.delimiters
        sequences = self.model.generate(
            input_ids=context,
            max_new_tokens=max_length - width,
            do_sample=sampled,
            temperature=temperature if sampled and temperature > 0 else None,
            stopping_criteria=StoppingCriteriaList([StopInAnswer(texts, self.tokenizer, delimiters, width)]),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **generation_kwargs,
            **self.knobs,
        )
        answers = self._keep(sequences.cpu(), width)
        room = max(map(len, answers))
        padded = [[*answer, *[self.tokenizer.pad_token_id] * (room - len(answer))] for answer in answers]
        return torch.cat([context, torch.tensor(padded, dtype=context.dtype, device=context.device)], 1)

    def _keep(self, sequences: torch.Tensor, width: int) -> list[list[int]]:
        """Write the thoughts of finished sequences [B, T] down; returns the ids of their answers."""
        answers, lines = [], []
        for row, report in zip(sequences.tolist(), self.installation.reports(sequences), strict=True):
            parts = split_sequence(row, width, self.installation.delimiters)
            padding = self.tokenizer.pad_token_id
            answers.append([token for token in parts.answer if token != padding])
            self._lengths.append(report.thinking_tokens)
            line = {
                "run": self._run,
                "prompt": self.tokenizer.decode([token for token in row[:width] if token != padding]),
                "thought": self.tokenizer.decode(list(parts.thought)),
                "answer": self.tokenizer.decode(answers[-1]),
                "knobs": self.knobs,
                **asdict(report),
            }
            lines.append(json.dumps(line) + "\n")
        self.thoughts.parent.mkdir(parents=True, exist_ok=True)
        path = self.thoughts
        if self.world_size > 1:
            path = path.with_name(f"{path.stem}-{self.rank}{path.suffix}")
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results: with the knobs, and the mean length of the thoughts in tokens."""
        count = len(self._lengths)
        return {
            **super().get_model_info(),
            "budgetctl_knobs": self.knobs,
            "budgetctl_thoughts": count,
            "budgetctl_mean_thinking_tokens": sum(self._lengths) / count if count else None,
        }


if register_model is not None:
    register_model("budgetctl")(BudgetctlLM)


def main() -> None:
    """lm-eval's command line.

    Raises:
        EvalError: it is not installed.
    """
    if register_model is None:
        BudgetctlLM()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    # Under its own name: as __main__ the class would be another one than that which is imported.
    from budgetctl.evals.lm_eval import main as run

    run()
