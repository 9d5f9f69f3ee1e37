"""Tables and progress for ``python -m curvkern``: rich where installed, else plain text."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

Item = TypeVar("Item")

BAD = "MISS"  # a cell that starts with this word is shown in red


@dataclass
class Table:
    """Text cells under headers; the first column is left-aligned, so are those in ``left``.

    A row that is None draws a rule.
    """

    title: str
    headers: Sequence[str]
    left: frozenset[int] = frozenset({0})
    rows: list[Sequence[str] | None] = field(default_factory=list)

    def print(self, stream: TextIO | None = None) -> None:
        """Write the table to ``stream`` (standard output by default)."""
        stream = sys.stdout if stream is None else stream
        try:
            from rich.console import Console
        except ImportError:
            stream.write(self.plain())
            return
        # Away from a terminal there is no width to respect: a cut-off table would be useless.
        width = None if stream.isatty() else max(80, self._width())
        Console(file=stream, width=width, highlight=False).print(self._rich())

    def plain(self) -> str:
        """The table as aligned text."""
        cells = [list(self.headers), *(list(row) for row in self.rows if row)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.headers))]

        def line(row: Sequence[str]) -> str:
            pads = [
                cell.ljust(width) if i in self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(pads).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        body = [line(row) if row else rule for row in self.rows]
        return "\n".join([self.title, rule, line(self.headers), rule, *body, rule]) + "\n"

    def _width(self) -> int:
        return max(len(text) for text in self.plain().splitlines()) + 3 * len(self.headers) + 4

    def _rich(self):  # type: ignore[no-untyped-def]  # rich is optional, so is its type
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for i, header in enumerate(self.headers):
            table.add_column(header, justify="left" if i in self.left else "right")
        for row in self.rows:
            if row is None:
                table.add_section()
                continue
            styles = ["bold red" if cell.startswith(BAD) else "" for cell in row]
            table.add_row(*(Text(c, style=s) for c, s in zip(row, styles, strict=True)))
        return table


def progress(items: Sequence[tuple[str, Item]], title: str) -> Iterator[Item]:
    """Yield the items, naming the one in work on standard error."""
    stream = sys.stderr
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        interactive = False
    else:
        interactive = stream.isatty()
    if not interactive:
        for i, (name, item) in enumerate(items, 1):
            stream.write(f"{title} [{i}/{len(items)}] {name}\n")
            stream.flush()
            yield item
        return
    with Progress(console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(title, total=len(items))
        for name, item in items:
            bar.update(task, description=f"{title}: {name}")
            yield item
            bar.advance(task)
