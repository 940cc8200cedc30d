"""Notes of what is left: whole, in their places, never beyond half of what is left, a function of the prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import find_delimiters
from budgetctl.errors import BudgetError
from budgetctl.plan.enforce import StepGuide
from budgetctl.plan.knob import follow_plans, write_notes
from budgetctl.plan.note_guide import NoteGuide
from budgetctl.plan.notes import LEVELS, BudgetNotes, SpelledNotes
from budgetctl.plan.step_reader import steps_begun
from budgetctl.plan.tracker import BudgetTracker, ToolBudget
from budgetctl.sampling import SeededSampler

LINE, STOP, OPEN, CLOSE, NOTE = 2, 3, 10, 11, 14
CASE = "opened by the template"
ROWS = 10
#: A sentence ends inside each of them.
LEVEL_IDS = tuple((NOTE, 13 if level < 10 else 15, STOP, LINE) for level in range(LEVELS + 1))
OPENING = (NOTE, 16, LINE)
NOTES = [
    SpelledNotes((), LEVEL_IDS),
    SpelledNotes(OPENING, LEVEL_IDS),
    None,
    SpelledNotes(OPENING, ()),
    SpelledNotes((), LEVEL_IDS),
] * 2
WEIGHTS: list[list[float] | None] = [[1, 1, 1], [3, 1], [1, 2], None, [1, 2, 1, 2]] * 2
Make = Callable[..., BudgetController]


@pytest.fixture
def controller(markers: Any, forecast: Any, boundaries: Any, row_plans: Any) -> Make:
    def make(
        width: int,
        rows: Any = range(ROWS),
        budgets: Any = (40,) * ROWS,
        steer: bool = True,
        notes: Any = NOTES,
    ) -> BudgetController:
        made = BudgetController(
            markers[CASE],
            forecast=forecast if steer else None,
            boundaries=boundaries,
            prompt_length=width,
            max_new_tokens=70,
            answer_reserve=4,
            thinking_budget=[budgets[i] for i in rows],
        )
        made.steps = StepGuide(row_plans([WEIGHTS[i] for i in rows]), made.limits)
        if notes is not None:
            made.notes = NoteGuide([notes[i] for i in rows], made.limits, made.steps)
        return made

    return make


def silent(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The model itself never writes what begins a note, hardly ever closes, and is fond of lines and marks."""
    scores = scores.index_fill(1, torch.tensor([NOTE]), -torch.inf)
    return scores.index_add(
        1, torch.tensor([CLOSE, LINE, 5, 6]), torch.tensor([[-3.0, 1.5, 1, 1]] * len(scores)).double()
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 10_000), steer=st.booleans())
def test_notes_stand_whole_where_they_belong_and_the_budget_holds(
    data: st.DataObject,
    seed: int,
    steer: bool,
    toy: Any,
    markers: Any,
    prompts_of: Any,
    write: Any,
    controller: Make,
) -> None:
    budgets = data.draw(st.lists(st.integers(0, 60), min_size=ROWS, max_size=ROWS))
    prompts = prompts_of(markers[CASE], ROWS)
    width = prompts.shape[1]
    made = controller(width, budgets=budgets, steer=steer)
    ids = write(toy, prompts, [silent, made, SeededSampler(range(seed, seed + ROWS), width)], 70)
    plans = made.steps.on(ROWS, torch.device("cpu"))  # type: ignore[union-attr]
    line = made.boundaries.line  # type: ignore[union-attr]
    begun = steps_begun(ids, torch.full((ROWS,), width), plans, line)[:, width:].tolist()
    for row, notes in enumerate(NOTES):
        thought = ids[row, width:].tolist()
        stop = next((at for at, token in enumerate(thought) if token in (CLOSE, 1)), len(thought))
        total = min(budgets[row], 65)
        assert stop <= total
        due: dict[int, tuple[int, ...]] = {}
        if notes is not None and notes.opening and total and len(OPENING) <= total / 2:
            due[0] = OPENING
        firsts = {number: begun[row].index(number) for number in sorted(set(begun[row][:stop])) if number > 1}
        for number, first in firsts.items():
            ends = [at for at in range(first + 1, stop) if line[thought[at]]]
            if notes is None or not notes.levels or not ends or begun[row][ends[0]] != number:
                continue
            used = ends[0] + 1
            share_left = round(float(plans.ends[row, number - 1]) * total) - used
            if min(total - used, share_left) / 2 >= 4:
                due[used] = LEVEL_IDS[(total - used - 4) * LEVELS // total]
        written = {
            at: tuple(thought[at : at + len(due.get(at, ()))]) for at in range(stop) if thought[at] == NOTE
        }
        assert written == due
        assert (notes.tokens_in(tuple(thought[:stop]), line) if notes else 0) == sum(map(len, due.values()))


@pytest.mark.parametrize("steer", [False, True])
def test_same_scores_in_any_order_and_beside_any_rows(
    steer: bool, toy: Any, markers: Any, prompts_of: Any, write: Any, controller: Make
) -> None:
    prompts = prompts_of(markers[CASE], ROWS)
    width = prompts.shape[1]
    ids = write(toy, prompts, [silent, controller(width, steer=steer), SeededSampler(range(ROWS), width)], 50)
    written = ids[:, width:]
    assert int((written == NOTE).sum()) > 4
    assert int(((written[:, :-1] == NOTE) & (written[:, 1:] != 16)).sum()) > 1  # at steps, not openings
    steps = [ids[:, :stop] for stop in range(width, ids.shape[1])]
    logits = [toy.read(prefix) for prefix in steps]
    first = controller(width, steer=steer)
    wanted = [first(p, s) for p, s in zip(steps, logits, strict=True)]
    backwards = [first(p, s) for p, s in zip(steps[::-1], logits[::-1], strict=True)][::-1]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    other = controller(width, order.tolist(), steer=steer)
    for step, scores in enumerate(wanted):
        assert torch.equal(scores, backwards[step])
        moved = other(steps[step][order], logits[step][order])
        torch.testing.assert_close(moved, scores[order], rtol=1e-9, atol=1e-9)


def test_what_the_model_begins_alike_is_not_taken_for_a_note(
    markers: Any, boundaries: Any, row_plans: Any
) -> None:
    prompt = [7, 5, 8, 9, OPEN, LINE]
    made = BudgetController(markers[CASE], boundaries=boundaries, prompt_length=6, thinking_budget=60)
    made.steps = StepGuide(row_plans([[1, 5]]), made.limits)
    made.notes = NoteGuide([SpelledNotes((), LEVEL_IDS)], made.limits, made.steps)

    def next_tokens(rest: list[int]) -> list[int]:
        return made(torch.tensor([prompt + rest]), torch.zeros(1, 18)).isfinite().nonzero()[:, 1].tolist()

    assert len(next_tokens([4, LINE, NOTE])) > 1  # in the first step
    assert next_tokens([4, LINE, 5, LINE]) == [NOTE]  # step 2 has begun in a line of its own
    assert next_tokens([4, LINE, 5, LINE, NOTE]) == [15]
    assert next_tokens([4, LINE, 5, LINE, NOTE, 15, STOP]) == [LINE]
    assert len(next_tokens([4, LINE, 5, LINE, NOTE, 15, STOP, LINE])) > 1
    assert len(next_tokens([4, LINE, 5, LINE, 4, LINE, NOTE])) > 1  # not its first line
    assert len(next_tokens([4, LINE, 5, 4])) > 1  # no line end


def test_none_inside_code_nor_inside_a_character(byte_tokenizer: Any) -> None:
    delimiters = find_delimiters(byte_tokenizer)
    boundaries = Boundaries.from_tokenizer(byte_tokenizer, len(byte_tokenizer))
    assert boundaries.spans is not None
    assert boundaries.spans.missing is not None
    assert not bool((boundaries.line & (boundaries.spans.missing > 0)).any())
    prompt = byte_tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False
    )

    def follows(thought: str) -> str:
        made = BudgetController(
            delimiters,
            boundaries=boundaries,
            prompt_length=len(byte_tokenizer(prompt, add_special_tokens=False).input_ids),
            thinking_budget=600,
        )
        follow_plans(made, [{"text": "a", "heading": ""}, {"text": "b", "weight": 9}], byte_tokenizer)
        write_notes(made, True, byte_tokenizer)
        ids = byte_tokenizer(prompt + thought, return_tensors="pt", add_special_tokens=False).input_ids
        scores = made(ids, torch.zeros(1, len(byte_tokenizer)))
        allowed = scores.isfinite().nonzero()[:, 1].tolist()
        return str(byte_tokenizer.decode(allowed)) if len(allowed) == 1 else ""

    assert follows("x\nStep 2: b\n") == "["
    assert follows("x\nStep 2: b\n[about 4") == "8"  # 16 twentieths of 600 are left after the note
    assert follows("x\n```\nStep 2: b\n") == ""
    assert follows("x\n```\ny\n```\nStep 2: b\n") == "["


