"""Thought markers of known model families, and how each family is recognised from its tokenizer.

What each entry was checked against stands in ``docs/families.md``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How one model family writes its thoughts.

    Args:
        open_text: marker that begins a thought.
        close_text: marker that ends it.
        signs: strings that must all be a token of the vocabulary or stand in the chat template.
        implicit: the thought begins at the turn start, without ``open_text``.
        resumes_turn: after a close the model writes the assistant header again, in the same turn.
        other_opens: other texts that begin a thought.
        other_closes: other texts that end it.
        shared_open: beginning of ``open_text`` with which other parts of an answer begin too, "" for none. None for a
            marker in plain text, of which only the last token makes it one.
        shared_close: the same of ``close_text``.
        tool_calls: texts that begin a tool call; models also write them instead of a close.
        answer_headers: texts that begin a message of the answer and are no part of its text.
    """

    open_text: str
    close_text: str
    signs: tuple[str, ...]
    implicit: bool = False
    resumes_turn: bool = False
    other_opens: tuple[str, ...] = ()
    other_closes: tuple[str, ...] = ()
    shared_open: str | None = None
    shared_close: str | None = None
    tool_calls: tuple[str, ...] = ()
    answer_headers: tuple[str, ...] = ()


_TAGS = ("<think>", "</think>")
_TOOL_CALL = ("<tool_call>",)

#: Name -> family. The first whose signs are all there is taken, so the more telling signs stand first.
#: Families that share ``<think>`` and ``</think>`` differ in little but the name: whether the template opens the
#: thought is read from the rendered template, never from this table.
FAMILIES: dict[str, Family] = {
    # Harmony: a thought is a message on the analysis channel, and an answer one on the final channel.
    "gpt-oss": Family(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        ("<|channel|>", "<|message|>", "<|start|>"),
        resumes_turn=True,
        shared_open="<|channel|>",
        answer_headers=("<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
    ),
    # The line break belongs to the channel's name.
    "gemma": Family(
        "<|channel>thought\n",
        "<channel|>",
        ("<|channel>", "<channel|>"),
        shared_open="",
        tool_calls=("<|tool_call>",),
    ),
    # Sections of one message: think, response, tools.
    "kimi-k3": Family(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        ("<|open|>", "<|close|>", "<|sep|>"),
        shared_open="<|open|>",
        shared_close="<|close|>",
        tool_calls=("<|open|>tools<|sep|>",),
    ),
    "magistral": Family("[THINK]", "[/THINK]", ("[THINK]", "[/THINK]")),
    "seed-oss": Family("<seed:think>", "</seed:think>", ("<seed:think>", "</seed:think>")),
    "minimax-m3": Family("<mm:think>", "</mm:think>", ("<mm:think>", "</mm:think>")),
    "cohere": Family("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>")),
    "apertus": Family("<|inner_prefix|>", "<|inner_suffix|>", ("<|inner_prefix|>", "<|inner_suffix|>")),
    "longcat": Family("<longcat_think>", "</longcat_think>", ("<longcat_think>", "</longcat_think>")),
    # Kimi-VL and Kimi-Dev; Kimi K2 uses the tags.
    "kimi-vl": Family("◁think▷", "◁/think▷", ("◁think▷", "◁/think▷")),
    "kimi": Family(*_TAGS, (*_TAGS, "<|im_middle|>"), tool_calls=("<|tool_calls_section_begin|>",)),
    # Granite 3.2; quantised models write the short forms.
    "granite": Family(
        "Here is my thought process:",
        "Here is my response:",
        ("Here is my thought process:", "Here is my response:"),
        other_opens=("Here's my thought process:",),
        other_closes=("Here's my response:",),
    ),
    # Granite 3.3: only the template mentions the tags.
    "granite-tags": Family(*_TAGS, ("</think>", "<|start_of_role|>", "<|end_of_role|>")),
    "apriel": Family("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ("[BEGIN FINAL RESPONSE]",)),
    "exaone-deep": Family("<thought>", "</thought>", ("<thought>", "</thought>", "[|assistant|]")),
    "exaone": Family(*_TAGS, (*_TAGS, "[|assistant|]")),
    "k-exaone": Family(*_TAGS, (*_TAGS, "<|endofturn|>", "<|assistant|>")),
    "deepseek": Family(*_TAGS, (*_TAGS, "<｜Assistant｜>")),  # noqa: RUF001
    "glm": Family(*_TAGS, (*_TAGS, "[gMASK]"), tool_calls=_TOOL_CALL),
    "minimax": Family(*_TAGS, (*_TAGS, "]~b]")),
    # A13B spells the tags in plain text; the dense models have other role tokens.
    "hunyuan": Family(*_TAGS, ("</think>", "<|extra_0|>"), tool_calls=("<tool_calls>",)),
    "hunyuan-dense": Family(*_TAGS, ("</think>", "<｜hy_Assistant｜>"), tool_calls=("<tool_calls>",)),  # noqa: RUF001
    "phi-4-reasoning": Family(*_TAGS, (*_TAGS, "<|im_sep|>")),
    "nemotron": Family(*_TAGS, ("</think>", "<SPECIAL_20>"), tool_calls=_TOOL_CALL),
    # The tags in plain text, after a system prompt that asks for them.
    "llama-nemotron": Family(*_TAGS, ("</think>", "<|start_header_id|>", "<TOOLCALL>")),
    "olmo": Family(*_TAGS, ("<think>", "<|im_start|>", "<functions></functions>")),
    "smollm3": Family(*_TAGS, ("</think>", "<|im_start|>", "<|begin_of_text|>")),
    "qwen3": Family(*_TAGS, (*_TAGS, "<|im_start|>", "<|box_start|>"), tool_calls=_TOOL_CALL),
}

#: Marker pairs looked for when no family matches: first as single tokens, then in the chat template.
GENERIC_PAIRS: tuple[tuple[str, str], ...] = (
    _TAGS,
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|think|>", "<|/think|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
