"""What the server allows: how much at once, for how long, and whom."""

import dataclasses
import hmac
import math
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import HTTPException, WebSocket
from fastapi.exceptions import (
    RequestValidationError,
    WebSocketRequestValidationError,
)
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse

# How browsers, which cannot set headers of a WebSocket, send OpenAI's token.
TOKEN_SUBPROTOCOL = "openai-insecure-api-key."


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one process takes.

    Arguments
    ---------
    streams : int, optional
        Live streams at once; further ones are refused. None = as many as the model's
        search lets the machine carry, see :data:`hyperconformer.serve.app.CARRIED`.
    files : int
        Uploaded files that are recognised or wait for it at once.
    upload_mb : float
        Size of an upload, in 10**6 bytes.
    audio_s : float
        Length of an uploaded recording.
    idle_s : float
        How long a client may send nothing.
    finish_s : float
        How long running utterances may go on after SIGTERM.

    Raises
    ------
    ValueError
        If one is not positive and finite.
    """

    streams: int | None = None
    files: int = 16
    upload_mb: float = 100.0
    audio_s: float = 7200.0
    idle_s: float = 30.0
    finish_s: float = 20.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")


class Refusal(HTTPException):
    """What a client is told instead of an answer, in OpenAI's form.

    Arguments
    ---------
    status : int
        Of HTTP.
    message : str
        What was got, what was expected, what to do.
    code : str, optional
        The error in a word, for programs.
    param : str, optional
        The parameter that is wrong.
    retry_s : int, optional
        When to try again.
    """

    def __init__(self, status, message, code=None, param=None, retry_s=None):
        headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.param = code, param


async def respond(connection, error):
    """Send an ``HTTPException`` as JSON in OpenAI's form, also to a WebSocket."""
    code = getattr(error, "code", None) or str(error.status_code)
    connection.app.state.service.metrics.refused.labels(code).inc()
    response = JSONResponse(
        error_body(error), error.status_code, getattr(error, "headers", None)
    )
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
        return None
    return response


async def respond_invalid(
    request: HTTPConnection,
    error: RequestValidationError | WebSocketRequestValidationError,
):
    """Parameters that are missing or of another type, said as by :func:`respond`."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    return await respond(request, Refusal(400, f"{param}: {first['msg']}", param=param))


def error_body(error):
    """OpenAI's JSON object of an error.

    Arguments
    ---------
    error : fastapi.HTTPException
        Maybe a :class:`Refusal`.

    Returns
    -------
    dict

    Example
    -------
    >>> error_body(Refusal(404, "no such model", "model_not_found"))["error"]["code"]
    'model_not_found'
    """
    server = error.status_code >= 500
    return {
        "error": {
            "message": str(error.detail),
            "type": "server_error" if server else "invalid_request_error",
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
    }


class Slots:
    """A number of places, each taken by one client at a time.

    Arguments
    ---------
    count : int
        How many there are.
    what : str
        What takes them, in the plural.

    Example
    -------
    >>> slots = Slots(1, "streams")
    >>> slots.take()
    >>> try:
    ...     slots.take()
    ... except Refusal as error:
    ...     print(error.detail)
    the server is full: it takes 1 streams at once; try again later
    >>> slots.give_back()
    >>> slots.take()
    """

    def __init__(self, count, what):
        self.count, self.what, self.taken = count, what, 0

    def check(self):
        """Raise a :class:`Refusal` where all are taken."""
        if self.taken >= self.count:
            raise Refusal(
                503,
                f"the server is full: it takes {self.count} {self.what} at once; try "
                "again later",
                "server_full",
                retry_s=1,
            )

    def take(self):
        """Take one; raises as :meth:`check`."""
        self.check()
        self.taken += 1

    def give_back(self):
        """One is free again."""
        self.taken -= 1


class Guard:
    """Refuses clients without the token, and pages of other origins.

    Without the second check every page that a user's browser shows could use a server
    on the user's machine.

    Arguments
    ---------
    token : str, optional
        What ``Authorization: Bearer`` must bring; None = nothing.
    origins : list of str
        Origins whose pages may use the server, beside its own; ``*`` = all.
    """

    def __init__(self, token: str | None, origins: Sequence[str]):
        self.token, self.origins = token, origins

    async def __call__(self, connection: HTTPConnection):
        """Raise a :class:`Refusal` for a connection that may not be."""
        origin = connection.headers.get("origin")
        own = connection.headers.get("host")
        if origin is not None and "*" not in self.origins:
            if origin not in self.origins and urlsplit(origin).netloc != own:
                raise Refusal(
                    403,
                    f"pages of {origin} may not use this server: start it with "
                    f"--allow-origin {origin}",
                    "origin_not_allowed",
                )
        if self.token is not None and not hmac.compare_digest(
            _token(connection).encode(), self.token.encode()
        ):
            raise Refusal(
                401,
                "wrong or missing token: send the server's in the header "
                "`Authorization: Bearer TOKEN`",
                "invalid_api_key",
            )


def _token(connection):
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for name in connection.scope.get("subprotocols", []):
        if name.startswith(TOKEN_SUBPROTOCOL):
            return name.removeprefix(TOKEN_SUBPROTOCOL)
    return ""


def split_hotwords(prompt, keywords):
    """The hot words of a client: those of its prompt, and its keywords.

    Arguments
    ---------
    prompt : str or None
        Words or phrases, parted by commas, semicolons or line ends.
    keywords : list of str or None
        More of them.

    Returns
    -------
    list of str

    Example
    -------
    >>> split_hotwords("Ada Lovelace, engine", ["loom"])
    ['Ada Lovelace', 'engine', 'loom']
    """
    found = [word.strip() for word in re.split(r"[,;\n]", prompt or "")]
    return [word for word in [*found, *(keywords or [])] if word]
