"""Audio of any length in bounded memory: chunks that are cut where it is quiet.

Each chunk reaches past its cuts on both sides. What the model says of the frames that
two chunks share decides where one takes over from the other: between two words on
which both agree, as near to the cut as can be. So no word is lost, doubled or split.

What the chunks say shows where the speaker pauses. Each stretch of speech between two
pauses is then recognised again by itself, in short audio too: models are trained on
single utterances, and long silences and other utterances beside one cost accuracy.
Language models and decoders begin anew after a pause.
"""

import collections
import dataclasses
import itertools
import math

import torch
import torch.nn.functional as F

# The loudness of a cut is judged over this time.
QUIET_S = 0.2
# Of the fingerprints of joint readings: a prime number, and a base below it.
PRIME, BASE = 2**61 - 1, 1_114_127


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
        (K or more, V) the same frames, by the second, and those after them: they tell
        whether a word goes on.
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
    between = _between_words(after, starts_word)[: len(left)]
    after = after[: len(left)]
    for candidates in (
        _between_words(before, starts_word) & between,
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


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Frames between two pauses, and what the chunks say of them.

    ``log_probs`` (K, V) and ``encoded`` (K, D) begin at frame ``first`` of the whole.
    ``apart`` says whether they depend on what lies outside, and the stretch is short
    enough to be recognised by itself.
    """

    log_probs: torch.Tensor
    encoded: torch.Tensor
    first: int
    apart: bool


@dataclasses.dataclass(frozen=True)
class Pauses:
    """Where speech is parted, in frames.

    More than ``pause`` frames between two audible tokens, or between one and an end of
    the audio, always part; at least ``2 * margin``. A stretch that becomes longer than
    ``usual`` frames is parted at its longest pause above ``short``. ``margin`` frames
    of a pause are kept on each side of it, half of a shorter pause. ``longest`` frames
    may be recognised by themselves.
    """

    pause: float
    short: float
    margin: int
    usual: int
    longest: int


def speech_stretches(segments, audible, pauses):
    """Part frames where the speaker pauses, and leave the inside of pauses out.

    Where nothing audible is found at all, the first segment is yielded as it is.

    Arguments
    ---------
    segments : iterable of (torch.Tensor, torch.Tensor, int)
        Log-probabilities (K, V), frames (K, D) and the number of the first, without
        gaps between segments.
    audible : torch.Tensor
        (V,) bool, the tokens that stand for a sound: no blank, no mere space.
    pauses : Pauses
        Where to part. What is longer than ``longest`` comes in pieces, one for each
        segment.

    Yields
    ------
    Stretch
    """
    log_probs = encoded = nothing = None
    first = total = 0  # frames of what is held, and of all that was seen
    heard = []  # the audible frames of the open stretch
    last = 0  # the last audible frame of all
    cut = long = False  # whether something before was cut off, or given away

    def take(end, apart):
        count = end - first
        apart = apart and not long and count <= pauses.longest
        return Stretch(log_probs[:count], encoded[:count], first, apart)

    def drop(begin):
        nonlocal log_probs, encoded, first
        count = max(begin - first, 0)
        log_probs, encoded, first = log_probs[count:], encoded[count:], first + count

    for more, more_encoded, begin in segments:
        if log_probs is None:
            nothing = Stretch(more, more_encoded, begin, False)
            log_probs, encoded, first = more, more_encoded, begin
        else:
            log_probs = torch.cat([log_probs, more])
            encoded = torch.cat([encoded, more_encoded])
        total = begin + len(more)
        frames = torch.nonzero(audible[more.argmax(dim=-1)]).squeeze(1) + begin
        for frame in [*frames.tolist(), None]:
            end = total if frame is None else frame
            if end - last > pauses.pause:
                if heard:
                    yield take(last + 1 + pauses.margin, True)
                    nothing = None
                # The next frames may be those before speech.
                drop(end - pauses.margin)
                heard, cut, long = [], True, False
            if frame is None:
                break
            heard.append(frame)
            last = frame
            while frame - first > pauses.usual:
                lengths = [b - a for a, b in itertools.pairwise(heard)]
                if max(lengths, default=0) <= pauses.short:
                    break
                place = lengths.index(max(lengths)) + 1
                margin = min(pauses.margin, (lengths[place - 1] - 1) // 2)
                yield take(heard[place - 1] + 1 + margin, True)
                nothing = None
                drop(heard[place] - margin)
                heard, cut, long = heard[place:], True, False
        if heard and total - first > pauses.longest:
            long = True
            yield take(total, False)
            nothing = None
            drop(total)
            heard = []
    if heard:
        yield take(total, cut)
    elif nothing is not None:
        yield nothing


class Tape:
    """Blocks of samples that can be read again for a while after they have passed.

    Arguments
    ---------
    blocks : iterable of torch.Tensor
        (N,) each, of any lengths.
    block_samples : int
        They are passed on in blocks of at most this length.
    kept_samples : int
        The last samples that are certain to be kept.

    Attributes
    ----------
    samples : int
        How many have passed.

    Example
    -------
    >>> tape = Tape([torch.arange(5), torch.arange(5, 8)], 3, 4)
    >>> [len(block) for block in tape]
    [3, 2, 3]
    >>> tape.read(4, 9)
    tensor([4, 5, 6, 7])
    """

    def __init__(self, blocks, block_samples, kept_samples):
        self.blocks, self.samples = blocks, 0
        self.block_samples, self.kept_samples = block_samples, kept_samples
        self.kept = collections.deque()
        self.begin = 0  # of what is kept

    def __iter__(self):
        for whole in self.blocks:
            for block in whole.split(self.block_samples):
                self.kept.append(block)
                self.samples += len(block)
                while (
                    self.samples - self.begin - len(self.kept[0]) >= self.kept_samples
                ):
                    self.begin += len(self.kept.popleft())
                yield block

    def read(self, begin, end):
        """The samples from ``begin`` to ``end``, or to the end of the audio."""
        parts, offset = [], self.begin
        for block in self.kept:
            parts.append(block[max(begin - offset, 0) : max(end - offset, 0)])
            offset += len(block)
        return torch.cat(parts)


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
        Joint texts, each once, and sums of scores, the best first.

    Example
    -------
    >>> merge_nbest([[("A", -1.0), ("B", -3.0)], [(" C", 0.0), (" D", -1.0)]], 3)
    [('A C', -1.0), ('A D', -2.0), ('B C', -3.0)]
    """
    joint = [((), 0, 0.0)]  # readings as (what was before, text), shared among them
    for readings in lists:
        parts = [(text, score, *_fingerprint(text)) for text, score in readings]
        longer = [
            ((before, text), (known * shift + mark) % PRIME, score + more)
            for before, known, score in joint
            for text, more, mark, shift in parts
        ]
        joint = {}  # two cuts of the same words are one reading
        for reading in sorted(longer, key=lambda reading: -reading[2]):
            joint.setdefault(reading[1], reading)
        joint = list(joint.values())[:count]
    return [(_spell_out(reading), score) for reading, _, score in joint]


def _fingerprint(text):
    """A number for a text, and the factor for the number of what is before it."""
    mark = 0
    for character in text:
        mark = (mark * BASE + ord(character)) % PRIME
    return mark, pow(BASE, len(text), PRIME)


def _spell_out(reading):
    """The text of a chain of (what was before, text)."""
    texts = []
    while reading:
        reading, text = reading
        texts.append(text)
    return "".join(reversed(texts)).strip()
