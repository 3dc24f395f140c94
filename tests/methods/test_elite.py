"""ELITE. Oracles: the published attention and mappers in plain torch, the run without the local stream, the stock text
encoder with a row put in by hand."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

import tiny
from thisness import cli
from thisness.adapters import EMBEDDINGS, AdapterHandler
from thisness.adapters.elite_conversion import convert_elite
from thisness.attention import Context, attached, rows_of
from thisness.concept import Concept, register_handler
from thisness.conditioning import encode
from thisness.errors import ArtefactError, ConfigurationError, ImageError
from thisness.files import save_tensors, write_json
from thisness.generation import generate, replay
from thisness.methods.elite import (
    LOCAL,
    GlobalMapper,
    LocalAttention,
    LocalMapper,
    keys_and_values,
    open_mappers,
    published,
    word_share,
)  # fmt: skip
from thisness.methods.harmonizing_words import visual_positions
from thisness.methods.image_states import ImageEncoder
from thisness.methods.zero_shot import AdapterWeights, open_weights, read_subject
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions, sample
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=3, guidance=3.0)
TEXT = "a photo of a {subject} sleeping on the beach"
LEVELS = [-1, 1]


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def weights(base, tmp_path_factory):
    """A folder of random weights for the tiny base."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("elite")
    tensors = {}
    for part, kind in (("global", GlobalMapper), ("local", LocalMapper)):
        mapper = kind(len(LEVELS), 16, 8, 16, keys_and_values(base.denoiser))
        tensors |= {f"{part}.{name}": value.detach().clone() for name, value in mapper.state_dict().items()}
    for name in tensors:
        if name.endswith(("to_k.weight", "to_v.weight")):
            tensors[name] *= 2.0
    save_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", {"method": "elite", "levels": LEVELS, "image_encoder": tiny.clip_folder()})
    return folder


@pytest.fixture(scope="module")
def subject():
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), np.float32)
    mask[:, 7:] = 1  # two of the four patches
    return Subject("rex", "dog", (Image.fromarray(pixels),), (mask,))


@pytest.fixture(scope="module")
def concept(base, weights, subject):
    return read_subject("elite", subject, base, settings={"weights": str(weights), "scale": 1.0})


def latents(base, concept, seeds=(0, 1), text=TEXT, options=OPTIONS):
    with concept.attach(base) as brought, torch.no_grad():
        filled = Prompt(text).fill({"subject": concept.word})
        interventions = brought.interventions if brought else ()
        return sample(base, encode(base, filled), None, seeds, options, interventions=interventions)


def other(concept, local=None, **settings):
    """The same with other settings and another local stream."""
    tensors = dict(concept.tensors)
    if local is not None:
        tensors[LOCAL] = {"local": local}
    return concept.with_tensors(tensors, **settings)


def published_mapper(tensors, states, local):
    """What the mappers of the official code compute, from their own names."""
    found = []
    for level, state in enumerate(states):
        both = []
        for kind, tokens in (("mapping", state[:, :1]), ("mapping_patch", state[:, 1:])):
            hidden = tokens
            for linear, norm in ((0, 1), (3, 4)):
                name = f"{kind}_{level}."
                hidden = hidden @ tensors[f"{name}{linear}.weight"].T + tensors[f"{name}{linear}.bias"]
                mean, var = hidden.mean(-1, keepdim=True), hidden.var(-1, keepdim=True, unbiased=False)
                hidden = (hidden - mean) / (var + 1e-5).sqrt()
                hidden = hidden * tensors[f"{name}{norm}.weight"] + tensors[f"{name}{norm}.bias"]
                hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
            both.append(hidden @ tensors[f"{name}6.weight"].T + tensors[f"{name}6.bias"])
        cls, patches = both
        found.append(cls + patches if local else cls + patches.mean(1, keepdim=True))
    return torch.stack(found).mean(0) if local else torch.cat(found, 1)


