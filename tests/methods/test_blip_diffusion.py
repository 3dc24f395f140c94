"""BLIP-Diffusion. Oracles: LAVIS's layers in plain torch, transformers' CLIP and BLIP-2, diffusers' names, the official
context encoding on the stock text encoder."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers import Blip2QFormerModel as TransformersQFormer

import tiny
from thisness.adapters import EMBEDDINGS
from thisness.conditioning import encode
from thisness.errors import ArtefactError, PromptError
from thisness.files import save_tensors, write_json
from thisness.generation import generate, replay
from thisness.methods.blip_diffusion import (
    NEGATIVE,
    build,
    category_ids,
    cleaned,
    open_blip,
    published_pixels,
    repeated,
)  # fmt: skip
from thisness.methods.blip_qformer import QFormer, QFormerConfig, VisionConfig, VisionTower
from thisness.methods.harmonizing_words import visual_positions
from thisness.methods.zero_shot import read_subject
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=2, guidance=3.0)
QUERIES = 4
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 20, "max_position_embeddings": 12,
}  # fmt: skip
VISION = {
    "hidden_size": 20, "intermediate_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat", "a", "teddy", "bear"]


def loud(model, seed=0):
    """Random weights of which every one matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder laid out as Salesforce/blipdiffusion, and a tokenizer."""
    folder = tmp_path_factory.mktemp("blipdiffusion")
    qformer = SIZES | {"vocab_size": len(VOCABULARY) + 1, "num_query_tokens": QUERIES}
    model = loud(QFormer(QFormerConfig(**qformer), VisionConfig(**VISION)))
    tensors = dict(model.state_dict()) | {"embeddings.position_ids": torch.arange(12.0)[None]}
    (folder / "qformer").mkdir()
    save_tensors(folder / "qformer" / "model.safetensors", tensors)
    config = {
        "num_query_tokens": QUERIES, "vision_config": VISION,
        "qformer_config": SIZES | {"vocab_size": len(VOCABULARY) + 1, "cross_attention_frequency": 1},
    }  # fmt: skip
    write_json(folder / "qformer" / "config.json", config)
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizer(vocab={word: number for number, word in enumerate(VOCABULARY)}).save_pretrained(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def subject():
    pixels = np.random.default_rng(1).integers(0, 255, (20, 30, 3), np.uint8)
    return Subject("rex", "dog", (Image.fromarray(pixels),))


def read(base, published, subject, **settings):
    given = {"weights": str(published), "bert": str(published / "bert"), "repeat": 1, "clean": False}
    return read_subject("blip-diffusion", subject, base, settings=given | {"negative": "none"} | settings)


@pytest.fixture(scope="module")
def concept(base, published, subject):
    return read(base, published, subject)


def layer_norm(x, w, name, eps):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def lavis_attention(x, y, w, name, heads, mask=None):
    """BertSelfAttention and BertSelfOutput of LAVIS's Qformer.py."""

    def split(t):
        return t.view(t.shape[0], t.shape[1], heads, -1).permute(0, 2, 1, 3)

    q, k, v = (split(linear(t, w, f"{name}.attention.{n}")) for t, n in ((x, "query"), (y, "key"), (y, "value")))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + (1.0 - mask[:, None, None, :].float()) * -10000.0
    context = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).flatten(2)
    return layer_norm(linear(context, w, f"{name}.output.dense") + x, w, f"{name}.output.LayerNorm", 1e-12)


