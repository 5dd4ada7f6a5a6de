"""The evaluation behind `r2graph eval`: every method on the same test queries, with its bill.

`outcomes` says what is measured of one query and how means are taken, `replies` asks each prompt
of each model once, `methods` are what is compared, `run` runs them, `compare` and `bars` set them
against each other, `report` prints.
"""
