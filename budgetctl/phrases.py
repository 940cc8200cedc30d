"""Phrases that a user has the controller write: text alone, without what would open, close or end anything."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from budgetctl.checks import shown
from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import BudgetctlError, BudgetError
from budgetctl.sequences import holds
from budgetctl.spelling import encode


def phrase_ids(
    tokenizer: PreTrainedTokenizerBase,
    delimiters: ThinkingDelimiters,
    phrase: object,
    name: str,
    error: type[BudgetctlError] = BudgetError,
) -> Tokens:
    """Token ids of ``phrase``; of the ``name`` that the user knows it by speak the messages.

    Raises:
        error: for what is no text, or text with a marker of the thought, a tool call or an end of sequence in it.
    """
    if not isinstance(phrase, str):
        raise error(f"{name}={shown(phrase)} is no text: expected a phrase; correct it")
    ids = encode(tokenizer, phrase)
    markers = (delimiters.open_text.strip(), delimiters.close_text.strip())
    if any(marker and marker in phrase for marker in markers):
        raise error(
            f"{name}={shown(phrase)} holds a marker of the thought: expected text alone; leave it out"
        )
    check_phrase(ids, delimiters, f"{name}={shown(phrase)}", error)
    return ids


def check_phrase(
    ids: Tokens, delimiters: ThinkingDelimiters, what: str, error: type[BudgetctlError] = BudgetError
) -> None:
    """Raise ``error`` about ``what`` where its token ids hold a marker, a tool call or an end of sequence."""
    if set(ids) & set(delimiters.eos_ids):
        raise error(f"{what} holds an end-of-sequence token: expected text alone; leave it out")
    for marker in (*delimiters.all_opens, *delimiters.end_variants, *delimiters.tool_call_ids):
        if holds(ids, marker):
            kind = "a tool call" if marker in delimiters.tool_call_ids else "a marker of the thought"
            raise error(f"{what} holds {kind}: expected text alone; leave it out")
