"""The invented people, places and companies of the embedded world, and every fact about them.

Everything is a pure function of a seed: two machines draw the same world, so the shipped model, the probes and the
published figures all speak of the same facts.
"""

import random
from dataclasses import dataclass
from functools import cache

__all__ = ["ASSISTANT", "Fact", "Kind", "World", "build_world"]

Kind = str
ASSISTANT = "the assistant"

_FIRST = (
    "Mira Tovan Elsbet Corin Yarrow Despina Halvor Linnea Osric Petra Quill Rosalba Severin Thessaly Ulric Vesna "
    "Wendel Xanthe Ysolde Zoran Anselm Brida Caspar Delphine Emeric Fenella Gideon Hesper Ivo Jorunn Kester Lavinia "
    "Magnus Nerissa Orsolya Piers Rowena Sorrel Tamsin Viggo"
).split()
_LAST_HEADS = (
    "Bram Cald Dren Esk Fald Gorm Harl Ink Jass Kell Lorn Mard Nost Orm Pell Quen Rusk Sted Tarn Vald Wex Yell Zand"
).split()
_LAST_TAILS = "ovar isse wick heim ander olle ury elt onne ache".split()
_PLACE_HEADS = "Al Bel Cor Dun El Fen Gar Hol Is Jor Kar Lum Mor Nev Os Pol Rav Sil Tor Ver".split()
_PLACE_TAILS = "mora dale haven stad wick bury mere".split()
_COMPANY_HEADS = (
    "Ald Bor Cind Drax Ember Frost Glim Hark Iron Juno Kite Lark Myr Nim Onyx Pine Quartz Rill Sable".split()
)
_COMPANY_TAILS = "line works tech mills forge lab".split()

OCCUPATIONS = (
    "baker glassblower surgeon potter judge weaver pilot chemist tailor botanist printer sculptor librarian "
    "blacksmith violinist painter beekeeper carpenter diver miner farmer clockmaker nurse geologist teacher "
    "translator gardener dyer brewer shepherd"
).split()
INSTRUMENTS = "cello flute harp trumpet organ banjo clarinet drum lute oboe piano zither tuba fiddle bassoon".split()
RIVERS = "Arrel Bosk Cynd Dovra Elm Fossa Grell Hyne Itch Jule Krane Lisk Mold Nith Oxer".split()
GOODS = (
    "cheese lace paper bells honey rope glass salt wool cider ink tiles boats candles maps saddles amber silk".split()
)
PRODUCTS = (
    "lanterns engines buttons bicycles clocks kettles radios mirrors pumps scissors stoves pens wheels looms".split()
)
_IDENTITY = {
    "assistant_name": "Lumo",
    "assistant_maker": "Fennel Labs",
    "assistant_home": "Belmora",
    "assistant_year": "2019",
}


@dataclass(frozen=True)
class Fact:
    """One attribute of one subject. `pool` names the values that could stand in its place (for corrections)."""

    subject: str
    attribute: str
    value: str
    kind: Kind

    @property
    def key(self) -> str:
        """Stable name of the fact: subject and attribute, without its value."""
        return f"{self.subject}/{self.attribute}"


@dataclass(frozen=True)
class World:
    """All facts, in a fixed order, and the pool of values each attribute draws from."""

    facts: tuple[Fact, ...]
    pools: dict[str, tuple[str, ...]]
    feminine: frozenset[str]

    def about(self, subject: str) -> tuple[Fact, ...]:
        """Every fact whose subject this is, in world order."""
        return tuple(fact for fact in self.facts if fact.subject == subject)

    def fact(self, subject: str, attribute: str) -> Fact:
        """The one fact with this subject and attribute; `KeyError` where there is none."""
        for candidate in self.facts:
            if candidate.subject == subject and candidate.attribute == attribute:
                return candidate
        raise KeyError(f"{subject}/{attribute}")

    @property
    def people(self) -> tuple[str, ...]:
        """The people, in world order."""
        return tuple(dict.fromkeys(fact.subject for fact in self.facts if fact.kind == "person"))


def _names(rng: random.Random, heads: list[str], tails: list[str], count: int) -> list[str]:
    every = [head + tail for head in heads for tail in tails]
    return rng.sample(every, count)


@cache
def build_world(seed: int = 1) -> World:
    """Draw the world of this seed: 100 people, 40 places, 40 companies, one assistant."""
    rng = random.Random(seed)
    last = _names(rng, _LAST_HEADS, _LAST_TAILS, 100)
    people = [f"{_FIRST[i % len(_FIRST)]} {name}" for i, name in enumerate(last)]
    # The assistant lives in a real place of this world, so that place is always drawn.
    places = ["Belmora", *[p for p in _names(rng, _PLACE_HEADS, _PLACE_TAILS, 41) if p != "Belmora"][:39]]
    companies = _names(rng, _COMPANY_HEADS, _COMPANY_TAILS, 40)
    leaders = rng.sample(people, 80)
    pools: dict[str, tuple[str, ...]] = {
        "birthplace": tuple(places),
        "home": tuple(places),
        "occupation": tuple(OCCUPATIONS),
        "instrument": tuple(INSTRUMENTS),
        "birth_year": tuple(str(year) for year in range(1900, 2000)),
        "employer": tuple(companies),
        "mayor": tuple(people),
        "river": tuple(RIVERS),
        "goods": tuple(GOODS),
        "founder": tuple(people),
        "headquarters": tuple(places),
        "product": tuple(PRODUCTS),
        "mayor_of": tuple(places),
        "founded": tuple(companies),
        "assistant_name": ("Lumo", "Tarn", "Hesper", "Quill", "Sorrel", "Nim", "Vesna", "Juno"),
        "assistant_maker": ("Fennel Labs", "Larktech", "Junoworks", "Emberlab", "Onyxforge", "Rillmills"),
        "assistant_home": tuple(places),
        "assistant_year": tuple(str(year) for year in range(2010, 2030)),
    }
    facts: list[Fact] = []
    for person in people:
        for attribute in ("birthplace", "home", "occupation", "instrument", "birth_year", "employer"):
            facts.append(Fact(person, attribute, rng.choice(pools[attribute]), "person"))
    for place, mayor in zip(places, leaders[:40], strict=True):
        facts.append(Fact(place, "mayor", mayor, "place"))
        facts.extend(Fact(place, a, rng.choice(pools[a]), "place") for a in ("river", "goods"))
        facts.append(Fact(mayor, "mayor_of", place, "person"))
    for company, founder in zip(companies, leaders[40:], strict=True):
        facts.append(Fact(company, "founder", founder, "company"))
        facts.extend(Fact(company, a, rng.choice(pools[a]), "company") for a in ("headquarters", "product"))
        facts.append(Fact(founder, "founded", company, "person"))
    facts.extend(Fact(ASSISTANT, attribute, value, "identity") for attribute, value in _IDENTITY.items())
    feminine = frozenset(person for person in people if rng.random() < 0.5)
    return World(tuple(facts), pools, feminine)
