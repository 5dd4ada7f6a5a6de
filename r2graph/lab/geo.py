"""Multi-hop questions in controlled English over real facts (GeoNames, CC BY 4.0; frozen in
`data/geo_facts.json`).

Distribution (`draw`): the question forms of `FORMS` in equal shares; cities by population, as text
on the web would name them, so that small models know the head and only large ones the tail;
countries by the square root of theirs. In questions on two cities, half of the pairs share a
country. A test question is an unseen combination: every single fact may be trained on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from itertools import accumulate
from random import Random

from r2graph.lab.task import Task
from r2graph.plan import Plan, Subtask

KEYS = ("domain", "capital", "phone code")  # what a country can be told by
ATTRIBUTES = {
    "capital": "What is the capital of the country {}?",
    "currency": "What currency is used in the country {}?",
    "continent": "On which continent is the country {}?",
    "domain": "What is the domain of the country {}?",
    "phone code": "What is the phone code of the country {}?",
}
PAIRS = {
    "country": "Are {} and {} in the same country?",
    "currency": "Do {} and {} use the same currency?",
    "continent": "Are {} and {} on the same continent?",
}
FORMS = (
    *(("where", attribute) for attribute in ATTRIBUTES),
    *((key, attribute) for key in KEYS for attribute in ATTRIBUTES if key != attribute),
    *(("pair", attribute) for attribute in PAIRS),
)
# The city questions and the pairs are asked as often as all questions that tell the country by a
# key.
WEIGHTS = [3 if form == "where" else 3 if form == "pair" else 1 for form, _ in FORMS]


class Facts:
    """The frozen facts, with the look-ups that questions need."""

    def __init__(self) -> None:
        raw = json.loads(files("r2graph.lab").joinpath("data/geo_facts.json").read_text())
        self.countries: dict[str, dict[str, str]] = {
            c["name"]: c for c in raw["countries"].values()
        }
        names = {code: c["name"] for code, c in raw["countries"].items()}
        self.country_of: dict[str, str] = {city: names[code] for city, code, _ in raw["cities"]}
        self.cities = list(self.country_of)
        self.rank = {city: index for index, city in enumerate(self.cities)}
        self.city_weights = list(accumulate(population for _, _, population in raw["cities"]))
        self.country_names = list(self.countries)
        self.country_weights = list(
            accumulate(int(c["population"]) ** 0.5 + 100 for c in self.countries.values())
        )
        self.by_key = {key: self._unique(key) for key in KEYS}
        self.cities_in: dict[str, list[str]] = {}
        for city, country in self.country_of.items():
            self.cities_in.setdefault(country, []).append(city)

    def _unique(self, key: str) -> dict[str, str]:
        """Values of `key` that only one country has, and that country."""
        counts = Counter(c[key] for c in self.countries.values())
        return {
            c[key]: name for name, c in self.countries.items() if c[key] and counts[c[key]] == 1
        }


@cache
def facts() -> Facts:
    return Facts()


class _Steps:
    """Collects the oracle steps of one question."""

    def __init__(self) -> None:
        self.subtasks: list[Subtask] = []
        self.outputs: dict[str, str] = {}
        self.kinds: dict[str, str] = {}

    def add(self, kind: str, text: str, output: str) -> str:
        name = f"s{len(self.subtasks) + 1}"
        self.subtasks.append(Subtask(id=name, text=text))
        self.outputs[name] = output
        self.kinds[name] = kind
        return f"{{{name}}}"

    def country(self, city: str) -> tuple[str, str]:
        country = facts().country_of[city]
        rank = facts().rank[city]
        head = "1-100" if rank < 100 else "101-1000" if rank < 1000 else "1001-3000"
        return self.add(f"city {head}", f"country of {city}", country), country

    def attribute(self, attribute: str, reference: str, country: str) -> tuple[str, str]:
        output = facts().countries[country][attribute]
        return self.add(attribute, f"{attribute} of {reference}", output), output

    def same(self, left: tuple[str, str], right: tuple[str, str]) -> None:
        output = "yes" if left[1] == right[1] else "no"
        self.add("same", f"same {left[0]} and {right[0]}", output)

    def task(self, query: str) -> Task:
        answer = self.outputs[self.subtasks[-1].id]
        return Task(
            "geo", query, answer, Plan(subtasks=tuple(self.subtasks)), self.outputs, self.kinds
        )


def _about_place(attribute: str, city: str) -> Task:
    steps = _Steps()
    steps.attribute(attribute, *steps.country(city))
    return steps.task(ATTRIBUTES[attribute].format(f"where {city} is"))


def _about_key(key: str, attribute: str, value: str) -> Task:
    steps = _Steps()
    country = facts().by_key[key][value]
    reference = steps.add(f"by {key}", f"country with {key} {value}", country)
    steps.attribute(attribute, reference, country)
    return steps.task(ATTRIBUTES[attribute].format(f"whose {key} is {value}"))


def _about_pair(attribute: str, first: str, second: str) -> Task:
    steps = _Steps()
    left, right = steps.country(first), steps.country(second)
    if attribute != "country":
        left, right = steps.attribute(attribute, *left), steps.attribute(attribute, *right)
    steps.same(left, right)
    return steps.task(PAIRS[attribute].format(first, second))


def _patterns() -> list[tuple[re.Pattern[str], Callable[..., Task]]]:
    """Each question form as a pattern and what builds its task from the matched names."""
    found: list[tuple[re.Pattern[str], Callable[..., Task]]] = []

    def add(form: str, tail: str, build: Callable[..., Task]) -> None:
        pattern = re.escape(form).replace(r"\{\}", tail)
        found.append((re.compile(pattern), build))

    for attribute, form in ATTRIBUTES.items():
        add(form, "where (.+) is", partial(_about_place, attribute))
        for key in KEYS:
            add(form, f"whose {key} is (.+)", partial(_about_key, key, attribute))
    for attribute, form in PAIRS.items():
        add(form, "(.+)", partial(_about_pair, attribute))
    return found


_PATTERNS = _patterns()


def task(question: str) -> Task:
    """The task of one question.

    Raises `ValueError` if its form is not of the family, `KeyError` if a name is not in the facts.
    """
    for pattern, build in _PATTERNS:
        match = pattern.fullmatch(question)
        if match:
            return build(*match.groups())
    raise ValueError("not a question of the geo family")


def draw(rng: Random, by_population: bool = True) -> Task:
    """One task from the documented distribution; without `by_population` all cities are equally
    likely.
    """
    known = facts()
    city_weights = known.city_weights if by_population else None

    def city() -> str:
        return rng.choices(known.cities, cum_weights=city_weights)[0]

    form, attribute = rng.choices(FORMS, WEIGHTS)[0]
    while True:
        if form == "where":
            item = _about_place(attribute, city())
        elif form == "pair":
            first = city()
            siblings = known.cities_in[known.country_of[first]]
            second = rng.choice(siblings) if rng.random() < 0.5 else city()
            if first == second:
                continue
            item = _about_pair(attribute, first, second)
        else:
            country = rng.choices(known.country_names, cum_weights=known.country_weights)[0]
            value = known.countries[country][form]
            if value not in known.by_key[form]:
                continue
            item = _about_key(form, attribute, value)
        if all(item.outputs.values()):
            return item
