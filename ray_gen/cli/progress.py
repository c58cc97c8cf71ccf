"""The progress line of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def measuring(of: str = "") -> Generator[Callable[[int, int, str], None]]:
    """Gives `progress(done, total, what)`, which writes to stderr: one line that updates on a
    terminal, or one line per stage in a log. of: what is measured, if that must be told."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    stage = ""

    def progress(done: int, total: int, what: str) -> None:
        nonlocal stage
        what = f"{of}: {what}" if of else what
        if what != stage:
            stage = what
            if not console.is_terminal:
                console.print(what, soft_wrap=True)
            bar.reset(task, description=what)
        bar.update(task, completed=done, total=total, description=what)

    with bar:
        task = bar.add_task(f"{of}: loading" if of else "loading", total=1)
        yield progress