def lavis_qformer(w, picture, ids, mask, layers=2, heads=2):
    """forward_ctx_embeddings of LAVIS's blip_diffusion.py, from the names of the weights."""
    words = w["embeddings.word_embeddings.weight"][ids]
    words = words + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = torch.cat([w["query_tokens"].repeat(len(ids), 1, 1), words], 1)
    x = layer_norm(x, w, "embeddings.LayerNorm", 1e-12)
    whole = torch.cat([torch.ones(len(ids), QUERIES, dtype=torch.long), mask], 1)
    for number in range(layers):
        name = f"encoder.layer.{number}"
        x = lavis_attention(x, x, w, f"{name}.attention", heads, whole)
        asked, said = x[:, :QUERIES], x[:, QUERIES:]
        asked = lavis_attention(asked, picture, w, f"{name}.crossattention", heads)
        parts = []
        for part, end in ((asked, "_query"), (said, "")):
            inner = F.gelu(linear(part, w, f"{name}.intermediate{end}.dense"))
            outer = linear(inner, w, f"{name}.output{end}.dense") + part
            parts.append(layer_norm(outer, w, f"{name}.output{end}.LayerNorm", 1e-12))
        x = torch.cat(parts, 1)
    x = x[:, :QUERIES]
    inner = linear(layer_norm(x, w, "proj_layer.LayerNorm", 1e-12), w, "proj_layer.dense1")
    return x + linear(inner * torch.sigmoid(1.702 * inner), w, "proj_layer.dense2")


def test_the_qformer_is_lavis(published, base):
    """Two categories of different lengths in one batch: the padding is not read."""
    model = build(open_blip(str(published), base), base)
    picture = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(1))
    ids, mask = torch.tensor([[2, 5, 3, 0], [2, 8, 9, 3]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = model(picture, ids, mask.bool())
    expected = lavis_qformer(model.state_dict(), picture, ids, mask)
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(model(picture[:1], ids[:1, :3]), expected[:1], atol=1e-4)
    assert not torch.allclose(model(picture[1:], ids[:1, :3]), expected[:1], atol=1e-2)


def test_its_layers_are_those_of_transformers_blip_2(published, base):
    """The maintained implementation, which embeds no words itself."""
    model = build(open_blip(str(published), base), base)
    config = Blip2QFormerConfig(**SIZES, vocab_size=11, cross_attention_frequency=1, use_qformer_text_input=True)
    stock = TransformersQFormer(config).eval()
    state = {n: t for n, t in model.state_dict().items() if n.startswith("encoder.")}
    state |= {f"layernorm.{end}": model.state_dict()[f"embeddings.LayerNorm.{end}"] for end in ("weight", "bias")}
    stock.load_state_dict(state)
    picture, ids = torch.randn(1, 5, 20), torch.tensor([[2, 5, 3]])
    words = model.embeddings.word_embeddings(ids) + model.embeddings.position_embeddings.weight[:3]
    with torch.no_grad():
        asked = stock(
            query_embeds=torch.cat([model.query_tokens, words], 1), query_length=QUERIES, encoder_hidden_states=picture
        ).last_hidden_state[:, :QUERIES]
    assert torch.allclose(model(picture, ids), model.proj_layer(asked), atol=1e-4)


def test_the_vision_transformer_is_clips_with_a_norm_after_all_tokens():
    tower = loud(VisionTower(VisionConfig(**VISION | {"layer_norm_eps": 1e-5})))
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=8)).eval()
    own, state = tower.state_dict(), {}
    names = {
        "embeddings.class_embedding": own["embeddings.class_embedding"][0, 0],
        "embeddings.patch_embedding.weight": own["embeddings.patch_embedding.weight"],
        "embeddings.position_embedding.weight": own["embeddings.position_embedding"][0],
    }
    for end in ("weight", "bias"):
        names[f"pre_layrnorm.{end}"] = own[f"pre_layernorm.{end}"]
        names[f"post_layernorm.{end}"] = own[f"post_layernorm.{end}"]
        for number in range(2):
            layer = f"encoder.layers.{number}"
            for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                names[f"{layer}.{part}.{end}"] = own[f"{layer}.{part}.{end}"]
            for part, value in zip("qkv", own[f"{layer}.self_attn.qkv.{end}"].chunk(3), strict=True):
                names[f"{layer}.self_attn.{part}_proj.{end}"] = value
            names[f"{layer}.self_attn.out_proj.{end}"] = own[f"{layer}.self_attn.projection.{end}"]
    state = {f"vision_model.{name}": value for name, value in names.items()}
    missing = clip.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all("projection" in n or "ids" in n for n in missing.missing_keys)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        last = clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(tower(pixels), clip.vision_model.post_layernorm(last), atol=1e-4)


