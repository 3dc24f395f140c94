"""DETEX. Oracles: which parameters get gradients, the losses written out, Custom Diffusion as its special case."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from thisness.attention import CaptureMaps, Rows, Where, attached
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, ImageError, PromptError, UserError
from thisness.generation import generate, replay
from thisness.keeping import kept, parse_keep
from thisness.methods import learn, method_named
from thisness.methods.detex import DetexSettings, attention_loss, attribute_of, fills, filtered
from thisness.methods.detex_features import image_features
from thisness.methods.detex_words import START_SHARE
from thisness.methods.registry import settings_for
from thisness.methods.tuning import prepared_for_training
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions
from thisness.subject import Subject
from thisness.training.latents import encode_subject

SETTINGS = {
    "steps": 3, "lr": 0.05, "precision": "fp32", "captions": "plain", "preset": "default", "prior_pictures": 2,
    "prior_steps": 2, "start": "sks", "batch_size": 2, "prior_batch": 1, "image_encoder": tiny.clip_folder(),
    "pose_words": "with {word}", "background_words": "on {word}", "pose_start": "sleeping",
    "background_start": "beach snow", "clip": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def subject() -> Subject:
    draws = np.random.default_rng(0)
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(3))
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    return Subject("rufus", "dog", images, (mask, np.roll(mask, 4, 0), np.roll(mask, 4, 1)))


@pytest.fixture(scope="module")
def concept(base, subject):
    return learn("detex", subject, base, progress=False, **SETTINGS)


def task_of(base, subject, stack: ExitStack, method="detex", **settings):
    """A task ready for its first step."""
    chosen = method_named(method)
    names = {"preset", "image_encoder", "pose_words", "background_words", "pose_start", "background_start"}
    given = {k: v for k, v in SETTINGS.items() if k != "preset" and (method == "detex" or k not in names)} | settings
    task = stack.enter_context(chosen().task(subject, base, settings_for(chosen, base, given, "default"), False))
    task.on_start(torch.device("cpu"))
    return task


def step(task, seed=0):
    """Losses of one step, with gradients."""
    found = task.loss(0, torch.Generator().manual_seed(seed))
    found["loss"].backward()
    return found


def grads(module) -> dict[str, float]:
    return {name: 0.0 if p.grad is None else float(p.grad.abs().sum()) for name, p in module.named_parameters()}


# --- what gradients reach ---


def test_each_picture_moves_only_its_own_words(base, subject):
    """Free rows. A sentence with P_1 alone leaves every other row and the class's sentence leaves all at zero."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, mappers="free", attention_weight=0.0)
        parts = task.modules()["mappers"]
        encode(base, "a photo of a dog with <rufus-p-1>").embeds.square().sum().backward()
        pose, place = (part.rows.grad for part in parts["text_encoder"])
        assert place.abs().sum() == 0 and pose.abs().sum(1).gt(0).tolist() == [False, True, False]
        assert grads(task.modules()["words"])["text_encoder"] == 0
        parts.zero_grad()
        assert not encode(base, "a photo of a dog").embeds[:, :6].isnan().any()
        plain = encode(base, "a photo of a dog").embeds
        tables = task.conditioning(["a photo of a dog"]).embeds
        assert torch.equal(plain, tables) and not tables.requires_grad  # the class's sentence is encoded once, apart