def test_what_notes_say() -> None:
    tools = {"calculator": ToolBudget(4, price=5, used=1)}
    tracker = BudgetTracker(400, used=100, tools=tools)
    assert BudgetNotes(tracker).opening() == (
        "[300 of 400 thinking tokens left; calculator: 3 of 4 calls. HIGH: There is room to explore: compare several ways]\n"
    )
    assert BudgetNotes().opening() is None
    plain = BudgetNotes()
    assert plain.at_level(10, 90) == (
        "[about 45 of 90 thinking tokens left. MEDIUM: Go on with the most promising way]\n"
    )
    assert plain.at_level(1, None) == (
        "[about 5 % of the thinking tokens left. CRITICAL: Answer now with what is known]\n"
    )
    # A thought of 200 tokens of what the tracker has: 150 of them used.
    assert (
        BudgetNotes(tracker, "{budget} {regime}").at_level(5, 200)
        == "about 150 of 400 thinking tokens MEDIUM\n"
    )
    spent = BudgetTracker(400, tools={"calculator": ToolBudget(4, used=4)})
    assert BudgetNotes(spent, "{regime}{tools}").opening() == "CRITICAL; calculator: 0 of 4 calls\n"
    regimes = [BudgetNotes(template="{regime}").at_level(level, 100).strip() for level in range(LEVELS + 1)]
    assert regimes == ["CRITICAL"] * 2 + ["LOW"] * 4 + ["MEDIUM"] * 8 + ["HIGH"] * 7


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("yes", "expected true, a BudgetTracker"),
        ({"tracker": {"tokens": -1}}, "tokens=-1"),
        ({"tracker": {"tokens": 5, "cash": 1}}, "perhaps used, and tools"),
        ({"tracker": {"tokens": 5, "tools": {"a": {"price": 2}}}}, "perhaps used, and tools"),
        ({"template": "two\nlines"}, "one line of text"),
        ({"template": "```{budget}"}, "without a code fence"),
        ({"template": "{left}"}, "no fields but budget"),
        ({"template": "{budget"}, "correct its braces"),
    ],
)
def test_values_that_are_none(value: Any, match: str) -> None:
    with pytest.raises(BudgetError, match=match):
        BudgetNotes.of(value)


def test_a_tracker_as_data() -> None:
    fields = {"tokens": 9, "used": 2, "tools": {"a": {"calls": 3, "price": 1.5}}}
    assert BudgetTracker.of(fields) == BudgetTracker(9, 2, {"a": ToolBudget(3, 1.5)})
