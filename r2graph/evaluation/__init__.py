"""The evaluation behind `r2graph eval`: every method on the same test queries, with its bill.

`outcomes` says what is measured of one query and how means are taken, `replies` asks each prompt
of each model once, `methods` and `baselines` are ways to answer, which `lineup` knows by name and
`run` runs, `query_routers` follow from what single members say, `record` is what a rerun goes on
from, `estimate` the price of it all. `compare` and `bars` set methods against each other,
`frontier` sets routers against each other at matched accuracy, `scores` are the literature's
`metrics`, `calibration` asks what an allocator's probabilities are worth, `report` draws tables.
"""