def test_gradient_of_a_shared_mapper_is_the_sum_over_its_rows(base, subject):
    """Chain rule: the gradient of the rows, as free ones have it, through the mapper."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, attention_weight=0.0)
        (mapped, _) = task.modules()["mappers"]["text_encoder"]
        rows = mapped()
        step(task)
        found = {name: p.grad.clone() for name, p in mapped.named_parameters()}
        with ExitStack() as other:
            stack.pop_all().close()
            free = task_of(base, subject, other, attention_weight=0.0, mappers="free")
            with torch.no_grad():
                free.modules()["words"]["text_encoder"].copy_(task.modules()["words"]["text_encoder"])
                for part, of in zip(free.modules()["mappers"]["text_encoder"],
                                    task.modules()["mappers"]["text_encoder"], strict=True):  # fmt: skip
                    part.rows.copy_(of())
            step(free)
            by_row = free.modules()["mappers"]["text_encoder"][0].rows.grad
    assert by_row.abs().sum(1).gt(0).sum() >= 1
    mapped.zero_grad()
    rows.backward(by_row)
    for name, p in mapped.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


def test_attention_loss_alone_reaches_words_and_the_layers_before_it_only(base, subject):
    """The maps of the last layer need no values of it, and nothing later: those gradients are none."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, attention_weight=1.0, gamma=0.0, prior_pictures=0, attention_grid=8)
        captured: dict = {}
        further = task.further
        task.further = lambda batch: captured.setdefault("parts", further(batch))
        task.loss(0, torch.Generator().manual_seed(0))
        captured["parts"]["attention"].backward()
        weights = grads(task.modules()["weights"])
        last = "up_blocks/1/attentions/1/transformer_blocks/0/attn2"
        assert {name for name, size in weights.items() if not size} == {f"{last}/to_v/weight"}
        assert all(grads(task.modules()["words"]).values())
        assert all(grads(task.modules()["mappers"]).values())
        others = [p.grad for part in base.modules.values() for p in part.parameters() if not p.requires_grad]
        assert others and all(grad is None for grad in others)


def test_vocabulary_and_all_else_stay_to_the_bit(base, subject, concept):
    """With weight decay on."""
    before = {f"{n}.{k}": t.clone() for n, m in base.modules.items() for k, t in m.state_dict().items()}
    learn("detex", subject, base, progress=False, **SETTINGS | {"weight_decay": 0.5, "seed": 3})
    assert all(torch.equal(before[f"{n}.{k}"], t) for n, m in base.modules.items() for k, t in m.state_dict().items())
    assert concept.tensors["embeddings.safetensors"]["text_encoder"].shape == (7, 16)


# --- extremes and special cases ---


def test_without_its_additions_it_is_custom_diffusion_to_the_bit(base, subject):
    same = {"gamma": 0.0, "attention_weight": 0.0, "attributes": "neither"}
    one = learn("detex", subject, base, progress=False, **SETTINGS | same)
    names = ("image_encoder", "pose_words", "background_words", "pose_start", "background_start")
    shared = {key: value for key, value in SETTINGS.items() if key not in names}
    two = learn("custom-diffusion", subject, base, progress=False, flip=False, **shared)
    for file, group in two.tensors.items():
        for name, tensor in group.items():
            assert torch.equal(one.tensors[file][name], tensor), name
    assert not one.keeps


