"""A toy recurrent model that opens and closes thoughts at random, and its markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig
from budgetctl.predictors.hidden_state import LogitsHiddenState
from tests.reference_state import Count, count_thought

# Small tensors: more threads only wait for each other, and the tests run in several processes.
torch.set_num_threads(1)

PAD, EOS, LINE, STOP, DIGIT, A, B, USER, BOT, HEAD, OPEN, CLOSE = range(12)
VOCAB, HIDDEN = 18, 8

SINGLE = ThinkingDelimiters((OPEN,), ((CLOSE,),), (CLOSE,), (BOT, HEAD), ((OPEN,),), eos_ids=(EOS,))
SPELLED = replace(
    SINGLE,
    open_variants=((OPEN,), (16, 17)),
    natural_end_ids=((12, 13, 14), (15, 13, 14), (15, 14)),
    forced_end_ids=(12, 13, 14),
)
MARKERS = {
    "opened by the model": SINGLE,
    "opened by the template": replace(SINGLE, opened_by_template=True, lead_ids=(LINE,)),
    "spelled by three tokens": SPELLED,
    "spelled, template": replace(SPELLED, opened_by_template=True),
    "closed by a phrase": replace(SINGLE, opened_by_template=True, forced_end_ids=(LINE, DIGIT, CLOSE)),
    "implicit": replace(SINGLE, implicit=True),
}


class ToyModel:
    """Logits [B, V] = W h of a recurrent state that depends on the row's own tokens alone; float64."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.head = 0.9 * torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64)
        self.recur = torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64)
        self.embed = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64)
        self.head[:, -2:] = 0
        self.head[[13, 14, 17], -1] = 4  # begun markers are often gone on with
        self.head[[PAD, USER, BOT, HEAD], -2] = -9  # hardly ever written
        self.head[[EOS, OPEN, CLOSE, 12, 15, 16], -2] = torch.tensor([-2.5, 1, 1, 1, 1, 1]).double()

    def start(self, rows: int) -> torch.Tensor:
        """[B, d] state of an empty prefix."""
        return torch.zeros(rows, HIDDEN, dtype=torch.float64)

    def step(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, d] state after one more token a row; padding changes nothing."""
        moved = torch.tanh(1.5 * hidden @ self.recur + self.embed[tokens])
        moved[:, -2] = 1.0
        moved[:, -1] = ((tokens == 12) | (tokens == 13) | (tokens == 15) | (tokens == 16)).double()
        return torch.where((tokens == PAD)[:, None], hidden, moved)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.head.T

    def read(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after prefixes [B, T]."""
        hidden = self.start(input_ids.shape[0])
        for tokens in input_ids.T:
            hidden = self.step(hidden, tokens)
        return self.logits(hidden)


def pad_left(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[B, T] int64."""
    width = max(map(len, rows))
    return torch.tensor([[PAD] * (width - len(row)) + list(row) for row in rows])


def decode(
    model: ToyModel,
    prompts: torch.Tensor,
    processors: Sequence[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]],
    steps: int,
    *,
    eos: int = EOS,
    pad: int = PAD,
) -> torch.Tensor:
    """Greedy decoding of ``steps`` tokens a row, as ``generate`` does it; padded after the end of sequence."""
    ids, hidden = prompts, model.start(prompts.shape[0])
    for tokens in prompts.T:
        hidden = model.step(hidden, tokens)
    done = torch.zeros(prompts.shape[0], dtype=torch.bool)
    for _ in range(steps):
        scores = model.logits(hidden)
        for processor in processors:
            scores = processor(ids, scores)
        assert not scores.isnan().any()
        chosen = torch.where(done, pad, scores.argmax(1))
        done |= chosen == eos
        ids = torch.cat([ids, chosen[:, None]], 1)
        hidden = model.step(hidden, chosen)
    return ids


@pytest.fixture(scope="session")
def toy() -> ToyModel:
    return ToyModel()


@pytest.fixture(scope="session")
def markers() -> dict[str, ThinkingDelimiters]:
    return MARKERS


@pytest.fixture(scope="session")
def boundaries() -> Boundaries:
    return make_boundaries()


def make_boundaries() -> Boundaries:
    def table(token: int) -> torch.Tensor:
        return torch.arange(VOCAB) == token

    return Boundaries(line=table(LINE), sentence=table(STOP), digit=table(DIGIT))


@pytest.fixture(scope="session")
def forecast(toy: ToyModel) -> LengthForecast:
    return make_forecast(toy)


def make_forecast(toy: ToyModel) -> LengthForecast:
    """Random, in float64; predicts some six tokens, more or less by state and candidate."""
    torch.manual_seed(0)
    predictor = GammaLengthPredictor(GammaPredictorConfig(HIDDEN, 8, 2)).double()
    with torch.no_grad():
        predictor.heads.weight.mul_(4)
        predictor.heads.bias.copy_(torch.tensor([6.0, 3.0]))
        predictor.token_query.weight.normal_(0, 0.3)
    source = LogitsHiddenState(toy.head, anchors=torch.arange(VOCAB), dtype=torch.float64)
    return LengthForecast(predictor, source, toy.head, 2.0, torch.float64)


@pytest.fixture(scope="session")
def prompts_of() -> Callable[[ThinkingDelimiters, int], torch.Tensor]:
    """Left-padded prompts [B, T] of different lengths, each ending with the header (and the template's thought)."""

    def make(markers: ThinkingDelimiters, rows: int) -> torch.Tensor:
        opening = (*markers.open_ids, *markers.lead_ids) if markers.opened_by_template else ()
        asked = [[USER, *([A, B, DIGIT] * 3)[: 1 + (3 * row) % 7], *[A] * (row % 3)] for row in range(rows)]
        return pad_left([[*text, BOT, HEAD, *opening] for text in asked])

    return make


@pytest.fixture(scope="session")
def write() -> Callable[..., torch.Tensor]:
    return decode


@pytest.fixture(scope="session")
def count() -> Callable[[Sequence[int], int, ThinkingDelimiters], Count]:
    return count_thought


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-conformance", action="store_true", help="write docs/conformance.md from this run"
    )
