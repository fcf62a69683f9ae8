"""eSpeak NG's library and voices, for synthesis and pronunciations.

The package ``espeakng-loader`` contains eSpeak NG and its voices. They are free
software under the GNU General Public License, version 3 or later, which does not cover
the speech that they produce. The library is loaded at run time, through ``ctypes``.
"""

import _ctypes
import contextlib
import ctypes
import functools
import pathlib
import threading

from hyperconformer.core.extras import import_extra

# From speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1

# British English has no file under its own code: it is the default English.
FILE_NAMES = {"en-gb": "en"}

# All threads of a process share one library.
_lock = threading.Lock()
_unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # type: ignore


@contextlib.contextmanager
def open_library(voice: str):
    """Load a fresh copy of the library with one voice.

    The library keeps state between utterances, even when it is initialised again.

    Arguments
    ---------
    voice : str
        A language, optionally followed by a plus sign and a variant: ``en-us``,
        ``en-gb+f3``.

    Yields
    ------
    (ctypes.CDLL, int)
        The library and its sample rate in Hz; other threads wait.

    Raises
    ------
    ImportError
        If espeakng-loader is not installed.
    ValueError
        If the voice is unknown.
    """
    name = _find_voice(voice)
    with _lock, _load_library() as (library, rate_hz):
        call(library.espeak_SetVoiceByName, name.encode())
        yield library, rate_hz


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
        call(library.espeak_ng_SetRandSeed, ctypes.c_long(1))
        yield library, rate_hz
        library.espeak_Terminate()
    finally:
        _unload(library._handle)


def call(function, *arguments):
    """Call a function of the library; RuntimeError if it reports a failure."""
    code = function(*arguments)
    if code != 0:
        raise RuntimeError(f"eSpeak NG: {function.__name__} failed with code {code}.")
