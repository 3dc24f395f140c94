"""Masks found and made. Oracles: the files written by hand; the models' own answers, asked in the plain way."""

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness import cli
from thisness.errors import ConfigurationError, UserError
from thisness.images import load_image, load_mask
from thisness.masks import find_masks, load_masker, make_masks, mask_sheet
from thisness.subject import Subject

SIDE = 32


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> str:
    """A SAM of 32x32 pixels with random weights."""
    from transformers import SamConfig, SamImageProcessorPil, SamModel

    torch.manual_seed(1)
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 4,
            "output_channels": 16, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 4,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16, "image_size": SIDE, "patch_size": 4, "mask_input_channels": 4, "image_embedding_size": 8,
        },
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    SamImageProcessorPil(
        size={"longest_edge": SIDE},
        pad_size=size,
        mask_size={"longest_edge": 8},
        mask_pad_size={"height": 8, "width": 8},
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory) -> str:
    """A CLIPSeg with random weights that knows the words of the tiny tokenizer."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessorPil

    torch.manual_seed(0)
    tokens = tiny.tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={
            **sizes, "vocab_size": len(tokens), "max_position_embeddings": tokens.model_max_length,
            "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
        },
        vision_config={**sizes, "image_size": SIDE, "patch_size": 4},
        projection_dim=16, extract_layers=[0, 1, 2], reduce_dim=16, decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config)
    for parameter in model.parameters():  # random answers lie close to 0.5: spread them
        if parameter.ndim > 1:
            parameter.data *= 4
    folder = tmp_path_factory.mktemp("clipseg")
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    """a.png with a mask, b.png with transparency, c.jpg with neither."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    mask = np.zeros((24, 40), np.uint8)
    mask[6:18, 10:30] = 255
    Image.fromarray(mask).save(folder / "a_mask.png")
    Image.fromarray(np.dstack([pixels, mask])).save(folder / "b.png")
    Image.fromarray(pixels[::-1]).save(folder / "c.jpg")
    return folder


def test_what_is_there_and_from_where(photos):
    a, b, c = find_masks(photos)
    assert [r.source for r in (a, b, c)] == ["file", "transparency", ""]
    assert a.area == b.area == 25.0 and c.mask is None and c.area == 0  # 12 x 20 of 24 x 40 pixels
    assert (a.mask_file, b.mask_file) == (photos / "a_mask.png", None)


