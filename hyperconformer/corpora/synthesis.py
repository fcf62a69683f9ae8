"""Speech synthesis with eSpeak NG.

eSpeak NG and its voices come in the package ``espeakng-loader``. They are free
software under the GNU General Public License, version 3 or later; the speech that
they produce is not covered by it. The library is loaded at run time, through
``ctypes``, and only by who calls :func:`speak`.

The library keeps state from one utterance to the next (the phase of its oscillators,
its noise), so that the same text sounds slightly different the second time, even
after it is initialized again. :func:`speak` therefore loads a fresh copy for every
utterance, which takes a few milliseconds, and is a pure function of its arguments.
"""

import _ctypes
import contextlib
import ctypes
import functools
import pathlib
import threading

import numpy as np

from hyperconformer.extras import import_extra

# From speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)

LIMITS = {"rate_wpm": (80, 450), "pitch": (0, 100), "pitch_range": (0, 100)}
# British English has no file under its own code: it is the default English.
FILE_NAMES = {"en-gb": "en"}

# The library is one a process, whatever the number of threads.
_lock = threading.Lock()
_unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # type: ignore


def speak(
    text: str,
    voice: str = "en-us",
    rate_wpm: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    sample_rate_hz: int = 16000,
) -> np.ndarray:
    """Speaks a text.

    Arguments
    ---------
    text : str
        What to say. Words in capitals may be spelled letter by letter: lower-case
        what comes from a transcript.
    voice : str
        A language, and after a plus sign a variant, if any: ``en-us``, ``en-gb+f3``.
        See :func:`list_languages` and :func:`list_variants`.
    rate_wpm : int
        Words a minute, from 80 to 450.
    pitch : int
        From 0 (low) to 100 (high), around the variant's own pitch.
    pitch_range : int
        From 0 (monotone) to 100 (lively).
    sample_rate_hz : int
        The sample rate that is wanted.

    Returns
    -------
    numpy.ndarray
        float32, shape (samples,), between -1 and 1.

    Raises
    ------
    ImportError
        If espeakng-loader is not installed.
    ValueError
        If the voice is unknown, a parameter is out of range, or nothing was said.

    Example
    -------
    >>> samples = speak("set the alarm", voice="en-gb+f3", rate_wpm=160)
    >>> samples.dtype, 0.5 < len(samples) / 16000 < 2
    (dtype('float32'), True)
    """
    parameters = {"rate_wpm": rate_wpm, "pitch": pitch, "pitch_range": pitch_range}
    _check_parameters(parameters)
    if sample_rate_hz < 1:
        raise ValueError(f"sample_rate_hz must be positive, got {sample_rate_hz}.")
    name = _find_voice(voice)
    with _lock, _load_library() as (library, native_rate_hz):
        _call(library.espeak_SetVoiceByName, name.encode())
        samples = _synthesize(library, text, parameters)
    if not samples.any():
        raise ValueError(f"eSpeak NG says nothing for the text {text!r}.")
    # Here, because it brings torch, which reading a corpus does not need.
    from hyperconformer.audio import resample

    samples = resample(samples / np.float32(32768), native_rate_hz, sample_rate_hz)
    return np.clip(samples, -1, 1)


@contextlib.contextmanager
def open_library(voice: str):
    """Loads a copy of the library that speaks with one voice.

    Arguments
    ---------
    voice : str
        As for :func:`speak`.

    Yields
    ------
    ctypes.CDLL
        The library, for this thread alone.

    Raises
    ------
    ImportError
        If espeakng-loader is not installed.
    ValueError
        If the voice is unknown.
    """
    name = _find_voice(voice)
    with _lock, _load_library() as (library, _):
        _call(library.espeak_SetVoiceByName, name.encode())
        yield library


@functools.cache
def list_languages() -> tuple[str, ...]:
    """Lists the languages and accents of eSpeak NG.

    Returns
    -------
    tuple of str
        Such as ``en-us`` or ``en-gb-scotland``.
    """
    files = [path for path in (_data_folder() / "lang").rglob("*") if path.is_file()]
    return tuple(sorted({path.name.lower() for path in files} | {*FILE_NAMES}))


@functools.cache
def list_variants() -> tuple[str, ...]:
    """Lists the variants that change a voice's pitch and timbre.

    Returns
    -------
    tuple of str
        Such as ``f3`` or ``Annie``.
    """
    files = (_data_folder() / "voices" / "!v").iterdir()
    return tuple(sorted(path.name for path in files))


def _loader():
    return import_extra("espeakng_loader", "synth", "synthetic voices")


def _data_folder():
    return pathlib.Path(_loader().get_data_path())


def _check_parameters(parameters):
    for name, value in parameters.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {value}.")


@functools.cache
def _find_voice(voice):
    """Returns the name of a voice as the library knows it."""
    language, _, variant = voice.partition("+")
    if language not in list_languages():
        english = [name for name in list_languages() if name.startswith("en")]
        raise ValueError(
            f"Unknown language {language!r} in the voice {voice!r}. "
            f"Among the known ones: {', '.join(english)}."
        )
    # The library would ignore a variant that it does not know.
    if variant and variant not in list_variants():
        raise ValueError(
            f"Unknown variant {variant!r} in the voice {voice!r}. "
            f"Known variants: {', '.join(list_variants())}."
        )
    return FILE_NAMES.get(language, language) + (f"+{variant}" if variant else "")


@contextlib.contextmanager
def _load_library():
    """Loads a fresh copy of the library; yields it and its sample rate in Hz."""
    library = ctypes.CDLL(_loader().get_library_path())
    try:
        rate_hz = library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS,
            0,
            str(_data_folder()).encode(),
            INITIALIZE_DONT_EXIT,
        )
        if rate_hz <= 0:
            raise RuntimeError(
                f"eSpeak NG cannot read its voices in {_data_folder()} "
                "(it takes no path of more than 160 bytes)."
            )
        # It seeds its noise with the time of the day.
        _call(library.espeak_ng_SetRandSeed, ctypes.c_long(1))
        yield library, rate_hz
        library.espeak_Terminate()
    finally:
        _unload(library._handle)


def _synthesize(library, text, parameters):
    """Returns the samples of a text, int16, at the library's own rate."""
    blocks = []

    @CALLBACK
    def keep(samples, count, _events):
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(keep)
    _call(library.espeak_SetParameter, PARAMETER_RATE, parameters["rate_wpm"], 0)
    _call(library.espeak_SetParameter, PARAMETER_PITCH, parameters["pitch"], 0)
    _call(library.espeak_SetParameter, PARAMETER_RANGE, parameters["pitch_range"], 0)
    encoded = text.encode()
    size = ctypes.c_size_t(len(encoded) + 1)
    _call(
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


def _call(function, *arguments):
    code = function(*arguments)
    if code != 0:
        raise RuntimeError(f"eSpeak NG: {function.__name__} failed with code {code}.")
