"""Audio of any length in bounded memory: chunks that are cut where it is quiet.

Each chunk reaches past its cuts on both sides. What the model says of the frames that
two chunks share decides where one takes over from the other: between two words on
which both agree, as near to the cut as can be. So no word is lost, doubled or split.

What is said before and after a pause is searched apart, in short audio too: language
models and decoders begin anew there.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

# The loudness of a cut is judged over this time.
QUIET_S = 0.2


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A stretch of audio, in samples from the beginning of the whole.

    ``samples`` (N,) float32 begin at ``offset``; the chunk is responsible for
    ``begin`` to ``end``, and what lies outside is context that its neighbours share.
    """

    samples: torch.Tensor
    offset: int
    begin: int
    end: int


def split_audio(blocks, chunk_samples, overlap_samples, grid, quiet_samples):
    """Cut a stream into chunks at quiet places.

    Arguments
    ---------
    blocks : iterable of torch.Tensor
        (N,) float32 each, of any lengths.
    chunk_samples : int
        A chunk is responsible for half of this to all of it.
    overlap_samples : int
        Context on each side.
    grid : int
        Cuts and offsets are multiples of it: the samples of an encoder frame.
    quiet_samples : int
        The loudness of a place is the energy of so many samples around it.

    Yields
    ------
    Chunk
        One after the other; what is short enough makes a single one.

    Example
    -------
    >>> chunks = list(split_audio([torch.ones(100)], 40, 10, 5, 4))
    >>> [(chunk.begin, chunk.end, len(chunk.samples)) for chunk in chunks]
    [(0, 40, 50), (40, 80, 60), (80, 100, 30)]
    """
    chunk_samples -= chunk_samples % grid
    overlap_samples -= overlap_samples % grid
    buffer, offset, begin = torch.zeros(0), 0, 0
    for block in blocks:
        buffer = torch.cat([buffer, block])
        while offset + len(buffer) > begin + chunk_samples + overlap_samples:
            start = begin - offset
            cut = offset + _quietest(
                buffer,
                start + chunk_samples // 2,
                start + chunk_samples,
                grid,
                quiet_samples,
            )
            end = cut + overlap_samples - offset
            yield Chunk(buffer[:end], offset, begin, cut)
            keep = max(cut - overlap_samples - offset, 0)
            # A copy, so that the memory of the old buffer is given back.
            buffer, offset, begin = buffer[keep:].clone(), offset + keep, cut
    yield Chunk(buffer, offset, begin, offset + len(buffer))


def _quietest(samples, low, high, grid, width):
    """The multiple of ``grid`` in (low, high] with the least energy around it."""
    places = torch.arange(low // grid + 1, high // grid + 1) * grid
    energy = F.pad(samples.double().square().cumsum(0), (1, 0))
    left = (places - width // 2).clamp(min=0)
    right = (places + width // 2).clamp(max=len(samples))
    loudness = energy[right] - energy[left]
    # Of equals the last: long silences give long chunks.
    return places[len(places) - 1 - loudness.flip(0).argmin()].item()


def merge_frame(left, right, middle, starts_word):
    """Where one chunk takes over from the one before it.

    Arguments
    ---------
    left : torch.Tensor
        (K, V) log-probabilities of the frames that both chunks know, by the first.
    right : torch.Tensor
        (K, V) the same frames, by the second.
    middle : int
        The wanted frame.
    starts_word : torch.Tensor
        (V,) bool, the tokens that begin a word; token 0 is the blank.

    Returns
    -------
    int
        From 0 to K: the first frame to be taken from the second chunk, as near to the
        middle as can be. Both have a blank there, and say that no token or a new word
        comes next; else both have a blank; else the token changes there.
    """
    if len(left) == 0:
        return 0
    before, after = left.argmax(dim=-1), right.argmax(dim=-1)
    for candidates in (
        _between_words(before, starts_word) & _between_words(after, starts_word),
        (before == 0) & (after == 0),
        torch.cat([torch.tensor([False]), before[:-1] != after[1:]]),
    ):
        places = torch.nonzero(candidates).squeeze(1)
        if len(places) > 0:
            return places[(places - middle).abs().argmin()].item()
    return middle


def _between_words(best, starts_word):
    """(K,) bool: a blank, after which no token or the beginning of a word comes."""
    between, next_begins = [], True
    for token in reversed(best.tolist()):
        if token != 0:
            next_begins = bool(starts_word[token])
        between.append(token == 0 and next_begins)
    return torch.tensor(between[::-1])


def cut_at_pauses(segments, pause, starts_word):
    """Cut segments that follow each other where the speaker pauses.

    A model that was trained on single utterances does not reliably say that a new word
    begins after a pause.

    Arguments
    ---------
    segments : iterable of (torch.Tensor, torch.Tensor, int)
        Log-probabilities (K, V), frames (K, D) and the number of the first.
    pause : float
        Frames between two tokens, more of which part two words.
    starts_word : torch.Tensor
        (V,) bool, the tokens that begin a word; token 0 is the blank. Where none does,
        words are not parted, and nothing is cut.

    Yields
    ------
    (torch.Tensor, torch.Tensor, int, str)
        As the segments, and what stands between this and what was before it: a space,
        or nothing within a word.
    """
    if not starts_word.any():
        pause = math.inf
    last = -math.inf  # the frame of the last token
    for log_probs, encoded, first in segments:
        best = log_probs.argmax(dim=-1)
        spoken = torch.nonzero(best).squeeze(1).tolist()
        gaps = [
            index
            for index, (before, after) in enumerate(zip(spoken, spoken[1:]), start=1)
            if after - before > pause
        ]
        cuts = [(spoken[index - 1] + spoken[index] + 1) // 2 for index in gaps]
        runs = [spoken[i:j] for i, j in zip([0, *gaps], [*gaps, len(spoken)])]
        ends = [*cuts, len(log_probs)]
        for begin, end, tokens in zip([0, *cuts], ends, runs):
            glue = " "
            if tokens:
                is_near = first + tokens[0] - last <= pause
                if is_near and not starts_word[best[tokens[0]]]:
                    glue = ""
                last = first + tokens[-1]
            yield log_probs[begin:end], encoded[begin:end], first + begin, glue


def merge_nbest(lists, count):
    """The best joint readings of segments that follow each other.

    Arguments
    ---------
    lists : iterable of list of (str, float)
        For each segment its readings, with a space before what begins a word, and
        their scores.
    count : int
        How many to return at most.

    Returns
    -------
    list of (str, float)
        Joint texts and sums of scores, the best first.

    Example
    -------
    >>> merge_nbest([[("A", -1.0), ("B", -3.0)], [(" C", 0.0), (" D", -1.0)]], 3)
    [('A C', -1.0), ('A D', -2.0), ('B C', -3.0)]
    """
    joint = [((), 0.0)]  # readings as (what was before, text), shared among them
    for readings in lists:
        pairs = [
            ((before, text), score + more)
            for before, score in joint
            for text, more in readings
        ]
        joint = sorted(pairs, key=lambda pair: -pair[1])[:count]
    return [(_spell_out(reading), score) for reading, score in joint]


def _spell_out(reading):
    """The text of a chain of (what was before, text)."""
    texts = []
    while reading:
        reading, text = reading
        texts.append(text)
    return "".join(reversed(texts)).strip()
