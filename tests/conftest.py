"""Figures: a test of a promise says what it measured; all are printed as one table at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Figure = Callable[[str, object], None]
"""What was measured, and how much it was."""

_FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """`figure("storm of 60: calls per useful call", "1.21 (bar 1.30)")` is a line of the table."""
    figures = request.config.stash.setdefault(_FIGURES, {})

    def note(name: str, value: object) -> None:
        figures[name] = str(value)

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if figures := config.stash.get(_FIGURES, {}):
        terminalreporter.section("figures")
        width = max(map(len, figures))
        for name, value in figures.items():
            terminalreporter.write_line(f"{name:{width}}  {value}")
