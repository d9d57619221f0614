"""What a study runs: its regimes, methods, seeds and sweeps, as one YAML file. No torch."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from anchorlwf.config import Config

__all__ = ["Family", "Method", "MethodInfo", "Plan", "Regime", "RegimeInfo"]

Count = Annotated[int, Field(ge=1)]
Family = Literal["anchorlwf", "sft", "rl", "preference", "distillation", "context"]


class _Titled(BaseModel):
    """Fields that this version does not know are ignored, for published results may be newer."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str
    about: str = ""


class MethodInfo(_Titled):
    """What results.json says of a method."""

    family: Family


class RegimeInfo(_Titled):
    """What results.json says of a regime."""

    edits: Annotated[int, Field(ge=0)]
    """Facts corrected."""
    baseline: str
    """The method that `anchorlwf` must beat here."""


class Regime(_Titled, extra="forbid"):
    """One kind of task: how much is corrected, in which form, and how long every method may train."""

    name: str
    facts: Annotated[int, Field(ge=0)] = 4
    identity: Annotated[int, Field(ge=0)] = 0
    """Corrections about the assistant itself."""
    mirrored: Annotated[int, Field(ge=0)] = 0
    """Corrections of relations that can also be asked in the other direction."""
    wordings: Annotated[int, Field(ge=1, le=3)] = 3
    form: Literal["short", "biography", "reasoning", "capital", "symbol", "identity", "long"] = "short"
    """Form of the answers in the embedded world: one sentence, a biography of 60 tokens or more, or a sentence after a
    thinking block. Among real facts: what is corrected, or `long` for the model's own answers of 60 tokens or more."""
    answer_tokens: Count = 160
    """Maximum number of tokens of an answer that is measured."""
    stream: bool = False
    """Whether corrections come one after another, each trained on top of the one before."""
    steps: Count = 60
    """The budget: optimizer steps of 16 records that every swept method may spend (for each correction of a stream)."""
    overtrain: Count = 1
    """Multiplies the budget, at the rate chosen for `tuned_on`; no method may then choose fewer steps."""
    tuned_on: str | None = None
    """The regime whose sweep chooses the options; None: this one."""
    methods: list[str]
    """Names of the methods that take part."""
    seeds: int | None = None
    """Number of seeds, where the plan's would take too long; None: all of them."""
    baseline: str = "sft_human"
    """The method that ours is claimed to lose at most a quarter of the facts of."""

    @property
    def edits(self) -> int:
        """Facts corrected."""
        return self.facts + self.identity + self.mirrored

    @property
    def info(self) -> RegimeInfo:
        """What is published of it."""
        return RegimeInfo(title=self.title, about=self.about, edits=self.edits, baseline=self.baseline)


class Method(MethodInfo, extra="forbid"):
    """One way to make a model say something else. Everything trains the same adapter on the same prompts."""

    name: str
    trainer: Literal["anchor", "grpo", "dpo", "sdft", "context"] = "anchor"
    words: Literal["own", "human"] = "own"
    """Whose words the right answers have: the model's, corrected, or a person's."""
    marks: Literal["anchors", "all", "likely"] = "anchors"
    """Which completion tokens are learned: the anchors, all of them (supervised fine-tuning), or those alone that the
    base finds likely (STM)."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Confidence of every learned token. With `all`, c < 1 is fine-tuning plus (1 - c) / c times KL to the base."""
    extra: Literal["none", "auto", "retain", "replay"] = "none"
    """Further records, the reference's own answers to unrelated prompts: kept (retain) or learned again (replay). Among
    real facts the model writes these prompts itself. auto: retain there, none in the embedded world, as `fix` does."""
    retention: dict[str, Any] = {}
    """Options of `RetainConfig`, where the model writes the prompts."""
    paraphrase: dict[str, Any] | None = None
    """Options of `ParaphraseConfig`, where other wordings are corrected as well (among real facts, beside keep
    records); None: they are not."""
    options: dict[str, Any] = {}
    """Options of `TrainConfig` that are fixed for this method."""
    sweep: dict[str, list[Any]] = {}
    """Options chosen on the validation split: of `TrainConfig`, `steps` (shares of the budget) and `confidence`."""
    effort: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the regime's budget of steps, because a step of this method costs more or less than one of ours."""
    like: str | None = None
    """The method whose sweep chooses the options; None: its own."""
    seeds: int | None = None
    """Number of seeds, where the plan's would take too long; None: all of them."""
    warm: bool = False
    """Whether it starts after supervised steps that gave the right value a chance (GRPO needs to see a reward)."""

    @property
    def info(self) -> MethodInfo:
        """What is published of it."""
        return MethodInfo(title=self.title, about=self.about, family=self.family)


class Plan(Config):
    """A whole study."""

    section: ClassVar[str] = "arena"

    name: str = "study"
    seeds: Count = 5
    first_seed: int = 1
    validation_seed: int = 101
    """Seed of the sweep, which corrects other facts than the study."""
    world: Literal["embedded", "real"] = "embedded"
    """Whose facts are corrected: those of the embedded world, or real ones that a model has wrong (`make real`)."""
    split: Literal["report", "validation"] = "report"
    """Real facts: those that are reported, or those that settings are chosen on."""
    regimes: list[Regime]
    methods: list[Method]
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the probes, by a hash of their ids, that options are chosen by and that are never reported."""
    unrelated_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the remaining unrelated facts that the test asks, by the same hash."""
    keep_records: Annotated[int, Field(ge=0)] = 48
    """Unrelated prompts for `retain` and `replay`."""
    kl_short: Count = 64
    """Held-out prompts whose reference continuations measure the drift."""
    kl_long: Count = 16
    """The same for continuations of 60 tokens or more."""

    def method(self, name: str) -> Method:
        """By its name."""
        return next(method for method in self.methods if method.name == name)

    def regime(self, name: str) -> Regime:
        """By its name."""
        return next(regime for regime in self.regimes if regime.name == name)

    def seeds_of(self, regime: Regime, method: str) -> range:
        """The seeds that a method is run with in a regime."""
        count = min(self.seeds, regime.seeds or self.seeds, self.method(method).seeds or self.seeds)
        return range(self.first_seed, self.first_seed + count)
