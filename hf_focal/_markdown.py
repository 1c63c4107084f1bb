"""Markdown: escaped text, and tables."""

import html
import re
from collections.abc import Iterable, Sequence


# Control characters, zero-width and invisible characters, bidirectional controls, and unpaired surrogates. The joiners
# of emoji and of Persian (U+200C, U+200D) and variation selectors are kept.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# ANSI escapes, which control terminals. If only control characters were removed, brackets and numbers would be left.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]"
)
# At the beginning of a line: a heading, a list, a rule, or what turns the line above into a heading or a table.
_BLOCK = re.compile(r"^(\d{0,9})(?=#{1,6}(?: |$)|[-+](?: |$)|[-=:][-=: ]*$|(?<=\d)[.)](?: |$))")


def one_line(text: str) -> str:
    r"""`text` in one line, without invisible characters, bidirectional controls and escape sequences.

    For untrusted text in a terminal or a log, which some of these could control.

    Args:
        text (`str`): Any.

    Example:

    ```python
    >>> from hf_focal.model_card import one_line
    >>> one_line("a\tname\x1b[2J\u202e")
    'a name'

    ```
    """
    return " ".join(_INVISIBLE.sub(" ", _ESCAPE_SEQUENCE.sub(" ", text)).split())


def escape_markdown(text: str) -> str:
    r"""Escapes `text` so that it is shown literally, in one line, wherever Markdown or HTML allows text.

    That is in paragraphs, headings, lists, links and table cells, but not in code.

    Args:
        text (`str`): Any.

    Example:

    ```python
    >>> from hf_focal.model_card import escape_markdown
    >>> print(escape_markdown("a|b *c* <d>"))
    a&#124;b \*c\* &lt;d&gt;

    ```
    """
    text = re.sub(r"([\\`*_\[\]~$])", r"\\\1", one_line(text))
    return html.escape(_BLOCK.sub(r"\1\\", text)).replace("|", "&#124;")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A Markdown table, with the first column left-aligned and the others right-aligned; empty without rows.

    Args:
        header (sequence of `str`): The names of the columns, in Markdown.
        rows (iterable of sequences of `str`): The cells, in Markdown; escape untrusted text with `escape_markdown`.

    Raises:
        `ValueError`: If a row has more or fewer cells than the header.

    Example:

    ```python
    >>> from hf_focal.model_card import escape_markdown, markdown_table
    >>> print(markdown_table(["class", "count"], [[escape_markdown("a|b"), "**3**"], ["c", "1"]]))
    | class | count |
    | --- | ---: |
    | a&#124;b | **3** |
    | c | 1 |

    ```
    """
    rows = list(rows)
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"rows: expected {len(header)} cells, as in the header, but got {list(row)}")
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""
