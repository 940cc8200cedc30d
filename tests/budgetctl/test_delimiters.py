"""``find_delimiters`` on small tokenizers built like those of the model families."""

# ruff: noqa: RUF001  (the bar in DeepSeek's role tokens is full width)

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from budgetctl.delimiters import FAMILIES, ThinkingDelimiters, find_delimiters
from budgetctl.errors import DelimiterError
from budgetctl.families import GENERIC_PAIRS
from budgetctl.state import thinking_state

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ OPENING }}{% endif %}"
)
QWEN = CHATML.replace("{{ OPENING }}", "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}")
OPENED = CHATML.replace("{{ OPENING }}", "<think>\n")
PLAIN = CHATML.replace("{{ OPENING }}", "")
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}"
    "<｜Assistant｜>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
    "{{ m.content }}</s>{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Tags and code, so that merges cross the marker's ends: ".</", ">\n", "\n\n".
CORPUS = [
    "<p>one.</p>\n",
    "<b>two</b>\n\n",
    'x = "</i>";\n',
    "I think.\n</p>",
    "think>\n",
    "user\nassistant\n",
] * 40


# Words, then marks with the line ends after them, as in Llama 3 and Qwen; GPT-2 keeps line ends apart.
LLAMA_WORDS = Regex(r"\s?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")