def test_what_is_read_is_what_the_published_mappers_say(base, weights, subject, concept):
    tensors = open_weights("elite", str(weights), base).tensors
    vision = CLIPVisionModelWithProjection.from_pretrained(tiny.clip_folder())
    encoder = ImageEncoder(tiny.clip_folder())
    picture = torch.from_numpy(np.array(subject.images[0])).permute(2, 0, 1)[None].float() / 255
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 7:] = 1

    def states(pixels):
        with torch.no_grad():
            hidden = vision(pixel_values=(pixels - encoder.mean) / encoder.std, output_hidden_states=True).hidden_states
        return [hidden[2], hidden[1]]  # the last of two layers, then the first: no final norm

    part = {kind: {n.removeprefix(kind): t for n, t in tensors.items()} for kind in ("global.", "local.")}
    words = published_mapper(part["global."], states(picture), local=False)
    assert torch.allclose(concept.tensors[EMBEDDINGS]["text_encoder"], words[0, :1], atol=1e-5)
    local = published_mapper(part["local."], states(picture * mask), local=True)
    assert torch.allclose(concept.tensors[LOCAL]["local"][[1, 3]], local[0, [1, 3]], atol=1e-5)
    assert (concept.tensors[LOCAL]["local"][[0, 2]] == 0).all()  # kept as zero rows, outside the object
    both = read_subject("elite", subject, base, settings={"weights": str(weights), "words": 2})
    assert torch.allclose(both.tensors[EMBEDDINGS]["text_encoder"], words[0], atol=1e-5)
    assert both.word.text == "<rex> <rex_1>"


def test_the_word_is_a_learned_word(base, concept):
    """The stock encoder with a row of its table overwritten; rows of the word know nothing of what comes after."""
    text, word = "a photo of a {} sleeping", concept.tensors[EMBEDDINGS]["text_encoder"][0]
    with torch.no_grad():
        plain = base.tokenizer(text.format("sks"), padding="max_length", return_tensors="pt").input_ids
        table = base.modules["text_encoder"].get_input_embeddings()
        at = int((plain[0] == base.tokenizer("sks").input_ids[1]).nonzero()[0])
        before = table.weight.data.clone()
        table.weight.data[plain[0, at]] = word
        expected = base.modules["text_encoder"](input_ids=plain).last_hidden_state
        table.weight.data.copy_(before)
        with concept.attach(base):
            filled = Prompt(text.format("{subject}")).fill({"subject": concept.word})
            found = encode(base, filled)
            assert visual_positions(filled.tokenize(base.tokenizer), {"subject": concept}) == (at,)
            longer = encode(base, text.format("<rex>") + " on the beach")
    assert torch.allclose(found.embeds, expected, atol=1e-6)
    assert torch.equal(longer.embeds[:, : at + 1], found.embeds[:, : at + 1])


def test_the_trained_keys_and_values_act_while_it_is_attached(base, weights, concept):
    own = {name: base.denoiser.get_parameter(name) for name in keys_and_values(base.denoiser)}
    before = {name: weight.detach().clone() for name, weight in own.items()}
    tensors = open_weights("elite", str(weights), base).tensors
    with concept.attach(base):
        for name in own:
            given = tensors[f"global.{name.removesuffix('.weight').replace('.', '_')}.weight"]
            assert torch.equal(base.denoiser.get_parameter(name), given)
    for name, weight in own.items():
        assert base.denoiser.get_parameter(name) is weight and torch.equal(weight, before[name])


def test_lambda_0_and_a_zero_mask_are_the_global_stream_alone(base, weights, concept):
    tensors = open_weights("elite", str(weights), base).tensors
    replaced = {f"unet.{name}": tensors[f"global.{published(name)}.weight"] for name in keys_and_values(base.denoiser)}
    register_handler("textual-inversion-with-weights", AdapterHandler())
    alone = Concept.create(
        "textual-inversion-with-weights", tiny.toy(), base, word="<rex>", tokens=["<rex>"],
        tensors={EMBEDDINGS: concept.tensors[EMBEDDINGS], "replaced.safetensors": replaced},
    )  # fmt: skip
    expected = latents(base, alone)
    assert torch.equal(latents(base, other(concept, scale=0.0)), expected)
    assert torch.equal(latents(base, other(concept, torch.zeros_like(concept.tensors[LOCAL]["local"]))), expected)
    assert not torch.allclose(latents(base, concept), expected, atol=1e-2)
    assert not torch.allclose(latents(base, other(concept, scale=0.5)), latents(base, concept), atol=1e-3)


