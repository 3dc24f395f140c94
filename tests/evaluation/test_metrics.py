"""Metrics. Oracle: cosines in numpy of what the models give for pictures made by hand; and what must not matter."""

import json
from functools import cache

import evaluation.rulers as rulers
import numpy as np
import pytest
import torch
from evaluation.rulers import item, left_half, noise
from PIL import Image

from thisness.errors import ConfigurationError, ImageError, PromptError, UserError
from thisness.evaluation.cache import FeatureCache
from thisness.evaluation.encoders import fingerprint, open_encoder
from thisness.evaluation.items import Picture
from thisness.evaluation.metrics import METRICS, PRESETS, make_metrics, register_metric


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = rulers.save_clip(tmp_path_factory.mktemp("encoders") / "tiny-clip")
    kept = open_encoder(folder)  # its model stays in memory for all tests
    yield folder
    del kept


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = rulers.save_vit(tmp_path_factory.mktemp("encoders") / "tiny-vit")
    kept = open_encoder(folder)  # its model stays in memory for all tests
    yield folder
    del kept


def only(text, **more):
    (metric,) = make_metrics(text, **more)
    return metric


def scored(text, *items, **more):
    return only(text, **more).score(list(items))


@cache
def plain_model(folder):
    from transformers import AutoImageProcessor, CLIPModel, ViTModel

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    if "clip" in folder.name:
        return processor, CLIPModel.from_pretrained(folder).eval()
    return processor, ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()


def by_hand(folder, *images):
    """Unit vectors in float64 of transformers' processor and model, used plainly."""
    processor, model = plain_model(folder)
    vectors = []
    with torch.no_grad():
        for image in images:
            pixels = processor(images=image, return_tensors="pt").pixel_values
            if "clip" in folder.name:
                said = model.get_image_features(pixel_values=pixels).pooler_output
            else:
                said = model(pixel_values=pixels).last_hidden_state[:, 0]
            vectors.append(said[0].double().numpy())
    return [vector / np.linalg.norm(vector) for vector in vectors]


def painted(image, mask, colour):
    """The image inside the mask, one colour outside, pixel by pixel."""
    pixels = np.array(image)
    pixels[mask < 0.5] = colour
    return Image.fromarray(pixels)


def test_clip_i_and_dino_i_are_cosines(clip, vit):
    for text, folder in ((f"clip-i:encoder={clip}", clip), (f"dino-i:encoder={vit}", vit)):
        made, *references = by_hand(folder, noise(0), noise(100), noise(101))
        cosines = [made @ reference for reference in references]
        assert abs(cosines[0] - cosines[1]) > 1e-3, "or mean and best would be the same"
        for how, expected in (("mean", np.mean(cosines)), ("best", max(cosines)), ("first", cosines[0])):
            assert scored(f"{text},references={how}", item()) == pytest.approx([expected], abs=1e-4)


def test_clip_t_is_a_cosine_with_each_part_of_the_sentence(clip):
    from transformers import CLIPModel, CLIPTokenizer

    tokens, model = CLIPTokenizer.from_pretrained(clip), CLIPModel.from_pretrained(clip).eval()
    (made,) = by_hand(clip, noise(0))
    for part, text in (("full", "a photo of a dog"), ("concept", "a dog"), ("context", "on the beach")):
        with torch.no_grad():
            words = model.get_text_features(**tokens(text, return_tensors="pt")).pooler_output[0].double().numpy()
        expected = made @ words / np.linalg.norm(words)
        assert scored(f"clip-t:encoder={clip},part={part}", item()) == pytest.approx([expected], abs=1e-4)
    assert scored(f"clip-t:encoder={clip},part=context", item(context="")) == [None]


