from __future__ import annotations

import pytest

FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the chaos test; known where its folder is named on the command line."""
    group = parser.getgroup("chaos")
    group.addoption("--chaos-seed", type=int, help="Seed of the first run; by default random.")
    group.addoption(
        "--chaos-seconds", type=float, help="Length of the chaos in each run, of both bindings."
    )
    group.addoption("--chaos-runs", type=int, help="How many runs, each with the next seed.")
    group.addoption(
        "--chaos-binding", choices=["celery", "dramatiq"], help="One of them; by default both."
    )
    group.addoption(
        "--chaos-broker",
        choices=["redis", "rabbitmq"],
        help="Dramatiq's; by default Redis for even seeds, RabbitMQ for odd ones.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make room for what is shown at the end."""
    config.stash[FIGURES] = []


@pytest.fixture
def shown(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are shown when all tests have run, whether they passed or not."""
    return request.config.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures of each run."""
    lines = terminalreporter.config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("chaos")
        for line in lines:
            terminalreporter.write_line(line)
