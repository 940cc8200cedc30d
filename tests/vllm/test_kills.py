"""Servers that are killed during requests: what the client sees, what is lost, and how they come back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")
import openai

from budgetctl.reasoner.tasks import take_questions
from tests.vllm.servers import PATIENCE, SOON, Server, until

CLOSE = 4
REQUESTS = 40
#: Replies that have come when a process is killed.
BEFORE = 4


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One that is started again once, and one that is not."""
    folder = tmp_path_factory.mktemp("servers")
    pair = Server(folder / "kept", "--restarts", "1"), Server(folder / "plain")
    try:
        for server in pair:
            server.wait()
        yield pair
    finally:
        for server in pair:
            server.end()


class Client:
    """Sends each request to one of the servers, and to the next where it fails.

    Args:
        servers: in the order in which they are tried; a request begins with the one of its own number.
    """

    def __init__(self, *servers: Server) -> None:
        self.servers = servers
        self.failures: list[Exception] = []
        self.replies: list[Any] = []

    def ask(self, kill: Any = None) -> None:
        """All requests at once; ``kill`` is called when the first have been answered."""
        asyncio.run(self._ask(kill))

    async def _ask(self, kill: Any) -> None:
        prompts = [question.prompt for question in take_questions("test", REQUESTS, min_level=7)]
        killed = asyncio.Event()

        async def one(number: int) -> Any:
            for attempt in range(4):
                server = self.servers[(number + attempt) % len(self.servers)]
                try:
                    reply = await self._send(server, prompts[number], number)
                except (openai.APIConnectionError, openai.InternalServerError) as error:
                    self.failures.append(error)
                    continue
                self.replies.append(reply)
                if kill is not None and len(self.replies) >= BEFORE and not killed.is_set():
                    killed.set()
                    kill()
                return reply
            raise AssertionError(f"request {number} is lost: {self.failures[-1]!r}")

        found = await asyncio.gather(*(one(number) for number in range(REQUESTS)))
        assert kill is None or killed.is_set()
        for number, reply in enumerate(found):
            (choice,) = reply.choices
            assert choice.token_ids.index(CLOSE) <= budget_of(number)
            if is_long(number):
                continue  # what follows the end of its turn is no part of it
            assert choice.token_ids.count(CLOSE) == 1
            assert reply.usage.completion_tokens_details.reasoning_tokens <= budget_of(number)

    async def _send(self, server: Server, prompt: str, number: int) -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=300
        ) as client:
            return await client.chat.completions.create(
                model="budgetctl-reasoner",
                messages=[{"role": "user", "content": prompt}],
                max_tokens=200,
                extra_body={
                    "vllm_xargs": {"thinking_budget": budget_of(number)},
                    "return_token_ids": True,
                    "ignore_eos": is_long(number),
                },
            )


def budget_of(number: int) -> int:
    return number % 12


def is_long(number: int) -> bool:
    """Whether a request goes on beyond its turn, so that it still runs when others have been answered."""
    return number % 4 == 3 or number % 4 == 0


def gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def test_kills_during_requests_lose_none_of_them(servers: tuple[Server, Server]) -> None:
    kept, plain = servers

    # The engine of the first server dies: its requests fail at once, and the other server takes them.
    client = Client(kept, plain)
    server_before = {process.pid for process in kept.below()}
    client.ask(kept.engine().kill)
    assert client.failures, "no request was running: nothing is shown here"

    # It comes back by itself, on the same port, and keeps budgets.
    assert kept.process.poll() is None
    until(
        lambda: kept.healthy() and not server_before & {process.pid for process in kept.below()},
        PATIENCE,
        kept.told,
    )
    assert "it is started again 1 times more" in kept.log.read_text()
    client = Client(kept)
    client.ask()
    assert not client.failures

    # The whole of the second server is killed, and the first takes the requests. vLLM 0.32 leaves its engine behind then,
    # which a container or a control group would end.
    below = plain.below()
    client = Client(plain, kept)
    client.ask(plain.process.kill)
    assert client.failures
    assert plain.process.wait(SOON) == -9
    for process in below:
        if process.is_running():
            process.kill()

    # Started again on the same port, it serves as before.
    plain.start()
    plain.wait()
    client = Client(plain)
    client.ask()
    assert not client.failures

    # Without --restarts vLLM ends as well when its engine has died, but with 0.
    below = plain.below()
    plain.engine().kill()
    until(lambda: plain.process.poll() is not None, SOON, plain.told)
    assert plain.process.returncode == 0
    until(lambda: gone(below), SOON, plain.told)

    # The supervisor's restarts are used up: it ends with the server's status, and leaves no engine behind.
    below = kept.below()
    (served,) = psutil.Process(kept.process.pid).children()
    served.kill()
    until(lambda: kept.process.poll() is not None, SOON, kept.told)
    assert kept.process.returncode == 128 + 9
    until(lambda: gone(below), SOON, kept.told)
