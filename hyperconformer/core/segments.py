"""A part of a recording, named as W3C's media fragments name it: ``FILE#t=START,END``.

Start and end are in seconds from the beginning of the file. Wherever the project reads
audio, such a name may stand for a file.
"""

import os
import re
from typing import NamedTuple

_FRAGMENT = re.compile(r"(?P<file>.+)#t=(?P<start>\d+(\.\d+)?),(?P<end>\d+(\.\d+)?)")

# How far a segment may end after its file: lists of segments hold rounded times.
ROUNDING_S = 0.05


class Segment(NamedTuple):
    """A file, and which part of it; without start and end, all of it."""

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
        if self.start_s is None:
            return 0, total
        first, end = round(self.start_s * rate_hz), round(self.end_s * rate_hz)
        if first < min(end, total) and end <= total + ROUNDING_S * rate_hz:
            return first, min(end, total) - first
        raise ValueError(
            f"the segment from {self.start_s} to {self.end_s} s is not inside the "
            f"file, which lasts {total / rate_hz:.3f} s"
        )


def name_segment(file, start_s, end_s):
    """The name of a part of a file.

    Arguments
    ---------
    file : str
        The file.
    start_s, end_s : float
        Seconds.

    Returns
    -------
    str

    Example
    -------
    >>> name_segment("a.wav", 0.5, 2)
    'a.wav#t=0.5,2'
    """
    times = (f"{time:.6f}".rstrip("0").rstrip(".") for time in (start_s, end_s))
    return f"{file}#t={','.join(times)}"


def parse_segment(name):
    """The file and the times that a name stands for.

    Arguments
    ---------
    name : str or pathlib.Path
        ``FILE`` or ``FILE#t=START,END``. A file of that very name is preferred.

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
    return Segment(match["file"], float(match["start"]), float(match["end"]))
