"""Markdown tables, without any package."""


def markdown_table(header, lines):
    """A Markdown table, first column left, the others right.

    Example
    -------
    >>> print(markdown_table(["a", "b"], [["x", 1]]))
    | a | b |
    |---|---:|
    | x | 1 |
    """
    ruler = "|---" + "|---:" * (len(header) - 1) + "|"
    cells = [[str(cell) for cell in line] for line in [header, *lines]]
    head, *body = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([head, ruler, *body])
