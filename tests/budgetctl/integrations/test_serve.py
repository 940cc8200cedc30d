"""The server, asked by the ``openai`` client over a real socket; replies are compared with plain ``generate``."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
import uvicorn
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from budgetctl.errors import BudgetctlError, BudgetError
from budgetctl.integrations.serve.app import build_app, unless_gone
from budgetctl.integrations.serve.engine import Engine, EngineDownError, Sampling
from budgetctl.integrations.serve.exchange import Exchange
from budgetctl.integrations.serve.schema import RequestError, read_request
from budgetctl.integrations.serve.splitter import ThoughtSplitter, ThoughtText
from budgetctl.integrations.transformers import Installation, install
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.segments import split_sequence

QUESTIONS = (
    "A dial shows 7: turn +5 -2 +4 -3. Where does it stop?",
    "A dial shows 3: turn +4 -1. Where does it stop?",
    "Start at 12 and go u. Where does it end?",
)
#: What nine clients ask: fields of the request, and the same for ``generate``.
ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"reasoning_effort": "low"}, {"effort": "low"}),
    ({"reasoning_effort": "high"}, {"effort": "high"}),
    ({"effort": "none"}, {"effort": "none"}),
    ({"effort": 0.3, "answer_reserve": 20}, {"effort": 0.3, "answer_reserve": 20}),
    ({"thinking_budget": 5}, {"thinking_budget": 5}),
    ({"thinking_token_budget": 1}, {"thinking_budget": 1}),
    ({"min_thinking_tokens": 12, "thinking_budget": 14}, {"min_thinking_tokens": 12, "thinking_budget": 14}),
    ({}, {}),
    (
        {"plan": ["one", {"text": "two", "weight": 2}], "thinking_budget": 40},
        {"plan": ["one", {"text": "two", "weight": 2}], "thinking_budget": 40},
    ),
]
NAME = "reasoner"


def installed() -> Installation:
    """In float64, so that tokens do not depend on the other rows of a step."""
    model, tokenizer = load_reasoner(dtype=torch.float64)
    return install(model, tokenizer, PREDICTOR, dtype=torch.float64)


def new_engine() -> Engine:
    """Fewer rows than clients."""
    sizes = {"page_size": 32, "num_blocks": 48, "max_batch_tokens": 128, "max_requests_per_batch": 5}
    return Engine(installed(), NAME, ContinuousBatchingConfig(**sizes))


@contextmanager
def running(engine: Engine) -> Iterator[str]:
    """The server in a thread, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # a client waits in its queue
        server = uvicorn.Server(uvicorn.Config(build_app(engine), log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(new_engine()) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain() -> Installation:
    installation = installed()
    installation.model.generation_config.update(do_sample=False, top_k=None, top_p=None, temperature=None)
    return installation


def expected(plain: Installation, question: str, knobs: dict[str, Any], length: int = 512) -> SimpleNamespace:
    """What ``generate`` writes for the question."""
    tokenizer = plain.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )
    sequence = plain.model.generate(**prompt, max_new_tokens=length, **knobs)
    width = prompt["input_ids"].shape[1]
    parts = split_sequence(sequence[0].tolist(), width, plain.delimiters)
    return SimpleNamespace(
        prompt_tokens=width,
        completion_tokens=sequence.shape[1] - width,
        thought=tokenizer.decode(parts.thought).strip(),
        answer=tokenizer.decode(parts.answer).strip(),
        report=plain.reports(sequence)[0].as_dict(),
    )


def split_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """What the client knows by itself, and the rest in ``extra_body``."""
    known = {name: fields[name] for name in fields if name in ("reasoning_effort", "max_tokens")}
    return {**known, "extra_body": {name: fields[name] for name in fields if name not in known}}


def ask(client: openai.OpenAI, number: int, **more: Any) -> Any:
    return client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": QUESTIONS[number % 3]}],
        **({"temperature": 0} | split_fields(ASKED[number][0]) | more),
    )


