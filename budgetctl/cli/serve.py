"""``budgetctl serve``: an OpenAI-compatible server whose chat completions take a thinking budget."""

from __future__ import annotations

import contextlib
import socket
from enum import Enum
from typing import Annotated

import typer

from budgetctl.cli.options import Device, Model, Predictor
from budgetctl.cli.render import out
from budgetctl.errors import BudgetctlError


class Engine(str, Enum):
    """What runs the model."""

    transformers = "transformers"
    vllm = "vllm"


def serve(
    model: Model = None,
    predictor: Predictor = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    device: Device = None,
    engine: Annotated[Engine, typer.Option(help="What runs the model.")] = Engine.transformers,
    restarts: Annotated[
        int | None,
        typer.Option(
            help="With --engine vllm: how often a server that ended by itself is started again; when that is used up, the "
            "exit status is not 0.",
            min=0,
            show_default=False,
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- OPTIONS OF VLLM SERVE]", help="With --engine vllm, passed on as they are."
        ),
    ] = None,
) -> None:
    """Serve a model by OpenAI's chat-completions interface, with reasoning_effort and thinking_budget."""
    if engine is Engine.vllm:
        from budgetctl.cli.serve_vllm import serve_with_vllm

        serve_with_vllm(model, predictor, host, port, device, others or [], restarts)
    elif others:
        raise BudgetctlError(
            f"{others[0]!r} is no option of the transformers engine: expected options of vllm serve with --engine vllm alone; drop it"
        )
    elif restarts is not None:
        raise BudgetctlError(
            f"--restarts {restarts} with the transformers engine: expected none, as it has no process of its own; drop it, "
            "or use --engine vllm"
        )
    else:
        serve_with_transformers(model, predictor, host, port, device)


def serve_with_transformers(
    model: str | None, predictor: str | None, host: str, port: int, device: str | None
) -> None:
    """Serve by transformers' continuous batching until interrupted."""
    try:
        import uvicorn

        from budgetctl.integrations.serve import engine as transformers_engine
        from budgetctl.integrations.serve.app import build_app
    except ImportError as error:
        raise BudgetctlError(
            f"serving needs a package that is not here ({error}): expected the extra `serve`; "
            "run pip install 'budgetctl-llm[serve]'"
        ) from None
    from budgetctl.cli import load
    from budgetctl.integrations.transformers import install

    with _listen(host, port) as listening:
        artifact = load.open_predictor(model, predictor)
        loaded = load.open_model(model, artifact, load.choose_device(device))
        installation = install(loaded.model, loaded.tokenizer, artifact)
        engine = transformers_engine.Engine(installation, model or "budgetctl-reasoner")
        address = f"http://{host}:{listening.getsockname()[1]}/v1"
        out().print(f"serving {engine.name} at {address} (Ctrl-C stops it)", soft_wrap=True)
        server = uvicorn.Server(uvicorn.Config(build_app(engine), log_level="warning", ws="none"))
        with contextlib.suppress(KeyboardInterrupt):  # raised again after an orderly end
            server.run(sockets=[listening])
        if not server.started:
            raise BudgetctlError(
                "the server did not start: expected a model that fits into memory; see above"
            )


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound before the model is loaded, so that a port in use is told at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise BudgetctlError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): expected a free port of this machine; "
            "choose another --port"
        ) from None
