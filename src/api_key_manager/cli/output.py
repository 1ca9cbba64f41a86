"""How answers are printed: tables and colour on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from api_key_manager.cli.errors import MISUSE, Failure, one_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "cell",
    "console",
    "details",
    "document",
    "json_line",
    "note",
    "open_new",
    "printer",
    "progress",
    "short_time",
    "table",
]


def console(stream: TextIO) -> Console:
    """Rich on a stream."""
    from rich.console import Console

    return Console(
        file=stream,
        # Rich would colour a pipe when FORCE_COLOR is set; only a terminal shall see colour.
        force_terminal=stream.isatty(),
        # Rich by itself would leave bold and dim in spite of NO_COLOR.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
    )


def document(value: Any) -> None:
    """One JSON document. ASCII, so that no terminal and no locale can spoil it."""
    sys.stdout.write(f"{json.dumps(value, indent=2)}\n")


def json_line(value: Any) -> str:
    """One line of JSON Lines."""
    return f"{json.dumps(value)}\n"


def note(text: str) -> None:
    """A remark beside the answer, on standard error."""
    sys.stderr.write(f"{one_line(text)}\n")
    sys.stderr.flush()


def short_time(text: str | None) -> str:
    """RFC 3339 to the second, as people read it."""
    return "-" if not text else text[:19] + "Z"


def cell(value: Any) -> str:
    """Any value of an answer as text on one line."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False)
    return one_line(str(value))


def details(values: Mapping[str, Any]) -> None:
    """One thing: a line for each of its values. Nothing is cut or wrapped in a pipe."""
    width = max(map(len, values), default=0)
    colour = sys.stdout.isatty()
    screen = console(sys.stdout) if colour else None
    for name, value in values.items():
        if screen is None:
            sys.stdout.write(f"{name}: {cell(value)}\n")
            continue
        from rich.text import Text

        line = Text.assemble((name.ljust(width), "dim"), "  ", cell(value))
        # A token that the terminal wraps is copied whole, one that we wrap is not.
        screen.print(line, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, nothing: str) -> None:
    """Many things. In a pipe: aligned columns with a heading, ``-`` for what is empty."""
    if not rows:
        note(nothing)
        return
    texts = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        from rich.table import Table

        grid = Table(*columns, header_style="bold", pad_edge=False)
        for column in grid.columns:
            column.overflow = "fold"
        from rich.text import Text

        for row in texts:
            grid.add_row(*map(Text, row))
        console(sys.stdout).print(grid)
        return
    lines = [list(columns), *texts]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


@contextlib.contextmanager
def progress(
    label: str, total: int | None = None, *, beside: Path | None = None
) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error while something long runs; silent unless that is a terminal.

    Args:
        label: what is counted.
        total: how much there is, when known.
        beside: where lines go meanwhile. On a terminal they would run into the bar.

    Yields:
        What to call with how much is done, and of how much.
    """
    lines_on_screen = sys.stdout.isatty() and (beside is None or str(beside) == "-")
    if not sys.stderr.isatty() or lines_on_screen:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        console=console(sys.stderr), transient=True,
        # What is written to standard output meanwhile belongs there, not to the bar.
        redirect_stdout=False,
    )  # fmt: skip
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def open_new(path: Path) -> TextIO:
    """A new file that only its owner can read.

    Raises:
        Failure: it exists; nothing is ever overwritten, the old one may hold the only copy.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failure(f"{path}: the file exists and is not overwritten", MISUSE) from None
    return os.fdopen(descriptor, "w", encoding="utf-8")


@contextlib.contextmanager
def printer(output: Path | None, *, keep: bool) -> Iterator[Callable[[str], None]]:
    """Where lines go: standard output, or a new file.

    Args:
        output: the file; ``None`` or ``-`` for standard output.
        keep: whether a file that was not finished stays.
    """
    if output is None or str(output) == "-":
        yield _write_out
        return
    stream = open_new(output)
    try:
        with stream:

            def write(line: str) -> None:
                stream.write(line)
                stream.flush()

            yield write
    except BaseException:
        if not keep:
            output.unlink(missing_ok=True)
        raise


def _write_out(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()
