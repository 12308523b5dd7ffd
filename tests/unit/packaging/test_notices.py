"""Every library in the bundle comes with its licence, and the bill of materials is the same for the same libraries."""

import importlib.metadata
import json
import sys
import sysconfig

import pytest

from bundle import notices
from bundle.errors import BuildError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs an empty distribution with these metadata lines and files."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def install(name, *lines, module=None, **files):
        folder = tmp_path / "site" / f"{name}-2.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 2", *lines, ""])
        )
        for path, text in files.items():
            (folder / path.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.replace("__", "/")).write_text(text)
        names = ["METADATA", *(path.replace("__", "/") for path in files)]
        modules = [module] if module else []
        (folder / "RECORD").write_text(
            "".join(f"{one},,\n" for one in [*(f"{folder.name}/{n}" for n in names), *modules])
        )
        return importlib.metadata.distribution(name)

    return install


def test_licence_texts_are_copied_wherever_the_distribution_keeps_them(installed, tmp_path):
    one = installed("one", LICENSE="text", licenses__third__MIT="other", entry_points="no licence")
    notices.copy_texts(one, tmp_path / "licenses")
    there = tmp_path / "licenses" / "one-2"
    names = sorted(path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file())
    assert names == ["LICENSE", "third/MIT"]


def test_a_distribution_without_a_text_gets_a_file_with_what_it_declares(installed, tmp_path):
    notices.copy_texts(installed("one", "License-Expression: MIT"), tmp_path / "licenses")
    assert (tmp_path / "licenses" / "one-2" / "LICENSE.txt").read_text().endswith("\nMIT\n")


@pytest.mark.parametrize(
    "lines, licence",
    [
        (["License-Expression: Apache-2.0", "License: old"], "Apache-2.0"),
        (["License: BSD-3-Clause"], "BSD-3-Clause"),
        (["Classifier: License :: OSI Approved :: MIT License"], "MIT License"),
    ],
)
def test_the_declared_licence_is_found_in_each_of_its_places(installed, lines, licence):
    assert notices.licence_of(installed("one", *lines)) == licence


def test_a_distribution_without_any_licence_ends_the_build(installed, tmp_path):
    with pytest.raises(BuildError, match="one declares no licence"):
        notices.copy_texts(installed("one", module="one.py"), tmp_path / "licenses")


def test_a_distribution_that_only_names_others_needs_no_licence(installed):
    assert notices.licence_of(installed("toolkit")) == notices.LIST_OF_OTHERS


def test_a_distribution_that_does_not_tell_its_files_needs_a_licence(installed, tmp_path):
    one = installed("one")
    (tmp_path / "site" / "one-2.dist-info" / "RECORD").unlink()
    with pytest.raises(BuildError, match="one declares no licence"):
        notices.licence_of(one)


def test_the_bill_names_every_library_and_is_the_same_each_time(installed):
    installed("one", "License-Expression: MIT")
    installed("Two+3", "License-Expression: MIT")
    texts = [notices.bill_of_materials(["one", "Two+3"], version="9", epoch=0, with_tinycc=False) for _ in range(2)]
    assert texts[0] == texts[1]
    bill = json.loads(texts[0])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert bill["serialNumber"].startswith("urn:uuid:")
    assert {one["name"] for one in bill["components"]} == {"one", "Two+3", "python"}
    assert {one["purl"] for one in bill["components"]} >= {"pkg:pypi/one@2"}
    assert bill["metadata"]["timestamp"] == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "place",
    ["doc/python{}.{}/copyright", "doc/libpython{}.{}-stdlib/copyright", "licenses/python3-libs/LICENSE"],
    ids=["debian", "debian-small", "fedora"],
)
def test_pythons_licence_is_found_where_the_system_keeps_it(monkeypatch, tmp_path, place):
    text = tmp_path / place.format(*sys.version_info)
    text.parent.mkdir(parents=True)
    text.write_text("PSF")
    monkeypatch.setattr(notices, "_DOCUMENTS", tmp_path)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert notices.python_licence() == text
    text.unlink()
    with pytest.raises(BuildError, match="no licence text of Python"):
        notices.python_licence()
