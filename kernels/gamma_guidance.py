"""Guidance of a whole batch at one step: Triton on CUDA, NumPy for few rows on the CPU, plain PyTorch elsewhere.

From the features of each row (one matrix product away from the logits) to guided logits: head, log P(the thought ends
in time) of the likely tokens and of the state, push, and the forced close. Cost grows with rows x candidates, whatever
the length of the thought; the vocabulary matters only where its every logit is to be written (see ``tail``).

No synchronisation of device and host, no allocation that depends on data, fixed shapes: the launch can stand in a CUDA
graph, whose row state is written in place between replays.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch

from budgetctl.errors import KernelError
from budgetctl.kernels import gamma_guidance_numpy, reference
from budgetctl.kernels.row_state import CLOSING, Action, GuidanceHead, pack_rows

__all__ = ["Action", "GuidanceHead", "gamma_guidance", "has_triton", "launch_options", "pack_rows"]

TAILS = ("exact", "relative")
#: Tokens that a program writes at a time, and warps of a program.
BLOCK_VOCAB = 4096
WARPS = 4
#: Programs that fill a large GPU (four on each of 128 multiprocessors). Beyond, a program takes several blocks of the
#: vocabulary, because each evaluates its row's candidates anew.
ENOUGH_PROGRAMS = 512


def gamma_guidance(
    logits: torch.Tensor,
    features: torch.Tensor,
    head: GuidanceHead,
    candidate_scores: torch.Tensor,
    candidate_ids: torch.Tensor,
    rows: torch.Tensor,
    *,
    interval: bool = False,
    tail: str = "exact",
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guided logits of each row, by what the packed row state asks for.

    ``exact`` adds the state's own push to all tokens that are no candidates, so that the best likely candidate keeps
    its logit; it reads and writes the vocabulary once. ``relative`` subtracts that push from candidates and closing
    tokens instead, and touches nothing else: the softmax is the same, a row's logits as a whole are higher. Use it in
    place, where the softmax of the row alone is taken; not for beam search, which compares scores between rows.

    Args:
        logits: [B, V] floating point, stride 1 along the vocabulary.
        features: [B, width + 2 rank] floating point, what ``head`` works on.
        head: of the length predictor.
        candidate_scores: [B, k] logits or log probabilities of the candidates before guidance (a constant may be
            added to a row), as ``topk`` gives them; no view of ``logits``.
        candidate_ids: [B, k] integers, distinct within a row, k <= V.
        rows: [B, 6 + c] from :func:`pack_rows`.
        interval: whether any row has a ``lower`` end; evaluates log P twice.
        tail: ``exact`` or ``relative``.
        out: [B, V] of the dtype of ``logits``; ``logits`` itself to work in place; None for a new tensor.

    Returns:
        ``(guided, state_fit)``: ``out`` or a new tensor, and [B] log P(fit) by the state alone (0 for rows that are
        left alone or forced). float32; on the CPU ``state_fit`` is of the widest dtype that came in. Rows that are
        not guided come back bit for bit.

    Raises:
        KernelError: for shapes, dtypes or a ``tail`` that do not go together.
    """
    _check(logits, features, head, candidate_scores, candidate_ids, rows, tail, out)
    if logits.is_cuda and has_triton():
        return _launch(
            logits, features, head, candidate_scores, candidate_ids, rows, interval, tail == "exact", out
        )
    small = gamma_guidance_numpy.takes(logits, features, head, candidate_scores)
    return (gamma_guidance_numpy if small else reference).gamma_guidance(
        logits,
        features,
        head,
        candidate_scores,
        candidate_ids,
        rows,
        interval=interval,
        tail=tail,
        out=out,
    )