def test_the_names_and_shapes_are_those_of_diffusers_class(tmp_path):
    """Its constructor runs, with a tokenizer from a folder; on the meta device in the published sizes."""
    from diffusers.pipelines.deprecated.blip_diffusion.modeling_blip2 import Blip2QFormerModel

    BertTokenizer(vocab={word: number for number, word in enumerate(VOCABULARY)}).save_pretrained(tmp_path)
    vision = Blip2VisionConfig(
        hidden_size=1024, num_hidden_layers=23, num_attention_heads=16, image_size=224, patch_size=14,
        intermediate_size=4096, hidden_act="quick_gelu",
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(), num_query_tokens=16,
        qformer_config={"cross_attention_frequency": 1, "encoder_hidden_size": 1024, "vocab_size": 30523},
    )  # fmt: skip
    config.tokenizer = str(tmp_path)
    with torch.device("meta"):
        theirs, ours = Blip2QFormerModel(config), QFormer(QFormerConfig(), VisionConfig())
    expected = {n: tuple(t.shape) for n, t in theirs.state_dict().items() if "position_ids" not in n}
    assert {n: tuple(t.shape) for n, t in ours.state_dict().items()} == expected
    assert vision.layer_norm_eps == VisionConfig().layer_norm_eps


def encode_context(text_model, ids, ctx, pos):
    """The spec's, section 3.1: rows spliced into the embeddings of the ids, positions running on, causal."""
    words = text_model.embeddings.token_embedding(ids)
    if ctx is not None:
        words = torch.cat([words[:, :pos], ctx, words[:, pos:]], 1)
    length = words.shape[1]
    x = words + text_model.embeddings.position_embedding.weight[:length]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    return text_model.final_layer_norm(text_model.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state)


def test_a_word_of_several_tokens_is_the_official_context_encoding(base, concept):
    rows = concept.tensors[EMBEDDINGS]["text_encoder"]
    assert rows.shape == (QUERIES, 16) and concept.word.text == "<rex> <rex_1> <rex_2> <rex_3> dog"
    encoder, length = base.modules["text_encoder"], base.tokenizer.model_max_length
    with torch.no_grad():
        ids = base.tokenizer(
            "a dog sleeping", padding="max_length", max_length=length - QUERIES, return_tensors="pt"
        ).input_ids
        expected = encode_context(encoder, ids, rows[None], 2)
        whole = base.tokenizer("a dog", padding="max_length", return_tensors="pt").input_ids
        stock = encoder(input_ids=whole).last_hidden_state
        assert torch.allclose(encode_context(encoder, whole, None, 2), stock, atol=1e-6)
        with concept.attach(base):
            filled = Prompt("a {subject} sleeping").fill({"subject": concept.word})
            found = encode(base, filled).embeds
            other = encode(base, Prompt("a {subject} on the beach").fill({"subject": concept.word})).embeds
            spans = filled.tokenize(base.tokenizer)
    assert torch.allclose(found, expected, atol=1e-5)
    assert visual_positions(spans, {"subject": concept}) == (2, 3, 4, 5)
    assert torch.equal(found[:, :6], other[:, :6]) and not torch.equal(found[:, 7], other[:, 7])


