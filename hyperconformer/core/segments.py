"""A part of a recording, named as W3C's media fragments name it: ``FILE#t=START,END``.

Start and end are in seconds from the beginning of the file. ``FILE#t=,END`` is what the
file has of its first END seconds. Wherever the project reads audio, such a name may
stand for a file.
"""

import os
import re
from typing import NamedTuple

_SECONDS = r"\d+(\.\d+)?"
_FRAGMENT = re.compile(rf"(?P<file>.+)#t=(?P<start>{_SECONDS})?,(?P<end>{_SECONDS})")

# How far a segment may end after its file: lists of segments hold rounded times.
ROUNDING_S = 0.05


class Segment(NamedTuple):
    """A file, and which part of it.

    Without an end it is all of the file, without a start what the file has before the
    end.
    """

    file: str
    start_s: float | None = None
    end_s: float | None = None

    def frames(self, total, rate_hz):
        """The frames of the segment.

        Arguments
        ---------
        total : int
            Frames of the file.
        rate_hz : int
            Frames in a second.

        Returns
        -------
        first, count : int

        Raises
        ------
        ValueError
            If the segment is empty or ends after the file.

        Example
        -------
        >>> Segment("a.wav", 0.5, 2.0).frames(16000, 8000)
        (4000, 12000)
        """
        if self.end_s is None:
            return 0, total
        start_s, end = self.start_s or 0.0, round(self.end_s * rate_hz)
        if self.start_s is None:
            end = min(end, total)
        first = round(start_s * rate_hz)
        if first < min(end, total) and end <= total + ROUNDING_S * rate_hz:
            return first, min(end, total) - first
        raise ValueError(
            f"the segment from {start_s} to {self.end_s} s is not inside the "
            f"file, which lasts {total / rate_hz:.3f} s"
        )


def name_segment(file, start_s, end_s):
    """The name of a part of a file.

    Arguments
    ---------
    file : str
        The file.
    start_s : float or None
        Seconds; None is the start of a file that may be shorter than ``end_s``.
    end_s : float
        Seconds.

    Returns
    -------
    str

    Example
    -------
    >>> name_segment("a.wav", 0.5, 2)
    'a.wav#t=0.5,2'
    >>> name_segment("a.wav", None, 2)
    'a.wav#t=,2'
    """
    times = (
        "" if time is None else f"{time:.6f}".rstrip("0").rstrip(".")
        for time in (start_s, end_s)
    )
    return f"{file}#t={','.join(times)}"


def parse_segment(name):
    """The file and the times that a name stands for.

    Arguments
    ---------
    name : str or pathlib.Path
        ``FILE``, ``FILE#t=START,END`` or ``FILE#t=,END``. A file of that very name is
        preferred.

    Returns
    -------
    Segment

    Example
    -------
    >>> parse_segment("a.wav#t=0.5,2")
    Segment(file='a.wav', start_s=0.5, end_s=2.0)
    >>> parse_segment("a.wav")
    Segment(file='a.wav', start_s=None, end_s=None)
    """
    match = _FRAGMENT.fullmatch(str(name))
    if match is None or os.path.exists(name):
        return Segment(str(name))
    start_s = None if match["start"] is None else float(match["start"])
    return Segment(match["file"], start_s, float(match["end"]))
