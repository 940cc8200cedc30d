"""``on_report``: called with the reports when a ``generate`` call has finished, and changes nothing else."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from budgetctl.integrations.transformers import install
from budgetctl.telemetry import ThoughtReport


class Inbox(list[list[ThoughtReport]]):
    """A callback that keeps what it gets."""

    def __call__(self, reports: list[ThoughtReport]) -> None:
        self.append(reports)


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ended = True


def test_without_a_callback_nothing_is_reported(
    model: Any, tokenizer: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetctl.integrations.callback.report_sequences", None)
    install(model, tokenizer)
    assert model.generate(**inputs, thinking_budget=3).shape[0] == 2


@pytest.mark.parametrize("as_output", [False, True])
def test_reports_come_by_themselves(
    as_output: bool, model: Any, tokenizer: Any, inputs: Any, artifact: Any
) -> None:
    inbox = Inbox()
    found = install(model, tokenizer, artifact, on_report=inbox)
    for budget in (3, 6):
        output = model.generate(**inputs, thinking_budget=budget, return_dict_in_generate=as_output)
        sequences = output.sequences if as_output else output
        assert inbox[-1] == found.reports(sequences)
        assert [report.thinking_budget for report in inbox[-1]] == [budget, budget]
        assert all(report.guidance_strength == artifact.guidance_strength for report in inbox[-1])
    assert len(inbox) == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_return_sequences": 2},
        {"do_sample": False, "num_beams": 2},
        {"do_sample": False, "prompt_lookup_num_tokens": 3},
    ],
)
def test_output_is_the_same_bit_for_bit(
    options: dict[str, Any], model: Any, tokenizer: Any, inputs: Any
) -> None:
    """Also: one callback a call, with one report a returned sequence."""
    if "prompt_lookup_num_tokens" in options:
        inputs = {name: value[:1] for name, value in inputs.items()}

    def run() -> Any:
        torch.manual_seed(1)
        return model.generate(
            **inputs, thinking_budget=6, output_scores=True, return_dict_in_generate=True, **options
        )

    install(model, tokenizer)
    plain = run()
    inbox = Inbox()
    install(model, tokenizer, on_report=inbox)
    told = run()
    assert torch.equal(plain.sequences, told.sequences)
    assert type(plain) is type(told)
    assert all(torch.equal(a, b) for a, b in zip(plain.scores, told.scores, strict=True))
    assert [len(reports) for reports in inbox] == [len(told.sequences)]


def test_streamer_assistant_and_custom_loop(model: Any, tokenizer: Any, inputs: Any) -> None:
    """What the call was given arrives; drafts of an assistant are not reported."""
    inbox, drafts = Inbox(), Inbox()
    assistant = copy.deepcopy(model)
    install(assistant, tokenizer, on_report=drafts)
    found = install(model, tokenizer, on_report=inbox)
    one = {name: value[:1, int(inputs["attention_mask"][0].argmin()) :] for name, value in inputs.items()}
    heard = Heard()
    sequences = model.generate(**one, thinking_budget=4, streamer=heard)
    assert heard.ids == sequences[0].tolist()
    assert heard.ended

    sequences = model.generate(**one, thinking_budget=4, assistant_model=assistant, do_sample=False)
    assert inbox[-1] == found.reports(sequences)
    assert drafts == []

    def shout(model: Any, input_ids: Any, logits_processor: Any, note: str, **others: Any) -> Any:
        said.append(note)
        return model._sample(input_ids, logits_processor=logits_processor, **others)

    said: list[str] = []
    sequences = model.generate(**one, thinking_budget=4, custom_generate=shout, note="hello")
    assert said == ["hello"]
    assert inbox[-1] == found.reports(sequences)
    assert len(inbox) == 3


def test_a_model_that_drafts_for_itself_reports_once(model: Any, tokenizer: Any, inputs: Any) -> None:
    inbox = Inbox()
    found = install(model, tokenizer, on_report=inbox)
    one = {name: value[:1] for name, value in inputs.items()}
    sequences = model.generate(**one, thinking_budget=4, do_sample=False, assistant_early_exit=1)
    (reports,) = inbox
    assert reports == found.reports(sequences)
    assert reports[0].thinking_budget == 4
    assert found._prompt_length == one["input_ids"].shape[1]


def test_a_loop_inside_generate_reports_once(model: Any, tokenizer: Any, inputs: Any) -> None:
    inbox = Inbox()
    install(model, tokenizer, on_report=inbox)

    def twice(model: Any, input_ids: Any, **others: Any) -> Any:
        options = {"attention_mask": inputs["attention_mask"], "thinking_budget": 3}
        model.generate(input_ids=input_ids, **options)
        return model.generate(input_ids=input_ids, **options)

    model.generate(**inputs, thinking_budget=3, custom_generate=twice)
    assert [len(reports) for reports in inbox] == [2]


@pytest.mark.parametrize("returned", ["sequences", "text"])
def test_a_failing_callback_loses_nothing(
    returned: str, model: Any, tokenizer: Any, inputs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reports: list[ThoughtReport]) -> None:
        raise RuntimeError("disk full")

    def tell(model: Any, input_ids: Any, **others: Any) -> Any:
        return "done"

    install(model, tokenizer, on_report=fail)
    options = {} if returned == "sequences" else {"custom_generate": tell}
    with caplog.at_level(logging.WARNING, "budgetctl"):
        output = model.generate(**inputs, thinking_budget=3, **options)
    (record,) = caplog.records
    assert record.exc_info is not None
    if returned == "sequences":
        assert output.shape[0] == 2
        assert isinstance(record.exc_info[1], RuntimeError)
    else:
        assert output == "done"
        assert "expected sequences" in str(record.exc_info[1])
    model.generate(**inputs, thinking_budget=3)  # and the next call is told again
    assert len(caplog.records) == 2


def test_a_failing_generation_calls_nothing(model: Any, tokenizer: Any, inputs: Any) -> None:
    inbox = Inbox()
    install(model, tokenizer, on_report=inbox)
    with pytest.raises(ValueError, match="negative"):
        model.generate(**inputs, thinking_budget=-1)
    assert inbox == []
    model.generate(**inputs, thinking_budget=1)
    assert len(inbox) == 1


def test_calls_of_two_threads_are_told_apart(model: Any, tokenizer: Any, inputs: Any) -> None:
    inbox = Inbox()
    install(model, tokenizer, on_report=inbox)
    both = threading.Barrier(2)

    def run(budget: int) -> None:
        def together(model: Any, input_ids: Any, logits_processor: Any, **others: Any) -> Any:
            both.wait(timeout=60)
            return model._sample(input_ids, logits_processor=logits_processor, **others)

        model.generate(**inputs, thinking_budget=budget, custom_generate=together)

    threads = [threading.Thread(target=run, args=(budget,)) for budget in (2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reports[0].thinking_budget or 0 for reports in inbox) == [2, 5]


def test_uninstall_and_install_again(model: Any, tokenizer: Any, inputs: Any) -> None:
    old, new = Inbox(), Inbox()
    own = model.generate
    install(model, tokenizer, on_report=old)
    install(model, tokenizer, on_report=new).uninstall()
    assert "generate" not in vars(model)
    assert model.generate == own
    found = install(model, tokenizer, on_report=new)
    other = copy.deepcopy(model)
    other.lm_head.weight.data.zero_()
    assert not torch.equal(
        other.generate(**inputs, do_sample=False), model.generate(**inputs, do_sample=False)
    )
    assert (len(old), len(new)) == (0, 2)
    found.uninstall()

    def loop(*arguments: Any, **options: Any) -> torch.Tensor:
        return own(*arguments, **options)

    model.generate = loop  # a loop that the instance brought along
    found = install(model, tokenizer, on_report=new)
    model.generate(**inputs, thinking_budget=2)
    assert len(new) == 3
    found.uninstall()
    assert model.generate is loop
