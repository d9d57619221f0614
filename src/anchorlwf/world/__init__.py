"""The embedded test world: invented facts, skills, and a small model that knows them. No torch at import."""

from anchorlwf.world.facts import ASSISTANT, Fact, World, build_world
from anchorlwf.world.human import corrected_biography, human_answer, human_biography
from anchorlwf.world.probes import Erratum, draw_errata, fact_probe, probes_for, retention_prompts, skill_probes
from anchorlwf.world.templates import Template, biography, templates

__all__ = [
    "ASSISTANT",
    "Erratum",
    "Fact",
    "Template",
    "World",
    "biography",
    "build_world",
    "corrected_biography",
    "draw_errata",
    "fact_probe",
    "human_answer",
    "human_biography",
    "probes_for",
    "retention_prompts",
    "skill_probes",
    "templates",
]