@pytest.mark.parametrize(("gamma", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.286, 0.314)])
def test_gamma_is_the_rate_of_filtering(base, subject, gamma, low, high):
    """10,000 draws within three sigma; at the ends the other latents are never read, nor [B] ever said."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, gamma=gamma, prior_pictures=0, batch_size=500)
        rng, count, sentences = torch.Generator().manual_seed(0), 0, set()
        assert len(task.latents) == (6 if gamma else 3)
        for _ in range(20):
            rows = task.rows(rng)
            words = task.captions(rows, rng)
            count += int((rows >= 3).sum())
            sentences.update(words)
            for row, text in zip(rows.tolist(), words, strict=True):
                assert f"<rufus-p-{row % 3}>" in text and (f"<rufus-b-{row % 3}>" in text) == (row < 3)
        assert low <= count / 10_000 <= high
        assert len(sentences) == (3 if gamma in (0, 1) else 6)


def test_at_gamma_one_the_backgrounds_mapper_is_as_it_began(base, subject):
    with ExitStack() as stack:
        task = task_of(base, subject, stack, gamma=1.0)
        pose, place = task.modules()["mappers"]["text_encoder"]
        before = [p.clone() for p in place.parameters()]
        optimizer = torch.optim.AdamW(task.parameter_groups(), lr=0.1, weight_decay=0.1)
        for number in range(3):
            optimizer.zero_grad()
            step(task, number)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, place.parameters(), strict=True))  # no decay either
        assert any(grads(pose).values())


def test_filtered_pictures_show_the_fill_outside_the_mask(subject):
    for fill, value in (("black", 0), ("grey", 128), ("white", 255)):
        assert fills(DetexSettings(fill=fill)) == [value]
        for before, after, mask in zip(subject.images, filtered(subject, value).images, subject.masks, strict=True):
            found, inside = np.asarray(after), mask > 0
            assert (found[~inside] == value).all() and (found[inside] == np.asarray(before)[inside]).all()


def test_random_fills_are_several_and_drawn_for_each_filtered_picture(base, subject):
    """Spec, idea 3: no one colour stands behind the subject's word."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, fill="random", attention_weight=0.0)
        count = len(subject.images)
        colours = fills(task.options)
        assert len(task.latents) == count * (1 + len(colours)) and len(colours) > 2
        rng = torch.Generator().manual_seed(0)
        drawn = torch.cat([task.rows(rng) for _ in range(400)])
        assert set(drawn.tolist()) == set(range(len(task.latents)))
        for picture in range(count):
            shown = filtered(subject, colours[2]).images[picture]
            one = replace(subject, images=(shown,), masks=(subject.masks[picture],), files=())
            assert torch.allclose(encode_subject(base, one).mean[0], task.latents.mean[3 * count + picture], atol=1e-5)
        texts = task.captions(torch.tensor([1, 1 + count, 1 + 3 * count]), rng)
        assert "-b-1>" in texts[0] and "-b-" not in texts[1] and "-b-" not in texts[2] and "-p-1>" in texts[2]


def test_masked_loss_with_full_masks_is_the_plain_one(base, subject):
    """The ablation: only where the background is removed, only inside the mask."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, masked=True, attention_weight=0.0)
        rows = torch.tensor([0, 4])
        weight = task.weights(rows)
        assert weight[0].eq(1).all() and torch.equal(weight[1], task.latents.mask[4])
        whole = task.latents.mask.clone()
        task.latents.mask.fill_(1.0)
        with_masks = task.loss(0, torch.Generator().manual_seed(1))["loss"]
        task.latents.mask.copy_(whole)
        stack.pop_all().close()
        plain = task_of(base, subject, stack, attention_weight=0.0)
        torch.testing.assert_close(with_masks, plain.loss(0, torch.Generator().manual_seed(1))["loss"])


# --- attention ---


def test_attention_loss_is_zero_where_the_map_is_the_mask():
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    for factor in (1e-3, 1.0, 7.0):
        assert attention_loss(mask * factor, mask).tolist() == [0, 0]
    wrong = attention_loss(1 - mask, mask)
    assert wrong.tolist() == [1, 1]
    assert attention_loss(mask * 0.5, mask, scale="raw").tolist() == [0.125, 0.0625]
    torch.testing.assert_close(attention_loss(1 - mask, mask, distance="l2"), torch.tensor([2.0, 2.0]))
    assert (
        attention_loss(torch.full((1, 4), 0.1), torch.zeros(1, 4)).item() == 1
    )  # nothing is subject: P is wanted nowhere


def test_loss_on_attention_is_the_papers_written_out(base, subject):
    """Maps of the layers at half the latents' side, taken in a second pass; P on all rows, B on those that say it."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, attention_weight=0.25, batch_size=4)
        found = task.loss(0, torch.Generator().manual_seed(2))
        kept_batch, kept_inputs = {}, {}
        batch_of, predict = task.batch, base.predict
        task.batch = lambda *a: kept_batch.setdefault("batch", batch_of(*a))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "predict", lambda *a: kept_inputs.setdefault("answer", (a, predict(*a)))[1])
            task.loss(0, torch.Generator().manual_seed(2))
        batch, ((latents, t, conditioning), _) = kept_batch["batch"], kept_inputs["answer"]
        capture = CaptureMaps(Where(kinds=("cross",), resolutions=(4,)), rows=Rows())
        with torch.no_grad(), attached(base.denoiser, capture):
            predict(latents, t, conditioning)
        maps, terms = capture.average(4), {"p": [], "b": []}
        assert 0 < sum(int(row) >= 3 for row in batch.rows) < 4  # both kinds are in this batch
        for row, (number, text) in enumerate(zip(batch.rows.tolist(), batch.sentences[:4], strict=True)):
            mask = torch.from_numpy(subject.masks[number % 3]).view(4, 4, 4, 4).mean((1, 3)).flatten()
            ids = conditioning.spans[row].ids
            for kind, wanted in (("p", mask), ("b", 1 - mask)):
                token = base.tokenizer.convert_tokens_to_ids(f"<rufus-{kind}-{number % 3}>")
                assert (token in ids) == (f"-{kind}-" in text)
                if token in ids:
                    own = maps[row, :, ids.index(token)]
                    terms[kind].append(float(((own / own.max() - wanted) ** 2).mean()))
        expected = 0.25 * (np.mean(terms["p"]) + np.mean(terms["b"]))
        assert found["attention"].item() == pytest.approx(expected, rel=1e-4)
        assert found["loss"].item() == pytest.approx(
            found["subject"].item() + found["class"].item() + expected, rel=1e-5
        )


