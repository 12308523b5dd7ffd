"""Build the bundled corpus `sigma/data/corpus/` from Debian packages: `python packaging/build_corpus.py --debs
FOLDER`.

The folder holds the .deb files named in `PACKAGES` (`--download` fetches the missing ones with `apt-get download`).
The script refuses a licence outside `LICENCES` and a package whose copyright file lacks the sentence that the table
quotes. Equal packages give equal bytes: files are read in sorted order, choices depend on hashes alone, archives
carry no time. It writes one `<name>.jsonl.xz` per source (a passage per line, training passages first), the tokenizer
trained from the training passages, `provenance.json`, `NOTICE.txt` and `docs/corpus.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from corpus_sources import LICENCES, TEXTS, Text, read_modules, read_pages  # noqa: E402
from corpus_texts import MIN_BYTES, Document, drop_seen_lines, passages  # noqa: E402
from sigma.data.corpus import FOLDER, Corpus  # noqa: E402
from sigma.data.tokenizer import train_bpe  # noqa: E402

VALIDATION_SHARE = 0.06


def fetch(package: str, debs: Path, download: bool) -> Path:
    """The newest .deb of `package` in the folder."""
    found = sorted(debs.glob(f"{package}_*.deb"))
    if not found and download:
        subprocess.run(["apt-get", "download", package], cwd=debs, check=True)
        found = sorted(debs.glob(f"{package}_*.deb"))
    if not found:
        raise SystemExit(f"{debs}: no {package}_*.deb; run with --download, or put it there")
    return found[-1]


def unpack(packages: Iterable[str], debs: Path, into: Path, download: bool) -> dict[str, dict[str, str]]:
    """Unpack all packages, each into its own folder; their versions and hashes."""
    facts = {}
    for package in sorted(set(packages)):
        deb = fetch(package, debs, download)
        subprocess.run(["dpkg-deb", "-x", deb, into / package], check=True)
        version = subprocess.run(
            ["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True
        ).stdout.strip()
        facts[package] = {"version": version, "sha256": hashlib.sha256(deb.read_bytes()).hexdigest()}
    return facts


def copyright_of(text: Text, unpacked: Path) -> str:
    """The copyright file of a package; refused when the licence is unknown or the quoted sentence is absent."""
    if text.licence not in LICENCES:
        raise SystemExit(f"{text.name}: the licence {text.licence!r} is not in LICENCES")
    doc = unpacked / text.packages[0] / "usr/share/doc"
    copyright_file = (doc / text.packages[0] / "copyright").read_text("utf-8")
    if " ".join(text.evidence.split()) not in " ".join(copyright_file.split()):
        raise SystemExit(f"{text.name}: the copyright file of {text.packages[0]} does not say {text.evidence!r}")
    return copyright_file


def files_of(text: Text, unpacked: Path) -> list[tuple[str, Path, list[Path]]]:
    """(package, root, files) for each package of the source, sorted."""
    out = []
    for package in text.packages:
        root = unpacked / package / text.root
        files = sorted({file for pattern in text.patterns for file in root.glob(pattern) if file.is_file()})
        kept = [
            file for file in files if not re.search(text.without, file.relative_to(root).with_suffix("").as_posix())
        ]
        out.append((package, root, kept))
    return out


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def choose(documents: list[Document], budget: int) -> set[str]:
    """Ids of the documents taken in the order of their hashes while they fit into `budget` bytes."""
    chosen, used = set(), 0
    for name, text in sorted(documents, key=lambda document: digest(document[1])):
        if used + len(text.encode()) <= budget:
            chosen.add(name)
            used += len(text.encode())
    return chosen


def clean(text: Text, found: Iterable[Document], seen: set[str]) -> list[Document]:
    """Deduplicated documents within the cap of the source, in reading order."""
    documents = {}
    for name, body in found:
        body = drop_seen_lines(body, seen) if text.kind == "natural" else body
        fresh = digest(body) not in seen
        seen.add(digest(body))
        if fresh and len(body.encode()) >= MIN_BYTES:
            documents[name if name not in documents else f"{name}~{len(documents)}"] = body
    kept = choose(list(documents.items()), text.cap)
    return [(name, body) for name, body in documents.items() if name in kept]


def write_archive(text: Text, documents: list[Document], folder: Path) -> dict[str, object]:
    """Write the archive; its row of the provenance."""
    total = sum(len(body.encode()) for _, body in documents)
    held_out = choose(documents, int(total * VALIDATION_SHARE))
    lines, counts = [], {False: 0, True: 0}
    for validation in (False, True):
        for name, body in documents:
            pieces = passages(body) if (name in held_out) is validation else []
            counts[validation] += len(pieces)
            lines += [
                json.dumps({"id": f"{name}#{part}", "text": piece}, ensure_ascii=False)
                for part, piece in enumerate(pieces)
            ]
    plain = ("\n".join(lines) + "\n").encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]
    packed = lzma.compress(plain, check=lzma.CHECK_CRC64, filters=filters)
    (folder / f"{text.name}.jsonl.xz").write_bytes(packed)
    return {
        "file": f"{text.name}.jsonl.xz", "sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed),
        "plain_sha256": hashlib.sha256(plain).hexdigest(), "text_bytes": total, "documents": len(documents),
        "validation_documents": len(held_out), "passages": counts[False], "validation_passages": counts[True],
    }  # fmt: skip


def notice(text: Text, copyright_file: str, unpacked: Path) -> str:
    """The paragraph of NOTICE.txt for one source, with the licence's text where the licence asks for it."""
    holders = re.search(r"Files: \*\nCopyright:(.*?)\n\S", copyright_file, re.S)
    head = [
        text.title,
        f"by {text.author}",
        f"Licence: {text.licence}",
        f"Copyright: {' '.join(holders[1].split()) if holders else text.author}",
        f"From the Debian packages {', '.join(text.packages)}; changed: markup, duplicates and listings removed",
    ]
    if text.licence_text is None:
        return "\n".join(head)
    name, pattern = text.licence_text
    file = unpacked / text.packages[0] / text.root / name
    found = re.search(pattern, copyright_file if name == "copyright" else file.read_text("utf-8"), re.S)
    if not found:
        raise SystemExit(f"{text.name}: no licence text in {name}")
    body = re.sub(r"(?m)^ \.?", "", found[1]).replace("<NAME>", text.author).strip()
    return "\n".join([*head, "", body])


