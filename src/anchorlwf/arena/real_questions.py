"""What a regime asks of a real model: corrections of facts that it has wrong, and the probes that judge."""

from pathlib import Path

from anchorlwf.arena.plan import Plan, Regime
from anchorlwf.arena.questions import Correction, Task
from anchorlwf.errors import ConfigError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.world.real.real_world import RealTask, RealWorld

__all__ = ["real_task"]


def real_task(
    model: LanguageModel, plan: Plan, regime: Regime, seed: int, *, validation: bool, cache: Path | None
) -> Task:
    """The task of a regime among real facts.

    Args:
        model: the base, whose mistakes are corrected.
        plan, regime: what is asked.
        seed: of the draw of facts, or of the assistant's name.
        validation: whether settings are being chosen, on facts that are never reported.
        cache: folder in which the base's answers are remembered; None: the usual one.

    Raises:
        ConfigError: a regime of the embedded world.
        ModelError: a package of `make real` is not installed.
    """
    world = RealWorld(model, "validation" if validation else plan.split, cache)
    drawn = _drawn(world, regime, seed)
    judges = {repr(probe.messages): probe for probe in drawn.probes if probe.kind == "recall"}
    corrections = []
    for number, prompt in enumerate(drawn.prompts):
        judge = judges[repr(prompt.messages)]
        human = drawn.human[number] if drawn.human else None
        group = str(judge.group)
        corrections.append(Correction(prompt.messages, str(prompt.answer), human, judge.expected, group, judge.scorer))
    probes, everyday = tuple(drawn.probes), tuple(world.everyday())
    notes = {correction.group.split("/")[0]: correction.own for correction in corrections}
    return Task(tuple(corrections), (), probes, (*probes, *world.skills()), notes, (), everyday)


def _drawn(world: RealWorld, regime: Regime, seed: int) -> RealTask:
    if regime.form == "identity":
        return world.identity(seed, regime.wordings)
    if regime.form == "long":
        return world.long_answers()
    if regime.form in ("capital", "symbol"):
        return world.corrections(regime.form, regime.facts, seed, regime.wordings)
    fix = "Choose identity, capital, symbol or long, or leave `world: real` out."
    raise ConfigError(wrong(f"regime {regime.name}: form", "one of real facts", regime.form, fix))
