"""Planners: what is read from their replies, the one retry, the fallback, and plans that are kept on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from budgetctl.errors import BudgetctlError, PlanError
from budgetctl.plan.parse import parse_plan
from budgetctl.plan.plan import Plan
from budgetctl.plan.plan_cache import PlanCache
from budgetctl.plan.planner import Planner
from budgetctl.plan.prompts import planning_prompt, show_plan
from budgetctl.plan.writers import EndpointWriter, ModelWriter, Written
from budgetctl.reasoner.load import load_reasoner

GOOD = '{"steps": [{"text": "find the speed", "credit": 30}, {"text": "find the time", "credit": 70, "after": [1]}]}'


class Scripted:
    """Gives its replies one after the other, and remembers what it was asked."""

    def __init__(self, *replies: str, name: str = "scripted") -> None:
        self.name, self.replies, self.asked = name, list(replies), list[str]()

    def __call__(self, prompt: str) -> Written:
        self.asked.append(prompt)
        return Written(self.replies[len(self.asked) - 1], 10)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here is the plan, {{as asked}}:\n{GOOD} I hope [that] helps",
        f'<think>perhaps {{"steps": ["guess"]}}</think>\n{GOOD}',
        '{"plan": 1} [1, 2] ' + GOOD,
        '[{"text": "find the speed", "weight": 30}, {"text": "find the time", "weight": 70, "after": [1]}]',
        '{"steps": []} {"steps": [{"text": "x", "credit": NaN}]} ' + GOOD,
    ],
)
def test_replies_that_hold_a_plan(text: str) -> None:
    plan = parse_plan(text, planner_tokens=5)
    assert [step.text for step in plan.steps] == ["find the speed", "find the time"]
    assert plan.shares(100) == [30, 70]
    assert (plan.source, plan.planner_tokens) == ("planned", 5)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no JSON object with steps"),
        ("1. Find the speed\n2. Find the time", "no JSON object with steps"),
        ('{"steps": "find the speed"}', "no JSON object with steps"),
        ('{"steps": [{"text": "find', "no JSON object with steps"),
        ("[" * 20_000, "no JSON object with steps"),
        ('{"steps": []}', "0 steps"),
        (json.dumps({"steps": ["step"] * 200}), "200 steps"),
        ('{"steps": [{"text": "a", "credit": -4}]}', "weight -4"),
        ('{"steps": [{"text": "a", "credit": NaN}]}', "weight nan"),
        ('{"steps": [{"text": "a", "credit": 1e999}]}', "weight inf"),
        ('{"steps": [{"text": "a", "after": [2]}, {"text": "b", "after": [1]}]}', "wait for each other"),
    ],
)
def test_replies_that_hold_none(text: str, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        parse_plan(text)


def test_one_retry_says_what_was_wrong() -> None:
    writer = Scripted('{"steps": [{"text": "a", "credit": -4}]}', GOOD)
    plan = Planner(writer)("how long?")
    assert [step.text for step in plan.steps] == ["find the speed", "find the time"]
    assert plan.planner_tokens == 20
    assert writer.asked[0] == planning_prompt("how long?")
    assert writer.asked[1].startswith(writer.asked[0])
    assert "weight -4" in writer.asked[1]


@pytest.mark.parametrize(
    "reply", ["no", json.dumps({"steps": ["a"] * 200}), json.dumps({"steps": ["a"] * 6})]
)
def test_after_two_bad_replies_the_question_is_the_plan(reply: str, caplog: pytest.LogCaptureFixture) -> None:
    writer = Scripted(reply, reply)
    with caplog.at_level(logging.WARNING):
        plan = Planner(writer)("how long?")
    assert len(writer.asked) == 2
    assert plan == Plan.single("how long?", planner_tokens=20)
    assert "going on with a single step" in caplog.text


def test_plans_are_kept_by_question_and_planner(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    first = Planner(Scripted(GOOD), cache)("how long?")
    silent = Scripted()
    assert Planner(silent, cache)(" how long?\n") == first
    assert silent.asked == []
    other = Scripted(GOOD, name="another")
    assert Planner(other, cache)("how long?") == first
    assert len(other.asked) == 1
    for planner in (Planner(Scripted("no", "no"), cache), Planner(Scripted(), cache)):
        assert planner("how far?").source == "fallback"  # a planner that cannot is not asked again
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".json"] * 3


def test_a_planner_with_a_prompt_of_its_own(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    writer = Scripted("no", GOOD)
    own = Planner(writer, cache, most_steps=4, template='{{"plan"}} {question} In {most} steps.')
    assert own(" how {long}? ").source == "planned"
    assert writer.asked[0] == '{"plan"} how {long}? In 4 steps.'
    assert writer.asked[1].startswith(writer.asked[0])
    # Another prompt, another plan.
    other = Scripted(GOOD)
    Planner(other, cache, most_steps=4)("how {long}?")
    assert other.asked == [planning_prompt("how {long}?", 4)]


@pytest.mark.parametrize(
    "template", ["Plan it.", "{question} {}", "{question} {other}", "{question} {", "{{question}}"]
)
def test_a_prompt_without_the_question(template: str) -> None:
    with pytest.raises(PlanError, match="a planning prompt"):
        Planner(Scripted(), template=template)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"steps": [{"text": "a", "weight": -1}]}', b"null"]
)
def test_a_file_that_cannot_be_read_is_planned_anew(content: bytes, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    key = ("how long?", "scripted", 5, 1)
    cache.path(*key).write_bytes(content)
    assert cache.load(*key) is None
    plan = Planner(Scripted(GOOD), cache)("how long?")
    assert cache.load(*key) == plan


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BudgetctlError, match="cannot keep plans"):
        Planner(Scripted(GOOD), PlanCache(tmp_path / "file"))("how long?")


@pytest.mark.parametrize("question", ["", " \n", None])
def test_no_question(question: Any) -> None:
    with pytest.raises(PlanError, match="expected some text"):
        Planner(Scripted())(question)
    with pytest.raises(PlanError, match="most_steps=0"):
        Planner(Scripted(), most_steps=0)


def test_a_model_that_cannot_plan_costs_tokens_and_changes_nothing() -> None:
    model, tokenizer = load_reasoner()
    writer = ModelWriter(model, tokenizer, max_new_tokens=12, name="embedded")
    plan = Planner(writer)("Start at 11 and go u. Where does it end?")
    assert plan.source == "fallback"
    assert 2 <= plan.planner_tokens <= 24


class Endpoint(BaseHTTPRequestHandler):
    """Answers a chat completion with a plan; for the model "none" with an error."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bad = asked["model"] == "none"
        body = json.dumps(
            {"error": {"message": "no such model"}}
            if bad
            else {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": asked["model"],
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GOOD}}
                ],
                "usage": {"prompt_tokens": 9, "completion_tokens": 31, "total_tokens": 40},
            }
        ).encode()
        self.send_response(404 if bad else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_planner_behind_an_endpoint(endpoint: str) -> None:
    plan = Planner(EndpointWriter("planner", endpoint, "key"))("how long?")
    assert (len(plan.steps), plan.planner_tokens, plan.source) == (2, 31, "planned")
    with pytest.raises(BudgetctlError, match="did not answer"):
        Planner(EndpointWriter("none", endpoint, "key"))("how long?")


def test_an_endpoint_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BudgetctlError, match="pass api_key"):
        EndpointWriter("planner")


def test_how_a_plan_is_shown() -> None:
    plan = parse_plan(GOOD)
    assert show_plan("How long? ", plan) == (
        "How long?\n\nWork through these steps:\nStep 1: find the speed\nStep 2: find the time"
    )
    shown = show_plan("How long?", plan, [12, 28], 40)
    assert "Step 2: find the time (at most 28 words)\nUse at most 40 words in all." in shown