def build(debs: Path, folder: Path, download: bool) -> dict[str, object]:
    """Write the archives, the tokenizer and the notice into `folder`; returns the provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    rows, notices = [], []
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = Path(temporary)
        packages = unpack((package for text in TEXTS for package in text.packages), debs, unpacked, download)
        for text in TEXTS:
            copyright_file = copyright_of(text, unpacked)
            groups = files_of(text, unpacked)
            documents = clean(
                text, (document for _, root, files in groups for document in text.read(root, files)), seen
            )
            row = {
                "name": text.name,
                "kind": text.kind,
                "title": text.title,
                "author": text.author,
                "licence": text.licence,
            }
            row |= {"packages": list(text.packages)} | write_archive(text, documents, folder)
            used = {name for name, _ in documents}
            row["files"] = [
                {"package": package, "path": file.relative_to(unpacked / package).as_posix(), "licence": text.licence,
                 "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
                for package, root, files in groups for file in files
                if text.read not in (read_pages, read_modules) or origin(text, root, file) in used
            ]  # fmt: skip
            rows.append(row)
            notices.append(notice(text, copyright_file, unpacked))
    (folder / "NOTICE.txt").write_text(("\n\n" + "-" * 80 + "\n\n").join(notices) + "\n", "utf-8")
    return {"format": 1, "packages": packages, "archives": rows}


def origin(text: Text, root: Path, file: Path) -> str:
    """The document id that a file becomes."""
    relative = file.relative_to(root)
    return (relative.with_suffix("") if text.read is read_pages else relative).as_posix()


def table(provenance: dict) -> str:
    """docs/corpus.md."""
    lines = [
        "# The bundled corpus",
        "",
        "Generated by `packaging/build_corpus.py`. The record of every single file is",
        "`sigma/data/corpus/provenance.json`; the texts of the licences are in `sigma/data/corpus/NOTICE.txt`.",
        "Sizes are in bytes; *held out* counts the documents kept for validation.",
        "",
        "| source | title | by | licence | packages | documents | held out | text | archive |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in provenance["archives"]:
        packages = ", ".join(f"{name} {provenance['packages'][name]['version']}" for name in row["packages"])
        cells = [row["name"], row["title"], row["author"], row["licence"], packages]
        cells += [f"{row[key]:,}" for key in ("documents", "validation_documents", "text_bytes", "bytes")]
        lines.append("| " + " | ".join(cells) + " |")
    for kind in ("natural", "code"):
        rows = [row for row in provenance["archives"] if row["kind"] == kind]
        sums = [
            f"{sum(row[key] for row in rows):,}" for key in ("documents", "validation_documents", "text_bytes", "bytes")
        ]
        lines.append(f"| **all {kind}** | | | | | " + " | ".join(sums) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--debs", type=Path, required=True, help="folder with the .deb files")
    arguments.add_argument("--download", action="store_true", help="fetch missing packages with apt-get download")
    arguments.add_argument("--folder", type=Path, default=FOLDER, help="where the corpus is written")
    chosen = arguments.parse_args()
    provenance = build(chosen.debs, chosen.folder, chosen.download)
    (chosen.folder / "provenance.json").write_text(json.dumps(provenance) + "\n", "utf-8")
    tokenizer = train_bpe(Corpus(chosen.folder).training_texts())
    (chosen.folder / "bpe8k.json").write_text(tokenizer, "utf-8")
    provenance["tokenizer"] = {"file": "bpe8k.json", "sha256": digest(tokenizer), "bytes": len(tokenizer.encode())}
    compact = json.dumps(provenance, ensure_ascii=False, separators=(",", ":"))
    (chosen.folder / "provenance.json").write_text(compact + "\n", "utf-8")
    if chosen.folder == FOLDER:
        (FOLDER.parents[2] / "docs/corpus.md").write_text(table(provenance), "utf-8")


if __name__ == "__main__":
    main()
