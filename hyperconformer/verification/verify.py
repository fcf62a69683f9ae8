"""Measure a model again, and say of each claim whether it holds."""

import json
import math
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import hyperconformer
from hyperconformer.core.extras import MissingExtraError
from hyperconformer.core.stream_lengths import stream_lengths
from hyperconformer.export.check import MAX_DIFFERENCE
from hyperconformer.export.runtime import GRAPH_FILE, INT8_FILE
from hyperconformer.hub.folder import CLAIMS_FILE, find_model
from hyperconformer.verification.claims import (
    CARD_FILE,
    VERSION,
    claimed_speech,
    hash_files,
    read_card,
    read_claims,
    render,
    show,
    write_card,
)
from hyperconformer.verification.measure import Result, Speech, Subject

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
LONGEST_S = 600
# Other processors round otherwise, which may turn a word: so many of all, at least one.
ROUNDED = 0.005
# Utterances whose log-probabilities a quick verification compares.
QUICK_UTTERANCES = 4


class Check(NamedTuple):
    """What is measured, in words, and how; those that are not quick take minutes."""

    title: str
    measure: Callable[[Subject], Result]
    quick: bool = True


CHECKS = {
    "batch": Check(
        "batches and each utterance alone, difference of log-probabilities",
        lambda subject: subject.batch(),
    ),
    "stream": Check(
        "streams and the whole, chunks of {chunk_ms:g} + {right_context_ms:g} ms, "
        "difference of log-probabilities",
        lambda subject: subject.stream(),
    ),
    "words": Check("default search", lambda subject: subject.words()),
    "greedy": Check("CTC head, greedy", lambda subject: subject.greedy_words()),
    "stream words": Check(
        "streams, chunks of {chunk_ms:g} + {right_context_ms:g} ms, default search",
        lambda subject: subject.stream_words(),
    ),
    "quieter": Check("20 dB quieter", lambda subject: subject.words(-20), quick=False),
    "louder": Check("6 dB louder", lambda subject: subject.words(6), quick=False),
    "offset": Check(
        "0.1 added to all samples",
        lambda subject: subject.words(offset=0.1),
        quick=False,
    ),
    "quieter, offset": Check(
        "20 dB quieter, 0.1 added",
        lambda subject: subject.words(-20, 0.1),
        quick=False,
    ),
    "longest": Check(
        "one recording, at least {longest_s:g} s long",
        lambda subject: subject.longest_words(),
        quick=False,
    ),
    "onnx": Check(
        "ONNX and PyTorch, difference of log-probabilities",
        lambda subject: subject.graph_difference(GRAPH_FILE),
        quick=False,
    ),
    "int8": Check(
        "ONNX with 8 bits, greedy",
        lambda subject: subject.graph_words(INT8_FILE),
        quick=False,
    ),
    "onnx stream": Check(
        "ONNX and PyTorch, chunks of {chunk_ms:g} + {right_context_ms:g} ms, "
        "difference of log-probabilities",
        lambda subject: subject.graph_difference(GRAPH_FILE, streaming=True),
        quick=False,
    ),
    "int8 stream": Check(
        "ONNX with 8 bits, chunks of {chunk_ms:g} + {right_context_ms:g} ms, greedy",
        lambda subject: subject.graph_words(INT8_FILE, streaming=True),
        quick=False,
    ),
}
TITLES = {key: check.title for key, check in CHECKS.items()}


class Row(NamedTuple):
    """A line of the verdict: what was claimed and what was found, for people."""

    check: str
    claimed: str
    found: str
    verdict: str
    reason: str = ""


