"""The sources of the bundled corpus: where each text is, how it is read, and what allows us to use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus_texts import Document, dictionary_articles, function_word_share, page_text, sword_chapters

LICENCES = {"public-domain", "PSF-2.0", "PostgreSQL", "BSD-3-Clause", "MIT OR Apache-2.0"}
LARGEST_PAGE = 200_000  # bytes; a larger page is a concatenation of others
MB = 1_000_000


@dataclass(frozen=True)
class Text:
    """One source. `evidence` must stand in the copyright file of its first package; `cap` is the most that is taken,
    in bytes; `licence_text` is (file, pattern) of the text that the licence wants to see copied.
    """

    name: str
    title: str
    author: str
    licence: str
    packages: tuple[str, ...]
    root: str
    patterns: tuple[str, ...]
    evidence: str
    read: Callable[[Path, list[Path]], Iterator[Document]]
    kind: str = "natural"
    cap: int = 100 * MB
    without: str = r"$^"
    licence_text: tuple[str, str] | None = None


def read_sword(root: Path, _: list[Path]) -> Iterator[Document]:
    """The chapters of a SWORD module."""
    return sword_chapters(root)


def read_jargon(_: Path, files: list[Path]) -> Iterator[Document]:
    """Articles whose body is indented by four blanks."""
    return dictionary_articles(files[0], body_indent=4)


def read_devil(_: Path, files: list[Path]) -> Iterator[Document]:
    """Articles that begin with a word in capitals."""
    return dictionary_articles(files[0], body_indent=0)


def read_pages(root: Path, files: list[Path]) -> Iterator[Document]:
    """The HTML pages that are mostly prose."""
    for file in files:
        text = page_text(file.read_text("utf-8", "replace"))
        if len(text.encode()) <= LARGEST_PAGE and function_word_share(text) >= 0.2:
            yield file.relative_to(root).with_suffix("").as_posix(), text


def read_modules(root: Path, files: list[Path]) -> Iterator[Document]:
    """Python modules, without those that speak of another licence."""
    for file in files:
        text = file.read_text("utf-8", "replace").expandtabs(4).strip()
        foreign = re.search(r"\bGPL\b|General Public License", text)
        if not foreign and len(text.encode()) <= LARGEST_PAGE:
            yield file.relative_to(root).as_posix(), text


def sword(name: str, title: str, author: str, package: str, module: str, evidence: str, cap: int = 100 * MB) -> Text:
    """A SWORD module in the public domain."""
    root = f"usr/share/sword/modules/{module}"
    return Text(name, title, author, "public-domain", (package,), root, ("*t.?z?",), evidence, read_sword, cap=cap)


PSF = ("Python Software Foundation", "PSF-2.0")
PSF_SENTENCE = "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"

TEXTS = (
    sword(
        "web", "World English Bible", "World English Bible contributors", "sword-text-web",
        "texts/ztext/engWEB2015eb", "The World English Bible is in the Public Domain.", 3 * MB,
    ),
    sword(
        "henry", "Concise Commentary on the Whole Bible", "Matthew Henry (died 1714)", "sword-comm-mhcc",
        "comments/zcom/mhcc", "Public Domain--Copy Freely.",
    ),
    sword(
        "spurgeon", "The Treasury of David", "Charles Haddon Spurgeon (died 1892)", "sword-comm-tdavid",
        "comments/zcom/tdavid", "It is now in the public domain.", 8 * MB,
    ),
    sword(
        "scofield", "Reference Notes, 1917", "Cyrus Ingerson Scofield (died 1921)", "sword-comm-scofield",
        "comments/zcom/scofield", "This work is in the public domain.",
    ),
    Text(
        "jargon", "The Jargon File 4.4.7", "its contributors", "public-domain", ("dict-jargon",),
        "usr/share/dictd", ("jargon.dict.dz",), "is in the public domain, to be freely used", read_jargon,
    ),
    Text(
        "devil", "The Devil's Dictionary", "Ambrose Bierce (died about 1914)", "public-domain", ("dict-devil",),
        "usr/share/dictd", ("devil.dict.dz",), "Public Domain Text, Copyright Expired", read_devil,
    ),
    Text(
        "sqlite", "SQLite documentation", "D. Richard Hipp and others", "public-domain", ("sqlite3-doc",),
        "usr/share/doc/sqlite3", ("*.html",), "License: public-domain", read_pages,
        cap=2_600_000, without=r"^(changes|releaselog|hlr|copyright)",
    ),
    Text(
        "postgresql", "PostgreSQL 15 documentation",
        "PostgreSQL Global Development Group; University of California", "PostgreSQL", ("postgresql-doc-15",),
        "usr/share/doc/postgresql-doc-15/html", ("*.html",), "License: PostgreSQL", read_pages,
        cap=2_600_000, without=r"^(release|bookindex|features)",
        licence_text=("copyright", r"License: PostgreSQL\n( Permission.*?MODIFICATIONS\.)"),
    ),
    Text(
        "python-doc", "Python 3.11 documentation", *PSF, ("python3.11-doc",), "usr/share/doc/python3.11/html",
        tuple(f"{part}/*.html" for part in ("tutorial", "howto", "faq", "library", "reference", "whatsnew")),
        PSF_SENTENCE, read_pages, cap=3_400_000, without=r"changelog|/index$",
        licence_text=("copyright", rf"({PSF_SENTENCE}\n.*?)BEOPEN\.COM"),
    ),
    Text(
        "rust", "Rust books (language, reference, by example, nomicon, editions)", "The Rust Project Developers",
        "MIT OR Apache-2.0", ("rust-doc",), "usr/share/doc/rust-doc/html",
        tuple(f"{part}/**/*.html" for part in ("book", "reference", "rust-by-example", "nomicon", "edition-guide")),
        "License: MIT or Apache-2.0", read_pages, cap=2_200_000, without=r"/print$|^book/20|SUMMARY",
        licence_text=("LICENSE-MIT.txt", r"(Permission.*SOFTWARE\.)"),
    ),
    Text(
        "django", "Django documentation", "Django Software Foundation and individual contributors", "BSD-3-Clause",
        ("python-django-doc",), "usr/share/doc/python-django-doc/html",
        tuple(f"{part}/**/*.html" for part in ("topics", "howto", "intro", "faq", "misc", "internals", "ref")),
        "Copyright: Django Software Foundation", read_pages, cap=1_600_000, without=r"/index$",
        licence_text=("copyright", r"License: BSD-3-Clause\n( Redistribution.*?DAMAGE\.)"),
    ),
    Text(
        "python-code", "Python 3.11 standard library", *PSF, ("libpython3.11-minimal", "libpython3.11-stdlib"),
        "usr/lib/python3.11", ("**/*.py",), PSF_SENTENCE, read_modules, kind="code", cap=5_200_000,
        without=r"(^|/)tests?/|^encodings/|^pydoc_data/|^lib2to3/|^_sysconfigdata",
    ),
)  # fmt: skip
