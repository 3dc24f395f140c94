"""Oracle: what is loaded is what was saved, and nothing else is ever loaded (SAFETY 1, 2, 3, 6)."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from thisness import concept as module
from thisness.concept import Concept, check_manifest, register_handler
from thisness.errors import ArtefactError, ConfigurationError
from thisness.files import directory, save_tensors, verify_directory
from thisness.prompt import SlotWord
from thisness.subject import Subject

BASE = SimpleNamespace(name="tiny", family="sd", signature="a" * 64)
SUBJECT = Subject("rufus", "dog", (Image.new("RGB", (20, 20), "red"),))


def learned(**changes):
    tensors = {
        "embeddings.safetensors": {"<rufus>": torch.arange(8.0), "<rufus_1>": torch.ones(8)},
        "lora.safetensors": {"unet.a": torch.ones(2, 3, dtype=torch.float16)},
    }
    options = {
        "word": "<rufus> <rufus_1> dog",
        "tensors": tensors,
        "tokens": ["<rufus>", "<rufus_1>"],
        "settings": {"steps": 5, "betas": (0.9, 0.999)},
    }
    return Concept.create("test-method", SUBJECT, BASE, **{**options, **changes})


def rewritten(folder, change):
    """The same folder with another manifest and a marker that fits it: what a stranger could hand over."""
    manifest = json.loads((folder / "concept.json").read_text())
    change(manifest)
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    with directory(folder, overwrite=True) as building:
        (building / "concept.json").write_text(json.dumps(manifest))
        for name, data in files.items():
            (building / name).write_bytes(data)


def test_round_trip(tmp_path):
    concept = learned()
    assert concept.save(tmp_path / "rufus") == tmp_path / "rufus"
    loaded = Concept.load(tmp_path / "rufus", BASE)
    assert loaded.manifest == concept.manifest and loaded.hash == concept.hash
    for file, group in concept.tensors.items():
        assert loaded.tensors[file].keys() == group.keys()
        for name, tensor in group.items():
            assert torch.equal(loaded.tensors[file][name], tensor) and loaded.tensors[file][name].dtype == tensor.dtype
    assert loaded.word == SlotWord("<rufus> <rufus_1> dog", "dog") and loaded.tokens == ("<rufus>", "<rufus_1>")
    assert (loaded.name, loaded.noun, loaded.method) == ("rufus", "dog", "test-method")
    assert loaded.settings == {"steps": 5, "betas": [0.9, 0.999]}
    assert loaded.manifest["subject"] == {"hash": SUBJECT.hash, "pictures": 1}
    loaded.save(tmp_path / "rufus")  # over the files that its tensors came from
    assert Concept.load(tmp_path / "rufus").hash == concept.hash


def test_words_that_keep_something_are_read_only_as_plain_words_with_a_token(tmp_path):
    """They go into prompts: no braces, nothing that the concept does not bring."""
    keeps = {"pose": ["with <rufus_1> pose"]}
    concept = learned(keeps=keeps)
    concept.save(tmp_path / "rufus")
    assert Concept.load(tmp_path / "rufus").keeps == {"pose": ("with <rufus_1> pose",)} and learned().keeps == {}
    for bad in (
        {"pose": ["{subject} <rufus_1>"]},
        {"pose": ["with pose"]},
        {"pose": "<rufus_1>"},
        {"": ["<rufus_1>"]},
        [],
    ):
        with pytest.raises(ArtefactError, match="keeps must have, by attribute"):
            check_manifest({**concept.manifest, "keeps": bad}, "x")


def test_extra_files_belong_to_the_artefact(tmp_path):
    learned().save(tmp_path / "rufus", extra=lambda folder: (folder / "log.txt").write_text("5 steps") and None)
    assert "log.txt" in json.loads((tmp_path / "rufus" / "COMPLETE.json").read_text())["files"]
    verify_directory(tmp_path / "rufus")
    learned().save(tmp_path / "rufus")
    assert not (tmp_path / "rufus" / "log.txt").exists()


def test_hash_is_of_what_decides_the_pictures():
    concept = learned()
    one_more = {"lora.safetensors": {"unet.a": torch.full((2, 3), 2.0)}}
    assert learned().hash == concept.hash
    for changed in (learned(word="<rufus> dog"), learned(tensors=one_more), learned(settings={"steps": 6})):
        assert changed.hash != concept.hash


def test_another_base_is_refused(tmp_path):
    learned().save(tmp_path / "rufus")
    finetune = SimpleNamespace(name="finetune", family="sd", signature="b" * 64)
    with pytest.raises(ArtefactError, match="on 'tiny' with the signature a{12,64}, and 'finetune' has b{12,64}"):
        Concept.load(tmp_path / "rufus", finetune)
    assert Concept.load(tmp_path / "rufus", finetune, other_weights=True).name == "rufus"
    with pytest.raises(ArtefactError, match="'big' is of the family sdxl"):
        Concept.load(
            tmp_path / "rufus", SimpleNamespace(name="big", family="sdxl", signature="a" * 64), other_weights=True
        )


def test_incomplete_folders_are_refused(tmp_path):
    learned().save(tmp_path / "rufus")
    shutil.copytree(tmp_path / "rufus", tmp_path / "half")
    (tmp_path / "half" / "COMPLETE.json").unlink()
    with pytest.raises(ArtefactError, match="has no COMPLETE.json, so writing it was interrupted"):
        Concept.load(tmp_path / "half")
    (tmp_path / "rufus" / "lora.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError, match="damaged .lora.safetensors is not as it was written"):
        Concept.load(tmp_path / "rufus")
    (tmp_path / "photos").mkdir()
    with pytest.raises(ArtefactError, match="is not a concept .no concept.json in it.: learn one"):
        Concept.load(tmp_path / "photos")
    with pytest.raises(ArtefactError, match="is not there"):
        Concept.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda m: m["files"]["lora.safetensors"]["unet.a"].update(shape=[3, 2]),
            r"unet.a \(2, 3\), expected \(3, 2\)",
        ),
        (lambda m: m["files"]["lora.safetensors"]["unet.a"].update(dtype="float32"), "float16.*manifest says.*float32"),
        (lambda m: m["files"]["lora.safetensors"].update(b={"shape": [1], "dtype": "float32"}), "missing b"),
        (lambda m: m["files"]["embeddings.safetensors"].pop("<rufus>"), "unexpected <rufus>"),
        (lambda m: m["files"].update({"none.safetensors": {"a": {"shape": [1], "dtype": "float32"}}}), "is not there"),
        (lambda m: m["files"].update({"../../etc/x.safetensors": {}}), "is not NAME.safetensors"),
        (lambda m: m["files"].update({"model.bin": {}}), "'model.bin' is not NAME.safetensors"),
        (lambda m: m.update(files={}), "lists no tensors"),
        (lambda m: m.update(name="../rufus"), "name '../rufus' must be"),
        (lambda m: m.update(word="{subject}"), "braces"),
        (lambda m: m.update(tokens=["<a>", "<a>"]), "each once"),
        (lambda m: m.update(tokens=["dog"]), "token 'dog' is not <name>"),
        (lambda m: m.update(base={"name": "tiny"}), "base.family must be text; base.signature must be text"),
        (lambda m: (m.pop("word"), m.update(wrod="x")), r"word is missing; unknown key 'wrod' \(did you mean 'word'"),
        (lambda m: m.update(settings=[]), "settings must be dict"),
        (lambda m: m.update(version=2), "is of version 2, this program reads 1: update it"),
        (lambda m: m.update(format="lora"), "does not describe a concept"),
        (lambda m: m["files"]["lora.safetensors"]["unet.a"].update(shape=[-1]), "must have a shape and a dtype"),
    ],
)
def test_manifests_that_lie(tmp_path, change, match):
    learned().save(tmp_path / "rufus")
    rewritten(tmp_path / "rufus", change)
    with pytest.raises(ArtefactError, match=match) as caught:
        Concept.load(tmp_path / "rufus")
    assert "\n" not in str(caught.value)


def test_tensors_are_checked_when_a_concept_is_made():
    with pytest.raises(ArtefactError, match="lists no tensors"):
        learned(tensors={})
    concept = learned()
    with pytest.raises(ArtefactError, match="lora.safetensors is missing"):
        Concept(concept.manifest, {"embeddings.safetensors": concept.tensors["embeddings.safetensors"]})


def test_values_that_are_not_finite_are_not_loaded(tmp_path):
    learned().save(tmp_path / "rufus")
    with directory(tmp_path / "bad") as building:
        for name in ("concept.json", "embeddings.safetensors"):
            shutil.copy(tmp_path / "rufus" / name, building)
        save_tensors(building / "lora.safetensors", {"unet.a": torch.full((2, 3), float("inf"), dtype=torch.float16)})
    with pytest.raises(ArtefactError, match="NaN or infinity in unet.a"):
        Concept.load(tmp_path / "bad")


def test_somebodys_folder_is_not_replaced(tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    with pytest.raises(ArtefactError, match="was not written by thisness"):
        learned().save(tmp_path)
    assert (tmp_path / "photo.jpg").read_text() == "precious"


def test_methods_attach_and_export_their_concepts(tmp_path, monkeypatch):
    calls = []

    class Handler:
        @contextlib.contextmanager
        def attach(self, concept, base):
            calls.append(("on", concept.name, base.name))
            yield "attached"
            calls.append("off")

        def export(self, concept, folder, to, base=None):
            return [folder / f"{concept.name}.{to}"]

    monkeypatch.setattr(module, "_HANDLERS", {})
    register_handler("test-method", Handler())
    with learned().attach(BASE) as result:
        assert result == "attached" and calls == [("on", "rufus", "tiny")]
    assert calls[-1] == "off"
    assert learned().export(tmp_path, "diffusers") == [tmp_path / "rufus.diffusers"]


def test_concepts_of_unknown_methods_say_so(monkeypatch):
    monkeypatch.setattr(module, "_HANDLERS", {"test-methods": None})
    monkeypatch.setattr(module.importlib, "import_module", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"does not have \(did you mean 'test-methods'\?\)"):
        learned().attach(BASE)


@pytest.mark.parametrize(
    "data", [None, [], "x", {}, {"format": "thisness-concept"}, {"format": "thisness-concept", "version": "1"}]
)
def test_any_json_is_refused_in_one_line(data):
    with pytest.raises(ArtefactError) as caught:
        check_manifest(data, "concept.json")
    assert "\n" not in str(caught.value)
