"""The call ledger: what was asked of whom, what came back, and what it cost, through any crash."""

from r2graph.ledger.book import Ledger, Page
from r2graph.ledger.records import Budget, Line, State

__all__ = ["Budget", "Ledger", "Line", "Page", "State"]