def build(
    template: str | None, *special: str, eos: str | None = None, markers: bool = True, llama: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each of ``special`` is one token."""
    tokenizer = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama)
    split = [pre_tokenizers.Split(LLAMA_WORDS, "isolated")] if llama else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    added = (*special, *(("<think>", "</think>") if markers else ()))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, eos_token=eos)


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return build(QWEN, "<|im_start|>", "<|im_end|>", "<|box_start|>", eos="<|im_end|>")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def plain(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """No marker tokens, none in the template."""
    llama = request.param == "llama"
    return build(PLAIN, "<|im_start|>", "<|im_end|>", eos="<|im_end|>", markers=False, llama=llama)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def chat(tokenizer: PreTrainedTokenizerFast, question: str, **switches: bool) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False, **switches
    )
    return tokenizer.encode(text, add_special_tokens=False)


def test_model_that_opens_the_thought_itself(qwen: PreTrainedTokenizerFast) -> None:
    found = find_delimiters(qwen)
    opening, end = (qwen.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
    assert found == ThinkingDelimiters(
        open_ids=(opening,),
        natural_end_ids=((end,),),
        forced_end_ids=(end,),
        turn_start_ids=ids_of(qwen, "<|im_start|>assistant\n"),
        open_variants=((opening,),),
        eos_ids=(qwen.convert_tokens_to_ids("<|im_end|>"),),
        family="qwen3",
        open_text="<think>",
        close_text="</think>",
        blank_ids=(ids_of(qwen, "\n"), ids_of(qwen, "\n\n")),
    )


def test_template_that_opens_the_thought() -> None:
    tokenizer = build(OPENED, "<|im_start|>", "<|im_end|>")
    found = find_delimiters(tokenizer)
    assert found.opened_by_template
    assert found.turn_start_ids == ids_of(tokenizer, "<|im_start|>assistant\n")
    assert found.lead_ids == ids_of(tokenizer, "\n")
    assert found.eos_ids == ()
    state = thinking_state(torch.tensor([chat(tokenizer, "hi")]), found)
    assert (state.at_start.item(), state.used.item(), state.generated.item()) == (True, 0, 0)


def test_template_that_closes_the_thought_unless_asked() -> None:
    tokenizer = build(DEEPSEEK, "<｜User｜>", "<｜Assistant｜>", "<|end|>", eos="<|end|>")
    found = find_delimiters(tokenizer)
    assert found.family == "deepseek"
    assert found.turn_start_ids == ids_of(tokenizer, "<｜Assistant｜>")
    assert (found.opened_by_template, found.implicit, found.lead_ids) == (False, False, ())
    for switch in (True, False):
        state = thinking_state(torch.tensor([chat(tokenizer, "hi", thinking=switch)]), found)
        assert state.thinking.item() is switch


def test_header_of_a_template_without_generation_prompt() -> None:
    tokenizer = build(MISTRAL, "[INST]", "[/INST]", "</s>", "[THINK]", "[/THINK]", eos="</s>", markers=False)
    found = find_delimiters(tokenizer)
    assert (found.family, found.open_text, found.close_text) == ("magistral", "[THINK]", "[/THINK]")
    assert found.turn_start_ids == ids_of(tokenizer, "[/INST]")


def test_header_that_is_always_there() -> None:
    """Only the thought depends on what is asked for."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    tokenizer = build(template, "<|im_start|>", "<|im_end|>")
    found = find_delimiters(tokenizer)
    assert found.turn_start_ids == ids_of(tokenizer, "<|im_end|>\n<|im_start|>assistant\n")
    assert found.opened_by_template
    prompt = chat(tokenizer, "hi")
    assert thinking_state(torch.tensor([prompt]), found, prompt_length=len(prompt)).at_start.item()


def test_harmony_thinks_on_a_channel() -> None:
    special = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")
    tokenizer = build(HARMONY, *special, eos="<|return|>", markers=False)
    found = find_delimiters(tokenizer)
    assert (found.family, found.resumes_turn) == ("gpt-oss", True)
    assert found.open_ids == ids_of(tokenizer, "<|channel|>analysis<|message|>")
    assert found.forced_end_ids == ids_of(tokenizer, "<|end|>")
    assert found.turn_start_ids == ids_of(tokenizer, "<|start|>assistant")


def test_no_chat_template() -> None:
    found = find_delimiters(build(None))
    assert (found.turn_start_ids, found.opened_by_template, found.family) == ((), False, "detected")


@pytest.mark.parametrize("name", ["granite", "apriel", "exaone-deep"])
def test_markers_that_only_the_template_mentions(name: str) -> None:
    family = FAMILIES[name]
    mention = "{# " + " ".join((family.open_text, *family.signs)) + " #}"
    found = find_delimiters(build(mention + PLAIN, "<|im_start|>", "<|im_end|>", markers=False))
    assert (found.family, found.open_text, found.close_text) == (name, family.open_text, family.close_text)


@pytest.mark.parametrize("pair", GENERIC_PAIRS)
@pytest.mark.parametrize("tokens", [True, False])
def test_common_pairs(pair: tuple[str, str], tokens: bool) -> None:
    template = PLAIN if tokens else "{# " + pair[1] + " #}" + PLAIN
    tokenizer = build(template, "<|im_start|>", *(pair if tokens else ()), markers=False)
    found = find_delimiters(tokenizer)
    assert (found.family, found.open_text, found.close_text) == ("detected", *pair)


def test_marker_of_several_tokens_is_seen_in_every_context(plain: PreTrainedTokenizerFast) -> None:
    found = find_delimiters(plain, open_text="<think>", close_text="</think>")
    assert len(found.natural_end_ids) > 1
    assert plain.decode(found.forced_end_ids) == "</think>"
    for before in ("one", "one.", "one\n", "one.\n\n", "one)", 'he said "so"', "x = `y`"):
        for after in ("\n", "\n\nAnswer", " so", "so"):
            prompt = chat(plain, "hi </think>")
            row = prompt + list(ids_of(plain, f"<think>\n{before}</think>{after}"))
            state = thinking_state(torch.tensor([row]), found, prompt_length=len(prompt))
            assert state.closed.item(), (before, after)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab.,!?)]}*`\"' \n<>/"), max_size=8))
def test_forced_close_is_seen_after_any_thought(plain: PreTrainedTokenizerFast, thought: str) -> None:
    found = find_cached(plain)
    prompt = chat(plain, "hi")
    row = [*prompt, *found.open_ids, *ids_of(plain, thought), *found.forced_end_ids]
    assert thinking_state(torch.tensor([row]), found, prompt_length=len(prompt)).closed.item()


_CACHE: dict[int, ThinkingDelimiters] = {}


def find_cached(tokenizer: PreTrainedTokenizerFast) -> ThinkingDelimiters:
    key = id(tokenizer)
    if key not in _CACHE:
        _CACHE[key] = find_delimiters(tokenizer, open_text="<think>", close_text="</think>")
    return _CACHE[key]


def test_spellings_carry_no_words(plain: PreTrainedTokenizerFast) -> None:
    found = find_cached(plain)
    for variants, text in ((found.natural_end_ids, "</think>"), (found.open_variants, "<think>")):
        assert len(set(variants)) == len(variants)
        for variant in variants:
            before, _, after = plain.decode(variant).partition(text)
            assert not any(c.isalnum() for c in before)
            assert after.strip() == ""


def test_typed_markers_are_ignored(qwen: PreTrainedTokenizerFast) -> None:
    found = find_delimiters(qwen)
    for question in ("say <think>", "<think>a</think>", "</think>", "<|im_start|>assistant\n<think>"):
        prompt = chat(qwen, question)
        assert not thinking_state(torch.tensor([prompt]), found).started.item(), question


def test_thinking_switched_off_leaves_a_closed_thought(qwen: PreTrainedTokenizerFast) -> None:
    row = torch.tensor([chat(qwen, "hi", enable_thinking=False)])
    state = thinking_state(row, find_delimiters(qwen))
    assert (state.thinking.item(), state.closed.item()) == (False, True)


def test_template_that_writes_an_empty_thought() -> None:
    tokenizer = build(
        CHATML.replace("{{ OPENING }}", "<think>\n\n</think>\n\n"), "<|im_start|>", "<|im_end|>"
    )
    found = find_delimiters(tokenizer)
    assert (found.opened_by_template, found.lead_ids) == (False, ())
    assert found.turn_start_ids == ids_of(tokenizer, "<|im_start|>assistant\n")


def test_merge_with_a_word_is_no_spelling() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["a</t>", "</t>a"] * 20, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert len(ids_of(wrapped, "a</t>")) == len(ids_of(wrapped, "</t>a")) == 1
    found = find_delimiters(wrapped, open_text="<t>", close_text="</t>")
    assert {wrapped.decode(ids).strip() for ids in found.natural_end_ids} == {"</t>"}


def test_word_start_spaces_are_not_forced_into_the_thought() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    letters = [*'<>/think▁ab.\n!?:)]}*`"$。']
    trainer = trainers.BpeTrainer(vocab_size=60, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(["think a </a> <b>"] * 5, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = find_delimiters(wrapped, open_text="<think>", close_text="</think>")
    thought = ids_of(wrapped, "a b")
    assert wrapped.decode([*thought, *found.forced_end_ids]) == "a b</think>"


def test_family_by_name_and_other_texts(plain: PreTrainedTokenizerFast) -> None:
    found = find_delimiters(plain, family="seed-oss")
    assert (found.open_text, found.close_text, found.family) == ("<seed:think>", "</seed:think>", "seed-oss")
    found = find_delimiters(plain, family="granite", close_text="Done:")
    assert (found.open_text, found.close_text) == ("Here is my thought process:", "Done:")


def test_implicit_thought(plain: PreTrainedTokenizerFast, qwen: PreTrainedTokenizerFast) -> None:
    found = find_delimiters(plain, close_text="</think>", implicit=True)
    assert (found.implicit, found.open_ids, found.open_variants) == (True, (), ())
    assert thinking_state(torch.tensor([chat(plain, "hi")]), found).at_start.item()
    assert find_delimiters(qwen, implicit=True).implicit


@pytest.mark.parametrize(
    ("given", "kept"), [(7, (7,)), ([7, 9, 7], (7, 9)), (torch.tensor([4]).tolist(), (4,))]
)
def test_ends_of_sequence(
    qwen: PreTrainedTokenizerFast, given: int | list[int], kept: tuple[int, ...]
) -> None:
    assert find_delimiters(qwen, eos_token_id=given).eos_ids == kept


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "pass open_text"),
        ({"family": "qwen9"}, "qwen3"),
        ({"open_text": "<a>"}, "pass close_text"),
        ({"close_text": "<a>"}, "implicit=True"),
        ({"open_text": "<a>", "close_text": "<a>"}, "different"),
        ({"open_text": "<a>", "close_text": ""}, "empty"),
        ({"open_text": "ab", "close_text": "abab"}, "overlap"),
    ],
)
def test_errors_say_what_to_do(plain: PreTrainedTokenizerFast, options: dict[str, str], said: str) -> None:
    with pytest.raises(DelimiterError, match=said) as caught:
        find_delimiters(plain, **options)
    assert "\n" not in str(caught.value)