def test_masked_variants_are_cosines_of_painted_pictures(vit):
    made = Picture(noise(0), left_half())
    grey = [painted(noise(seed), left_half(), 128) for seed in (0, 100, 101)]
    whole, x, a, b = by_hand(vit, noise(0), *grey)
    text = f"dino-i:encoder={vit}"
    assert scored(f"{text},mask=references", item(picture=made)) == pytest.approx(
        [(whole @ a + whole @ b) / 2], abs=1e-4
    )
    assert scored(f"{text},mask=both", item(picture=made)) == pytest.approx([(x @ a + x @ b) / 2], abs=1e-4)
    black = by_hand(vit, noise(0), *(painted(noise(seed), left_half(), 0) for seed in (100, 101)))
    expected = np.mean([black[0] @ black[1], black[0] @ black[2]])
    assert scored(f"{text},mask=references,fill=black", item(picture=made)) == pytest.approx([expected], abs=1e-4)


def outside_changed(picture):
    return Picture(painted(picture.image, picture.mask, (250, 3, 77)), picture.mask)


def test_masked_values_do_not_see_outside_the_masks(vit):
    before = item(picture=Picture(noise(0), left_half()))
    after = item(picture=outside_changed(before.picture), references=tuple(map(outside_changed, before.references)))
    masked = ("dino-i:mask=both", "patches:generated=mask,direction=both,fill=grey")
    for text in masked:
        text = f"{text},encoder={vit}"
        assert scored(text, before) == scored(text, after), text
    seeing = f"dino-i:encoder={vit}"
    assert abs(scored(seeing, before)[0] - scored(seeing, after)[0]) > 1e-3, "the change shows where nothing is masked"


def test_without_a_mask_there_is_no_masked_value(vit):
    bare = (Picture(noise(100)),)
    assert scored(f"dino-i:encoder={vit},mask=both", item()) == [None], "made pictures have none"
    assert scored(f"dino-i:encoder={vit},mask=references", item(references=bare)) == [None]
    assert scored(f"patches:encoder={vit}", item(references=bare)) == [None]
    assert scored(f"patches:encoder={vit},generated=mask", item()) == [None]
    some = (*bare, *item().references)
    assert scored(f"dino-i:encoder={vit},mask=references", item(references=some)) == scored(
        f"dino-i:encoder={vit},mask=references", item()
    ), "references without one are left out"
    empty = Picture(noise(0), np.zeros((40, 40), np.float32))
    assert scored(f"dino-i:encoder={vit},mask=both", item(picture=empty)) == [None]
    assert scored(f"dino-i:encoder={vit}", item(references=())) == [None]


def test_a_masker_gives_masks_to_made_pictures(vit):
    class LeftHalf:
        identity = {"masker": "left half"}

        def __call__(self, image, noun):
            assert noun == "dog"
            return left_half(image.size)

    text = f"dino-i:encoder={vit},mask=both"
    expected = scored(text, item(picture=Picture(noise(0), left_half())))
    assert scored(text, item(), masker=LeftHalf()) == expected != [None]
    assert only(text, masker=LeftHalf()).identity != only(text).identity
    assert only(f"dino-i:encoder={vit}", masker=LeftHalf()).identity == only(f"dino-i:encoder={vit}").identity


def test_a_mask_of_another_size_is_refused(vit):
    wrong = (Picture(noise(100), left_half((20, 40))),)
    with pytest.raises(ImageError, match="20x40 but the picture is 40x40"):
        scored(f"dino-i:encoder={vit},mask=references", item(references=wrong))


def test_the_same_picture_is_one(clip, vit):
    same = Picture(noise(100), left_half())
    itself = item(picture=same, references=(same,), baseline=same, source=same)
    for text in (
        f"clip-i:encoder={clip}",
        f"dino-i:encoder={vit}",
        f"dino-i:encoder={vit},mask=both",
        f"patches:encoder={vit}",
        f"patches:encoder={vit},generated=mask,direction=both",
        f"copy-background:encoder={vit}",
        f"edit-foreground:encoder={vit}",
        f"edit-background:encoder={vit}",
        "copy-pose:by=silhouette",
    ):
        assert scored(text, itself) == pytest.approx([1.0], abs=1e-5), text
    assert scored(f"drift:encoder={vit}", itself) == pytest.approx([0.0], abs=1e-6), "no drift"


