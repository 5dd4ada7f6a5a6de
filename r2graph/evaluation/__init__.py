"""The evaluation behind `r2graph eval`: every method on the same test queries, with its bill.

`outcomes` says what is measured of one query and how means are taken, `replies` asks each prompt
of each model once, `methods` are ways to answer, which `lineup` knows by name and `run` runs,
`compare` and `bars` set them against each other, `frontier` sets routers against each other at
matched accuracy, `calibration` asks what an allocator's probabilities are worth, `report` draws the
tables.
"""