def check_report(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    lengths = got.pop("predicted_tokens"), wanted.pop("predicted_tokens")
    assert got == wanted
    assert lengths[0] == lengths[1] or lengths[0] == pytest.approx(lengths[1], rel=1e-6)


def test_parallel_requests_of_different_efforts(client: openai.OpenAI, plain: Installation) -> None:
    with ThreadPoolExecutor(len(ASKED)) as pool:
        replies = list(pool.map(lambda number: ask(client, number), range(len(ASKED))))
    for number, reply in enumerate(replies):
        wanted = expected(plain, QUESTIONS[number % 3], ASKED[number][1])
        message, usage = reply.choices[0].message, reply.usage
        assert (message.reasoning_content, message.content) == (wanted.thought, wanted.answer)
        assert (usage.prompt_tokens, usage.completion_tokens) == (
            wanted.prompt_tokens,
            wanted.completion_tokens,
        )
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens_details.reasoning_tokens == wanted.report["thinking_tokens"]
        assert reply.choices[0].finish_reason == "stop"
        check_report(reply.budgetctl, wanted.report)
    assert len({reply.id for reply in replies}) == len(replies)
    kinds = {reply.budgetctl["close"] for reply in replies}
    assert {"natural", "forced"} <= kinds


def test_parallel_streams(client: openai.OpenAI, plain: Installation) -> None:
    def read(number: int) -> tuple[str, str, dict[str, Any], Any]:
        thought, answer, account, usage = "", "", None, None
        with ask(client, number, stream=True, stream_options={"include_usage": True}) as stream:
            for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    piece = getattr(choice.delta, "reasoning_content", None)
                    assert not (piece and answer), "thought after the answer"
                    thought += piece or ""
                    answer += choice.delta.content or ""
                    if choice.finish_reason:
                        account = chunk.budgetctl
        assert account is not None
        return thought, answer, account, usage

    with ThreadPoolExecutor(len(ASKED)) as pool:
        replies = list(pool.map(read, range(len(ASKED))))
    for number, (thought, answer, account, usage) in enumerate(replies):
        wanted = expected(plain, QUESTIONS[number % 3], ASKED[number][1])
        assert (thought, answer) == (wanted.thought, wanted.answer)
        assert usage.completion_tokens == wanted.completion_tokens
        assert usage.completion_tokens_details.reasoning_tokens == wanted.report["thinking_tokens"]
        check_report(account, wanted.report)


def test_a_stream_comes_in_pieces(client: openai.OpenAI) -> None:
    with ask(client, 0, stream=True) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks]
    assert sum(piece is not None for piece in pieces) > 5
    assert all(chunk.usage is None for chunk in chunks)


def test_sampled_requests_hold_their_budgets(client: openai.OpenAI) -> None:
    budgets = [0, 1, 2, 3, 5, 8, 13, 21]

    def draw(budget: int) -> Any:
        return ask(
            client, 7, temperature=1.2, top_p=0.95, extra_body={"thinking_budget": budget, "top_k": 50}
        )

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(draw, budgets))
    for reply, budget in zip(replies, budgets, strict=True):
        assert reply.budgetctl["thinking_budget"] == budget
        assert reply.usage.completion_tokens_details.reasoning_tokens <= budget
        assert "<think>" not in reply.choices[0].message.content


def test_no_limit_as_vllm_says_it(client: openai.OpenAI, plain: Installation) -> None:
    reply = ask(client, 7, extra_body={"thinking_token_budget": -1})
    wanted = expected(plain, QUESTIONS[1], {})
    assert reply.choices[0].message.reasoning_content == wanted.thought
    assert reply.budgetctl["thinking_budget"] is None
    for fields in ({"thinking_budget": -1}, {"thinking_budget": 5, "thinking_token_budget": -1}):
        with pytest.raises(openai.BadRequestError):
            ask(client, 7, extra_body=fields)


def test_the_limit_of_new_tokens(client: openai.OpenAI, plain: Installation) -> None:
    reply = ask(client, 7, max_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].message.content == ""
    reply = ask(client, 7, max_completion_tokens=24, reasoning_effort="max")
    wanted = expected(plain, QUESTIONS[1], {"effort": "max"}, 24)
    assert reply.choices[0].message.reasoning_content == wanted.thought


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [":", ["never", "9", "swer: "], ["+", "-"], "nothing"])
def test_stop_cuts_the_answer_and_not_the_thought(
    client: openai.OpenAI, plain: Installation, stop: Any, stream: bool
) -> None:
    """The question's thought holds 9, + and -, and its answer is "Answer: 9"."""
    wanted = expected(plain, QUESTIONS[1], {})
    sequences = [stop] if isinstance(stop, str) else stop
    ends = [at for text in sequences if (at := wanted.answer.find(text)) >= 0]
    content = wanted.answer[: min(ends, default=None)].rstrip()
    reply = ask(
        client, 7, stop=stop, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {})
    )
    if stream:
        chunks = list(reply)
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        answer = "".join(delta.content or "" for delta in deltas)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert set(reasons[:-1]) == {None}
        reason, usage, account = reasons[-1], chunks[-1].usage, chunks[-2].budgetctl
    else:
        message = reply.choices[0].message
        thought, answer, reason = message.reasoning_content, message.content, reply.choices[0].finish_reason
        usage, account = reply.usage, reply.budgetctl
    assert (thought, answer, reason) == (wanted.thought, content, "stop")
    assert (usage.completion_tokens < wanted.completion_tokens) == bool(ends)
    assert usage.completion_tokens_details.reasoning_tokens == wanted.report["thinking_tokens"]
    assert (account["close"], account["thinking_tokens"]) == (
        wanted.report["close"],
        wanted.report["thinking_tokens"],
    )


