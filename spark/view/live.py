"""What a running recipe shows: one live panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spark.recipes.events import Progress


class LiveProgress:
    """Shows the latest `Progress`; use as a context manager and call it with each one.

    Example:
        with LiveProgress("first_light") as show:
            run_recipe(config, on_progress=show)
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        """`title` heads the panel; without `console` progress goes to stderr."""
        self.title = title
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._printed: tuple[object, ...] = ()

    def __enter__(self) -> LiveProgress:
        """Open the panel where there is a terminal."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state of the panel standing."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show `progress`; as a line only where it enters a new phase, step or split."""
        if self._live is not None:
            self._live.update(panel(self.title, progress))
            return
        place = (progress.phase, progress.arm, progress.step, progress.split)
        if place != self._printed:
            self._printed = place
            where, numbers = place_text(progress), "  ".join(number_texts(progress))
            line = f"{progress.done_share:4.0%}  {where:<32}  {numbers}".rstrip()
            self.console.print(line, highlight=False, soft_wrap=True)


def panel(title: str, progress: Progress) -> RenderableType:
    """Return the live display: where the run is, a bar, the numbers."""
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=progress.done_share, width=32)
    head.add_row(Text(title, style="bold"), bar, f"{progress.done_share:.0%}", place_text(progress))
    return Group(head, Text("  ".join(number_texts(progress)), style="cyan"))


def place_text(progress: Progress) -> str:
    """Return where the run is, e.g. "spark, step 3: rollout"."""
    where = f"{progress.arm}, step {progress.step}: " if progress.arm else ""
    return f"{where}{progress.phase} {progress.split or ''}".rstrip()


def number_texts(progress: Progress) -> list[str]:
    """Return the numbers that are known, each with its name and unit."""
    texts = []
    if progress.success is not None:
        texts.append(f"success {progress.success:.0%}")
    if progress.tokens_per_s is not None:
        texts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.reused_share is not None:
        texts.append(f"reused {progress.reused_share:.0%}")
    if progress.forks:
        texts.append(f"forks {progress.forks:,}")
    if progress.eta_s is not None:
        minutes, seconds = divmod(round(progress.eta_s), 60)
        texts.append(f"{minutes}:{seconds:02d} left")
    return texts
