"""Recorded outcomes, asked again without a model: to fit a router, and to judge policies."""
