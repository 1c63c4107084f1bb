"""Checks that a card, as rendered from Markdown, shows what it should."""

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import takewhile

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ._markdown import one_line


__all__ = ["check_pictures", "check_sections", "fenced"]

# Limit for each character that can be part of a table, or of something slow to parse.
_MOST = 20_000
_PROSE = {"paragraph", "inline", "bullet_list", "ordered_list", "list_item", "blockquote", "hr", "heading"}


def _parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def fenced(text: str, info: str) -> list[Token]:
    """The code blocks of this kind that are visible when the card is rendered."""
    return [token for token in _parsed(text) if token.type == "fence" and token.info.strip() == info]


def check_sections(path: str, text: str, sections: Mapping[str, str], titles: Iterable[str], record: str) -> None:
    """Checks that each section occurs once, unchanged and under its heading, and that additions cannot pass for it.

    Args:
        path (`str`): For messages.
        text (`str`): The text of the card, without its metadata.
        sections (mapping of `str` to `str`): The Markdown of each section by the Markdown of its heading, the title
            first.
        titles (iterable of `str`): Headings that are allowed only if they are among `sections`.
        record (`str`): The info string of the record's code block, which may be anywhere.

    Raises:
        `ValueError`: If any check fails; the message names the line.
    """
    for character in "<[`*_|":
        if text.count(character) > _MOST:
            raise ValueError(f"{path}: expected at most {_MOST:,} of the character {character!r}")
    tokens = _shown(text, record)
    for token in tokens:
        kinds = {token.type, *(child.type for child in token.children or [])}
        if kinds & {"html_block", "html_inline"}:
            raise _error(path, token, "no HTML, which can hide parts of the card", token.content)
    headings = _headings(tokens)
    wanted = [(_heading_text(_parsed(heading)[1]), heading, section) for heading, section in sections.items()]
    _check_headings(path, tokens, headings, [(name, one_line(heading)) for name, heading, _ in wanted], titles)
    for k, (name, heading, section) in enumerate(wanted):
        # A model may be named like a section: its title is the first such heading.
        start = headings[name][0 if k == 0 else -1]
        _check_lines(f"{path}: {one_line(heading)}", text, (tokens[start].map or [0])[0], f"{heading}\n\n{section}")
        _check_shown(f"{path}: {one_line(heading)}", _section_at(tokens, start), _parsed(f"{heading}\n\n{section}"))


def check_pictures(path: str, text: str, pictures: Iterable[str], record: str) -> None:
    """Checks that the pictures' section, which depends on what could be drawn, has only these images and prose."""
    tokens = _shown(text, record)
    places = [k for k in _headings(tokens).get("pictures", []) if k > 0]
    if len(places) > 1:
        raise _error(path, tokens[places[1]], "one heading 'Pictures' at most", len(places))
    _check_prose(f"{path}: ## Pictures", _section_at(tokens, places[0])[3:] if places else [], {*pictures})


def _shown(text: str, record: str) -> list[Token]:
    return [token for token in _parsed(text) if not (token.type == "fence" and token.info.strip() == record)]


def _headings(tokens: list[Token]) -> dict[str, list[int]]:
    """The positions of the headings of any level, by their text."""
    positions: dict[str, list[int]] = {}
    for k, token in enumerate(tokens):
        if token.type == "heading_open":
            positions.setdefault(_heading_text(tokens[k + 1]), []).append(k)
    return positions


def _section_at(tokens: list[Token], start: int) -> list[Token]:
    """The section with its heading, up to the next heading of the first two levels."""
    content = takewhile(
        lambda token: not (token.type == "heading_open" and token.tag in ("h1", "h2")), tokens[start + 3 :]
    )
    return [*tokens[start : start + 3], *content]


def _check_headings(
    path: str,
    tokens: list[Token],
    headings: dict[str, list[int]],
    wanted: list[tuple[str, str]],
    titles: Iterable[str],
) -> None:
    names = [name for name, _ in wanted]
    if "" in headings and "" not in names:
        raise _error(path, tokens[headings[""][0]], "headings with text", "an empty one")
    for name, heading in wanted:
        shown, expected = len(headings.get(name, [])), names.count(name)
        has_pictures = name == "pictures" and shown == expected + 1  # the model is named "Pictures"
        if shown != expected and not has_pictures:
            number = "one such heading" if expected == 1 else f"{expected} such headings"
            raise ValueError(f"{path}: {heading}: expected {number}, but got {shown} visible")
    first = min(map(min, headings.values()))
    if first != headings[names[0]][0]:
        raise _error(path, tokens[first], f"the title {names[0]!r} first", _heading_text(tokens[first + 1]))
    for title in map(_normal, titles):
        if title not in names and title in headings:
            raise _error(path, tokens[headings[title][0]], "no section of this name, as the record has none", title)


def _check_shown(path: str, actual: list[Token], wanted: list[Token]) -> None:
    closing: list[str] = []  # items may be added to a list, but no rows to a table
    while wanted[-1].nesting < 0:
        closing.insert(0, wanted.pop().type)
    for token, right in zip(actual, wanted):
        if _signature(token) != _signature(right):
            raise _error(
                path, token, f"{right.content or right.type!r}, rendered like this", token.content or token.type
            )
    added = actual[len(wanted) :]
    _check_prose(path, added[len(closing) :] if [token.type for token in added[: len(closing)]] == closing else added)


def _check_lines(path: str, text: str, start: int, expected: str) -> None:
    lines = text.split("\n")[start:]
    for k, line in enumerate(expected.split("\n")):
        actual = lines[k].rstrip(" \t") if k < len(lines) else ""
        if actual != line.rstrip(" \t"):
            raise ValueError(
                f"{path}, line {start + k + 1} of the text: expected the line {line!r:.500}, but got {actual!r:.500}"
            )


def _check_prose(path: str, tokens: Iterable[Token], images: Iterable[str] = ()) -> None:
    for token in tokens:
        if token.type.removesuffix("_open").removesuffix("_close") not in _PROSE:
            raise _error(path, token, "only prose after it", token.content or token.type)
        shown = any(child.type == "image" for child in token.children or [])
        if shown and not {*token.content.splitlines()} <= {*images}:
            raise _error(path, token, "only prose and the card's pictures", token.content)


def _heading_text(token: Token) -> str:
    """The text of a heading, without its markup."""
    breaks = ("softbreak", "hardbreak")
    return _normal("".join(" " if child.type in breaks else child.content for child in token.children or []))


def _normal(text: str) -> str:
    return one_line(unicodedata.normalize("NFKC", text)).casefold()


def _signature(token: Token) -> tuple[object, ...]:
    return token.type, token.tag, token.level, token.info, token.content, str(token.attrs)


def _error(path: str, token: Token, expected: str, actual: object) -> ValueError:
    where = f", line {token.map[0] + 1} of the text" if token.map else ""
    return ValueError(f"{path}{where}: expected {expected:.500}, but got {actual!r:.500}")
