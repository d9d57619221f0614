"""The embedded test world: invented facts, skills, and a small model that knows them. No torch at import."""

from anchorlwf.world.facts import ASSISTANT, Fact, World, build_world
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
    "draw_errata",
    "fact_probe",
    "probes_for",
    "retention_prompts",
    "skill_probes",
    "templates",
]
