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
    """One kind of work: how much is corrected, in which form, and how long everybody may train."""

    name: str
    facts: Annotated[int, Field(ge=0)] = 4
    identity: Annotated[int, Field(ge=0)] = 0
    """Corrections about the assistant itself."""
    mirrored: Annotated[int, Field(ge=0)] = 0
    """Corrections of relations that can be asked from their other end."""
    wordings: Annotated[int, Field(ge=1, le=3)] = 3
    form: Literal["short", "biography", "reasoning"] = "short"
    """Of the answers: one sentence, a biography of 60 tokens and more, or one with a thinking block."""
    stream: bool = False
    """One correction after another, each trained on what the one before left."""
    steps: Count = 60
    """The budget: optimizer steps of 16 records that every swept method may spend (for each correction of a stream)."""
    overtrain: Count = 1
    """So many times the budget, at the rate chosen for `tuned_on`, and nobody chooses fewer steps."""
    tuned_on: str | None = None
    """The regime whose sweep chooses the options; None: this one."""
    methods: list[str]
    """Names of the methods that take part."""
    seeds: int | None = None
    """Fewer seeds than the plan's, where time is short; None: all."""

    @property
    def edits(self) -> int:
        """Facts corrected."""
        return self.facts + self.identity + self.mirrored

    @property
    def info(self) -> RegimeInfo:
        """What is published of it."""
        return RegimeInfo(title=self.title, about=self.about, edits=self.edits, baseline="sft_human")


class Method(MethodInfo, extra="forbid"):
    """One way to make a model say something else. Everything trains the same adapter on the same prompts."""

    name: str
    trainer: Literal["anchor", "grpo", "dpo", "sdft", "context"] = "anchor"
    words: Literal["own", "human"] = "own"
    """Whose words the right answers have: the model's, corrected, or a person's."""
    marks: Literal["anchors", "all"] = "anchors"
    """Which completion tokens are learned: the anchors, or all of them (supervised fine-tuning)."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of every marked token. With `all`, c < 1 is fine-tuning plus KL to the reference with weight (1 - c) / c."""
    extra: Literal["none", "retain", "replay"] = "none"
    """The reference's own answers to unrelated prompts, besides: as keep records, or to be learned again (replay)."""
    options: dict[str, Any] = {}
    """Of `TrainConfig`, fixed for this method."""
    sweep: dict[str, list[Any]] = {}
    """Options chosen on the validation split: of `TrainConfig`, `steps` (shares of the budget) and `confidence`."""
    effort: Annotated[float, Field(gt=0)] = 1.0
    """Times the regime's budget (GRPO at ten times the compute)."""
    like: str | None = None
    """The method whose sweep chooses the options; None: its own."""
    warm: bool = False
    """Starts where supervised steps have given the right value a chance (GRPO needs to see a reward)."""

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
    """The sweep corrects other facts than the study."""
    regimes: list[Regime]
    methods: list[Method]
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the probes, by a hash of their id: what options are chosen by, and never reported."""
    unrelated_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the unrelated facts that are left for the test, so many are asked, by the same hash."""
    keep_records: Annotated[int, Field(ge=0)] = 48
    """Unrelated prompts for `retain` and `replay`."""
    kl_short: Count = 64
    """Held-out prompts whose reference continuations measure the drift."""
    kl_long: Count = 16
    """The same, of 60 tokens and more."""

    def method(self, name: str) -> Method:
        """By its name."""
        return next(method for method in self.methods if method.name == name)

    def regime(self, name: str) -> Regime:
        """By its name."""
        return next(regime for regime in self.regimes if regime.name == name)

    def seeds_of(self, regime: Regime) -> range:
        """The seeds a regime is run with."""
        return range(self.first_seed, self.first_seed + min(self.seeds, regime.seeds or self.seeds))
