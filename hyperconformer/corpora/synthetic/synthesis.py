"""Speech synthesis with eSpeak NG.

The library keeps state between utterances (phase of the oscillators, noise), even when
it is initialized again, so that the same text sounds slightly different the second
time. :func:`speak` therefore loads a fresh copy for every utterance, which takes a few
milliseconds, and is a pure function of its arguments.
"""

import ctypes

import numpy as np

from hyperconformer.core.espeak import CHARS_UTF8, call, open_library

# From speak_lib.h
POSITION_CHARACTER = 1
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

LIMITS = {"rate_wpm": (80, 450), "pitch": (0, 100), "pitch_range": (0, 100)}


def speak(
    text: str,
    voice: str = "en-us",
    rate_wpm: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    sample_rate_hz: int = 16000,
) -> np.ndarray:
    """Synthesise a text.

    Arguments
    ---------
    text : str
        The text. Capitals may be spelled letter by letter: lower-case transcripts.
    voice : str
        A language, optionally followed by a plus sign and a variant: ``en-us``,
        ``en-gb+f3``. See ``list_languages`` and ``list_variants`` of that module.
    rate_wpm : int
        Words per minute, from 80 to 450.
    pitch : int
        From 0 (low) to 100 (high), around the variant's own pitch.
    pitch_range : int
        From 0 (monotone) to 100 (lively).
    sample_rate_hz : int
        Sample rate of the result.

    Returns
    -------
    numpy.ndarray
        float32, shape (samples,), between -1 and 1.

    Raises
    ------
    ImportError
        If espeakng-loader is not installed.
    ValueError
        If the voice is unknown, a parameter is out of range, or the result is silent.

    Example
    -------
    >>> samples = speak("set the alarm", voice="en-gb+f3", rate_wpm=160)
    >>> samples.dtype, 0.5 < len(samples) / 16000 < 2
    (dtype('float32'), True)
    """
    parameters = {"rate_wpm": rate_wpm, "pitch": pitch, "pitch_range": pitch_range}
    _check_parameters(parameters)
    if sample_rate_hz < 1:
        raise ValueError(f"sample_rate_hz must be positive, got {sample_rate_hz}")
    with open_library(voice) as (library, native_rate_hz):
        samples = _synthesize(library, text, parameters)
    if not samples.any():
        raise ValueError(f"eSpeak NG is silent for the text {text!r}")
    # Imported here: it imports torch, which reading a corpus does not need.
    from hyperconformer.audio import resample

    samples = resample(samples / np.float32(32768), native_rate_hz, sample_rate_hz)
    return np.clip(samples, -1, 1)


def _check_parameters(parameters):
    for name, value in parameters.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {value}")


def _synthesize(library, text, parameters):
    """Return the int16 samples of a text at the library's rate."""
    blocks = []

    @CALLBACK
    def keep(samples, count, _events):
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(keep)
    call(library.espeak_SetParameter, PARAMETER_RATE, parameters["rate_wpm"], 0)
    call(library.espeak_SetParameter, PARAMETER_PITCH, parameters["pitch"], 0)
    call(library.espeak_SetParameter, PARAMETER_RANGE, parameters["pitch_range"], 0)
    encoded = text.encode()
    size = ctypes.c_size_t(len(encoded) + 1)
    call(
        library.espeak_Synth,
        encoded,
        size,
        0,
        POSITION_CHARACTER,
        0,
        CHARS_UTF8,
        None,
        None,
    )
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
