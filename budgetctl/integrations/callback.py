"""``on_report``: the reports of a ``generate`` call, handed to a callback when the call has finished."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch

from budgetctl.controller import BudgetController
from budgetctl.integrations.wrapping import wrap_generate
from budgetctl.telemetry import ThoughtReport, report_sequences

OnReport = Callable[[list[ThoughtReport]], None]

_log = logging.getLogger("budgetctl")


class ReportCallback:
    """Wraps a model's ``generate``: what it returns is passed on untouched, after the callback has had the reports.

    A call that ``generate`` makes of itself (token healing, a custom loop) belongs to the outer one, and each thread has
    calls of its own. There are no reports where no controller was made: in continuous batching, or in a custom loop
    that builds no logits processors.

    An exception in the callback does not lose the generation: it is logged as a warning of the logger ``budgetctl``,
    with its traceback.
    """

    def __init__(self, on_report: OnReport) -> None:
        self.on_report = on_report
        self._call = threading.local()

    def note(self, controller: BudgetController, prompt_length: int) -> None:
        """The controller of the call under way in this thread; of several, the last counts."""
        self._call.latest = (controller, prompt_length)

    def wrap(self, model: Any) -> None:
        """Replace ``model.generate``; ``wrapping.unwrap`` undoes it."""
        wrap_generate(model, self._around)

    def _around(
        self, model: Any, generate: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        call = self._call
        if getattr(call, "running", False):
            return generate(*arguments, **options)
        call.running, call.latest = True, None
        try:
            output = generate(*arguments, **options)
            latest = call.latest
        finally:
            call.running, call.latest = False, None
        if latest is not None:
            self._tell(output, *latest)
        return output

    def _tell(self, output: Any, controller: BudgetController, prompt_length: int) -> None:
        sequences = output if isinstance(output, torch.Tensor) else getattr(output, "sequences", None)
        try:
            if not isinstance(sequences, torch.Tensor):
                raise TypeError(
                    f"generate returned {type(output).__name__}: expected sequences of tokens, to report on"
                )
            self.on_report(report_sequences(controller, sequences.to("cpu"), prompt_length))
        except Exception:
            _log.warning("on_report failed; the generation is returned all the same", exc_info=True)