def test_stop_cancels_what_is_still_generated() -> None:
    async def answer(engine: Engine) -> tuple[dict[str, Any], list[str]]:
        cancelled: list[str] = []
        cancel = engine._manager.cancel_request
        engine._manager.cancel_request = lambda name: (cancelled.append(name), cancel(name))
        body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0, "stop": "A"}
        return await Exchange(engine, read_request(body)).answer(), cancelled

    engine = new_engine()
    engine.start()
    try:
        reply, cancelled = asyncio.run(answer(engine))
    finally:
        engine.stop()
    assert reply["choices"][0]["message"]["content"] == ""
    assert [f"chatcmpl-{name}" for name in cancelled] == [reply["id"]]


def test_messages_of_parts_and_earlier_turns(client: openai.OpenAI, plain: Installation) -> None:
    parts = [{"type": "text", "text": QUESTIONS[1][:10]}, {"type": "text", "text": QUESTIONS[1][10:]}]
    reply = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
        temperature=0,
        extra_body={"thinking_budget": 4},
    )
    wanted = expected(plain, QUESTIONS[1], {"thinking_budget": 4})
    assert reply.choices[0].message.reasoning_content == wanted.thought
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == wanted.prompt_tokens
    longer = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "user", "content": QUESTIONS[1]},
            {"role": "assistant", "content": reply.choices[0].message.content},
            {"role": "user", "content": QUESTIONS[1]},
        ],
        temperature=0,
        extra_body={"thinking_budget": 4},
    )
    assert longer.usage is not None
    assert longer.usage.prompt_tokens > 2 * wanted.prompt_tokens
    assert longer.usage.completion_tokens_details is not None
    assert longer.usage.completion_tokens_details.reasoning_tokens == 4


