"""What a close may not cut in two: a code fence of the thought, a character of several bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from budgetctl.budget import NO_CAP
from budgetctl.kernels.host_reads import may_look
from budgetctl.on_device import but_not, columns_of, constant, may_hold
from budgetctl.score_edits import dead_rows, force_tokens, unless_dead
from budgetctl.spelling import encode

FENCE = "```"
#: Bytes of the longest character.
MOST_BYTES = 4


@dataclass(frozen=True)
class Spans:
    """Tables by token of spans that a forced close would break.

    Args:
        fence: [V] bool, the token opens or closes a code fence.
        fence_end: what closes a fence, () where the tokenizer has no token for it.
        missing: [V] int64, bytes that the last character of the token's text still lacks; None where tokens always end
            with a character.
    """

    fence: torch.Tensor
    fence_end: tuple[int, ...]
    missing: torch.Tensor | None
    #: [V] int64, tokens that must be left for a character to be finished; below any number where none is begun.
    _needed: torch.Tensor | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        needed = None if self.missing is None else torch.where(self.missing > 0, self.missing, -NO_CAP)
        object.__setattr__(self, "_needed", needed)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, texts: list[str], vocab_size: int
    ) -> Spans | None:
        """Read from the ``texts`` of the known tokens; None when there is nothing to protect."""
        pieces = token_bytes(tokenizer, len(texts))
        lacking = [missing_bytes(piece) for piece in pieces] + [0] * (vocab_size - len(texts))
        fence = [text.count(FENCE) % 2 == 1 for text in texts] + [False] * (vocab_size - len(texts))
        end = encode(tokenizer, "\n" + FENCE)
        if not any(fence) or not end or not fence[end[-1]] or any(fence[token] for token in end[:-1]):
            end = ()
        if not end and not any(lacking):
            return None
        return cls(torch.tensor(fence), end, torch.tensor(lacking) if any(lacking) else None)

    def to(self, device: torch.device) -> Spans:
        missing = None if self.missing is None else self.missing.to(device)
        return Spans(self.fence.to(device), self.fence_end, missing)

    def fence_marks(self, input_ids: torch.Tensor, thought_start: torch.Tensor) -> torch.Tensor:
        """[B] int64 tokens of rows [B, T] from ``thought_start`` [B] on that open or close a code fence: an odd number
        leaves one open."""
        columns = columns_of(input_ids.shape[1], input_ids.device)
        return (self.fence[input_ids] & (columns >= thought_start[:, None])).sum(1)

    def keep_whole(
        self,
        scores: torch.Tensor,
        input_ids: torch.Tensor,
        rows: torch.Tensor,
        inside: torch.Tensor,
        left: torch.Tensor,
        *,
        in_place: bool = False,
    ) -> torch.Tensor:
        """Scores [B, V] of rows [B, T] that begin nothing that could not be finished, unless other processors have left
        nothing else, and finish a fence in time.

        Args:
            scores: [B, V] logits.
            input_ids: [B, T] int64.
            rows: [B] bool, rows inside a limited thought that has tokens left.
            inside: [B] bool, a fence is open.
            left: [B] int64 thinking tokens left.
            in_place: the ``scores`` may be written to.
        """
        near = rows & (left <= len(self.fence_end) + MOST_BYTES)
        if not may_hold(near):
            return scores
        if may_look(scores.device):
            whole = scores if in_place else scores.clone()
            self._ban_on_host(whole, near, inside, left)
            return force_tokens(whole, *self.fence_steps(input_ids, inside & rows, left), in_place=True)
        allowed = scores.masked_fill(self.forbidden(rows, inside, left), -torch.inf)
        whole = unless_dead(allowed, scores)
        if not self.fence_end:
            return whole
        return force_tokens(whole, *self.fence_steps(input_ids, inside & rows, left))

    def _ban_on_host(
        self, scores: torch.Tensor, rows: torch.Tensor, inside: torch.Tensor, left: torch.Tensor
    ) -> None:
        """Ban what is :meth:`forbidden` in place: only few tokens are, alike for the rows that are as near to their
        end."""
        size = len(self.fence_end)
        at = rows.nonzero()[:, 0]
        fenced, room = inside[at], left[at]
        lacking = (room - size * fenced).clamp(1, 4)
        groups = lacking * 2 + (~fenced & (room <= size))
        for group in groups.unique().tolist():
            parts = [self._unfinished[group // 2], self._fences[: len(self._fences) * (group % 2)]]
            ids = torch.cat(parts)
            of = at[groups == group][:, None]
            came = scores[of, ids]
            scores[of, ids] = -torch.inf
            dead = dead_rows(scores, of[:, 0])
            if may_hold(dead):  # other processors have left nothing else
                scores[of[dead], ids] = came[dead]

    @cached_property
    def _fences(self) -> torch.Tensor:
        """Tokens that open or close a fence; none where a fence could not be closed."""
        return self.fence.nonzero()[:, 0] if self.fence_end else self.fence.new_zeros(0, dtype=torch.int64)

    @cached_property
    def _unfinished(self) -> dict[int, torch.Tensor]:
        """Tokens whose last character lacks so many bytes or more, by that number (1 to 4)."""
        if self.missing is None:
            return dict.fromkeys(range(1, 5), self._fences[:0])
        return {room: (self.missing >= room).nonzero()[:, 0] for room in range(1, 5)}

    def fence_steps(
        self, input_ids: torch.Tensor, inside: torch.Tensor, left: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows whose fence has to be closed now, while there is room for it, and the token to write, [B] each.

        Args:
            input_ids: [B, T] int64.
            inside: [B] bool, a fence is open.
            left: [B] int64 thinking tokens left.
        """
        size = len(self.fence_end)
        if not size:
            return torch.zeros_like(inside), torch.zeros_like(left)
        rows = inside & (left == size)
        tokens = constant(self.fence_end[:1], left.device).expand_as(left)
        for done in range(1, min(size, input_ids.shape[1] + 1)):
            begun = inside & (left == size - done)
            for back in range(done):
                begun = begun & (input_ids[:, -done + back] == self.fence_end[back])
            rows = rows | begun
            tokens = torch.where(begun, self.fence_end[done], tokens)
        return rows, tokens

    def forbidden(self, rows: torch.Tensor, inside: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """[B, V] bool: tokens that begin what could not be finished in the tokens left.

        Args:
            rows: [B] bool, rows inside a limited thought.
            inside: [B] bool, a fence is open.
            left: [B] int64 thinking tokens left.
        """
        size = len(self.fence_end)
        parts = []
        if size:
            parts.append(self.fence & (but_not(rows, inside) & (left <= size))[:, None])
        if self._needed is not None:
            room = left - size * inside if size else left
            parts.append(self._needed >= torch.where(rows, room, NO_CAP)[:, None])
        return reduce(torch.logical_or, parts) if parts else torch.zeros_like(rows)[:, None]


def token_bytes(tokenizer: PreTrainedTokenizerBase, count: int) -> list[bytes]:
    """The bytes that each of the first ``count`` tokens stands for, where the tokenizer works on bytes."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(count)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    bytewise = backend is not None and "ByteLevel" in json.dumps(
        [json.loads(backend.to_str()).get(part) for part in ("decoder", "pre_tokenizer")]
    )
    if bytewise:
        table = {character: byte for byte, character in bytes_to_unicode().items()}
        return [bytes(table[c] for c in piece or "" if c in table) for piece in pieces]
    return [_byte_token(piece or "") for piece in pieces]


def _byte_token(piece: str) -> bytes:
    """``<0xE4>`` is a byte; any other piece is text."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.encode()


def missing_bytes(piece: bytes) -> int:
    """Bytes that the last UTF-8 character begun in ``piece`` still lacks; 0 where none is begun and unfinished."""
    for back, byte in enumerate(reversed(piece[-4:]), start=1):
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return max(size - back, 0)
        if byte < 0x80:
            return 0
    return 0
