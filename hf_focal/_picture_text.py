"""Class names in pictures: shortened, not parsed as formulas, and in a font that can draw them."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ._markdown import one_line


if TYPE_CHECKING:
    from matplotlib.text import Text

__all__ = ["check_matplotlib", "drawable", "has_matplotlib", "numbered", "picture_names", "set_plain", "short"]

# Fonts of matplotlib that have boxes or parts of formulas instead of letters.
_WITHOUT_LETTERS = ("Last Resort", "STIXSize", "STIXNonUnicode", "cm")


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def check_matplotlib(name: str) -> None:
    if not has_matplotlib():
        raise ImportError(f"{name}: pictures require matplotlib: pip install 'hf_focal[plots]'")


def short(text: str) -> str:
    """The text, shortened to fit in a picture."""
    text = one_line(text)
    return text if len(text) <= 24 else text[:23] + "…"


def picture_names(names: Sequence[str]) -> list[str]:
    """The class names, shortened; one that no installed font can draw is replaced by its class id: ``#3``."""
    return [drawable(name, f"#{k}") for k, name in enumerate(names)]


def drawable(text: str, instead: str) -> str:
    """The text, shortened, or `instead` if no installed font can draw it."""
    shortened = short(text)
    return instead if _families(shortened) is None else shortened


def numbered(names: Sequence[str]) -> dict[str, str]:
    """The names that a picture shows as numbers, by these numbers."""
    return {shown: name for shown, name in zip(picture_names(names), names) if shown != short(name)}


def set_plain(texts: Iterable["Text"]) -> None:
    """Draws texts of a picture literally (`$` starts no formula) and in fonts that have their characters."""
    for text in texts:
        text.set(parse_math=False, fontfamily=_families(text.get_text()) or _default_families())


def _families(text: str) -> list[str] | None:
    """The font families that can draw a text, in order of preference; None if some character cannot be drawn."""
    families = _default_families()
    characters = {c for c in text if not c.isspace()}
    if not _can_shape() and any(unicodedata.bidirectional(c) in ("R", "AL") for c in characters):
        return None
    missing = characters - {c for c in characters if any(_draws(family, c) for family in families)}
    for character in sorted(missing):
        family = next((name for name in [*families, *_installed()] if _draws(name, character)), None)
        if family is None:
            return None
        families = list(dict.fromkeys([*families, family]))
    return families


def _default_families() -> list[str]:
    from matplotlib import rcParams

    return [*rcParams["font.family"]]


@cache
def _can_shape() -> bool:
    """Whether joined letters and right-to-left scripts are supported: since matplotlib 3.11."""
    from matplotlib import ft2font

    return getattr(ft2font, "__libraqm_version__", None) is not None


@cache
def _installed() -> dict[str, str]:
    """The file of each font family's regular face. Families without one would be searched for at each drawing."""
    from matplotlib.font_manager import fontManager

    faces = [font for font in fontManager.ttflist if font.weight in (400, "normal", "regular")]
    upright = [font for font in faces if font.style == "normal" and not font.name.startswith(_WITHOUT_LETTERS)]
    return {font.name: font.fname for font in reversed(upright)}


def _draws(family: str, character: str) -> bool:
    return ord(character) in _characters(family)


@cache
def _characters(family: str) -> Any:
    """The code points that a font has; none if it cannot be read."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        return get_font(_installed().get(family) or findfont(FontProperties(family=[family]))).get_charmap().keys()
    except (OSError, RuntimeError):  # for example a bitmap font
        return ()