def reference_attention(attn, hidden, context, local, column, scale, to_k, to_v):
    """The attention of train_local.py, `inj_forward_crossattention`, for one sample."""

    def heads(x):
        return x.view(1, -1, attn.heads, x.shape[-1] // attn.heads).permute(0, 2, 1, 3)[0]  # (heads, length, D)

    query, key, value = heads(attn.to_q(hidden)), heads(attn.to_k(context)), heads(attn.to_v(context))
    probs = (query @ key.transpose(1, 2) * attn.scale).softmax(-1)
    out = probs @ value
    probs_local = (query @ heads(local @ to_k.T).transpose(1, 2) * attn.scale).softmax(-1)
    share = probs[:, :, column]
    out = out + (probs_local * (share.unsqueeze(2) / share.max()) * scale) @ heads(local @ to_v.T)
    out = out.permute(1, 0, 2).reshape(1, -1, attn.heads * out.shape[-1])
    return attn.to_out[1](attn.to_out[0](out))


def test_the_local_attention_is_the_published_one_per_sample(base, concept, weights):
    """Two samples together, one of them much louder: each as alone."""
    torch.manual_seed(0)
    tensors = open_weights("elite", str(weights), base).tensors
    name = next(iter(keys_and_values(base.denoiser))).removesuffix(".to_k.weight")
    attn = base.denoiser.get_submodule(name)
    hidden, local = torch.randn(2, 64, attn.to_q.in_features), concept.tensors[LOCAL]["local"][None]
    with concept.attach(base) as brought, attached(base.denoiser, *brought.interventions) as context, torch.no_grad():
        read = encode(base, "a photo of a <rex> sleeping")
        column = visual_positions(read.spans[0], {"subject": concept})[0]
        embeds = torch.cat([read.embeds, 3 * read.embeds])
        context.rows, context.spans = rows_of(["cond"], 2), {"cond": read.spans}
        found = attn(hidden, encoder_hidden_states=embeds)
        for row in range(2):
            k, v = (tensors[f"local.{published(f'{name}.{end}.weight')}.weight"] for end in ("to_k", "to_v"))
            expected = reference_attention(attn, hidden[row : row + 1], embeds[row : row + 1], local, column, 1.0, k, v)
            assert torch.allclose(found[row], expected[0], atol=1e-5)


def test_the_share_is_by_sample_and_0_without_the_word():
    probs = torch.tensor([[[[0.2, 0.8], [0.4, 0.6]]], [[[0.1, 0.9], [0.05, 0.95]]], [[[0.5, 0.5], [0.5, 0.5]]]])
    columns = torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    expected = torch.tensor([[[0.5, 1.0]], [[1.0, 0.5]], [[0.0, 0.0]]])
    assert torch.allclose(word_share(probs, columns), expected)


def test_unguided_rows_have_no_local_stream_second_branches_have_all_of_it(base, concept):
    with concept.attach(base) as brought:
        (local,) = brought.interventions
        main, alone, empty = (encode(base, text).spans for text in ("a photo of a <rex> sleeping", "a <rex>", ""))
    assert isinstance(local, LocalAttention)
    roles = ["uncond", "cond", "visual:subject-uncond", "visual:subject"]
    spans = {"uncond": empty, "cond": main, "visual:subject": alone}
    rows, columns = local.columns(Context(rows=rows_of(roles, 2), spans=spans), 24)
    assert rows == [2, 3, 6, 7]
    assert [row.nonzero().flatten().tolist() for row in columns] == [[5], [5], [2], [2]]


def test_a_second_branch_is_the_run_of_its_own_sentence(base, concept):
    """With z' = the whole run's own rows, the swap changes nothing: the second branch carries word and local stream."""
    plain = generate(base, "a {subject}", concept=concept, seeds=[0], options=OPTIONS)
    swapped = generate(
        base, "a {subject}", concept=concept, seeds=[0], options=OPTIONS,
        interventions=["attention-swap:start=0,stop=1,mask=everywhere"],
    )  # fmt: skip
    difference = np.asarray(plain.images[0], np.int16) - np.asarray(swapped.images[0], np.int16)
    assert np.abs(difference).max() <= 1
    elsewhere = generate(
        base, TEXT, concept=concept, seeds=[0], options=OPTIONS,
        interventions=["attention-swap:start=0,stop=1,mask=everywhere"],
    )  # fmt: skip
    own = generate(base, TEXT, concept=concept, seeds=[0], options=OPTIONS)
    assert not np.array_equal(np.asarray(own.images[0]), np.asarray(elsewhere.images[0]))


def test_adjustments_of_words_act_on_it_and_it_replays(base, concept):
    made = generate(base, TEXT, concept=concept, seeds=[0], options=OPTIONS, adjust=["orchestrate", "tea:alpha=0.3"])
    said = {each["name"]: each for each in made.record["adjusted"]}
    assert said["orchestrate"]["visual"] == ["<rex>"] and said["orchestrate"]["rank"] > 0
    plain = generate(base, TEXT, concept=concept, seeds=[0], options=OPTIONS)
    assert not np.array_equal(np.asarray(plain.images[0]), np.asarray(made.images[0]))
    again = replay(made.record, base, concept)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[0]))


def test_a_picture_without_a_mask_is_read_whole_and_that_is_said(base, weights, subject, capsys):
    bare = Subject("rex", "dog", subject.images)
    read = read_subject("elite", bare, base, settings={"weights": str(weights)})
    assert "has no mask" in capsys.readouterr().err and read.settings["notes"]
    assert (read.tensors[LOCAL]["local"] != 0).any(1).all()
    speck = np.zeros((16, 16), np.float32)
    speck[3, 3] = 1
    with pytest.raises(ImageError, match="none of the 2x2 patches"):
        read_subject("elite", Subject("rex", "dog", subject.images, (speck,)), base, settings={"weights": str(weights)})