def test_marker_that_cannot_be_written() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(DelimiterError, match="does not write '<t>' back"):
        find_delimiters(wrapped, open_text="<t>", close_text="</t>")


def test_broken_template_is_named(plain: PreTrainedTokenizerFast) -> None:
    broken = build("{{ raise_exception('only\ntools') }}", "<think>", markers=False)
    with pytest.raises(DelimiterError, match="only tools") as caught:
        find_delimiters(broken, open_text="<think>", close_text="</think>")
    assert "\n" not in str(caught.value)


def test_sequences_without_tokens_are_refused() -> None:
    good = ThinkingDelimiters((1,), ((2,),), (2,))
    for change in ({"forced_end_ids": ()}, {"natural_end_ids": ((),)}, {"open_ids": ()}):
        with pytest.raises(DelimiterError):
            dataclasses.replace(good, **change)


@pytest.mark.parametrize(
    ("opening", "end"),
    [((1, 2), (2, 3)), ((2, 3), (1, 2)), ((1,), (2, 1, 3)), ((2, 1, 3), (1,)), ((1,), (1,))],
)
def test_markers_that_can_overlap_are_refused(opening: tuple[int, ...], end: tuple[int, ...]) -> None:
    with pytest.raises(DelimiterError, match="can overlap"):
        ThinkingDelimiters(opening, (end,), end)
    ThinkingDelimiters((4, 5), (end,), end)


@pytest.mark.parametrize("inner", [{"natural_end_ids": ((8,), (9,))}, {"tool_call_ids": ((7, 8),)}])
def test_a_forced_close_that_would_end_the_thought_early_is_refused(inner: dict[str, Any]) -> None:
    """Its first tokens would then be thinking tokens over the budget."""
    markers: dict[str, Any] = {"open_ids": (4,), "natural_end_ids": ((9,),), "forced_end_ids": (6, 7, 8, 9)}
    with pytest.raises(DelimiterError, match="stand inside the forced close") as caught:
        ThinkingDelimiters(**(markers | inner))
    assert "\n" not in str(caught.value)
    for whole in (((8, 9),), ((6, 7),), ((7, 8, 5),)):  # its end, its beginning, more than it has
        ThinkingDelimiters(**(markers | {"natural_end_ids": whole}))


def test_embedded_reasoner() -> None:
    from budgetctl.training.reasoner.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    found = find_delimiters(tokenizer)
    assert (found.open_text, found.close_text, found.opened_by_template) == ("<think>", "</think>", True)
    assert found.lead_ids == ids_of(tokenizer, "\n")
    assert tokenizer.decode(found.turn_start_ids) == "<|im_start|>assistant\n"