class Verdict(NamedTuple):
    """All rows, of which model, on what speech, measured with what."""

    model: str
    rows: list[Row]
    speech: dict[str, Any]
    environment: dict[str, str]

    @property
    def failed(self) -> bool:
        """Whether a claim does not hold."""
        return any(row.verdict == FAIL for row in self.rows)

    def table(self) -> str:
        """As Markdown."""
        lines = ["| | claimed | found | |", "|---|---|---|---|"]
        for row in self.rows:
            verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
            lines.append(f"| {row.check} | {row.claimed} | {row.found} | {verdict} |")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The same for programs."""
        rows = [row._asdict() for row in self.rows]
        whole = {**self._asdict(), "failed": self.failed, "rows": rows}
        return json.dumps(whole, indent=2) + "\n"


def verify(
    source: str | pathlib.Path | None,
    speech: str | pathlib.Path | None = None,
    *,
    quick: bool = False,
    trusted: bool = False,
) -> Verdict:
    """Measure a model again, and compare with what its ``verify.json`` says.

    Arguments
    ---------
    source : str or pathlib.Path or None
        As :func:`hyperconformer.hub.folder.find_model`.
    speech : str or pathlib.Path, optional
        As :class:`hyperconformer.verification.measure.Speech`; None = that on which the
        claims were measured.
    quick : bool
        Whether to leave out levels, the longest input and the graphs, and to compare
        log-probabilities of a few utterances only.
    trusted : bool
        As :func:`hyperconformer.hub.folder.load_model`.

    Returns
    -------
    Verdict

    Raises
    ------
    FileNotFoundError
        If there is no such model, nothing is claimed of it, or no speech is at hand.
    ValueError
        If the claims are damaged or an utterance cannot be used.
    """
    folder = find_model(source)
    claims = read_claims(folder)
    rows = [*_compare_files(claims["files"], hash_files(folder))]
    rows.append(_compare_card(folder, claims))
    with tempfile.TemporaryDirectory() as place:
        sounds = Speech(speech or claims["speech"]["name"], pathlib.Path(place))
        try:
            subject = Subject(
                folder,
                sounds,
                claims["chunk_ms"],
                claims["right_context_ms"],
                claims["longest_s"],
                trusted,
                QUICK_UTTERANCES if quick else None,
            )
        except ValueError as error:
            rows.append(Row("the model loads", "", "", FAIL, str(error)))
            return Verdict(folder.name, rows, {}, _environment())
        identity = sounds.identity(subject.rate_hz)
        same = identity["sha256"] == claims["speech"]["sha256"]
        for key, found in _measure(subject, quick):
            claimed = claims["results"].get(key, {"reason": "nothing is claimed"})
            title = TITLES[key].format(**claims)
            rows.append(_judge(title, claimed, found, same))
    return Verdict(folder.name, rows, identity, _environment())


def record(
    source: str | pathlib.Path | None,
    speech: str | pathlib.Path | None = None,
    *,
    chunk_ms: float | None = None,
    right_context_ms: float | None = None,
    longest_s: float = LONGEST_S,
    trusted: bool = False,
) -> str:
    """Measure a model, and write its ``verify.json`` and the part of its card.

    Arguments
    ---------
    source, speech, trusted
        As :func:`verify`; the speech of a model without claims is ``"an4"``.
    chunk_ms, right_context_ms : float, optional
        Of streams, see :func:`hyperconformer.core.stream_lengths.stream_lengths`.
    longest_s : float
        Of the longest input.

    Returns
    -------
    str
        The part of the card.

    Raises
    ------
    FileNotFoundError
        If there is no such model, or no speech is at hand.
    ValueError
        If forms of the model differ by too much: nothing is written then.
    MissingExtraError
        If a package is missing that a measurement needs.
    """
    folder = find_model(source)
    chunk_ms, right_context_ms = stream_lengths(chunk_ms, right_context_ms)
    lengths = {"chunk_ms": chunk_ms, "right_context_ms": right_context_ms}
    speech = speech or claimed_speech(folder) or "an4"
    with tempfile.TemporaryDirectory() as place:
        sounds = Speech(speech, pathlib.Path(place))
        subject = Subject(
            folder, sounds, chunk_ms, right_context_ms, longest_s, trusted
        )
        results = {}
        for key, found in _measure(subject, quick=False, everything=True):
            if fault := _too_large(found):
                title = TITLES[key].format(**lengths)
                raise ValueError(
                    f"{folder}: {title} {show(found)}, {fault}; nothing is claimed"
                )
            results[key] = found
        claims = {
            "version": VERSION,
            "files": hash_files(folder),
            "speech": sounds.identity(subject.rate_hz),
            **lengths,
            "longest_s": longest_s,
            "results": results,
            "environment": _environment(),
        }
    card, path = f"# {folder.name}\n", folder / CARD_FILE
    if path.is_file():
        card = path.read_text("utf-8")
    part, text = render(claims, TITLES), json.dumps(claims, indent=2) + "\n"
    (folder / CLAIMS_FILE).write_text(text, encoding="utf-8")
    path.write_text(write_card(card, part), encoding="utf-8")
    return part


def _environment():
    """What figures may depend on."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "hyperconformer": hyperconformer.__version__,
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {capability}",
    }


