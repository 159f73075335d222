"""Tiles show names and words as text, whatever they contain."""

from dashboards.tiles import Change, Freshness, Notice, Tile, _notice, _tile


def test_everything_shown_is_escaped() -> None:
    nasty = "<script>alert('x')</script>"
    tile = Tile(nasty, nasty, nasty, [Change(nasty, nasty)])
    shown = _tile(tile, Freshness(nasty, is_late=True))
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 6
    assert "gv-late" in shown


def test_a_notice_is_escaped_too_its_link_included() -> None:
    nasty = "\"><script>alert('x')</script>"
    shown = _notice(Notice(nasty, True, nasty, nasty, nasty, nasty))
    assert "<script" not in shown
    assert shown.count("&quot;&gt;&lt;script&gt;") == 5
    assert "gv-grave" in shown
