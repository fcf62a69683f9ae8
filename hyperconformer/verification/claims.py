"""What is claimed of a model: ``verify.json`` in its folder, and a part of its card."""

import hashlib
import json
import pathlib
from typing import Any

from hyperconformer.core.documents import read_part, replace_part
from hyperconformer.hub.folder import (
    CLAIMS_FILE,
    CONFIG_FILE,
    KENLM_FILE,
    NGRAM_FILE,
    SPEECHBRAIN_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WORDS_FILE,
)

VERSION = 2
CARD_FILE = "README.md"
# What a model is made of; its card speaks of it.
HASHED = (
    CONFIG_FILE,
    SPEECHBRAIN_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    NGRAM_FILE,
    KENLM_FILE,
    WORDS_FILE,
)
BEGIN = "<!-- from verify.json, by `hyperconformer verify --record` -->"
END = "<!-- end of what is from verify.json -->"


def hash_files(folder: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of each file that a model is made of.

    Arguments
    ---------
    folder : pathlib.Path
        What :func:`hyperconformer.hub.folder.find_model` returned.

    Returns
    -------
    dict of str to str
        File to hexadecimal digest.
    """
    found = {}
    for name in HASHED:
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(2**20):
                    digest.update(block)
            found[name] = digest.hexdigest()
    return found


def read_claims(folder: pathlib.Path) -> dict[str, Any]:
    """What ``verify.json`` says.

    Arguments
    ---------
    folder : pathlib.Path
        The model folder.

    Returns
    -------
    dict
        ``files``, ``speech``, ``chunk_ms``, ``right_context_ms``, ``longest_s``,
        ``results`` and ``environment``.

    Raises
    ------
    FileNotFoundError
        If nothing is claimed.
    ValueError
        If the file is damaged, or of another version.
    """
    path = folder / CLAIMS_FILE
    claims = _read_json(path)
    if not isinstance(claims, dict) or claims.get("version") != VERSION:
        version = claims.get("version") if isinstance(claims, dict) else claims
        raise ValueError(
            f"{path} has version {version!r}, expected {VERSION}: "
            "measure the model anew with `hyperconformer verify --record`"
        )
    missing = {"files", "speech", "results", "environment"}
    missing |= {"chunk_ms", "right_context_ms", "longest_s"}
    missing -= set(claims)
    missing |= {"name", "utterances", "words", "sha256"} - set(claims.get("speech", ""))
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    return claims


def claimed_speech(folder: pathlib.Path) -> str | None:
    """The name of the speech that earlier claims, of any version, were measured on.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = folder / CLAIMS_FILE
    if not path.is_file():
        return None
    claims = _read_json(path)
    try:
        return claims["speech"]["name"]
    except (KeyError, TypeError):
        raise ValueError(f"{path} does not say on what speech: name it") from None


def _read_json(path):
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing is claimed of {path.parent}: it lacks {CLAIMS_FILE}, which "
            "`hyperconformer verify --record` writes"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def render(claims: dict[str, Any], titles: dict[str, str]) -> str:
    """The card's part that is made from ``verify.json``.

    Arguments
    ---------
    claims : dict
        As :func:`read_claims` returns them.
    titles : dict of str to str
        What each of the results is, in their order.

    Returns
    -------
    str
        Markdown, from :data:`BEGIN` to :data:`END`.
    """
    speech, facts = claims["speech"], claims["environment"]
    lines = [
        BEGIN,
        "",
        "## Verified",
        "",
        "`hyperconformer verify` measures all of this again, on "
        f"{speech['utterances']} utterances of `{speech['name']}` with "
        f"{speech['words']} words:",
        "",
        "| what | measured |",
        "|---|---:|",
    ]
    lacking: dict[str, list[str]] = {}
    for key, result in claims["results"].items():
        title = titles[key].format(**claims)
        if "reason" in result:
            lacking.setdefault(result["reason"], []).append(title)
        else:
            lines.append(f"| {title} | {show(result)} |")
    for reason, all_titles in lacking.items():
        lines += ["", f"Not applicable ({reason}): {'; '.join(all_titles)}."]
    lines += ["", f"Measured with {', '.join(f'{k} {v}' for k, v in facts.items())}."]
    lines += ["", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| `{name}` | `{sha}` |" for name, sha in claims["files"].items()]
    return "\n".join([*lines, "", END])


def show(result: dict[str, Any]) -> str:
    """A result for people.

    Arguments
    ---------
    result : dict
        ``difference``; ``wrong`` and ``words``; or a ``reason`` why there is none.

    Returns
    -------
    str

    Example
    -------
    >>> show({"difference": 1.234e-5}), show({"wrong": 1, "words": 128})
    ('1.2e-05', '1 of 128 words wrong (0.78 %)')
    """
    if "difference" in result:
        return f"{result['difference']:.1e}"
    if "wrong" in result:
        wrong, words = result["wrong"], result["words"]
        return f"{wrong} of {words} words wrong ({100 * wrong / words:.2f} %)"
    return f"not applicable: {result['reason']}" if "reason" in result else ""


def read_card(card: str) -> str | None:
    """The part of a card that is made from ``verify.json``; None = it has none."""
    return read_part(card, BEGIN, END)


def write_card(card: str, part: str) -> str:
    """A card with another such part, in its place or at its end."""
    return replace_part(card, BEGIN, END, part)