def test_template_arguments(client: openai.OpenAI) -> None:
    """The template closes the thought by itself."""
    reply = ask(client, 7, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert reply.choices[0].message.reasoning_content == ""
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0
    assert reply.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"plan": [{"text": "a", "weight": -1}]}, "plan", "weight -1"),
        ({"plan": [["a"], ["b"]]}, "plan", "2 plans in one request"),
        ({"budget_notes": True}, "budget_notes", "without a plan"),
        ({"thinking_budget": -3}, "thinking_budget", "thinking_budget=-3 is negative"),
        ({"thinking_token_budget": "5"}, "thinking_token_budget", "is not a whole number"),
        ({"reasoning_effort": "lots"}, "reasoning_effort", "unknown effort 'lots'"),
        ({"effort": 2.5}, "effort", "effort 2.5 is out of range"),
        ({"effort": "max", "thinking_budget": 4}, "effort", "contradicts thinking_budget=4"),
        ({"effort": "low", "reasoning_effort": "high"}, "reasoning_effort", "contradicts"),
        ({"thinking_budget": 4, "thinking_token_budget": 5}, "thinking_token_budget", "contradicts"),
        ({"thinking_budget": 3, "min_thinking_tokens": 9}, "min_thinking_tokens", "is more than"),
        ({"answer_reserve": 90, "max_tokens": 20}, "answer_reserve", "answer_reserve=90 plus"),
        ({"thinkingbudget": 3}, "thinkingbudget", "unknown"),
        ({"temperature": -1}, "temperature", "temperature=-1"),
        ({"temperature": "hot"}, "temperature", "temperature='hot'"),
        ({"temperature": 1e-300}, "temperature", "temperature=1e-300: expected a number > 0"),
        (
            {"thinking_budget": 2**63},
            "thinking_budget",
            "thinking_budget=9223372036854775808 is out of range",
        ),
        ({"min_thinking_tokens": 10**30}, "min_thinking_tokens", "is out of range"),
        ({"thinking_target": 10**30}, "thinking_target", "is out of range"),
        ({"thinking_target": 5, "target_tolerance": 10**30}, "target_tolerance", "is out of range"),
        ({"target_tolerance": 3}, "target_tolerance", "without a target"),
        ({"answer_reserve": 10**30}, "answer_reserve", "is out of range"),
        ({"effort": ["low"]}, "effort", "expected a single value"),
        ({"max_tokens": 10**30}, "max_tokens", "context of 1024"),
        ({"top_k": -2}, "top_k", "top_k=-2"),
        (
            {"chat_template_kwargs": {"tokenize": False}},
            "chat_template_kwargs",
            "tokenize is not for a client",
        ),
        ({"chat_template_kwargs": {"chat_template": ""}}, "chat_template_kwargs", "not for a client to set"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "cannot be put into"),
        (
            {"chat_template_kwargs": {"thinking_budget": 5}},
            "chat_template_kwargs",
            "beside messages; move it",
        ),
        ({"max_tokens": 0}, "max_tokens", "max_tokens=0"),
        ({"max_tokens": 5000}, "max_tokens", "context of 1024"),
        ({"n": 2}, "n", "n=2"),
        ({"stop": ""}, "stop", "expected a text, or a list of up to 4"),
        ({"stop": ["a", 5]}, "stop", "none of them empty"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "a list of up to 4"),
        ({"seed": 3}, "seed", "unknown or not supported"),
        ({"tools": []}, "tools", "unknown or not supported"),
        ({"logprobs": True}, "logprobs", "logprobs=True"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": [{"content": "?"}]}, "messages", "messages.0.role is missing"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, "messages", "context of 1024"),
    ],
)
def test_bad_fields(
    client: openai.OpenAI, fields: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, 7, extra_body=fields, stream=stream)
    error = caught.value
    assert (error.status_code, error.type, error.param) == (400, "invalid_request_error", param)
    message = error.body["message"]  # type: ignore[index, call-overload]
    assert words in message
    assert param in message
    assert "\n" not in message


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_bodies_that_no_client_library_would_send(url: str) -> None:
    messages = [{"role": "user", "content": QUESTIONS[1]}]
    nested = {"messages": messages, "extra_body": {"thinking_budget": 2}}
    status, reply = post(url, json.dumps(nested).encode())
    assert (status, reply["budgetctl"]["thinking_budget"]) == (200, 2)
    bodies = (b"{", b"[]", b"\xff", b'{"a":' * 9000, b'{"\\ud800": 1}', b'{"top_k": ' + b"9" * 5000 + b"}")
    for body in bodies:
        status, reply = post(url, body)
        assert status == 400
        assert reply["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("rendered", "words"),
    [([], "messages have no tokens: expected at least one"), (ZeroDivisionError("by zero"), r"\(by zero\)")],
)
def test_a_prompt_that_cannot_be_read_is_refused_before_it_reaches_the_model(
    rendered: Any, words: str
) -> None:
    def render(messages: Any, **options: Any) -> dict[str, list[int]]:
        if isinstance(rendered, Exception):
            raise rendered
        return {"input_ids": rendered}

    engine: Any = SimpleNamespace(name=NAME, tokenizer=SimpleNamespace(apply_chat_template=render))
    with pytest.raises(RequestError, match=words) as caught:
        Exchange(engine, read_request({"messages": [{"role": "user", "content": "?"}]}))
    assert caught.value.status == 400
    assert caught.value.body["error"]["param"] == "messages"


def test_models_and_health(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    with urllib.request.urlopen(f"{url}/health") as reply:
        assert json.load(reply) == {"status": "ok"}
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "?"}])
    assert caught.value.param == "model"


def test_an_engine_that_is_down() -> None:
    engine = new_engine()
    with running(engine) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert ask(client, 4).budgetctl["thinking_tokens"] <= 5
        engine.stop()
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, 4)
        assert caught.value.status_code == 503
        with pytest.raises(urllib.error.HTTPError) as unwell:
            urllib.request.urlopen(f"{url}/health")
        assert unwell.value.code == 503
        unwell.value.close()


