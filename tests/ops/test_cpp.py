"""Compiling C++ kernels on the machine that runs them."""

import shutil

import pytest
import torch

from hyperconformer.ops import cpp

CODE = 'extern "C" int answer() { return %d; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing remembered of earlier attempts."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpp._attempt.cache_clear()
    yield tmp_path / "cache" / "hyperconformer"
    cpp._attempt.cache_clear()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answers.cpp"
    path.write_text(CODE % 42)
    return path


def test_a_library_is_compiled_once_for_each_source(cache, source, monkeypatch):
    assert cpp.load(source).answer() == 42
    (first,) = cache.iterdir()
    monkeypatch.setattr(cpp, "_compile", lambda *_: pytest.fail("compiled again"))
    assert cpp.load(source).answer() == 42
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    source.write_text(CODE % 7)
    assert cpp.load(source).answer() == 7
    assert len(list(cache.iterdir())) == 2
    assert first.exists()


def test_openmp_is_that_of_torch(source):
    """A second one would have threads of its own."""
    source.write_text(
        '#include <omp.h>\nextern "C" int answer() { return omp_get_max_threads(); }\n'
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert cpp.load(source).answer() == 3
    finally:
        torch.set_num_threads(threads)


def test_without_a_compiler(cache, source, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert cpp.load_if_possible(source) is None
    assert "no-such-compiler" in cpp.why_not(source)
    assert cpp.load_if_possible(source) is None
    (record,) = caplog.records  # Said once.
    assert "answers.cpp" in record.message and "no-such-compiler" in record.message


def test_what_does_not_compile_leaves_nothing_behind(cache, source):
    source.write_text("int broken(\n")
    with pytest.raises(OSError, match="(?s)answers.cpp.*failed:.*error"):
        cpp.load(source)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(source, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "file" in cpp.why_not(source)
