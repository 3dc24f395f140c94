"""Encoders. Oracle: transformers' own processors and models, used as their documentation says."""

import json
import shutil

import evaluation.rulers as rulers
import numpy as np
import pytest
import torch
from evaluation.rulers import noise

from thisness.errors import ArtefactError, ConfigurationError, ImageError, PromptError, UserError
from thisness.evaluation.encoders import Preprocessing, fingerprint, known_encoders, open_encoder

SIZES = ((40, 40), (53, 37), (31, 64), (32, 32), (200, 77))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clip": rulers.save_clip(root / "tiny-clip"),
        "vit": rulers.save_vit(root / "tiny-vit"),
        "dinov2": rulers.save_dino2(root / "tiny-dino2"),
        "registers": rulers.save_dino2(root / "tiny-registers", registers=True),
    }


def pictures():
    return [noise(number, size) for number, size in enumerate(SIZES)]


def processor(name, folder):
    import transformers

    return getattr(transformers, name).from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("clip", "CLIPImageProcessorPil"), ("vit", "ViTImageProcessorPil"), ("dinov2", "BitImageProcessorPil")],
)
def test_preprocessing_is_that_of_transformers(folders, kind, name):
    ours = open_encoder(folders[kind]).preprocessing
    theirs = processor(name, folders[kind])
    for picture in pictures():
        expected = theirs(images=picture, return_tensors="pt").pixel_values
        assert torch.allclose(ours([picture]), expected, atol=1e-5), picture.size


def test_explicit_preprocessing_is_that_of_the_dino_authors(folders):
    """Shorter side 256 bicubic, crop 224, ImageNet's mean and std; by transformers' processor told so."""
    from transformers import BitImageProcessorPil

    theirs = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )
    ours = Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in SAID.items()})
    picture = noise(3, (301, 417))
    expected = theirs(images=picture, return_tensors="pt").pixel_values
    assert torch.allclose(ours([picture]), expected, atol=1e-5)


SAID = known_encoders()["dino-s16"]["preprocessing"]


