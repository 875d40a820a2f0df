"""Names of models: folders, files, hub ids in the local cache and known names; advice when there is nothing."""

from pathlib import Path

import pytest

from adaserve.errors import ModelNotFound
from adaserve.models.registry import KNOWN, Format, cache_folder, resolve, resolve_draft
from adaserve.models.safetensors import SafetensorsFiles


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    source = resolve(str(tmp_path))
    assert (source.format, source.path, source.draft) == (Format.FOLDER, tmp_path, None)


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert resolve(str(path)).format is Format.GGUF
    other = tmp_path / "model.safetensors"
    other.touch()
    with pytest.raises(ModelNotFound, match=r"must be a \.gguf file"):
        resolve(str(other))
    assert resolve_draft(str(other)).format is Format.LAYERS
    assert resolve_draft(str(path)).format is Format.GGUF


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADASERVE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ADASERVE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "adaserve"


def test_demo(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="adaserve pull demo"):
        resolve("demo", cache=tmp_path)
    (tmp_path / KNOWN["demo"].file).touch()
    source = resolve("demo", cache=tmp_path)
    assert (source.format, source.path) == (Format.GGUF, tmp_path / KNOWN["demo"].file)
    assert source.draft == resolve_draft("demo").path


def test_the_demo_draft_ships_with_the_package() -> None:
    draft = resolve_draft("demo")
    assert draft.format is Format.LAYERS
    names = set(SafetensorsFiles([draft.path]))
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0", "1", "2", "3"}


def test_hub_id_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve("some/model").path == snapshot
    with pytest.raises(ModelNotFound, match="hf download some/other"):
        resolve("some/other")


@pytest.mark.parametrize("name", ["", "nonsense", "a/b/c", "../..", "some/..", "no\nsuch", "x" * 300, "~no-such-user/x", "\0"])
def test_anything_else_is_not_found_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
