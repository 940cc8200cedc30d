"""A hard budget kept by Python dictionaries on the host, as engines do it: a yardstick for cost.

Built after the description of vLLM's first thinking-budget processor: one dictionary a request, the new tokens of each
looked through for markers at every step, and the logits of requests whose budget is spent overwritten one by one. Only
the new tokens are looked through here, which is the cheapest that such a design can be.
"""

from __future__ import annotations

from typing import Any

import torch


class DictBudgets:
    """Budgets of B requests that have just opened their thought.

    Args:
        budgets: thinking tokens of each request.
        open_ids: marker that opens a thought.
        close_ids: marker that closes it, and what is forced.
    """

    def __init__(self, budgets: list[int], open_ids: tuple[int, ...], close_ids: tuple[int, ...]) -> None:
        self._open, self._close = list(open_ids), list(close_ids)
        self.requests: dict[int, dict[str, Any]] = {
            row: {"output": [], "read": 0, "thinking": True, "used": 0, "budget": budget, "forced": 0}
            for row, budget in enumerate(budgets)
        }

    def step(self, last: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Take the last token of each request, and force the close in ``logits`` [B, V], in place."""
        for row, request in self.requests.items():
            request["output"].append(last[row])
            self._update(request)
        forced = {row: r for row, r in self.requests.items() if r["thinking"] and r["used"] >= r["budget"]}
        for row, request in forced.items():
            token = self._close[min(request["forced"], len(self._close) - 1)]
            request["forced"] += 1
            logits[row] = -torch.inf
            logits[row, token] = 0.0
        return logits

    def _update(self, request: dict[str, Any]) -> None:
        output = request["output"]
        for stop in range(request["read"] + 1, len(output) + 1):
            if self._ends(output, stop, self._close) and request["thinking"]:
                request["thinking"] = False
                request["forced"] = 0
            elif self._ends(output, stop, self._open):
                request["thinking"] = True
            elif request["thinking"]:
                request["used"] += 1
        request["read"] = len(output)

    @staticmethod
    def _ends(output: list[int], stop: int, marker: list[int]) -> bool:
        return output[max(stop - len(marker), 0) : stop] == marker
