"""What is behind `r2graph calibrate`: the quality of a router that keeps a promise.

`betting` tests means without knowing a distribution, `records` reads what became of queries,
`promise` picks the quality.
"""
