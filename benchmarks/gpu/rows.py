"""What a part of the benchmark yields, and the file that it goes to."""

import csv
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

OK, LEFT_OUT, FAILED = "ok", "left out", "failed"


@dataclass
class Row:
    """One line of ``gpu.csv``.

    Arguments
    ---------
    part : str
        Of the benchmark: "parity", "times" and so on.
    case : str
        What was measured, and of which size.
    dtype : str
        "float32" and so on; empty where there is none.
    metric : str
        What the value is; empty where there is none.
    value : str
        A number or a text.
    unit : str
        Of a number.
    status : str
        "ok", or "left out: " or "failed: " and the reason.
    """

    part: str
    case: str
    dtype: str = ""
    metric: str = ""
    value: str = ""
    unit: str = ""
    status: str = OK


class LeftOut(Exception):
    """Something cannot be measured here, and that is no fault; the message says why."""


class Failed(Exception):
    """Something is wrong with what was measured; the message says what."""


class Measure(NamedTuple):
    """One number of a case.

    Arguments
    ---------
    metric : str
        What it is.
    value : float or str
        The number, or a text.
    unit : str
        Of the number.
    """

    metric: str
    value: Any
    unit: str = ""


class Case(NamedTuple):
    """One thing to measure.

    Arguments
    ---------
    name : str
        What it is, and of which size.
    dtype : str
        Or empty.
    measure : callable
        Takes nothing; yields :class:`Measure`. It may raise :class:`LeftOut`, or
        :class:`Failed` after the numbers that show it.
    """

    name: str
    dtype: str
    measure: Callable


def as_text(value):
    """A number with five digits; a text as it is."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


class RowFile:
    """A CSV file that holds every row as soon as it is known.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; an older one is replaced.
    """

    def __init__(self, path):
        self.rows = []
        self.file = open(path, "w", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file)
        self.writer.writerow([field.name for field in fields(Row)])
        self.file.flush()

    def add(self, row):
        """Write one :class:`Row`."""
        self.rows.append(row)
        self.writer.writerow(astuple(row))
        self.file.flush()


def read_rows(path):
    """The rows of such a file."""
    with open(path, newline="", encoding="utf-8") as file:
        return [Row(**line) for line in csv.DictReader(file)]