def test_clip_pictures_and_sentences_are_those_of_transformers(folders):
    from transformers import CLIPModel, CLIPTokenizer

    folder = folders["clip"]
    model, tokens = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    theirs = processor("CLIPImageProcessorPil", folder)
    encoder = open_encoder(folder)
    sentences = ["a photo of a dog", "a red hat on the beach", "snow"]
    with torch.no_grad():
        pixels = torch.cat([theirs(images=each, return_tensors="pt").pixel_values for each in pictures()])
        expected = model.get_image_features(pixel_values=pixels).pooler_output
        words = tokens(sentences, padding=True, return_tensors="pt")
        said = model.get_text_features(**words).pooler_output
    assert torch.allclose(encoder.images(pictures()), expected, atol=1e-4)
    assert torch.allclose(encoder.text(sentences), said, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-2, "different pictures must differ for this to mean anything"


@pytest.mark.parametrize("kind", ["vit", "dinov2", "registers"])
def test_tokens_and_their_poolings_are_those_of_the_model(folders, kind):
    from transformers import AutoModel

    folder = folders[kind]
    more = {"add_pooling_layer": False} if kind == "vit" else {}
    model = AutoModel.from_pretrained(folder, **more).eval()
    prefix = 5 if kind == "registers" else 1
    name = "ViTImageProcessorPil" if kind == "vit" else "BitImageProcessorPil"
    with torch.no_grad():
        pixels = processor(name, folder)(images=noise(1), return_tensors="pt").pixel_values
        tokens = model(pixel_values=pixels).last_hidden_state
    expected = {"cls": tokens[:, 0], "mean": tokens.mean(1), "patches": tokens[:, prefix:].mean(1)}
    for pooling, vector in expected.items():
        assert torch.allclose(open_encoder(folder, pooling=pooling).images([noise(1)]), vector, atol=1e-4), pooling
    patches, grid = open_encoder(folder).patches([noise(1)])
    assert grid == (4, 4) and torch.allclose(patches, tokens[:, prefix:], atol=1e-4)


def test_another_size_interpolates_the_positions(folders):
    encoder = open_encoder(folders["vit"], preprocessing={"resize": 48, "crop": [48, 48]})
    patches, grid = encoder.patches([noise(1)])
    assert grid == (6, 6) and patches.shape == (1, 36, 16)


def test_further_kinds_agree_with_transformers(tmp_path):
    """CLIP's image side alone, and a convolutional network."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ResNetConfig, ResNetModel

    torch.manual_seed(3)
    small = {**rulers._VISION}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**small, projection_dim=12)).eval()
    tower.save_pretrained(tmp_path / "tower")
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()
    resnet.save_pretrained(tmp_path / "resnet")
    size = {"height": 32, "width": 32}
    for folder in ("tower", "resnet"):
        rulers._preprocessor(tmp_path / folder, "ViTImageProcessor", size=size)
    with torch.no_grad():
        for folder, model in (("tower", tower), ("resnet", resnet)):
            encoder = open_encoder(tmp_path / folder)
            said = model(pixel_values=encoder.preprocessing([noise(1)]))
            expected = said.image_embeds if folder == "tower" else said.pooler_output.flatten(1)
            assert torch.allclose(encoder.images([noise(1)]), expected, atol=1e-4), folder
            assert not encoder.has_text
    patches, grid = open_encoder(tmp_path / "resnet").patches([noise(1)])
    assert patches.shape[1] == grid[0] * grid[1]


def test_siglip_pictures_and_sentences_are_those_of_transformers(tmp_path):
    from transformers import SiglipConfig, SiglipModel

    import tiny

    tokens = tiny.tokenizer()
    text = {k: v for k, v in rulers._VISION.items() if k not in ("image_size", "patch_size")}
    text |= {"vocab_size": len(tokens), "max_position_embeddings": tokens.model_max_length}
    torch.manual_seed(4)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=rulers._VISION)).eval()
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    rulers._preprocessor(tmp_path, "SiglipImageProcessor", size={"height": 32, "width": 32})
    encoder = open_encoder(tmp_path)
    length = tokens.model_max_length
    words = tokens(["a dog", "red hat"], padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        pixels = processor("SiglipImageProcessorPil", tmp_path)(images=noise(1), return_tensors="pt").pixel_values
        assert torch.allclose(encoder.images([noise(1)]), model.get_image_features(pixels).pooler_output, atol=1e-4)
        assert torch.allclose(
            encoder.text(["a dog", "red hat"]), model.get_text_features(words).pooler_output, atol=1e-4
        )


def test_a_batch_gives_what_one_by_one_gives(folders):
    encoder = open_encoder(folders["clip"], batch_size=3)
    alone = torch.cat([encoder.images([picture]) for picture in pictures()])
    assert torch.allclose(encoder.images(pictures()), alone, atol=1e-5)
    both, patches = encoder.images_and_patches(pictures())
    assert torch.equal(both, encoder.images(pictures())) and torch.equal(patches, encoder.patches(pictures())[0])


def test_eight_bit_numbers_do_not_wrap_around():
    """White above a mean of 0.5 is positive: a harness that subtracts in 8 bits scores the negative."""
    from PIL import Image

    prepared = Preprocessing(8, (8, 8), (0.5,) * 3, (0.5,) * 3)
    assert prepared([Image.new("RGB", (8, 8), "white")]).min() == 1
    assert prepared([Image.new("RGB", (8, 8), "black")]).max() == -1


def test_coverage_follows_the_picture(folders):
    """A mask of the left half covers the left half of the patches; a wide mask is cropped like its picture."""
    encoder = open_encoder(folders["clip"])
    covered = encoder.coverage([rulers.left_half()], (4, 4)).reshape(4, 4)
    assert np.allclose(covered, [[1, 1, 0, 0]] * 4, atol=0.13)
    wide = np.zeros((32, 96), np.float32)
    wide[:, 32:64] = 1  # exactly the crop
    assert encoder.coverage([wide], (4, 4)).min() > 0.9


def test_identity_differs_with_every_choice(folders, tmp_path):
    same = [open_encoder(folders["vit"]) for _ in range(2)]
    assert fingerprint(same[0].identity) == fingerprint(same[1].identity)
    other_weights = rulers.save_vit(tmp_path / "tiny-vit", seed=9)
    other_words = tmp_path / "tiny-clip"
    shutil.copytree(folders["clip"], other_words)
    config = json.loads((other_words / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (other_words / "config.json").write_text(json.dumps(config))
    square = {"resize": 32, "crop": [32, 32]}
    several = [
        open_encoder(folders["vit"]),
        open_encoder(folders["vit"], pooling="mean"),
        open_encoder(folders["vit"], pooling="patches"),
        open_encoder(folders["vit"], preprocessing=square),
        open_encoder(folders["vit"], preprocessing={**square, "interpolation": "bilinear"}),
        open_encoder(folders["vit"], preprocessing={**square, "mean": [0.5, 0.5, 0.5]}),
        open_encoder(folders["vit"], preprocessing={"resize": 36, "crop": [32, 32]}),
        open_encoder(other_weights),
        open_encoder(folders["clip"]),
        open_encoder(other_words),
    ]
    prints = [fingerprint(encoder.identity) for encoder in several]
    assert len(set(prints)) == len(prints)
    assert str(folders["vit"].parent) not in json.dumps(several[0].identity), "no path of a machine"


def test_models_are_in_memory_once(folders):
    first, second = open_encoder(folders["vit"]), open_encoder(folders["vit"], pooling="mean")
    assert first.model is second.model


def test_too_long_text_is_refused_with_what_would_be_cut(folders):
    encoder = open_encoder(folders["clip"])
    with pytest.raises(PromptError, match=r"takes 24: 'dog hat' would be cut"):
        encoder.text([" ".join(["dog"] * 22) + " dog hat"])
    with pytest.raises(PromptError):
        encoder.check_text(["dog " * 40])


def test_text_of_an_encoder_without_a_text_side(folders):
    with pytest.raises(UserError, match="no text side"):
        open_encoder(folders["vit"]).text(["a dog"])


def refused(*words, **more):
    with pytest.raises(UserError) as caught:
        open_encoder(*words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_opened_is_one_line(folders, tmp_path):
    assert "did you mean 'playroom-clip'" in refused("playrom-clip")
    assert "did you mean 'dino-s16'" in refused("dino-s15")
    assert "HF_HUB_OFFLINE" in refused("dino-s16") and "local folder" in refused("somebody/something")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty")
    assert "it has cls, mean, patches" in refused(folders["vit"], pooling="projected")
    assert "revision" in refused(folders["vit"], revision="main")
    assert "'bert'" in refused(folders["vit"], kind="bert")
    assert "batch_size" in refused(folders["vit"], batch_size=0)
    assert "cannot be put" in refused(folders["vit"], device="cuda:77")
    assert "is larger than" in refused(folders["vit"], preprocessing={"resize": 16, "crop": [32, 32]})
    assert "nonsense" in refused(folders["vit"], preprocessing={"nonsense": 1})


def test_damaged_folders_are_refused(folders, tmp_path):
    def copy(kind, name):
        shutil.copytree(folders[kind], tmp_path / name)
        return tmp_path / name

    pickled = copy("vit", "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "no .safetensors" in refused(pickled)
    silent = copy("vit", "silent")
    (silent / "preprocessor_config.json").unlink()
    assert "preprocessing=" in refused(silent)
    strange = copy("vit", "strange")
    (strange / "preprocessor_config.json").write_text('{"size": {"longest_edge": 5}}')
    assert "cannot be read" in refused(strange)
    wordless = copy("clip", "wordless")
    for file in wordless.glob("token*"):
        file.unlink()
    assert "tokenizer" in refused(wordless)
    broken = copy("vit", "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:900])
    assert "transformers cannot load it" in refused(broken)
    hollow = copy("vit", "hollow")
    from safetensors.torch import load_file, save_file

    tensors = load_file(hollow / "model.safetensors")
    gone = next(name for name in tensors if "layernorm.weight" in name)
    save_file({k: v for k, v in tensors.items() if k != gone}, hollow / "model.safetensors", metadata={"format": "pt"})
    assert "weights missing" in refused(hollow)


def test_pictures_of_several_sizes_need_a_size(folders):
    encoder = open_encoder(folders["dinov2"], preprocessing=Preprocessing(None, None))
    with pytest.raises(ImageError, match="2 sizes"):
        encoder.images([noise(0, (32, 32)), noise(1, (40, 40))])
    with pytest.raises(ImageError, match="smaller than the crop"):
        open_encoder(folders["vit"], preprocessing=Preprocessing(None, (32, 32))).images([noise(0, (16, 16))])


def test_registered_encoders_can_all_be_named():
    for name, facts in known_encoders().items():
        assert ("hub" in facts) != ("folder" in facts), name
        if said := facts.get("preprocessing"):
            Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.items()})


def test_unreadable_preprocessing():
    with pytest.raises(ArtefactError, match="somewhere"):
        Preprocessing.from_config({"size": 3}, whole_number_is_square=True, where="somewhere")
    with pytest.raises(ConfigurationError, match="interpolation"):
        Preprocessing(8, None, interpolation="cubic")


def test_the_playrooms_clip_is_its_two_halves_put_together(tmp_path):
    """Its vision tower and projections in one folder, the text tower in that of `playroom-sd`. Oracle: the halves."""
    import torch.nn.functional as F
    from transformers import CLIPTextModel, CLIPTokenizer

    from thisness.playroom.models import make_clip_vision, save_clip
    from thisness.playroom.recipes.common import WEIGHTS

    torch.manual_seed(5)
    vision, words = (
        make_clip_vision().eval(),
        torch.nn.ModuleDict({"projection": torch.nn.Linear(192, 192, bias=False)}),
    )
    words.register_parameter("logit_scale", torch.nn.Parameter(torch.tensor(2.0)))
    (tmp_path / "playroom-sd").symlink_to(WEIGHTS / "playroom-sd")
    save_clip(tmp_path / "clip", vision, words)
    encoder = open_encoder(tmp_path / "clip")
    assert encoder.identity["kind"] == "playroom-clip"
    with torch.no_grad():
        expected = vision(pixel_values=encoder.preprocessing([noise(1)])).image_embeds
        assert torch.allclose(encoder.images([noise(1)]), expected, atol=1e-4)
        tokens = CLIPTokenizer.from_pretrained(WEIGHTS / "playroom-sd" / "tokenizer")
        text = CLIPTextModel.from_pretrained(WEIGHTS / "playroom-sd" / "text_encoder").eval()
        sentences = ["a photo of a dog sleeping on the beach", "a red teapot"]
        for sentence, vector in zip(sentences, encoder.text(sentences), strict=True):
            said = words["projection"](text(**tokens(sentence, return_tensors="pt")).pooler_output)[0]
            assert F.cosine_similarity(said, vector, dim=0) > 0.9999
    with pytest.raises(PromptError, match="takes 48"):
        encoder.check_text(["a dog on the beach " * 12])
