"""Readers that turn the packages of the bundled corpus into clean documents.

A document is (id, text): a chapter, an article, a page or a module. Readers are pure functions of the unpacked files,
in a sorted order. A SWORD module (zText / zCom) keeps zlib blocks in `<testament>.?zz`, and 12 bytes for each block
(offset, size, plain size; little-endian uint32) in `<testament>.?zs`.
"""

from __future__ import annotations

import gzip
import html
import re
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

Document = tuple[str, str]
MIN_BYTES = 400  # a shorter page is an index or a stub
LONGEST_SAMPLE = 800  # characters of a code sample inside a page; a longer one is a listing, no part of the prose


def tidy(text: str) -> str:
    """Collapse blanks inside lines and runs of empty lines; no space before closing punctuation."""
    lines = [re.sub(r"[ \t\r\f\v\xa0\u200b]+", " ", line).strip() for line in text.split("\n")]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return re.sub(r" ([,;:.!?)\]])(?=[\s”\u2019\"')]|$)", r"\1", text)


# ------------------------------------------------------------------ SWORD
def sword_blocks(folder: Path, testament: str) -> list[str]:
    """The decompressed blocks of one testament, in order."""
    index = next(iter(sorted(folder.glob(f"{testament}.?zs"))))
    entries = index.read_bytes()
    data = index.with_suffix(index.suffix[:-1] + "z").read_bytes()
    spans = (struct.unpack_from("<III", entries, at) for at in range(0, len(entries), 12))
    return [zlib.decompress(data[offset : offset + size]).decode("utf-8", "replace") for offset, size, _ in spans]


def osis_text(markup: str) -> str:
    """Plain text of an OSIS fragment: paragraphs and verse lines on lines of their own, notes dropped."""
    markup = re.sub(r"<note\b.*?</note>", " ", markup, flags=re.S)
    markup = re.sub(r"<milestone\b[^>]*>", "", markup)
    markup = re.sub(r'<div\b[^>]*type="x-p"[^>]*>|</?(?:p|title|lg|list|table)\b[^>]*>', "\n\n", markup)
    markup = re.sub(r"</?(?:l|item|row|lb)\b[^>]*>", "\n", markup)
    markup = re.sub(r"</?cell\b[^>]*>", " ", markup)
    return tidy(html.unescape(re.sub(r"<[^>]+>", "", markup)))


def sword_chapters(folder: Path) -> Iterator[Document]:
    """One document for each chapter of a SWORD module, such as `Ps.23`."""
    for testament in ("ot", "nt"):
        markup = "".join(sword_blocks(folder, testament))
        marks = list(re.finditer(r'<chapter\b[^>]*osisID="([^"]+)" sID="[^>]*>', markup))
        ends = [mark.start() for mark in marks[1:]] + [len(markup)]
        for mark, end in zip(marks, ends, strict=False):
            text = osis_text(markup[mark.end() : end])
            if len(text.encode()) >= MIN_BYTES:
                yield mark.group(1), text


# ------------------------------------------------------------------ dictionaries
def unwrap(block: str) -> str:
    """Join the hard-wrapped lines of a paragraph; indented lines (verse, examples) stay lines."""
    out: list[str] = []
    for line in block.split("\n"):
        joins = out and out[-1] and line and not line.startswith(" ") and not out[-1].startswith(" ")
        if joins:
            out[-1] += " " + line
        else:
            out.append(line)
    return "\n".join(out)


def dictionary_articles(path: Path, *, body_indent: int, group_bytes: int = 3000) -> Iterator[Document]:
    """Articles of a dictd file, consecutive short ones together up to `group_bytes`; named by the first headword.

    An article starts with a headword at column 0 after an empty line; with `body_indent` its body is indented by that
    much.
    """
    raw = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    starts = r"\n\n(?=\S)" if body_indent else r"\n\n(?=[A-Z][A-Z' -]+(?:, |\n))"
    group: list[str] = []
    for article in re.split(starts, raw)[1:]:
        if article.startswith("00-database"):
            continue
        body = re.sub(rf"(?m)^ {{{body_indent}}}", "", article) if body_indent else article
        group.append(tidy(unwrap(re.sub(r"[{}]", "", body) if body_indent else body)))
        if sum(map(len, group)) >= group_bytes:
            yield group[0].split("\n")[0].split(",")[0], "\n\n".join(group)
            group = []
    if group:
        yield group[0].split("\n")[0].split(",")[0], "\n\n".join(group)


