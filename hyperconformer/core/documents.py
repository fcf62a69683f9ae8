"""Parts of documents that are made from data, between two marks."""


def read_part(text: str, begin: str, end: str) -> str | None:
    """The part of a document from one mark to the other, marks included.

    Arguments
    ---------
    text : str
        The document.
    begin, end : str
        The marks.

    Returns
    -------
    str or None
        None = it has no such part.

    Example
    -------
    >>> read_part("one <two> three", "<", ">")
    '<two>'
    """
    first, last = text.find(begin), text.find(end)
    return text[first : last + len(end)] if 0 <= first < last else None


def replace_part(text: str, begin: str, end: str, part: str) -> str:
    """A document with another such part, in its place or at its end.

    Arguments
    ---------
    text : str
        The document.
    begin, end : str
        The marks.
    part : str
        From one mark to the other.

    Returns
    -------
    str

    Example
    -------
    >>> replace_part("one <two> three", "<", ">", "<2>")
    'one <2> three'
    """
    old = read_part(text, begin, end)
    if old is None:
        return f"{text.rstrip()}\n\n{part}\n"
    return text.replace(old, part)
