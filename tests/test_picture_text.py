"""Class names in pictures: what can be drawn is drawn as it is written, and what cannot is numbered, without a warning."""

import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from hf_focal import LabelDistribution
from hf_focal import _picture_text as picture_text
from hf_focal._picture_text import drawable, numbered, picture_names, set_plain, short


NAMES = ["ham", "體育", "عربي", "😀", "👩‍👩‍👧", "$x_{$", "हिन्दी", "ไทย", "한국어", "two\nlines", "x" * 40]
# None of the fonts that come with matplotlib has it; some that a machine has may.
UNASSIGNED = "\U000a0000"


@pytest.fixture(autouse=True)
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_short():
    assert short("two\nlines") == "two lines" and short("x" * 24) == "x" * 24
    assert short("x" * 25) == "x" * 23 + "…"


def test_names_are_drawn_or_numbered(tmp_path, caplog):
    shown = picture_names(NAMES)
    assert all(text in (short(name), f"#{k}") for k, (name, text) in enumerate(zip(NAMES, shown)))
    assert shown[0] == "ham" and shown[5] == "$x_{$" and shown[9] == "two lines"
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xticks(range(len(shown)), shown)
    set_plain(axes.get_xticklabels())
    figure.savefig(tmp_path / "names.png")
    assert not caplog.records


def test_what_no_font_has_is_numbered():
    names = ["ham", f"a{UNASSIGNED}"]
    assert picture_names(names) == ["ham", "#1"] and numbered(names) == {"#1": names[1]}
    assert drawable(names[1], "instead") == "instead" and numbered(["ham", "x" * 40]) == {}


def test_another_installed_font_is_found():
    """One of those of matplotlib has letters that its default one lacks."""
    default = get_font(findfont(FontProperties())).get_charmap()
    other = get_font(next(font.fname for font in fontManager.ttflist if font.name == "STIXGeneral")).get_charmap()
    character = chr(min(code for code in other if code > 0x1D00 and code not in default))
    assert picture_names([character]) == [character]
    figure = Figure()
    text = figure.suptitle(f"a {character}")
    set_plain([text])
    first, *more = text.get_fontfamily()
    assert first == FontProperties().get_family()[0] and more
    figure.canvas.draw()


def test_right_to_left_takes_a_matplotlib_that_can(monkeypatch):
    monkeypatch.setattr(picture_text, "_can_shape", lambda: False)
    assert picture_names(["ham", "עברית"]) == ["ham", "#1"]


def test_pictures_of_the_distribution(tmp_path, caplog):
    LabelDistribution(range(1, len(NAMES) + 1), names=NAMES).plot(None, tmp_path / "plot.png", "$ title")
    assert not caplog.records


def test_tables_are_aligned_by_width():
    lines = LabelDistribution([9, 5, 3], names=["ham", "體育", "e\u0301"]).to_text().splitlines()
    assert lines == [
        "class  count    share",
        "ham        9  52.94 %",
        "體育       5  29.41 %",
        "e\u0301          3  17.65 %",
    ]