def test_reading_is_the_tower_and_the_qformer_of_the_category(base, published, subject, concept):
    model = build(open_blip(str(published), base), base)
    wide = subject.images[0]  # 30x20: the short side to 16, the middle of 24
    pixels = np.asarray(wide.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16)), np.float32) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    prepared = torch.from_numpy((pixels - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
    assert torch.allclose(published_pixels(subject, VisionConfig(**VISION), "crop"), prepared, atol=1e-5)
    ids = torch.tensor([[2, 5, 3]])  # [CLS] dog [SEP]
    expected = lavis_qformer(model.state_dict(), model.visual_encoder(prepared), ids, torch.ones_like(ids))
    assert torch.allclose(concept.tensors[EMBEDDINGS]["text_encoder"], expected[0], atol=1e-4)
    cat = read(base, published, subject, category="cat")
    assert cat.word == concept.word and not torch.allclose(cat.tensors[EMBEDDINGS]["text_encoder"], expected[0])
    squashed = read(base, published, subject, resize="squash").tensors[EMBEDDINGS]["text_encoder"]
    assert not torch.allclose(squashed, expected[0], atol=1e-3)


def test_the_sentence_is_said_as_often_as_it_fits():
    """61 ids: 12 copies of four words and 11 commas between two marks."""
    tokens = tiny.tokenizer(length=77)
    text = repeated("a {subject} sleeping on", "subject", "dog", 20, tokens, 61)
    assert text.startswith("a {subject} sleeping on, a dog sleeping on, a dog")
    said = text.replace("{subject}", "dog").replace(",", " , ").split()
    assert [said.count(word) for word in ("a", "dog", "sleeping", "on", ",")] == [12, 12, 12, 12, 11]
    assert len(tokens(text.replace("{subject}", "dog")).input_ids) <= 61
    assert repeated(text, "subject", "dog", 20, tokens, 61) == text  # a record's sentence is not said again
    assert repeated("a {subject} sleeping", "subject", "dog", 1, tokens, 61) == "a {subject} sleeping"
    few = repeated("a {subject} sleeping", "subject", "dog", 2, tokens, 61)
    assert few == "a {subject} sleeping, a dog sleeping"
    assert repeated("a {subject} sleeping", "subject", "dog", 20, tokens, 5) == "a {subject} sleeping"


def test_the_clean_up_is_lavis():
    assert cleaned("A {subject}, playing: the  Guitar!") == "a {subject}, playing the guitar"
    assert len(cleaned("word " * 80).split()) == 50


def test_options_of_the_sentence_reach_the_picture_and_replay(base, published, subject):
    loud_one = read(base, published, subject, repeat=3, clean=True, negative="long")
    with pytest.raises(PromptError, match="tokens"):  # the long negative prompt does not fit the tiny encoder
        generate(base, "a {subject} SLEEPING!", concept=loud_one, seeds=[0], options=OPTIONS)
    made = generate(base, "a {subject} SLEEPING!", concept=loud_one, seeds=[0], options=OPTIONS, negative="snow")
    assert made.record["prompt"] == "a {subject} sleeping, a dog sleeping, a dog sleeping"
    assert loud_one.sentence(Prompt("a {subject}"), "", base)[1] == NEGATIVE
    assert loud_one.sentence(Prompt("a {subject}"), "snow", base)[1] == "snow"
    again = replay(made.record, base, loud_one)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[0])) and not again.differences


def test_what_acts_on_words_acts_on_all_of_them(base, concept):
    text = "a {subject} sleeping on the beach"
    plain = generate(base, text, concept=concept, seeds=[0], options=OPTIONS)
    made = generate(base, text, concept=concept, seeds=[0], options=OPTIONS, adjust=["orchestrate"])
    said = {each["name"]: each for each in made.record["adjusted"]}["orchestrate"]
    assert said["visual"] == list(concept.tokens) and "dog" not in said["basis"] and "sleeping" in said["basis"]
    swapped = generate(
        base, text, concept=concept, seeds=[0], options=OPTIONS,
        interventions=["attention-swap:start=0,stop=1,mask=everywhere"],
    )  # fmt: skip
    turned = generate(base, text, concept=concept, seeds=[0], options=OPTIONS, adjust=["tea:alpha=0.5"])
    pictures = [np.asarray(each.images[0]) for each in (plain, made, swapped, turned)]
    assert all(not np.array_equal(pictures[0], other) for other in pictures[1:])


