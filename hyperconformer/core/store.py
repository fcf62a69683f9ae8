"""Files in an object store, named ``s3://BUCKET/KEY``.

s3fs reads them. Credentials, region and endpoint come from where the AWS command line
takes them: ``AWS_PROFILE``, ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``~/.aws`` and
so on.
"""

import contextlib
import logging
import time

from hyperconformer.core.extras import import_extra

# How often s3fs makes a request, the square of it where it reads a file. botocore makes
# each AWS_MAX_ATTEMPTS times, by default 5. With s3fs's own 5 and 15 s for an answer a
# silent store would be waited for during half an hour.
TRIES = 2


class StoreError(OSError):
    """An object store cannot be read; the message names the file and says why."""


def is_stored(name) -> bool:
    """Whether a name is that of a file or folder in an object store.

    Arguments
    ---------
    name : str or pathlib.Path
        The name.

    Returns
    -------
    bool

    Example
    -------
    >>> is_stored("s3://bucket/train.csv"), is_stored("train.csv")
    (True, False)
    """
    return str(name).startswith("s3://")


def read_bytes(url: str, first: int = 0, count: int | None = None) -> bytes:
    """Read a file, or a part of it, by one request.

    Arguments
    ---------
    url : str
        The file.
    first : int
        The first byte.
    count : int, optional
        Number of bytes; by default up to the end.

    Returns
    -------
    bytes

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If the store does not answer or forbids it, or the file ends earlier.
    MissingExtraError
        If s3fs is not installed.
    """
    end = None if count is None else first + count
    with _explained(url) as store:
        content = store.cat_file(url, start=first or None, end=end)
    if count is not None and len(content) < count:
        raise StoreError(
            f"{url} is cut off: {first + len(content)} of {first + count} bytes are "
            "there"
        )
    return content


def list_sizes(url: str) -> dict[str, int]:
    """List the files of a folder.

    Arguments
    ---------
    url : str
        The folder.

    Returns
    -------
    dict of str to int
        Name to bytes.

    Raises
    ------
    FileNotFoundError
        If there is no such bucket, or nothing in the folder.
    StoreError
        If the store does not answer or forbids it.
    MissingExtraError
        If s3fs is not installed.
    """
    with _explained(url) as store:
        entries = store.ls(url, detail=True, refresh=True)
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}


@contextlib.contextmanager
def _explained(url):
    """Give the client; say in a line why a request of it has failed."""
    s3fs = import_extra("s3fs", "s3", "files at s3://")
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    for name in ("aiobotocore", "botocore"):
        if logging.getLogger(name).level == logging.NOTSET:
            # Else each process logs in each epoch where its credentials are from.
            logging.getLogger(name).setLevel(logging.WARNING)
    failures = (OSError, ValueError, BotoCoreError, *s3fs.core.S3_RETRYABLE_ERRORS)
    began = time.monotonic()
    try:
        # Asked for anew each time: s3fs keeps one client for each process, as a fork
        # must not use its parent's.
        store = s3fs.S3FileSystem()
        store.retries = TRIES
        yield store
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} does not exist") from error
    except failures as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(reason.split()).rstrip(".")
        if isinstance(error, (PermissionError, NoCredentialsError)):
            reason += (
                "; credentials are taken from where the AWS command line takes them, "
                "as from AWS_PROFILE or AWS_ACCESS_KEY_ID"
            )
        else:
            reason += f" (tried for {time.monotonic() - began:.0f} s)"
        raise StoreError(f"{url} cannot be read: {reason}") from error
