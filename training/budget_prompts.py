"""How a prompt says what thinking may cost: the sentences and system prompts that models are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

#: L1 (arXiv 2503.04697), exact and maximum.
L1_EXACT = "Think for {tokens} tokens."
L1_MAX = "Think for maximum {tokens} tokens."
#: e1 (arXiv 2510.27042) has the effort in the prompt; the wording is ours.
EFFORT = "Reasoning effort: {percent}%."
#: HBPO (arXiv 2507.15844) opens the thought with it.
THOUGHT_OPENING = "I will answer the question within {budget} tokens.\n"


@dataclass(frozen=True)
class Mode:
    """A reasoning mode of ThinkDial (arXiv 2508.18773).

    Args:
        share: of the full thought that is kept, in the data; the paper's 1/2 and 1/4.
        system: the mode's system prompt. The paper's tell the model how much time it has; the wording is ours.
        connective: what leads from a truncated thought to the close; ours, too.
    """

    share: Fraction
    system: str
    connective: str = ""


MODES = {
    "high": Mode(
        Fraction(1), "Reasoning mode: high. There is no limit to your time: think as long as it helps."
    ),
    "medium": Mode(
        Fraction(1, 2),
        "Reasoning mode: medium. Your time is limited: think about what matters, then answer.",
        "That is enough to answer.\n",
    ),
    "low": Mode(
        Fraction(1, 4),
        "Reasoning mode: low. You have very little time: think only briefly, then answer.",
        "I have to answer now.\n",
    ),
}

Messages = list[dict[str, str]]


def with_sentence(messages: Sequence[Mapping[str, str]], sentence: str) -> Messages:
    """The messages with a sentence at the end of the last one."""
    *before, last = (dict(message) for message in messages)
    return [*before, {**last, "content": f"{last['content'].rstrip()} {sentence}"}]


def with_system(messages: Sequence[Mapping[str, str]], text: str) -> Messages:
    """The messages with a system prompt; one that is there already is gone on with."""
    rest = [dict(message) for message in messages]
    if rest and rest[0]["role"] == "system":
        return [{"role": "system", "content": f"{rest[0]['content'].rstrip()}\n{text}"}, *rest[1:]]
    return [{"role": "system", "content": text}, *rest]


def effort_sentence(effort: float) -> str:
    """Of an effort in (0, 1]: 0.25 is ``Reasoning effort: 25%.``"""
    return EFFORT.format(percent=f"{100 * effort:g}")