def embedded(folder, lora=None):
    """Weights that read a CLIP model and the base's own words."""
    sizes = SIZES | {"encoder_hidden_size": 16, "hidden_size": 12, "vocab_size": 0, "words_size": 16, "out_size": 16}
    qformer = sizes | {"num_query_tokens": 3}
    tensors = dict(loud(QFormer(QFormerConfig(**qformer))).state_dict()) | (lora or {})
    folder.mkdir()
    save_tensors(folder / "model.safetensors", tensors)
    config = {"method": "blip-diffusion", "qformer": qformer, "image_encoder": tiny.clip_folder(), "level": -1}
    write_json(folder / "config.json", config | {"background": "drop"})
    return folder


def test_small_weights_read_a_clip_model_and_the_words_of_the_base(base, subject, tmp_path):
    folder = embedded(tmp_path / "plain")
    one = read_subject("blip-diffusion", subject, base, settings={"weights": str(folder)})
    assert one.settings["repeat"] == 1 and one.settings["negative"] == "none"  # the preset "small"
    rows = one.tensors[EMBEDDINGS]["text_encoder"]
    assert rows.shape == (3, 16)
    cat = read_subject("blip-diffusion", subject, base, settings={"weights": str(folder), "category": "cat"})
    assert not torch.allclose(cat.tensors[EMBEDDINGS]["text_encoder"], rows, atol=1e-3)
    mask = np.zeros((20, 30), np.float32)
    mask[5:15, 5:25] = 1
    masked = read_subject(
        "blip-diffusion", Subject("rex", "dog", subject.images, (mask,)), base, settings={"weights": str(folder)}
    )
    assert not torch.allclose(masked.tensors[EMBEDDINGS]["text_encoder"], rows, atol=1e-3)


def test_low_rank_weights_go_with_them_and_come_off_again(base, subject, tmp_path):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    torch.manual_seed(0)
    lora = {f"unet.{name}.lora_A.weight": torch.randn(2, 16), f"unet.{name}.lora_B.weight": torch.randn(16, 2)}
    given = {"weights": str(embedded(tmp_path / "lora", lora))}
    concept = read_subject("blip-diffusion", subject, base, settings=given)
    module, x = base.denoiser.get_submodule(name), torch.randn(1, 16)
    with torch.no_grad():
        before = module(x)
        with concept.attach(base):
            found = base.denoiser.get_submodule(name)(x)
    a, b = lora.values()
    assert torch.allclose(found, before + x @ a.T @ b.T, atol=1e-4)
    assert base.denoiser.get_submodule(name) is module
    files = {path.name for path in concept.export(tmp_path / "out", base=base)}
    assert {"learned_embeds.safetensors", "pytorch_lora_weights.safetensors"} <= files


def test_what_does_not_fit_is_refused_in_one_line(base, published, subject, tmp_path):
    weights = open_blip(str(published), base)
    tensors = dict(weights.tensors)
    tensors["encoder.layer.7.attention.query"] = tensors.pop("query_tokens")
    broken = type(weights)("mine", weights.config, tensors, "")
    with pytest.raises(ArtefactError, match=r"missing query_tokens.*unexpected encoder\.layer\.7"):
        build(broken, base)
    wide = tiny.base("zero-snr")
    wide.modules["text_encoder"].set_input_embeddings(torch.nn.Embedding(100, 24))
    with pytest.raises(ArtefactError, match="gives rows of 16, and the text encoder of 'tiny' reads 24"):
        build(weights, wide)
    with pytest.raises(ArtefactError, match="has 10 words, and the querying transformer was trained with 30522"):
        category_ids("dog", str(published / "bert"), 30523)
    (tmp_path / "qformer").mkdir()
    (tmp_path / "qformer" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ArtefactError, match="may be a pickle"):
        open_blip(str(tmp_path), base)
    config = json.loads((published / "qformer" / "config.json").read_text())
    assert config["num_query_tokens"] == QUERIES
