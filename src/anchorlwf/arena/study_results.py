"""results.json of a study, checked once, so that everything behind it can trust its types. docs/arena_results.md."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from anchorlwf.arena.plan import MethodInfo, RegimeInfo
from anchorlwf.errors import RecordError, wrong

__all__ = ["OURS", "Cell", "Costs", "CurvePoint", "Example", "Failure", "Measures", "Strip", "Study", "Trial"]

OURS = "anchorlwf"
"""The method whose claims are judged: AnchorLwF as it ships, stop rule and all."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A run that diverged must not take the report of all others with it: NaN and infinities mean "not measured".
Number = Annotated[float | None, BeforeValidator(_finite)]
Fraction = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_finite)]
Divergence = Annotated[Annotated[float, Field(ge=-1e-4)] | None, BeforeValidator(_finite)]
# Names become parts of file names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """Fields that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Measures(_Part):
    """What one trained model can do. None: not measured. `kl_*`: nats per token."""

    recall: Fraction = None
    paraphrase: Fraction = None
    reverse: Fraction = None
    near: Fraction = None
    kept: Fraction = None
    skills: Fraction = None
    kl_short: Divergence = None
    kl_long: Divergence = None
    flips: Count | None = None
    facts_lost: Count | None = None
    facts_known: Count | None = None
    same: Fraction = None
    """Share of everyday answers that are word for word the same for 64 tokens."""
    leaks: Count | None = None
    """Everyday answers in which a corrected value turns up."""

    @property
    def learned(self) -> float | None:
        """Mean of recall and paraphrase; recall alone where there are no paraphrases."""
        if self.recall is None or self.paraphrase is None:
            return self.recall
        return (self.recall + self.paraphrase) / 2

    @property
    def lost(self) -> float | None:
        """Share of unrelated facts that were right and are not any more."""
        return None if self.kept is None else 1 - self.kept

    @property
    def near_lost(self) -> float | None:
        """The same of other facts about the corrected subjects."""
        return None if self.near is None else 1 - self.near

    def value(self, name: str) -> float | None:
        """A measure by its name."""
        measured = getattr(self, name)
        return None if measured is None else float(measured)


class Costs(_Part):
    """What it took. Tokens, actions and steps are counts."""

    annotated_tokens: Count | None = None
    annotation_actions: Count | None = None
    completion_tokens: Count | None = None
    trained_tokens: Count | None = None
    steps: Count | None = None
    seconds: Number = None
    flops: Number = None
    peak_memory_bytes: Count | None = None
    converged: bool | None = None


class CurvePoint(_Part):
    """The losses after one step."""

    step: Count
    loss: Number = None
    keep_kl: Number = None


class Example(_Part):
    """One probe, answered before and after."""

    kind: str
    question: str
    expected: str
    before: str
    after: str


class Strip(_Part):
    """One continuation of the reference with KL(reference || tuned) at each token, nats."""

    prompt: str
    tokens: list[str]
    kl: list[Number]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.tokens) != len(self.kl):
            raise ValueError(f"expected one kl per token, got {len(self.kl)} for {len(self.tokens)}")
        return self

    @property
    def mean(self) -> float:
        """Mean over the tokens; 0 of nothing."""
        known = [kl for kl in self.kl if kl is not None]
        return sum(known) / len(known) if known else 0.0


class _Run(_Part):
    method: str
    regime: str
    seed: int


class Cell(_Run):
    """One method in one regime with one seed."""

    options: dict[str, Any] = {}
    measures: Measures
    outcomes: dict[str, Literal[0, 1]] = {}
    """1: right, by probe id; ids begin with their kind (`recall:`, `paraphrase:`, `retain:` ...)."""
    costs: Costs = Costs()
    curve: list[CurvePoint] = []
    examples: list[Example] = []
    strips: list[Strip] = []


class Trial(_Run):
    """One setting that a sweep tried."""

    options: dict[str, Any] = {}
    score: Number = None
    measures: Measures = Measures()
    chosen: bool = False


class Failure(_Run):
    """A cell that could not be measured."""

    error: str


class Study(_Part):
    """A whole results.json."""

    schema_version: Literal[1]
    command: str
    date: str
    environment: dict[str, Any] = {}
    methods: dict[Name, MethodInfo]
    regimes: dict[Name, RegimeInfo]
    cells: list[Cell]
    sweep: list[Trial] = []
    failures: list[Failure] = []

    @model_validator(mode="after")
    def _known(self) -> Self:
        for run in (*self.cells, *self.sweep, *self.failures):
            if run.method not in self.methods or run.regime not in self.regimes:
                raise ValueError(f"expected methods and regimes that are listed, got {run.method!r} in {run.regime!r}")
        seen: set[tuple[str, str, int]] = set()
        for cell in self.cells:
            key = (cell.method, cell.regime, cell.seed)
            if key in seen:
                raise ValueError(f"expected each method, regime and seed once, got {key} twice")
            seen.add(key)
        return self

    @classmethod
    def read(cls, results: dict[str, Any]) -> Self:
        """Check a parsed results.json.

        Raises:
            RecordError: names every field that is wrong.
        """
        try:
            return cls.model_validate(results)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}"
                for item in error.errors(include_url=False)[:5]
            )
            fix = "docs/arena_results.md says what the file holds."
            raise RecordError(wrong("results.json", "a study of schema_version 1", problems, fix)) from error

    def of(self, regime: str, method: str | None = None) -> list[Cell]:
        """The cells of a regime (and method), by seed."""
        cells = [cell for cell in self.cells if cell.regime == regime and method in (None, cell.method)]
        return sorted(cells, key=lambda cell: cell.seed)

    def measured(self, regime: str) -> list[str]:
        """The methods that have a cell in this regime, in their listed order."""
        have = {cell.method for cell in self.of(regime)}
        return [name for name in self.methods if name in have]

    def pairs(self, regime: str, first: str, second: str) -> Iterator[tuple[Cell, Cell]]:
        """The cells of two methods with the same seed."""
        by_seed = {cell.seed: cell for cell in self.of(regime, second)}
        return ((cell, by_seed[cell.seed]) for cell in self.of(regime, first) if cell.seed in by_seed)

    @property
    def seeds(self) -> list[int]:
        """Every seed that was measured."""
        return sorted({cell.seed for cell in self.cells})