def test_a_request_that_is_left_is_cancelled() -> None:
    async def leave(engine: Engine) -> tuple[str, list[str]]:
        prompt = engine.tokenizer("5+5=", add_special_tokens=False)["input_ids"]
        sampling = Sampling(0, 1.0, 0)
        long = engine.generate(prompt, 900, sampling, {"min_thinking_tokens": 800}, streaming=True)
        name, tokens, over = await anext(long)
        assert tokens
        assert not over
        await long.aclose()
        async for _ in engine.generate(prompt, 4, sampling, {}, streaming=True):
            pass
        manager = engine._manager
        assert not manager.output_router.result_handlers
        return name, list(manager.batch_processor.scheduler.active_requests)

    engine = new_engine()
    engine.start()
    try:
        name, active = asyncio.run(leave(engine))
        assert name not in active
        with pytest.raises(BudgetError, match="no report of request"):
            engine.report("unknown", [1], [])
    finally:
        engine.stop()
    with pytest.raises(EngineDownError):
        asyncio.run(leave(engine))


@pytest.mark.parametrize("leaves", [False, True])
def test_a_client_that_hangs_up_ends_its_generation(leaves: bool) -> None:
    async def serve() -> list[str]:
        ended: list[str] = []
        gone, done = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, str]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def answer() -> dict[str, Any]:
            (gone if leaves else done).set()
            try:
                await done.wait()
                return {"done": True}
            finally:
                ended.append("answer")

        request: Any = SimpleNamespace(receive=receive)
        if leaves:
            with pytest.raises(RequestError, match="hung up"):
                await unless_gone(request, answer())
        else:
            assert await unless_gone(request, answer()) == {"done": True}
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        return ended

    assert asyncio.run(serve()) == ["answer"]


def test_a_tokenizer_that_cannot_stream() -> None:
    installation = installed()
    installation.tokenizer = SimpleNamespace()  # type: ignore[assignment]
    with pytest.raises(BudgetctlError, match="is no fast tokenizer"):
        Engine(installation, NAME)


def test_the_splitter_follows_split_sequence(markers: Any, prompts_of: Any) -> None:
    """Random tokens of which many are markers, or their beginnings."""
    draw = random.Random(0)
    whole = reopened = 0
    by_model = markers["opened by the model"]
    cases = [
        *markers.values(),
        replace(by_model, lead_ids=(2, 3)),
        replace(by_model, tool_call_ids=((16, 17), (16,))),
        replace(markers["spelled by three tokens"], tool_call_ids=((16, 4),), lead_ids=(2,)),
    ]
    for case in cases:
        for prompt in prompts_of(case, 80).tolist():
            size = draw.randrange(1, 25)
            tokens = draw.choices((2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17), k=size)
            splitter = ThoughtSplitter(case, prompt)
            pieces, opens = [], int(splitter.thinking)
            for token in tokens:
                before = splitter.thinking
                pieces += splitter.push(token)
                opens += splitter.thinking and not before
            pieces += splitter.finish()
            parts = split_sequence([*prompt, *tokens], len(prompt), case)
            thought = [token for thinking, ids in pieces for token in ids if thinking]
            answer = [token for thinking, ids in pieces for token in ids if not thinking]
            if opens <= 1 and not parts.stray_markers and parts.close_span is not None:
                assert thought == list(parts.thought)
                assert answer[len(answer) - len(parts.answer) :] == list(parts.answer)
                whole += 1
            else:  # markers are nowhere, and nothing else is lost
                kept = iter(tokens)
                assert all(token in kept for _, ids in pieces for token in ids)
                reopened += 1
            assert splitter.push(5) == []
    assert whole > 50
    assert reopened > 50


def test_text_without_white_space_around_it() -> None:
    tokenizer = load_reasoner()[1]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    text = ThoughtText(tokenizer.backend_tokenizer)
    pieces = [
        (True, ids("\n 1+1")),
        (True, ids(" = 2 \n")),
        (False, ids("\n\nAnswer:")),
        (False, ids(" 2\n")),
    ]
    pieces += [(True, ids("\nAgain")), (False, ids("3"))]
    read = [text.read([piece]) for piece in pieces]
    thought = "".join(t for part in read for thinking, t in part if thinking)
    answer = "".join(t for part in read for thinking, t in part if not thinking)
    assert (thought, answer) == ("1+1 = 2\n\nAgain", "Answer: 2\n\n3")


def test_a_finished_request_is_counted(url: str, client: openai.OpenAI) -> None:
    def count() -> int:
        with urllib.request.urlopen(f"{url}/metrics") as reply:
            lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines())
        return int(lines['budgetctl_closes_total{kind="forced"}'])

    before = count()
    account = ask(client, 5).budgetctl
    assert account["close"] == "forced"
    assert count() == before + 1
