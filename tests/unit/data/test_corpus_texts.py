import gzip
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st


def write_module(folder, testament, blocks, letter="b"):
    """A SWORD module of zlib blocks with its index."""
    index, data = b"", b""
    for block in blocks:
        packed = zlib.compress(block.encode())
        index += struct.pack("<III", len(data), len(packed), len(block.encode()))
        data += packed
    (folder / f"{testament}.{letter}zs").write_bytes(index)
    (folder / f"{testament}.{letter}zz").write_bytes(data)


def test_sword_chapters_are_cut_at_chapter_marks_across_blocks(texts, tmp_path):
    long = "word " * 100
    write_module(
        tmp_path,
        "ot",
        [f'<chapter n="1" osisID="Ge.1" sID="x"/>{long}one', f'two<chapter n="2" osisID="Ge.2" sID="y"/>{long}é'],
        "c",
    )
    write_module(tmp_path, "nt", ['<chapter n="1" osisID="Mt.1" sID="z"/>short'], "c")
    chapters = dict(texts.sword_chapters(tmp_path))
    assert list(chapters) == ["Ge.1", "Ge.2"]
    assert chapters["Ge.1"].endswith("word onetwo")
    assert chapters["Ge.2"].endswith("word é")


def test_osis_keeps_words_and_drops_notes_and_tags(texts):
    prose = '<div sID="g" type="x-p"/><w lemma="s">In</w> the <hi>end</hi><note>no</note>, &amp; so.'
    verse = '<div eID="g" type="x-p"/><l>verse</l><l>two</l>'
    assert texts.osis_text(prose + verse) == "In the end, & so.\n\nverse\n\ntwo"


def test_page_text_drops_navigation_and_keeps_code_lines(texts):
    page = (
        "<html><head><title>t</title></head><body><nav><ul><li>menu</ul></nav>"
        "<div class='navheader'><div>Prev</div></div>"
        "<main><h1>Title<a class='headerlink'>¶</a></h1><p>One\n  <em>two</em>&nbsp;three<br>four</p>"
        "<script>if (a < b) {}</script><pre>def f():\n    <b>return</b> 1\n</pre>"
        f"<pre>{'listing ' * 200}</pre><ul><li>a</li><li>b</li></ul></main>after</body></html>"
    )
    assert texts.page_text(page) == "Title\n\nOne two three\nfour\n\ndef f():\n    return 1\n\na\nb\n\nafter"


def test_dictionary_articles_are_unwrapped_and_grouped(texts, tmp_path):
    body = (
        "\n\n00-database-short\n     name\n\nalpha\n n.\n\n    first line\n    goes {on}\n\n"
        "        verse one\n        verse two\n\nbeta\n\n    second\n"
    )
    path = tmp_path / "a.dict.dz"
    path.write_bytes(gzip.compress(body.encode()))
    articles = list(texts.dictionary_articles(path, body_indent=4, group_bytes=1))
    assert articles == [
        ("alpha", "alpha\nn.\n\nfirst line goes on\n\nverse one\nverse two"),
        ("beta", "beta\n\nsecond"),
    ]
    assert [name for name, _ in texts.dictionary_articles(path, body_indent=4)] == ["alpha"]


def test_seen_lines_are_dropped_whatever_their_case_and_digits(texts):
    seen: set[str] = set()
    line = "This long line about release number 12 is a boilerplate line of every page."
    assert texts.drop_seen_lines(f"{line}\nshort", seen) == f"{line}\nshort"
    assert texts.drop_seen_lines(f"short\n{line.upper().replace('12', '13')}\nother", seen) == "short\nother"


def test_repeats_inside_one_document_stay(texts):
    verse = "His steadfast love endures forever and ever, from the morning until the evening watch."
    assert texts.drop_seen_lines(f"{verse}\n{verse}", set()) == f"{verse}\n{verse}"


def test_function_words_tell_prose_from_tables(texts):
    assert texts.function_word_share("It is the nature of a thing that it is what it is, and not another.") > 0.5
    assert texts.function_word_share("utf8 latin1 koi8r big5 gbk sjis") == 0


@given(
    paragraphs=st.lists(st.text("abc é", min_size=1, max_size=60).map(str.strip).filter(bool), min_size=1, max_size=60),
    at_most=st.integers(20, 500),
)
def test_passages_join_to_the_document_and_have_similar_sizes(texts, paragraphs, at_most):
    text = "\n\n".join(paragraphs)
    pieces = texts.passages(text, at_most)
    assert "\n\n".join(pieces) == text
    longest = max(len(paragraph.encode()) for paragraph in paragraphs)
    assert all(len(piece.encode()) <= at_most + longest + 2 for piece in pieces)


def test_unknown_licence_is_refused(build, tmp_path):
    import dataclasses

    with pytest.raises(SystemExit, match="GFDL"):
        build.copyright_of(dataclasses.replace(build.TEXTS[0], licence="GFDL"), tmp_path)


def test_package_that_does_not_say_what_we_quote_is_refused(build, tmp_path):
    source = build.TEXTS[0]
    folder = tmp_path / source.packages[0] / "usr/share/doc" / source.packages[0]
    folder.mkdir(parents=True)
    (folder / "copyright").write_text("All rights reserved.")
    with pytest.raises(SystemExit, match="does not say"):
        build.copyright_of(source, tmp_path)


def test_archives_are_reproducible(build, tmp_path):
    documents = [(f"d{i}", f"text number {i}\n\n" + "word " * i) for i in range(40)]
    rows = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows.append(build.write_archive(build.TEXTS[0], documents, tmp_path / name))
    assert rows[0] == rows[1]
    assert rows[0]["validation_documents"] > 0
