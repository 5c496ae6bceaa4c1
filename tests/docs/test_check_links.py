"""The check of a built site's links, on made-up sites: what is broken is found, what works is not."""

import pytest

from docs.site_extensions.check_links import broken_links, external_links


def site_of(folder, **pages):
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    return folder


def test_a_site_whose_links_work(tmp_path):
    (tmp_path / "style.css").write_text('a { background: url("picture.png"); }')
    (tmp_path / "picture.png").write_bytes(b"")
    head = '<link rel="stylesheet" href="style.css?v=1"><link rel="canonical" href="https://example.org/">'
    links = '<a href="two.html#place">two</a><a href="#here">here</a><p id="here"></p><img src="picture.png">'
    site_of(tmp_path, one=head + links, two='<p id="place"></p><a href="https://example.org">elsewhere</a>')
    assert list(broken_links(tmp_path)) == []
    assert external_links(tmp_path) == ["https://example.org"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<a href="lost.html">x</a>', "lost.html leads to no file"),
        ('<a href="other.html#lost">x</a>', "other.html#lost leads to no element"),
        ('<a href="#lost">x</a>', "#lost leads to no element"),
        ('<a href="../outside.html">x</a>', "../outside.html leads out of the site"),
        ('<a href="ftp://example.org">x</a>', "of a kind that is not expected"),
        ('<img src="lost.png">', "lost.png is missing"),
        ('<script src="https://example.org/x.js"></script>', "x.js would be fetched from elsewhere"),
        ('<script src="//example.org/x.js"></script>', "x.js would be fetched from elsewhere"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "x.css would be fetched from elsewhere"),
        ("<style>@import 'https://example.org/x.css';</style>", "x.css would be fetched from elsewhere"),
        ("<style>p { background: url(lost.png); }</style>", "lost.png is missing"),
    ],
)
def test_what_is_broken_is_told(tmp_path, body, said):
    folder = tmp_path / "site"
    folder.mkdir()
    site = site_of(folder, other="", page=body)
    (found,) = broken_links(site)
    assert found.startswith("page.html: ")
    assert said in found


def test_fonts_of_style_sheets_lie_in_the_site(tmp_path):
    site_of(tmp_path, page="")
    (tmp_path / "style.css").write_text("@font-face { src: url(https://example.org/font.woff2); }")
    assert list(broken_links(tmp_path)) == [
        "style.css: https://example.org/font.woff2 would be fetched from elsewhere"
    ]


def test_an_empty_folder_is_no_site(tmp_path):
    assert list(broken_links(tmp_path)) == [f"{tmp_path} has no pages"]