def test_maps_of_blocks_that_are_computed_twice_give_the_same_gradients(base, subject):
    found = []
    for checkpointing in (False, True):
        with ExitStack() as stack:
            stack.enter_context(prepared_for_training(base, checkpointing))
            task = task_of(base, subject, stack, attention_weight=1.0)
            step(task)
            found.append([p.grad for module in task.modules().values() for p in module.parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


# --- words ---


def test_words_start_near_the_attributes_row_and_differ_by_picture(base, subject):
    with ExitStack() as stack:
        task = task_of(base, subject, stack)
        pose, place = (part() for part in task.modules()["mappers"]["text_encoder"])
    table = base.text_encoder.get_input_embeddings().weight
    ids = base.tokenizer("sleeping beach snow", add_special_tokens=False)["input_ids"]
    for rows, start in ((pose, table[ids[0]]), (place, table[ids[1:]].mean(0))):
        distance = (rows - start).norm(dim=1)
        assert distance.mean().item() == pytest.approx(START_SHARE * start.norm().item(), rel=1e-3)
        assert (rows[0] - rows[1]).norm() > 0


def test_features_are_clips_projected_embeddings(subject):
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    found = image_features(subject.images, tiny.clip_folder())
    model = CLIPVisionModelWithProjection.from_pretrained(tiny.clip_folder())
    pixels = CLIPImageProcessorPil.from_pretrained(tiny.clip_folder())(list(subject.images), return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels).image_embeds
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def test_pose_or_view_by_the_noun():
    assert [attribute_of(noun, "auto") for noun in ("dog", "brown Cat", "backpack", "teddy bear toy")] == [
        "pose", "pose", "view", "view",
    ]  # fmt: skip
    assert attribute_of("backpack", "pose") == "pose"


# --- using it ---


def test_kept_words_stand_where_they_belong(base, concept):
    prompt = kept(Prompt("a {subject} on the beach"), {"subject": concept}, ["pose:2", "background:0"])
    assert prompt.text == "a {subject} with <rufus-p-2> on the beach on <rufus-b-0>"
    with concept.attach(base):
        spans = prompt.fill({"subject": concept.word}).tokenize(base.tokenizer)
    pieces = {spans.piece(at): at for at in range(spans.length)}
    assert spans.slots[0].word == (pieces["<rufus>"],) and spans.slots[0].noun == (pieces["dog"],)
    assert spans.roles[pieces["<rufus-p-2>"]] == spans.roles[pieces["<rufus-b-0>"]] == "context"
    assert kept(Prompt("a cat"), {"subject": concept}, ["view:1"]).text == "a cat with <rufus-p-1>"
    assert kept(Prompt("a {subject}."), {"subject": concept}, ["background:1"]).text == "a {subject} on <rufus-b-1>"


def test_keeping_changes_the_picture_and_replays_to_the_bit(base, concept, tmp_path):
    options = SamplingOptions(steps=2)
    made = {}
    for name, prompt, keep in (
        ("alone", "a {subject} on the beach", ()),
        ("pose", "a {subject} on the beach", ("pose:2",)),
        ("both", "a {subject} on the beach", ("pose:2", "background:0")),
        ("another", "a cat on the beach", ("subject=pose:2",)),
    ):
        made[name] = generate(base, prompt, concept=concept, keep=keep, options=options)
        made[name].save(tmp_path / name)
    pixels = {name: each.images[0].tobytes() for name, each in made.items()}
    assert len(set(pixels.values())) == 4
    assert made["another"].record["sentence"] == "a cat on the beach with <rufus-p-2>"
    for name in made:
        again = replay(tmp_path / name / "record.json", base, concept)
        assert again.images[0].tobytes() == pixels[name] and not again.differences


def test_wrong_keeps_are_one_line(base, concept):
    words = learn("textual-inversion", tiny.toy(), base, progress=False, preset="default", steps=1, lr=0.05)
    for keep, given, said in (
        ("pose:3", concept, "pose:3: its pictures are 0 to 2"),
        ("colour:0", concept, "'colour': rufus can keep pose, view, background"),
        ("rex=pose:0", concept, r"no concept for \{rex\}"),
        ("pose:0", words, "learned by textual-inversion, which learns no words for pose"),
        ("pose:0", None, "needs a concept"),
    ):
        with pytest.raises(UserError, match=said):
            generate(base, "a {subject}" if given else "a dog", concept=given, keep=[keep])
    with pytest.raises(UserError, match="view is to be kept of two pictures"):
        generate(base, "a {subject}", concept=concept, keep=["pose:0", "view:1"])
    for text in ("pose", "pose:", "pose:x", ":2", "Pose:1"):
        with pytest.raises(UserError, match="write ATTRIBUTE:PICTURE"):
            parse_keep(text)


def test_export_has_a_file_for_each_word(base, concept, tmp_path):
    """Oracle: diffusers itself reads them, and makes the same picture of the same pose."""
    concept.export(tmp_path / "out")
    pipe = tiny.pipeline()
    for token in concept.tokens:
        further = "" if token == "<rufus>" else "_" + token.strip("<>")
        pipe.load_textual_inversion(tmp_path / "out", weight_name=f"learned_embeds{further}.safetensors")
    pipe.unet.load_state_dict(load_file(tmp_path / "out" / "unet_kv.safetensors"), strict=False)
    options = SamplingOptions(steps=2, guidance=2.0, scheduler="ddim")
    ours = generate(base, "a photo of a {subject}", concept=concept, keep=["pose:1"], options=options)
    made = pipe(
        "a photo of a <rufus> dog with <rufus-p-1>", num_inference_steps=2, guidance_scale=2.0, height=16, width=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(made, np.float32) - np.asarray(ours.images[0], np.float32))
    assert difference.max() <= 1
    said = (tmp_path / "out" / "usage.txt").read_text()
    assert "to keep the pose of a picture: 'with <rufus-p-0>'" in said


def test_nothing_of_the_machine_is_in_a_concept(concept):
    said = json.dumps(concept.manifest)
    assert "/" not in concept.settings["image_encoder"] and tiny.clip_folder() not in said


# --- bad input ---


def test_masks_that_say_nothing_are_refused_before_the_work(base, subject):
    full = np.ones((16, 16), np.float32)
    bad = Subject("rufus", "dog", subject.images, (None, subject.masks[1], full), ("a.png", "b.png", "c.png"))
    with pytest.raises(ImageError) as said:
        learn("detex", bad, base, progress=False, **SETTINGS)
    text = str(said.value)
    assert "\n" not in text
    for part in ("a.png has no mask", "a_mask.png", "c.png covers 100%", "gamma=0"):
        assert part in text
    assert "b.png" not in text
    without = SETTINGS | {"gamma": 0.0, "attention_weight": 0.0}
    assert learn("detex", bad, base, progress=False, **without).keeps["pose"]


def test_one_picture_goes_on_and_says_what_suffers(base, subject, capsys):
    one = Subject("rufus", "dog", subject.images[:1], subject.masks[:1])
    learned = learn("detex", one, base, progress=True, **SETTINGS | {"steps": 1})
    assert "one picture: nothing tells the subject from its pose" in capsys.readouterr().err
    assert len(learned.keeps["background"]) == 1


def test_a_noun_of_several_tokens_keeps_its_place(base, subject):
    bear = Subject("rufus", "red zebra hat", subject.images, subject.masks)
    learned = learn("detex", bear, base, progress=False, **SETTINGS | {"steps": 1, "prior_pictures": 0})
    with learned.attach(base):
        filled = Prompt("a {subject} on the beach").fill({"subject": learned.word})
        spans = filled.tokenize(base.tokenizer)
    assert len(spans.slots[0].noun) > 3 and len(spans.slots[0].word) == 1


def test_sentences_that_do_not_fit_are_refused_and_never_cut(base, subject):
    long = SETTINGS | {"background_words": "on the beach in the snow on the red beach in the hat on the {word}"}
    with pytest.raises(PromptError, match="would be cut"):
        learn("detex", subject, base, progress=False, **long)


def test_settings_that_cannot_be_are_one_line(base, subject):
    for wrong, said in (
        ({"gamma": 1.5}, "gamma 1.5 must be in 0 ... 1"),
        ({"flip": True}, "flip and crops must be off"),
        ({"masked": True, "background": 0.5}, "set one of them"),
        ({"pose_words": "with pose"}, "must have {word} once"),
        ({"mapper_lr": 0.0}, "mapper_lr 0.0 must be above 0"),
        ({"image_encoder": "playroom-clap"}, "expected playroom-clip, a folder"),
    ):
        with pytest.raises((ConfigurationError, UserError), match=said):
            learn("detex", subject, base, progress=False, **SETTINGS | wrong)


def test_poses_go_unsaid_at_their_rate_and_backgrounds_never(base, subject):
    """drop_pose 0.3: 70 % of the sentences say the pose, and each says the background that the picture shows."""
    with ExitStack() as stack:
        task = task_of(base, subject, stack, drop_pose=0.3, gamma=0.4, prior_pictures=0, batch_size=4000)
        rng = torch.Generator().manual_seed(0)
        rows = task.rows(rng)
        said = task.captions(rows, rng)
    assert abs(sum("-p-" in text for text in said) / 4000 - 0.7) < 0.03
    assert [f"-b-{int(row)}>" in text for row, text in zip(rows % 3, said, strict=True)] == (rows < 3).tolist()
    with ExitStack() as stack:
        task = task_of(base, subject, stack, gamma=0.0, prior_pictures=0)
        before = (rng := torch.Generator().manual_seed(0)).get_state()
        task.captions(torch.tensor([0, 1]), rng)
        torch.randint(0, 1, (2,), generator=(again := torch.Generator().manual_seed(0)))
        assert torch.equal(rng.get_state(), again.get_state()) and not torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("mappers", ["shared", "free"])
def test_centred_words_keep_their_mean_and_what_all_share_cannot_move_them(base, subject, mappers):
    """The mean of each attribute's rows is its start; a gradient that is the same on all rows reaches no parameter."""
    chosen = method_named("detex")
    given = {k: v for k, v in SETTINGS.items() if k != "preset"} | {"mappers": mappers, "centred": True}
    settings = settings_for(chosen, base, given, "default")
    (table,) = chosen()._tables(base, subject, settings).values()
    rows = table()
    for at, centre in enumerate(table.centres):
        assert torch.allclose(rows[1 + 3 * at : 4 + 3 * at].mean(0), centre, atol=1e-6)
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    (rows[1:] @ direction).sum().backward()
    assert all(p.grad.abs().max() < 1e-4 for p in table.parts.parameters())
    assert rows[1].sub(rows[2]).abs().max() > 1e-4
    one = Subject("solo", "dog", subject.images[:1], subject.masks[:1])
    (alone,) = chosen()._tables(base, one, settings).values()
    assert not alone.centres  # the words of a single picture would have nothing to say