# ------------------------------------------------------------------ HTML
SKIPPED_TAGS = {"script", "style", "nav", "head", "header", "footer", "form", "svg", "button", "select", "noscript"}
SKIPPED_CLASSES = {
    "navheader", "navfooter", "toc", "headerlink", "sphinxsidebar", "related", "nosearch", "menu", "searchmenu",
    "toctree-wrapper", "sidebar", "nav", "footer", "top", "qv", "module-info", "langnotice", "contents", "fancy_toc",
    "clickable_code", "indextable", "outofdate", "toplang", "bottomlang", "directive-infobox", "buttons", "test-arrow",
}  # fmt: skip
VOID_TAGS = {"br", "hr", "img", "input", "link", "meta", "col", "wbr", "area", "base", "embed", "source", "param"}
BLOCK_TAGS = {
    "p",
    "div",
    "dd",
    "dt",
    "dl",
    "ul",
    "ol",
    "table",
    "blockquote",
    "section",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
}
LINE_TAGS = {"li", "tr", "br"}


class PageText(HTMLParser):
    """Collects the text of a page without navigation; a short `pre` stays, with its line breaks and indentation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipped: list[str] = []  # open tags inside a skipped element
        self.pre = 0
        self.pre_blocks: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID_TAGS:
            self.parts.append("\n" if tag == "br" and not self.skipped else "")
            return
        named = dict(attrs)
        marks = set((named.get("class") or "").split()) | {named.get("id") or ""}
        if self.skipped or tag in SKIPPED_TAGS or marks & SKIPPED_CLASSES:
            self.skipped.append(tag)
            return
        if tag == "pre":
            self.pre += 1
            self.pre_blocks.append("")
        elif tag in BLOCK_TAGS or tag in LINE_TAGS:
            self.parts.append("\n\n" if tag in BLOCK_TAGS else "\n")
        elif tag in {"td", "th"}:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            if tag in self.skipped:  # unclosed p and li inside are closed by their parent
                while self.skipped.pop() != tag:
                    pass
        elif tag == "pre" and self.pre:
            self.pre -= 1
            self.parts.append(f"\n\n\0{len(self.pre_blocks) - 1}\0\n\n")
        elif tag in BLOCK_TAGS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self.skipped:
            return
        if self.pre:
            self.pre_blocks[-1] += data
        else:
            self.parts.append(re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """The page so far; code samples are put back after the blanks of the prose were collapsed."""
        text = tidy("".join(self.parts))
        samples = [block.strip("\n").rstrip() for block in self.pre_blocks]
        kept = [sample if len(sample) <= LONGEST_SAMPLE else "" for sample in samples]
        return re.sub(r"\n{3,}", "\n\n", re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text))


def page_text(page: str) -> str:
    """Clean text of one HTML page."""
    parser = PageText()
    parser.feed(page)
    parser.close()
    return parser.text().replace("¶", "").replace("\0", "")


# ------------------------------------------------------------------ what is kept
FUNCTION_WORDS = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "is",
        "that",
        "it",
        "for",
        "as",
        "with",
        "be",
        "are",
        "this",
        "on",
        "by",
        "or",
        "not",
        "an",
        "from",
        "can",
        "which",
        "at",
        "if",
    ]
)


def function_word_share(text: str) -> float:
    """Share of the words that are among 26 English function words: about 0.35 in prose, under 0.15 in tables."""
    words = re.findall(r"[a-z]+", text.lower())
    return sum(word in FUNCTION_WORDS for word in words) / max(1, len(words))


def drop_seen_lines(text: str, seen: set[str], at_least: int = 60) -> str:
    """Drop long lines that stood, but for case, digits and blanks, in an earlier document; `seen` grows."""
    kept, fresh = [], set()
    for line in text.split("\n"):
        key = re.sub(r"[\W\d_]+", " ", line.lower()).strip()
        if len(key) >= at_least:
            if key in seen:
                continue
            fresh.add(key)
        kept.append(line)
    seen |= fresh
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def passages(text: str, at_most: int = 6000) -> list[str]:
    """Cut a document at empty lines (else at lines) into pieces of about equal size, near `at_most` bytes."""
    size = len(text.encode())
    pieces = -(-size // at_most)
    paragraphs = text.split("\n\n")
    out, current, used = [], [], 0
    for paragraph in paragraphs:
        current.append(paragraph)
        used += len(paragraph.encode()) + 2
        if used >= size * (len(out) + 1) / pieces:
            out.append("\n\n".join(current))
            current = []
    if current:
        out.append("\n\n".join(current))
    return [piece for piece in out if piece.strip()]