@cache
def has_triton() -> bool:
    """Whether the kernel can be imported; without Triton the reference runs on CUDA too."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def launch_options(
    batch: int,
    vocab: int,
    candidates: int,
    closes: int,
    head: GuidanceHead,
    *,
    interval: bool,
    exact: bool,
    in_place: bool,
) -> tuple[int, dict[str, int | bool]]:
    """``(parts, constants)``: programs a row, and the kernel's compile-time constants."""
    blocks = -(-vocab // BLOCK_VOCAB)
    each = blocks
    if exact:
        # A power of two, so that few kernels are compiled where the batch varies.
        each = min(blocks, 1 << max(batch * blocks // ENOUGH_PROGRAMS, 1).bit_length() - 1)
    return -(-blocks // each), {
        "VOCAB": vocab,
        "K": candidates,
        "CLOSES": closes,
        "WIDTH": head.width,
        "RANK": head.rank,
        "INTERVAL": interval,
        "EXACT": exact,
        "IN_PLACE": in_place,
        "LANES": _power_of_two(candidates + 1),
        "BLOCK_C": _power_of_two(closes),
        "BLOCK_W": _power_of_two(head.width),
        "BLOCK_V": min(BLOCK_VOCAB, _power_of_two(vocab)),
        "BLOCKS": each,
    }


def _launch(
    logits: torch.Tensor,
    features: torch.Tensor,
    head: GuidanceHead,
    candidate_scores: torch.Tensor,
    candidate_ids: torch.Tensor,
    rows: torch.Tensor,
    interval: bool,
    exact: bool,
    out: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the Triton kernel, on any device that it runs on."""
    from budgetctl.kernels.gamma_guidance_triton import gamma_guidance_kernel

    if out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not exact and out is not logits:
        logits = out.copy_(logits)
    state_fit = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    parts, constants = launch_options(
        logits.shape[0],
        logits.shape[1],
        candidate_ids.shape[1],
        rows.shape[1] - CLOSING,
        head,
        interval=interval,
        exact=exact,
        in_place=out is logits,
    )
    with torch.cuda.device(logits.device) if logits.is_cuda else nullcontext():
        gamma_guidance_kernel[(len(logits), parts)](
            logits,
            out,
            features,
            head.weight,
            head.bias,
            head.table,
            candidate_scores,
            candidate_ids,
            rows,
            state_fit,
            logits.stride(0),
            out.stride(0),
            features.stride(0),
            candidate_scores.stride(0),
            candidate_ids.stride(0),
            rows.stride(0),
            head.floor,
            **constants,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    return out, state_fit


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _check(
    logits: torch.Tensor,
    features: torch.Tensor,
    head: GuidanceHead,
    candidate_scores: torch.Tensor,
    candidate_ids: torch.Tensor,
    rows: torch.Tensor,
    tail: str,
    out: torch.Tensor | None,
) -> None:
    if tail not in TAILS:
        raise KernelError(f"unknown tail {tail!r}: expected one of {', '.join(TAILS)}")
    batch, vocab = logits.shape
    if features.shape != (batch, head.width + 2 * head.rank):
        raise KernelError(
            f"features have shape {tuple(features.shape)}: expected {(batch, head.width + 2 * head.rank)}, "
            "the trunk's pre-activations and two queries of each row"
        )
    if candidate_ids.shape != candidate_scores.shape or candidate_ids.shape[0] != batch:
        raise KernelError(
            f"candidates have shapes {tuple(candidate_scores.shape)} and {tuple(candidate_ids.shape)}: "
            f"expected [{batch}, k] of both"
        )
    if not 1 <= candidate_ids.shape[1] <= vocab:
        raise KernelError(f"{candidate_ids.shape[1]} candidates a row: expected 1 to {vocab}")
    if rows.shape[0] != batch or rows.shape[1] <= CLOSING or rows.dtype != _row_dtype(rows):
        raise KernelError(
            f"rows have shape {tuple(rows.shape)}: expected the result of pack_rows for {batch}"
        )
    if out is not None and (out.shape != logits.shape or out.dtype != logits.dtype):
        raise KernelError(
            f"out is {out.dtype} of shape {tuple(out.shape)}: expected {logits.dtype} of {tuple(logits.shape)}"
        )


def _row_dtype(rows: torch.Tensor) -> torch.dtype:
    return torch.float32 if rows.device.type == "mps" else torch.float64
