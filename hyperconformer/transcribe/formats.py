"""What a recogniser returns, and the file formats that it is written in."""

import json
import math
import pathlib

# Subtitles: at most this many characters and seconds, and a new one after a pause.
CUE_CHARACTERS, CUE_S, CUE_PAUSE_S = 42, 6.0, 1.0


def to_text(path, transcription):
    """The text alone, a line."""
    return transcription.text + "\n"


def to_json(path, transcription):
    """Everything, as one JSON object on a line."""
    duration_s = round(transcription.duration_s, 3)
    return _to_json({"file": str(path), "duration_s": duration_s}, transcription)


def segment_to_json(path, partial):
    """A segment of a stream that has ended, as one JSON object on a line."""
    return _to_json({"file": str(path)}, partial)


def _to_json(fields, spoken):
    """The fields, and the text, words and n best readings of what was said."""
    fields |= {
        "text": spoken.text,
        "words": [
            {
                "text": word.text,
                "start_s": round(word.start_s, 3),
                "end_s": round(word.end_s, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in spoken.words
        ],
        "nbest": [
            {"text": hypothesis.text, "score": _finite(hypothesis.score)}
            for hypothesis in spoken.nbest
        ],
    }
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(score):
    """A score, or None where no word fits: JSON has no infinite numbers."""
    return round(score, 4) if math.isfinite(score) else None


def to_srt(path, transcription):
    """SubRip subtitles."""
    return "".join(
        f"{number}\n{_clock(cue[0].start_s, ',')} --> {_clock(cue[-1].end_s, ',')}\n"
        f"{' '.join(word.text for word in cue)}\n\n"
        for number, cue in enumerate(cues(transcription.words), start=1)
    )


def to_vtt(path, transcription):
    """WebVTT subtitles."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue[0].start_s, '.')} --> {_clock(cue[-1].end_s, '.')}\n"
        f"{' '.join(word.text for word in cue)}\n\n"
        for cue in cues(transcription.words)
    )


def to_ctm(path, transcription):
    """NIST's CTM, a word a line: file, channel, start, duration, word, confidence."""
    name = pathlib.Path(path).stem.replace(" ", "_")
    return "".join(
        f"{name} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.text} "
        f"{word.confidence:.4f}\n"
        for word in transcription.words
    )


# Name of a format to the function that writes it, of a path and a Transcription.
FORMATS = {
    "txt": to_text,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "ctm": to_ctm,
}


def cues(words):
    """Group words into subtitles.

    Arguments
    ---------
    words : iterable of Word
        In order of time.

    Returns
    -------
    list of list of Word

    Example
    -------
    >>> from hyperconformer.core.words import Word
    >>> words = [Word("GO", 0.0, 0.4, 1.0), Word("ON", 0.5, 0.9, 1.0)]
    >>> [len(cue) for cue in cues([*words, Word("STOP", 5.0, 5.4, 1.0)])]
    [2, 1]
    """
    groups = []
    for word in words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _fits(cue, word):
    characters = sum(len(other.text) + 1 for other in cue) + len(word.text)
    return (
        characters <= CUE_CHARACTERS
        and word.end_s - cue[0].start_s <= CUE_S
        and word.start_s - cue[-1].end_s <= CUE_PAUSE_S
    )


def _clock(seconds, point):
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