def _measure(
    subject: Subject, quick: bool, everything: bool = False
) -> Iterator[tuple[str, Result]]:
    """Each check's result, or why it has none.

    Where everything is asked for, no package may be missing.
    """
    for key, check in CHECKS.items():
        if quick and not check.quick:
            continue
        try:
            yield key, check.measure(subject)
        except MissingExtraError as error:
            if everything:
                raise
            yield key, {"missing": str(error)}
        except ValueError as error:
            yield key, {"reason": str(error)}


def _compare_files(claimed, found):
    for name in sorted({*claimed, *found}):
        was, here = claimed.get(name), found.get(name)
        reason = "" if was == here else "it was changed"
        if was is None:
            reason = "it is not claimed"
        elif here is None:
            reason = "it is missing"
        verdict = FAIL if reason else PASS
        yield Row(f"`{name}`", (was or "")[:12], (here or "")[:12], verdict, reason)


def _compare_card(folder, claims):
    title = f"`{CARD_FILE}` says what `{CLAIMS_FILE}` does"
    if not (folder / CARD_FILE).is_file():
        return Row(title, "", "", NOT_APPLICABLE, f"there is no {CARD_FILE}")
    part = read_card((folder / CARD_FILE).read_text("utf-8"))
    if part is None:
        return Row(title, "", "", FAIL, f"it has no part from {CLAIMS_FILE}")
    if part != render(claims, TITLES):
        return Row(title, "", "", FAIL, "they differ")
    return Row(title, "", "", PASS)


def _too_large(found):
    """Why a difference is no rounding; empty = it is, or nothing was compared."""
    allowed = found.get("allowed", MAX_DIFFERENCE)
    if found.get("difference", 0.0) <= allowed:
        return ""
    return f"at most {allowed:.0e} is expected"


def _judge(title, claimed, found, same_speech):
    """Whether a claim holds."""
    row = Row(title, show(claimed), show(found), PASS)
    if "missing" in found:
        return row._replace(verdict=NOT_APPLICABLE, reason=found["missing"])
    if "reason" in found:
        verdict = NOT_APPLICABLE if "reason" in claimed else FAIL
        return row._replace(verdict=verdict, reason=found["reason"])
    if "difference" in found:
        fault = _too_large(found)
        return row._replace(verdict=FAIL, reason=fault) if fault else row
    if "reason" in claimed:
        return row._replace(verdict=NOT_APPLICABLE, reason="nothing is claimed")
    if not same_speech:
        return row._replace(verdict=NOT_APPLICABLE, reason="claimed of other speech")
    allowed = max(1, math.floor(ROUNDED * found["words"]))
    if abs(found["wrong"] - claimed["wrong"]) > allowed:
        reason = f"they may differ by {allowed}"
        return row._replace(verdict=FAIL, reason=reason)
    return row
