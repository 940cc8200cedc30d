"""A small agent: a model that thinks, calls tools by their names, and is told after each result what it has left."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from budgetctl.errors import BudgetctlError
from budgetctl.plan.tracker import BudgetTracker
from budgetctl.segments import split_sequence

if TYPE_CHECKING:
    from budgetctl.integrations.transformers import Installation

#: A call stands in a line of its own of the answer, such as ``calculator: (3 + 4) * 2``.
_CALL = re.compile(r"^[ \t]*([A-Za-z_]\w*)[ \t]*:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)

Message = dict[str, str]
Tool = Callable[[str], str]


class Reply(NamedTuple):
    """What a model says to a conversation: its answer, the tokens of its thought, and how many of these were notes."""

    text: str
    thinking_tokens: int
    note_tokens: int = 0


class AgentModel(Protocol):
    """Answers a conversation inside what the tracker leaves."""

    def __call__(self, messages: Sequence[Message], tracker: BudgetTracker) -> Reply: ...


@dataclass(frozen=True)
class Turn:
    """One reply; ``tool`` and ``argument`` where it called one, with its ``result``; ``refused`` says that the call's budget was
    spent."""

    reply: Reply
    tool: str | None = None
    argument: str | None = None
    result: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class AgentRun:
    """What an agent did: its turns, the budgets as they are after them, the conversation."""

    turns: tuple[Turn, ...]
    tracker: BudgetTracker
    messages: tuple[Message, ...]

    @property
    def answer(self) -> str:
        """The last reply."""
        return self.turns[-1].reply.text if self.turns else ""

    @property
    def note_tokens(self) -> int:
        """Thinking tokens that were notes of what is left."""
        return sum(turn.reply.note_tokens for turn in self.turns)


def instructions(tools: Mapping[str, Tool]) -> str:
    """How to call the tools, for the conversation's first message."""
    return "\n".join(
        f"To use the {name}, end your reply with a line that begins with '{name}:', and wait for its result."
        for name in tools
    )


def run_agent(
    question: str, model: AgentModel, tools: Mapping[str, Tool], tracker: BudgetTracker, max_turns: int = 16
) -> AgentRun:
    """Let a model answer a question with tools, inside its budgets.

    The first call in a reply is made, and its result goes back with :meth:`BudgetTracker.text`. A call whose budget is spent is
    refused, and the model is told so; a tool's own error is its result, and costs the call. The run is over with a reply that
    calls nothing, after ``max_turns`` replies, or when no thinking tokens are left, with one reply more to answer in.

    Args:
        question: the first message, after how to call the tools.
        model: answers a conversation.
        tools: by name, each from an argument to a result; only those that the tracker has a budget for may be called.
        tracker: the budgets.
        max_turns: replies at most.

    Raises:
        BudgetctlError: when a tool has no budget, or a budget no tool.
    """
    if set(tools) != set(tracker.tools):
        raise BudgetctlError(
            f"tools {sorted(tools)} and budgets for {sorted(tracker.tools)}: expected a budget for each tool; give both"
        )
    messages = [{"role": "user", "content": f"{instructions(tools)}\n\n{question}\n\n{tracker.text()}"}]
    turns: list[Turn] = []
    while len(turns) < max_turns:
        last = tracker.left == 0
        reply = model(messages, tracker)
        tracker = tracker.think(reply.thinking_tokens)
        messages.append({"role": "assistant", "content": reply.text})
        call = next((found for found in _CALL.finditer(reply.text) if found[1] in tools), None)
        if call is None or last:
            turns.append(Turn(reply))
            break
        name, argument = call[1], call[2]
        refused = name not in tracker.callable_tools()
        if refused:
            result = f"refused: no calls of {name} are left"
        else:
            tracker = tracker.call(name)
            try:
                result = tools[name](argument)
            except BudgetctlError as error:
                result = f"error: {error}"
        turns.append(Turn(reply, name, argument, result, refused))
        messages.append({"role": "user", "content": f"{name} gives {result}\n\n{tracker.text()}"})
    return AgentRun(tuple(turns), tracker, tuple(messages))


class ThinkingModel:
    """A model with budgetctl installed: each thought gets the tokens that are left, and opens with a note that says so.

    Args:
        installation: what ``budgetctl.install`` returned.
        max_new_tokens: of a reply, thought and answer together.
        options: of ``generate``, such as ``do_sample``.
    """

    def __init__(self, installation: Installation, *, max_new_tokens: int = 512, **options: Any) -> None:
        self.installation, self.max_new_tokens, self.options = installation, max_new_tokens, options

    @torch.no_grad()
    def __call__(self, messages: Sequence[Message], tracker: BudgetTracker) -> Reply:
        """The reply to a conversation."""
        model: Any = self.installation.model
        tokenizer = self.installation.tokenizer
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        sequences = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            thinking_budget=tracker.left,
            budget_notes=tracker,
            max_new_tokens=self.max_new_tokens,
            **self.options,
        )
        report = self.installation.reports(sequences)[0]
        assert self.installation.controller is not None
        delimiters = self.installation.controller.delimiters
        parts = split_sequence(sequences[0].tolist(), inputs.input_ids.shape[1], delimiters)
        answer = str(tokenizer.decode(list(parts.answer), skip_special_tokens=True)).strip()
        return Reply(answer, report.thinking_tokens, report.note_tokens)
