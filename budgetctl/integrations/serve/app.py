"""The HTTP application: ``/v1/chat/completions``, ``/v1/models``, ``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from budgetctl.errors import BudgetctlError
from budgetctl.integrations.serve.engine import Engine, EngineDownError
from budgetctl.integrations.serve.exchange import Exchange
from budgetctl.integrations.serve.metrics import CONTENT_TYPE, ServerMetrics
from budgetctl.integrations.serve.schema import RequestError, read_request


def build_app(engine: Engine) -> FastAPI:
    """The application; it starts ``engine`` when it starts and stops it when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(engine.start)
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    app = FastAPI(title="budgetctl", lifespan=lifespan)
    created = int(time.time())
    metrics = ServerMetrics()

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(EngineDownError)
    async def down(request: Request, error: EngineDownError) -> JSONResponse:
        return JSONResponse(RequestError(str(error), kind="server_error").body, 503)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        try:
            body = await request.json()
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is no JSON ({error}): expected a chat completion") from None
        asked = read_request(body)
        exchange = Exchange(engine, asked, metrics)
        if not asked.stream:
            return JSONResponse(await unless_gone(request, exchange.answer()))
        chunks = exchange.chunks()
        first = await anext(chunks)  # what is refused is refused before the stream begins
        return StreamingResponse(_events(first, chunks), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": engine.name, "object": "model", "created": created, "owned_by": "budgetctl"}
        return {"object": "list", "data": [card]}

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok" if engine.alive else "down"}, 200 if engine.alive else 503)

    @app.get("/metrics")
    async def counters() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE)

    return app


async def _events(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """Server-sent events; a failure on the way is the last of them."""
    yield f"data: {json.dumps(first)}\n\n"
    try:
        async for chunk in rest:
            yield f"data: {json.dumps(chunk)}\n\n"
    except (EngineDownError, BudgetctlError) as error:
        yield f"data: {json.dumps(RequestError(str(error), kind='server_error').body)}\n\n"
    finally:  # a client that hangs up ends its generation
        await rest.aclose()
    yield "data: [DONE]\n\n"


async def unless_gone(request: Request, answer: Any) -> dict[str, Any]:
    """The answer; it is cancelled when the client hangs up."""
    working = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError("the client has hung up", status=499)
    finally:
        working.cancel()
        watching.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
