"""Speech synthesis with eSpeak NG.

The package ``espeakng-loader`` contains eSpeak NG and its voices. They are free
software under the GNU General Public License, version 3 or later, which does not cover
the speech that they produce. :func:`speak` loads the library at run time, through
``ctypes``.

The library keeps state between utterances (phase of the oscillators, noise), even when
it is initialized again, so that the same text sounds slightly different the second
time. :func:`speak` therefore loads a fresh copy for every utterance, which takes a few
milliseconds, and is a pure function of its arguments.
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

# All threads of a process share one library.
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
    """Synthesise a text.

    Arguments
    ---------
    text : str
        The text. Capitals may be spelled letter by letter: lower-case transcripts.
    voice : str
        A language, optionally followed by a plus sign and a variant: ``en-us``,
        ``en-gb+f3``. See :func:`list_languages` and :func:`list_variants`.
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
    name = _find_voice(voice)
    with _lock, _load_library() as (library, native_rate_hz):
        _call(library.espeak_SetVoiceByName, name.encode())
        samples = _synthesize(library, text, parameters)
    if not samples.any():
        raise ValueError(f"eSpeak NG is silent for the text {text!r}")
    # Imported here: it imports torch, which reading a corpus does not need.
    from hyperconformer.audio import resample

    samples = resample(samples / np.float32(32768), native_rate_hz, sample_rate_hz)
    return np.clip(samples, -1, 1)


@contextlib.contextmanager
def open_library(voice: str):
    """Load a copy of the library with one voice.

    Arguments
    ---------
    voice : str
        As for :func:`speak`.

    Yields
    ------
    ctypes.CDLL
        The library; other threads wait.

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
    """List the languages and accents of eSpeak NG.

    Returns
    -------
    tuple of str
        Such as ``en-us`` or ``en-gb-scotland``.
    """
    files = [path for path in (_data_folder() / "lang").rglob("*") if path.is_file()]
    return tuple(sorted({path.name.lower() for path in files} | {*FILE_NAMES}))


@functools.cache
def list_variants() -> tuple[str, ...]:
    """List the variants that change a voice's pitch and timbre.

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
            raise ValueError(f"{name} must be from {low} to {high}, got {value}")


@functools.cache
def _find_voice(voice):
    """Return the library's name of a voice."""
    language, _, variant = voice.partition("+")
    if language not in list_languages():
        english = [name for name in list_languages() if name.startswith("en")]
        raise ValueError(
            f"unknown language {language!r} in the voice {voice!r}; "
            f"known English ones: {', '.join(english)}"
        )
    # The library ignores unknown variants.
    if variant and variant not in list_variants():
        raise ValueError(
            f"unknown variant {variant!r} in the voice {voice!r}; "
            f"known variants: {', '.join(list_variants())}"
        )
    return FILE_NAMES.get(language, language) + (f"+{variant}" if variant else "")


@contextlib.contextmanager
def _load_library():
    """Load a fresh copy of the library; yield it and its sample rate in Hz."""
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
                "(paths may have at most 160 bytes)"
            )
        # Otherwise the noise depends on the time of day.
        _call(library.espeak_ng_SetRandSeed, ctypes.c_long(1))
        yield library, rate_hz
        library.espeak_Terminate()
    finally:
        _unload(library._handle)


def _synthesize(library, text, parameters):
    """Return the int16 samples of a text at the library's rate."""
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