def test_patch_matching_is_the_mean_of_the_best_cosines(vit):
    picture = Picture(noise(0), 1 - left_half())
    tokens, _ = open_encoder(vit).patches([noise(0), noise(100)])
    made, reference = (t.double().numpy() / np.linalg.norm(t.double().numpy(), axis=1, keepdims=True) for t in tokens)
    left = np.array([[True, True, False, False]] * 4).ravel()
    one = item(picture=picture, references=item().references[:1])
    forward = (reference[left] @ made.T).max(1).mean()
    assert scored(f"patches:encoder={vit}", one) == pytest.approx([forward], abs=1e-4)
    there = (reference[left] @ made[~left].T).max(1).mean()
    back = (made[~left] @ reference[left].T).max(1).mean()
    assert scored(f"patches:encoder={vit},generated=mask", one) == pytest.approx([there], abs=1e-4)
    both = scored(f"patches:encoder={vit},generated=mask,direction=both", one)
    assert both == pytest.approx([(there + back) / 2], abs=1e-4)
    behind = (reference[~left] @ made.T).max(1).mean()
    assert scored(f"copy-background:encoder={vit}", one) == pytest.approx([behind], abs=1e-4)


def test_patch_matching_finds_the_subject_wherever_it_went(monkeypatch, vit):
    """With patches that see only themselves (mean colours): shifted by two patches the subject is found whole, and
    what lies outside the masks does not matter."""
    from thisness.evaluation.encoders import Encoder

    def local(self, pictures, patches):
        small = [np.asarray(each.resize((4, 4), Image.Resampling.BOX), np.float32) for each in pictures]
        rows = torch.from_numpy(np.stack(small)).reshape(len(small), 16, 3)
        return rows.mean(1), rows, (4, 4)

    monkeypatch.setattr(Encoder, "_encoded", local)
    subject = np.array(noise(7, (20, 40)))
    plain = np.full((40, 20, 3), 200, np.uint8)
    reference = Picture(Image.fromarray(np.concatenate([subject, plain], 1)), left_half())
    moved = Picture(Image.fromarray(np.concatenate([plain // 2, subject], 1)), 1 - left_half())
    text = f"patches:encoder={vit},generated=mask,direction=both"
    here = item(picture=moved, references=(reference,))
    assert scored(text, here) == pytest.approx([1.0], abs=1e-6)
    assert scored(f"patches:encoder={vit}", here) == pytest.approx([1.0], abs=1e-6)
    outside = item(picture=outside_changed(moved), references=(outside_changed(reference),))
    assert scored(text, outside) == scored(text, here)
    other = item(picture=Picture(noise(8), left_half()), references=(reference,))
    assert scored(text, other)[0] < 0.999


def test_editing_looks_at_what_was_replaced_and_at_the_rest(vit):
    source = Picture(noise(50), left_half())
    made = Picture(noise(0))
    row = item(picture=made, source=source)
    inside, outside, kept, a, b = by_hand(
        vit,
        painted(noise(0), left_half(), 0),
        painted(noise(0), 1 - left_half(), 0),
        painted(noise(50), 1 - left_half(), 0),
        *(painted(noise(seed), left_half(), 0) for seed in (100, 101)),
    )
    assert scored(f"edit-foreground:encoder={vit}", row) == pytest.approx([(inside @ a + inside @ b) / 2], abs=1e-4)
    assert scored(f"edit-background:encoder={vit}", row) == pytest.approx([outside @ kept], abs=1e-4)
    wide = item(picture=Picture(noise(0, (80, 80))), source=source)  # made at another size than the source
    assert scored(f"edit-background:encoder={vit}", wide)[0] == pytest.approx(outside @ kept, abs=0.1)
    assert scored(f"edit-background:encoder={vit}", item()) == [None]
    assert scored(f"edit-foreground:encoder={vit}", item()) == [None]


def test_drift_and_diversity_are_distances(vit):
    x, base = by_hand(vit, noise(0), noise(60))
    assert scored(f"drift:encoder={vit}", item(baseline=Picture(noise(60))), item()) == [
        pytest.approx(1 - x @ base, abs=1e-4),
        None,
    ]
    text = f"diversity:encoder={vit}"
    vectors = by_hand(vit, *(noise(seed) for seed in range(3)))
    pairs = {(a, b): 1 - vectors[a] @ vectors[b] for a in range(3) for b in range(3) if a != b}
    values = scored(text, *(item(seed) for seed in range(3)))
    assert values == pytest.approx([np.mean([pairs[a, b] for b in range(3) if b != a]) for a in range(3)], abs=1e-4)
    assert np.mean(values) == pytest.approx(np.mean(list(pairs.values())), abs=1e-4)
    same = [item(seed, picture=Picture(noise(0))) for seed in range(3)]
    assert scored(text, *same) == pytest.approx([0, 0, 0], abs=1e-6)
    apart = [item(0), item(1, case="d"), item(2, recipe="s"), item(3, subject="mimi")]
    assert scored(text, *apart) == [None] * 4, "only seeds of one case are compared"


def test_a_batch_is_one_by_one_and_cached_is_not_cached(clip, vit, tmp_path):
    texts = [
        f"clip-t:encoder={clip}",
        f"clip-i:encoder={clip}",
        f"dino-i:encoder={vit},mask=references",
        f"patches:encoder={vit}",
        f"drift:encoder={clip}",
    ]
    items = [item(seed, baseline=Picture(noise(seed + 1))) for seed in range(36)]
    together = [metric.score(items) for metric in make_metrics(texts, batch_size=7)]
    for folder in (tmp_path / "c", tmp_path / "c"):  # written, then read
        metrics = make_metrics(texts, cache=FeatureCache(folder))
        values = [[metric.score([each])[0] for each in items[:9]] for metric in metrics]
        assert np.allclose(values, [row[:9] for row in together], atol=1e-5)
    assert all(np.std(row) > 1e-3 for row in together)


def test_over_long_text_is_refused_before_pictures_are_made(clip):
    metric = only(f"clip-t:encoder={clip}")
    metric.check(["a photo of a dog", ""])
    with pytest.raises(PromptError, match="would be cut"):
        metric.check(["a dog", "dog " * 30])
    with pytest.raises(PromptError, match="would be cut"):
        metric.score([item(sentence="dog " * 30)])


CHOICES = [
    "clip-i:encoder={clip}",
    "clip-i:encoder={vit}",
    "clip-i:encoder={clip},pooling=cls",
    "dino-i:encoder={vit}",
    "dino-i:encoder={vit},pooling=mean",
    "dino-i:encoder={vit},references=best",
    "dino-i:encoder={vit},references=first",
    "dino-i:encoder={vit},mask=references",
    "dino-i:encoder={vit},mask=references,fill=black",
    "dino-i:encoder={vit},mask=both",
    "clip-t:encoder={clip}",
    "clip-t:encoder={clip},part=concept",
    "clip-t:encoder={clip},part=context",
    "patches:encoder={vit}",
    "patches:encoder={vit},fill=grey",
    "patches:encoder={vit},generated=mask",
    "patches:encoder={vit},generated=mask,direction=both",
    "copy-background:encoder={vit}",
    "copy-background:encoder={vit},references=mean",
    "edit-foreground:encoder={vit}",
    "edit-foreground:encoder={vit},masked_references=false",
    "edit-foreground:encoder={vit},region=picture",
    "edit-background:encoder={vit}",
    "drift:encoder={vit}",
    "diversity:encoder={vit}",
    "copy-pose",
    "copy-pose:by=silhouette",
]


def test_identities_differ_with_every_choice(clip, vit):
    metrics = make_metrics([text.format(clip=clip, vit=vit) for text in CHOICES])
    prints = [fingerprint(metric.identity) for metric in metrics]
    assert len(set(prints)) == len(CHOICES)
    said = json.dumps([metric.identity for metric in metrics])
    assert str(clip.parent) not in said, "no path of a machine in what is published"
    again = make_metrics([text.format(clip=clip, vit=vit) for text in CHOICES])
    assert [fingerprint(metric.identity) for metric in again] == prints


def refused(names, **more):
    with pytest.raises(UserError) as caught:
        make_metrics(names, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_exist_is_one_line_with_the_nearest_name(clip, vit):
    assert "did you mean 'dino-i'" in refused("dino-1")
    assert "did you mean 'dreambooth'" in refused("dreamboth")
    assert "did you mean 'references'" in refused("dino-i:referencs=best")
    both = refused(["dino-1", "clip-i:fill=green"])
    assert "2 problems" in both and "grey" in both
    assert "name a preset" in refused([])
    assert "no text side" in refused(f"clip-t:encoder={vit}")
    assert "no counterpart in text" in refused(f"clip-t:encoder={clip},pooling=cls")
    assert "generated=mask" in refused(f"patches:encoder={vit},direction=both")
    assert "no encoder 'nowhere'" in refused("dino-i:encoder=nowhere")


def test_columns_of_one_name_for_different_things_are_told_apart(monkeypatch, clip, vit):
    from thisness.evaluation.metrics import Column, making
    from thisness.recipe import Spec

    here = Column("dino-i", Spec.of("dino-i", encoder=str(vit)))
    there = Column("dino-i", Spec.of("dino-i", encoder=str(vit), references="best"))
    monkeypatch.setattr(making, "PRESETS", {"one": (here,), "two": (there,), "three": (here,)})
    names = [metric.name for metric in make_metrics(["one", "two", "three"])]
    assert names == ["dino-i", "two/dino-i"]


def test_presets_name_metrics_and_encoders_that_exist():
    """All settings fit; every protocol of the list is there, and names the models that its source names."""
    from thisness.evaluation.encoders import known_encoders
    from thisness.recipe import build_settings

    assert set(PRESETS) == {"dreambooth", "dreambench++", "tea", "ezigen", "detex", "harmonizing", "thisness"}
    for preset, columns in PRESETS.items():
        assert len({column.name for column in columns}) == len(columns), preset
        for column in columns:
            settings = build_settings(column.spec.values, METRICS[column.spec.name].Settings, column.name)
            assert getattr(settings, "encoder", "clip-b32") in known_encoders(), column
    said = {preset: {c.name: c.spec.values for c in columns} for preset, columns in PRESETS.items()}
    assert said["dreambooth"]["dino-i"] == {"encoder": "dino-s16", "references": "mean"}
    assert said["dreambench++"]["dino-i"]["encoder"] == "dino-s8"
    assert said["tea"]["dino-i"] == {"encoder": "dinov2-base", "pooling": "mean", "references": "first"}
    assert said["detex"]["dino-i-fg"]["mask"] == "references" and said["harmonizing"]["m-dino-i"]["mask"] == "both"
    hubs = {name: facts.get("hub") for name, facts in known_encoders().items()}
    assert hubs["clip-b32"] == "openai/clip-vit-base-patch32" and hubs["clip-l14"] == "openai/clip-vit-large-patch14"
    assert hubs["dino-s16"] == "facebook/dino-vits16" and hubs["dino-s8"] == "facebook/dino-vits8"


def test_a_metric_of_ones_own_is_one_class():
    from dataclasses import dataclass

    from thisness.evaluation.metrics import Metric

    @dataclass(frozen=True)
    class Settings:
        scale: float = 1.0

    try:

        @register_metric("width")
        class Width(Metric):
            formula = "scale * width"

            def score(self, items):
                return [self.settings.scale * each.picture.image.width for each in items]

        Width.Settings = Settings
        metric = only("width:scale=2")
        assert metric.score([item()]) == [80.0] and metric.identity["scale"] == 2.0
        with pytest.raises(ConfigurationError, match="two metrics"):
            register_metric("width")(Width)
    finally:
        METRICS.pop("width", None)
