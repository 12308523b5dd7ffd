"""Libraries of the building machine are in the bill of materials, those of wheels (links at the top) are not twice."""

from bundle import system_libraries


def test_only_files_at_the_top_that_are_no_links_count(tmp_path):
    (tmp_path / "numpy.libs").mkdir()
    (tmp_path / "numpy.libs" / "libblas.so").write_bytes(b"blas")
    (tmp_path / "libblas.so").symlink_to("numpy.libs/libblas.so")
    (tmp_path / "libz.so.1").write_bytes(b"z")
    (tmp_path / "base_library.zip").write_bytes(b"")
    (tmp_path / "VCRUNTIME140.dll").write_bytes(b"")
    names = [path.name for path in system_libraries.system_libraries(tmp_path)]
    assert names == ["VCRUNTIME140.dll", "libz.so.1"]


def test_a_component_has_the_hash_and_the_package_that_it_came_from(tmp_path):
    (tmp_path / "libz.so.1").write_bytes(b"z")
    (entry,) = system_libraries.components([tmp_path / "libz.so.1"], {"libz.so.1": "zlib1g"})
    assert entry["hashes"][0]["content"].startswith("594e519a")
    assert entry["properties"][0]["value"] == "zlib1g"
    (entry,) = system_libraries.components([tmp_path / "libz.so.1"], {})
    assert entry["properties"][0]["value"] == "unknown"


def test_without_dpkg_no_licence_is_invented(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert system_libraries.copy_licences([tmp_path / "libz.so.1"], tmp_path / "licenses") == {}
    assert not (tmp_path / "licenses").exists()


def test_a_package_owns_a_library_only_if_its_file_is_the_same(tmp_path):
    theirs, ours = tmp_path / "lib" / "libz.so.1", tmp_path / "libz.so.1"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    ours.write_bytes(b"ours")
    ((package, file),) = system_libraries.owned_files(f"zlib1g:amd64: {theirs}\n")
    assert (package, file) == ("zlib1g", theirs)
    assert not system_libraries.same(file, ours)
    ours.write_bytes(b"theirs")
    assert system_libraries.same(file, ours)