def test_export_is_the_global_stream_or_nothing(base, concept, tmp_path):
    with pytest.raises(ConfigurationError, match="elite:scale=0"):
        concept.export(tmp_path / "out", base=base)
    files = {path.name for path in other(concept, scale=0.0).export(tmp_path / "out", base=base)}
    assert {"learned_embeds.safetensors", "unet_kv.safetensors", "usage.txt"} <= files


def test_weights_that_do_not_fit_are_refused_with_all_names(base, weights):
    tensors = dict(open_weights("elite", str(weights), base).tensors)
    tensors["global.mapping_0.9.weight"] = tensors.pop("global.mapping_0.3.weight")
    tensors["global.down_blocks_7_attn2_to_k.weight"] = torch.zeros(2, 16)
    with pytest.raises(ArtefactError, match=r"missing mapping_0\.3\.weight.*unexpected .*down_blocks_7") as caught:
        open_mappers(AdapterWeights("mine", {}, tensors, ""), base)
    assert "mapping_0.9.weight" in str(caught.value)


def test_the_names_and_sizes_are_the_published_ones():
    """Of SD 1.x and CLIP ViT-L/14: five levels, 16 sites; 28.9 M in the mapper, 19.2 M in keys and values."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64, attention_head_dim=8)
        mapper = GlobalMapper(5, 1024, 1024, 768, keys_and_values(unet))
    found = {name: tensor.numel() for name, tensor in mapper.state_dict().items()}
    expected = set()
    for level in range(5):
        for kind in (f"mapping_{level}", f"mapping_patch_{level}"):
            expected |= {f"{kind}.{part}.{end}" for part in (0, 1, 3, 4, 6) for end in ("weight", "bias")}
    paths = [f"down_blocks_{i}_attentions_{j}" for i in range(3) for j in range(2)]
    paths += ["mid_block_attentions_0"] + [f"up_blocks_{i}_attentions_{j}" for i in range(1, 4) for j in range(3)]
    expected |= {f"{path}_transformer_blocks_0_attn2_to_{end}.weight" for path in paths for end in "kv"}
    assert set(found) == expected
    mapped = sum(count for name, count in found.items() if name.startswith("mapping"))
    assert round(mapped / 1e6, 1) == 28.9 and round((sum(found.values()) - mapped) / 1e6, 1) == 19.2


def published_files(folder, base, levels=5):
    torch.manual_seed(0)
    for part, kind in (("global", GlobalMapper), ("local", LocalMapper)):
        state = kind(levels, 16, 8, 16, keys_and_values(base.denoiser)).state_dict()
        torch.save(state, folder / f"{part}_mapper.pt")
    return folder / "global_mapper.pt", folder / "local_mapper.pt"


def test_published_pickles_become_a_folder(base, tmp_path, capsys):
    one, two = published_files(tmp_path, base)
    assert cli.run(["convert", str(one), str(two), "--out", str(tmp_path / "made")]) == 0
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["levels"] == [-1, 4, 8, 12, 16] and config["background"] == "keep"
    whole, local = open_mappers(open_weights("elite", str(tmp_path / "made"), base), base)
    saved = torch.load(two, weights_only=True)
    assert local is not None and all(torch.equal(saved[name], value) for name, value in local.state_dict().items())
    assert whole.levels == 5


class Harmful:
    def __reduce__(self):
        return (print, ("ran",))


def test_pickles_that_hold_anything_else_are_refused(base, tmp_path, capsys):
    torch.save({"mapping_0.0.weight": torch.zeros(1), "x": Harmful()}, tmp_path / "global_mapper.pt")
    with pytest.raises(ArtefactError, match="not a plain file of tensors"):
        convert_elite(tmp_path / "global_mapper.pt", None, tmp_path / "made")
    assert "ran" not in capsys.readouterr().out and not (tmp_path / "made").exists()
    torch.save({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ArtefactError, match=re.escape("conv_in.weight: no names of ELITE")):
        convert_elite(tmp_path / "other.pt", None, tmp_path / "made")
    one, _ = published_files(tmp_path, base, levels=2)
    with pytest.raises(ArtefactError, match="2 levels, the published one has 5"):
        convert_elite(one, None, tmp_path / "made")
    with pytest.raises(ArtefactError, match="is not there"):
        convert_elite(tmp_path / "gone.pt", None, tmp_path / "made")
