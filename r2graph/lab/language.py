"""The lab's language: the queries that its router and its nine models were trained on."""

from __future__ import annotations

import unicodedata

from r2graph.errors import EmptyQueryError, UnsupportedQueryError
from r2graph.lab import arith, geo, scan
from r2graph.lab.task import Task

FAMILIES = (scan.task, arith.task, geo.task)


def task(query: str) -> Task:
    """The task of a query in the lab's language; `EmptyQueryError` or `UnsupportedQueryError` for
    anything else.
    """
    text = _fold(query)
    if not text:
        raise EmptyQueryError
    for family in FAMILIES:
        try:
            return family(text)
        except ValueError:
            continue
        except KeyError:
            raise UnsupportedQueryError(
                "the query names a place, domain or code that the lab does not know; it knows the "
                "3,000 most populous cities and all countries, in English, as listed in "
                "r2graph/lab/data/geo_facts.json"
            ) from None
    raise UnsupportedQueryError(
        "the query is outside the lab's language, which has three families: SCAN commands "
        "(walk left twice and jump), integer expressions (( 12 + 7 ) * 5 - 38) and questions on "
        "places (What currency is used in the country where Oslo is?); "
        "for free text use a pool of general models, such as --pool openai"
    )


def _fold(query: str) -> str:
    """Single spaces, accents dropped: the lab spells places in ASCII."""
    decomposed = unicodedata.normalize("NFD", query.replace("\u2019", "'"))
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


def check(query: str) -> str:
    """The query in the lab's spelling (single spaces, no accents); raises as `task` does."""
    return task(query).query
