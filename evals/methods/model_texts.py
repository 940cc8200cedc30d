"""What the methods write into a thought or a prompt: the published words, and what stands for them where a model reads none."""

from __future__ import annotations

from dataclasses import dataclass

from budgetctl.evals.harness.method import Engine

#: A tokenizer that writes the early-stop sentence in more tokens a character than this has no English words.
WORDLESS = 0.5


@dataclass(frozen=True)
class ModelTexts:
    """Words and constants of the methods.

    Args:
        early_stop: before the close of a thought that is cut, as in Qwen3's documentation of its thinking budget.
        after_close: between the close and the answer.
        dummy_thought: the whole thought of NoThinking (arXiv 2504.09858).
        final_answer: begins the answer where s1 has cut the thought (arXiv 2501.19393, section 3).
        wait: what s1 writes where the thought would end.
        confidence_prompt: makes the model answer at once; DEER's (arXiv 2504.15895) with the brace opened.
        agreement_prompt: likewise, Dynasor's (arXiv 2412.20993), without the line before it.
        probe_tokens: most tokens of a trial answer; Dynasor's.
        turn: text at whose lines DEER probes; None for all lines.
        chunk: thinking tokens between Dynasor's probes, or "line" for the ends of lines.
        words_a_token: English words that a token comes to, to state a budget in words.
    """

    early_stop: str = "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    after_close: str = "\n\n"
    dummy_thought: str = "Okay, I think I have finished thinking.\n"
    final_answer: str = "\n\nFinal Answer:"
    wait: str = "Wait"
    confidence_prompt: str = "\n**Final Answer**\n\\boxed{"
    agreement_prompt: str = "\n\n**Final Answer**\n\n\\[ \\boxed{"
    probe_tokens: int = 20
    turn: str | None = "Wait"
    chunk: int | str = 64
    words_a_token: float = 0.75


PUBLISHED = ModelTexts()
#: For the embedded reasoner and its like: it answers after "Answer:", spells English letter by letter, and thinks for
#: tens of tokens where the published constants reckon with thousands. A token of its thoughts is 0.34 words. Line breaks
#: after the close are its own to write: its tokenizer spells them alone as a token that it has not been trained on.
WITHOUT_WORDS = ModelTexts(
    early_stop="",
    after_close="",
    dummy_thought="",
    final_answer="\n\nAnswer:",
    confidence_prompt="\n\nAnswer:",
    agreement_prompt="\n\nAnswer:",
    probe_tokens=8,
    turn=None,
    chunk="line",
    words_a_token=0.34,
)


def texts_for(engine: Engine) -> ModelTexts:
    """The texts that suit the engine's model, told from its tokenizer."""
    sentence = PUBLISHED.early_stop
    tokens = engine.tokenizer.encode(sentence, add_special_tokens=False)
    return WITHOUT_WORDS if len(tokens) > WORDLESS * len(sentence) else PUBLISHED