def test_sam_answers_to_the_middle(sam):
    """Oracle: the model asked by hand, its best answer brought to the picture's size by the processor."""
    from transformers import SamModel, SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 40, 3), np.uint8))
    (found,) = make_masks([image], "dog", sam)
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(sam))
    inputs = processor(
        image, input_points=[[[20.0, 12.0]]], input_boxes=[[[4.0, 2.4, 36.0, 21.6]]], return_tensors="pt"
    )
    with torch.no_grad():
        answer = SamModel.from_pretrained(sam)(**{k: v for k, v in inputs.items() if "sizes" not in k})
    masks = processor.image_processor.post_process_masks(
        answer.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert found.shape == (24, 40) and found.dtype == np.float32 and set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(found, masks[0][0, answer.iou_scores[0, 0].argmax()].numpy())


def test_clipseg_answers_to_the_noun(clipseg):
    """Oracle: the probabilities at another threshold contain those at a higher one; another noun, another mask."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (24, 40, 3), np.uint8))
    masker = load_masker(clipseg, "dog")
    inputs = masker.processor(text=["a photo of a dog"], images=[image], return_tensors="pt")
    with torch.no_grad():
        logits = masker.model(**inputs).logits.reshape(1, 1, SIDE, SIDE)
    levels = torch.nn.functional.interpolate(logits, (24, 40), mode="bilinear").sigmoid()[0, 0].numpy()
    for threshold in (0.3, float(np.median(levels)), 0.9):
        (found,) = make_masks([image], "dog", clipseg, threshold=threshold)
        np.testing.assert_array_equal(found, levels >= threshold)
    middle = float(np.median(levels))
    dog, cat = (make_masks([image], noun, clipseg, threshold=middle)[0] for noun in ("dog", "cat"))
    assert 0.2 < dog.mean() < 0.8 and (dog != cat).any()


def test_missing_masks_are_made_beside_the_pictures_and_read_as_any_other(photos, sam, capsys):
    before = (photos / "a_mask.png").read_bytes()
    assert cli.run(["masks", str(photos), "--noun", "dog", "--model", sam]) == 0
    said = capsys.readouterr().out
    assert "c_mask.png (made)" in said and "a_mask.png" in said and "transparency" in said
    assert (photos / "a_mask.png").read_bytes() == before and not (photos / "b_mask.png").exists()
    (made,) = make_masks([load_image(photos / "c.jpg")], "dog", sam)
    np.testing.assert_array_equal(load_mask(photos / "c_mask.png", (40, 24)), made)
    subject = Subject.from_folder(photos, noun="dog")
    assert len(subject.images) == 3 and all(mask is not None for mask in subject.masks)
    assert load_image(photos.with_name("photos.masks.png")).width > 3 * 192
    stamp = (photos / "c_mask.png").stat().st_mtime_ns
    assert cli.run(["masks", str(photos), "--model", sam]) == 0  # nothing is missing: nothing is done
    assert (photos / "c_mask.png").stat().st_mtime_ns == stamp


def test_files_are_overwritten_only_when_asked(photos, sam, tmp_path, refused):
    other = tmp_path / "other"
    other.mkdir()
    (other / "c_mask.png").write_bytes(b"mine")
    words = ["masks", photos, "--model", sam, "--out", other]
    assert "c_mask.png is there: --overwrite replaces it" in refused(*words)
    assert (other / "c_mask.png").read_bytes() == b"mine"
    assert cli.run([*map(str, words), "--overwrite"]) == 0
    assert load_mask(other / "c_mask.png", (40, 24)).any() and (other / "a_mask.png").is_file()
    (other / "c_mask.webp").write_bytes(b"mine")
    assert "would be a second mask" in refused(*words, "--overwrite")


def answering(monkeypatch, value: float) -> None:
    """Every model finds nothing (0) or everything (1)."""
    monkeypatch.setattr(
        "thisness.masks.load_masker",
        lambda *given: lambda images, noun: [np.full(image.size[::-1], value, np.float32) for image in images],
    )


def test_nothing_found_is_said_and_not_written(photos, refused, monkeypatch):
    answering(monkeypatch, 0)
    said = refused("masks", photos, "--noun", "dog", "--model", "a/b")
    assert "the model found nothing in c.jpg" in said and not (photos / "c_mask.png").exists()


def test_a_mask_of_nearly_everything_is_warned_of(photos, capsys, monkeypatch):
    answering(monkeypatch, 1)
    assert cli.run(["masks", str(photos), "--noun", "dog", "--model", "a/b"]) == 0
    assert "covers 100 % of the picture" in capsys.readouterr().out
    assert load_mask(photos / "c_mask.png", (40, 24)).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: None, "1 of 3 pictures have no mask (c.jpg): paint NAME_mask.png"),
        (lambda p: Image.new("L", (20, 24), 255).save(p / "c_mask.png"), "the mask is 20x24 but the picture is 40x24"),
        (lambda p: Image.new("L", (40, 24), 0).save(p / "c_mask.png"), "the mask is empty"),
        (lambda p: [f.unlink() for f in p.iterdir()], "no PNG, JPEG or WebP picture is in it"),
        (lambda p: (p / "c.jpg").write_bytes(b"no"), "c.jpg"),
    ],
)
def test_bad_input_is_one_line(photos, refused, change, says):
    change(photos)
    assert says in refused("masks", photos)


def test_models_that_cannot_be_used_are_one_line(photos, clipseg, refused, tmp_path):
    assert "say what it is (--noun dog)" in refused("masks", photos, "--model", clipseg)
    assert "no model 'sam-vit-base'" in refused("masks", photos, "--model", "sam-vit-base")
    assert "expected one of sam, clipseg" in refused("masks", photos, "--model", tiny.clip_folder())
    assert "cannot be loaded" in refused("masks", photos, "--model", tmp_path)
    assert "HF_HUB_OFFLINE is set" in refused("masks", photos, "--model", "facebook/sam-vit-base")
    assert "would count as one of the pictures" in refused("masks", photos, "--sheet", photos / "x.png")
    with pytest.raises(UserError, match="threshold 2 must lie"):
        load_masker(clipseg, "dog", threshold=2)
    with pytest.raises(UserError, match="by its name"):
        make_masks([Image.new("RGB", (32, 32))], "", load_masker(clipseg, "dog"))


def test_a_tokenizer_that_is_not_there_is_noticed(clipseg, tmp_path):
    """transformers makes an empty one of nothing."""
    import shutil

    shutil.copytree(clipseg, tmp_path / "x")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "x" / name).unlink(missing_ok=True)
    with pytest.raises(ConfigurationError, match="tokenizer"):
        load_masker(str(tmp_path / "x"), "dog")


def test_the_sheet_shows_what_is_inside(photos):
    """The subject keeps its colours; the rest does not."""
    from thisness.masks import _over

    (report, *_) = find_masks(photos)
    mask = Image.fromarray((report.mask * 255).astype(np.uint8))
    over, plain = (np.asarray(each) for each in (_over(report.image, mask), report.image))
    assert (over[8:16, 12:28] == plain[8:16, 12:28]).all()
    assert (over[:6] != plain[:6]).any(-1).all()
    assert mask_sheet(find_masks(photos)).height > 3 * 192
