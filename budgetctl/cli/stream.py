"""``--stream``: tokens as they come, with a live line of used, predicted and allowed tokens on a terminal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from budgetctl.budget import NO_CAP
from budgetctl.cli.answer import Answer, answer
from budgetctl.cli.render import THOUGHT_STYLE, out, summary_line, usage
from budgetctl.cli.requests import Request, Settings
from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel
from budgetctl.integrations.serve.splitter import Piece, ThoughtSplitter
from budgetctl.state import thinking_state

#: Takes a piece of text and whether it is part of the thought.
Write = Callable[[str, bool], None]
#: Takes thinking tokens used, budget and predicted length.
Tell = Callable[[int, int | None, float | None], None]


class ThoughtStreamer(BaseStreamer):
    """Shows the tokens of one generation as they come, thought and answer apart, without markers.

    Args:
        controller: of the generation; asked once for budget and prediction.
        tokenizer: decodes.
        write: called with each new piece of text.
        tell: called after each thinking token.
    """

    def __init__(
        self, controller: BudgetController, tokenizer: PreTrainedTokenizerBase, write: Write, tell: Tell
    ) -> None:
        self.controller = controller
        self.tokenizer = tokenizer
        self.write = write
        self.tell = tell
        self._ids: torch.Tensor | None = None
        self._width = 0
        self._splitter: ThoughtSplitter | None = None
        # Whether the pending ids are thought, None before a new part.
        self._thinking: bool | None = None
        self._limit: tuple[int | None, float | None] | None = None
        # Ids not shown yet, after ``_context`` ids that are shown and may merge with them when decoded.
        self._pending: list[int] = []
        self._context = 0
        # White space is shown when something follows it, so none stands around thought and answer.
        self._space = ""
        self._fresh = True
        self._any = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt [1, T] first, then each new token [1]."""
        if self._ids is None or self._splitter is None:
            self._ids = value
            self._width = value.shape[1]
            self._splitter = ThoughtSplitter(self.controller.delimiters, value[0].tolist())
            return
        self._ids = torch.cat([self._ids, value.reshape(1, -1)], 1)
        state = thinking_state(self._ids, self.controller.delimiters, prompt_length=self._width)
        if bool(state.thinking) and int(state.used):
            self.tell(int(state.used), *self._limits(self._ids))
        for piece in self._splitter.push(int(value)):
            self._take(piece)

    def end(self) -> None:
        """Show what was held back."""
        for piece in self._splitter.finish() if self._splitter is not None else ():
            self._take(piece)
        self._flush()

    def _take(self, piece: Piece) -> None:
        thinking, ids = piece
        if thinking is not self._thinking or not ids:
            self._flush()
            self._thinking, self._pending, self._context = (thinking if ids else None), [], 0
            self._space, self._fresh = "\n\n" if self._any else "", True
        self._pending += ids
        self._flush(keep=True)

    def _limits(self, ids: torch.Tensor) -> tuple[int | None, float | None]:
        if self._limit is None:
            budgets, predicted, _ = self.controller.account(ids, self._width)
            self._limit = None if budgets[0] >= NO_CAP else budgets[0], predicted[0]
        return self._limit

    def _flush(self, keep: bool = False) -> None:
        """Show pending text; with ``keep``, not if it ends in the middle of a character."""
        shown = self.tokenizer.decode(self._pending[: self._context])
        text = self.tokenizer.decode(self._pending)
        if keep and text.endswith("\ufffd"):
            return
        self._show(text[len(shown) :], bool(self._thinking))
        self._pending = self._pending[self._context :]
        self._context = len(self._pending)

    def _show(self, text: str, thinking: bool) -> None:
        if self._fresh:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._space += text
            return
        self.write(self._space + body, thinking)
        self._any, self._fresh, self._space = True, False, text[len(body) :]


class LiveView:
    """A terminal: whole lines are printed, the last one and the count stand in a live region below."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.line = Text()
        self.status = Text()
        self.live = Live(console=console, transient=True, refresh_per_second=15)

    def write(self, text: str, thinking: bool) -> None:
        style = THOUGHT_STYLE if thinking else ""
        *whole, rest = text.split("\n")
        for piece in whole:
            self.line.append(piece, style)
            finished, self.line = self.line, Text()
            self.live.update(Group(self.line, self.status))
            self.console.print(finished)
        self.line.append(rest, style)
        self.live.update(Group(self.line, self.status))

    def tell(self, used: int, budget: int | None, predicted: float | None) -> None:
        self.status = Text(f"thinking {usage(used, budget, predicted)}", style="cyan")
        self.live.update(Group(self.line, self.status))


def stream_answer(loaded: LoadedModel, request: Request, settings: Settings) -> Answer:
    """Answer one request before the user's eyes; plain text where stdout is no terminal."""
    console = out()
    if console.is_terminal:
        view = LiveView(console)
        with view.live:
            result = _run(loaded, request, settings, view.write, view.tell)
        console.print(view.line)
    else:

        def write(text: str, thinking: bool) -> None:
            console.file.write(text)
            console.file.flush()

        result = _run(loaded, request, settings, write, lambda used, budget, predicted: None)
        console.file.write("\n")
    console.print()
    console.print(Text(summary_line(result), style="cyan"))
    return result


def _run(loaded: LoadedModel, request: Request, settings: Settings, write: Write, tell: Tell) -> Answer:
    def streamer_for(controller: BudgetController) -> BaseStreamer:
        return ThoughtStreamer(controller, loaded.tokenizer, write, tell)

    return answer(loaded, [request], settings, streamer_for=streamer_for)[0]
