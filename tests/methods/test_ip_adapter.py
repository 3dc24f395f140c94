"""IP-Adapter and Plus. Oracles: plain diffusers with the same file, the base alone, the paper's projection."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

import tiny
from thisness import cli
from thisness.bases import Base
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode, encode_adjusted, encode_negative
from thisness.errors import ArtefactError, ConfigurationError, ImageError
from thisness.files import save_tensors
from thisness.generation import generate, replay
from thisness.methods import learn
from thisness.methods.harmonizing_orchestrate import Orchestrate
from thisness.methods.harmonizing_swap import AttentionSwap
from thisness.methods.harmonizing_words import visual_only
from thisness.methods.ip_adapter import FILE, ImageProjection, Resampler, adapter, projection_for, projections
from thisness.methods.ip_adapter_weights import AdapterWeights, encoder_of
from thisness.methods.zero_shot import read_subject
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions, sample
from thisness.subject import Subject

METHODS = ("ip-adapter", "ip-adapter-plus")
OPTIONS = SamplingOptions(steps=3, guidance=2.0, scheduler="ddim")
ONE = SamplingOptions(steps=1, guidance=2.0, scheduler="ddim")
TEXT = "a {subject} sleeping on the beach"
WIDTH, FEATURES, HIDDEN = 16, 12, 16  # of the tiny text encoder and CLIP


def random_tensors(method, base, seed=0):
    """A file in the published layout."""
    torch.manual_seed(seed)
    width = base.denoiser.config.cross_attention_dim
    image = ImageProjection(FEATURES, width) if method == "ip-adapter" else Resampler(HIDDEN, 8, width, 5, heads=1)
    tensors = {f"image_proj.{name}": each.detach().clone() for name, each in image.state_dict().items()}
    for k, name in projections(base).items():
        attn = base.denoiser.get_submodule(name)
        for part in "kv":
            tensors[f"ip_adapter.{k}.to_{part}_ip.weight"] = torch.randn(attn.get_submodule(f"to_{part}").weight.shape)
    return tensors


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def epsilon():
    """As SD 1.x: zero terminal SNR multiplies rounding in its first step."""
    return tiny.base("epsilon")


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for method in METHODS:
        save_tensors(folder / f"{method}.safetensors", random_tensors(method, base))
    return folder


@pytest.fixture(scope="module")
def subject():
    """Not square, so that it is cropped."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, 16, 3), np.uint8)
    mask = np.zeros((20, 16), np.float32)
    mask[6:14, 4:12] = 1
    return Subject("rufus", "dog", (Image.fromarray(pixels),), (mask,), ("rufus.png",))


def read(method, base, files, subject, **settings):
    given = {"weights": str(files / f"{method}.safetensors"), "image_encoder": tiny.clip_folder(), "scale": 0.8}
    return read_subject(method, subject, base, preset="default", settings=given | settings)


def fingerprint(base: Base):
    digest = hashlib.sha256()
    for part in base.modules.values():
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    processors = {name: id(each) for name, each in base.denoiser.attn_processors.items()}
    return digest.hexdigest(), len(base.tokenizer), processors


@torch.no_grad()
def run(base, concept, *, text=TEXT, adjust=(), attach=(), seeds=(0,), keep=None, options=OPTIONS):
    """Latents, as `generate` makes them; keep: what was attached, then what was bound."""
    filled = Prompt(text).fill({"subject": concept.word})
    with concept.attach(base) as brought:
        sentence = Sentence(base, filled, {"subject": concept}, (), None, {"subject": brought})
        conditioning = encode_adjusted(sentence, adjust).conditioning
        bound = [each.bound(sentence) for each in attach]
        if keep is not None:
            keep += [brought, sentence, *bound]
        acting = [*brought.interventions, *bound]
        return sample(base, conditioning, encode_negative(base), seeds, options, interventions=acting)


def apart(one, other):
    """Relative to the other."""
    return float((one - other).norm() / other.norm())


@torch.no_grad()
def text_alone(base, text="a dog sleeping on the beach", seeds=(0,)):
    return sample(base, encode(base, text), encode_negative(base), seeds, OPTIONS)


@pytest.mark.parametrize("method", METHODS)
class TestReading:
    def test_diffusers_with_the_same_file_makes_the_same_latents(self, method, epsilon, files, subject):
        base, pipe = epsilon, tiny.pipeline("epsilon")
        pipe.register_modules(
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(tiny.clip_folder()),
            feature_extractor=CLIPImageProcessorPil.from_pretrained(tiny.clip_folder()),
        )
        pipe.load_ip_adapter(str(files), "", f"{method}.safetensors")
        pipe.set_ip_adapter_scale(0.8)
        stock = pipe(
            "a dog sleeping on the beach", ip_adapter_image=subject.images[0], num_inference_steps=1,
            guidance_scale=2.0, height=16, width=16, generator=torch.Generator().manual_seed(0), output_type="latent",
        ).images  # fmt: skip
        concept = read(method, base, files, subject)
        assert apart(run(base, concept, options=ONE), stock) < 1e-6
        assert apart(run(base, concept), text_alone(base)) > 0.1

    def test_scale_0_is_the_text_alone_to_the_bit(self, method, base, files, subject):
        assert torch.equal(run(base, read(method, base, files, subject, scale=0.0)), text_alone(base))

    def test_saved_loaded_and_off_again(self, method, base, files, subject, tmp_path):
        before = fingerprint(base)
        given = {"weights": str(files / f"{method}.safetensors"), "image_encoder": tiny.clip_folder()}
        concept = learn(method, subject, base, folder=tmp_path / "rufus", progress=False, **given)
        loaded = Concept.load(tmp_path / "rufus", base=base)
        assert loaded.hash == concept.hash and fingerprint(base) == before
        first = run(base, concept)
        assert torch.equal(run(base, loaded), first)
        with pytest.raises(RuntimeError, match="on purpose"), loaded.attach(base):
            raise RuntimeError("on purpose")
        assert fingerprint(base) == before

    def test_what_is_exported_is_loaded_by_its_usage(self, method, epsilon, files, subject, tmp_path, monkeypatch):
        base, pipe = epsilon, tiny.pipeline("epsilon")
        concept = read(method, base, files, subject)
        concept.export(tmp_path / "out", base=base)
        lines = (tmp_path / "out" / "usage.txt").read_text().splitlines()
        call = next(number for number, line in enumerate(lines) if line.startswith("pipe("))
        names = {"pipe": pipe}
        monkeypatch.chdir(tmp_path / "out")
        exec("\n".join(lines[:call]), names)
        stock = pipe(
            "a dog sleeping on the beach", ip_adapter_image_embeds=[names["embeds"]], num_inference_steps=1,
            guidance_scale=2.0, height=16, width=16, generator=torch.Generator().manual_seed(0), output_type="latent",
        ).images  # fmt: skip
        assert apart(run(base, concept, options=ONE), stock) < 1e-6

    def test_projections_are_computed_once_and_a_batch_is_its_pictures(self, method, base, files, subject, monkeypatch):
        calls = []
        forward = torch.nn.Linear.forward
        concept, kept = read(method, base, files, subject), []

        def counted(self, x):
            calls.append(id(self))
            return forward(self, x)

        monkeypatch.setattr(torch.nn.Linear, "forward", counted)
        both = run(base, concept, seeds=(0, 1), keep=kept)
        of_picture = [id(to) for pair in kept[0].tokens.layers.values() for to in pair]
        assert len(of_picture) == 8 and [calls.count(each) for each in of_picture] == [1] * 8
        one = torch.cat([run(base, concept, seeds=(seed,)) for seed in (0, 1)])
        assert torch.allclose(both, one, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
class TestHarmonizing:
    def test_orchestrated_tokens_are_orthogonal_to_the_text(self, method, base, files, subject):
        kept = []
        run(base, read(method, base, files, subject), adjust=[Orchestrate(max_rank=16)], keep=kept)
        picture, sentence = kept[0].tokens, kept[1]
        spans = sentence.filled.tokenize(base.tokenizer)
        assert [spans.piece(at) for at in (3, 4, 6)] == ["sleeping", "on", "beach"]
        rows = encode(base, sentence.filled).embeds[0, [3, 4, 6]]
        cosines = torch.nn.functional.cosine_similarity(picture.given[:, None], rows[None], dim=-1)
        assert cosines.abs().max() < 1e-6 and not torch.equal(picture.given, picture.tokens)
        before = torch.nn.functional.cosine_similarity(picture.tokens[:, None], rows[None], dim=-1)
        assert before.abs().max() > 0.1

    def test_strength_0_is_the_host_to_the_bit(self, method, base, files, subject):
        concept = read(method, base, files, subject)
        plain = run(base, concept)
        for space in ("input", "value", "key_value"):
            assert torch.equal(run(base, concept, adjust=[Orchestrate(strength=0.0, space=space)]), plain)
            assert not torch.allclose(run(base, concept, adjust=[Orchestrate(space=space)]), plain, atol=1e-2)

    def test_values_are_orthogonal_to_the_values_of_the_text(self, method, base, files, subject):
        concept, plain, value, both = read(method, base, files, subject), [], [], []
        run(base, concept, keep=plain)
        run(base, concept, adjust=[Orchestrate(space="value", max_rank=16)], keep=value)
        run(base, concept, adjust=[Orchestrate(space="key_value", max_rank=16)], keep=both)
        rows = encode(base, value[1].filled).embeds[0, [3, 4, 6]]
        for name in value[0].tokens.layers:
            attn = base.denoiser.get_submodule(name)
            before, after, too = (each[0].tokens.keys_values(name) for each in (plain, value, both))
            assert (after[1][0] @ attn.to_v(rows).T).abs().max() < 1e-4
            assert (before[1][0] @ attn.to_v(rows).T).abs().max() > 1
            assert (too[0][0] @ attn.to_k(rows).T).abs().max() < 1e-4
            assert torch.equal(after[0], before[0]) and torch.equal(after[1][1:], before[1][1:])

    def test_the_second_branch_reads_no_text_and_the_picture_as_it_is(self, method, base, files, subject):
        """Oracle: the host run on an empty sentence, without orchestration, from the same noise."""
        concept, kept = read(method, base, files, subject), []
        swap = AttentionSwap(start=0.0, stop=1.0)
        run(base, concept, adjust=[Orchestrate()], attach=[swap], keep=kept)
        bound = kept[2]
        assert torch.equal(bound.conditioning.embeds, encode(base, "").embeds)
        assert [base_piece(base, bound, at) for at in bound.columns] == ["dog"]
        seen = {}
        extra = type(kept[0].tokens).extra

        def watched(self, site, attn, q, out, context):
            made = extra(self, site, attn, q, out, context)
            for row, role in enumerate(context.rows):
                seen.setdefault((role.role, context.step, site.name), made[row] - out[row])
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(kept[0].tokens), "extra", watched)
            run(base, concept, adjust=[Orchestrate()], attach=[swap])
            with_swap = dict(seen)
            seen.clear()
            filled = Prompt("{subject}").fill({"subject": concept.word})
            with concept.attach(base) as brought, torch.no_grad():
                sentence = Sentence(base, filled, {"subject": concept}, (), None, {"subject": brought})
                empty, _ = visual_only(sentence, "subject")
                sample(base, empty, encode_negative(base), (0,), OPTIONS, interventions=brought.interventions)
        names = [(step, name) for role, step, name in seen if role == "cond"]
        assert len(names) == 12
        for step, name in names:
            for role, other in (("visual:subject", "cond"), ("visual:subject-uncond", "uncond")):
                assert torch.allclose(with_swap[role, step, name], seen[other, step, name], atol=1e-4)

    def test_swap_changes_the_picture_and_its_parts_need_the_right_words(self, method, base, files, subject):
        concept = read(method, base, files, subject)
        plain = run(base, concept)
        swap = AttentionSwap(start=0.0, stop=1.0, mask="everywhere")
        assert not torch.allclose(run(base, concept, attach=[swap]), plain, atol=1e-2)
        assert torch.equal(run(base, concept, attach=[AttentionSwap(start=0.5, stop=0.5)]), plain)
        with pytest.raises(ConfigurationError, match="mask_words=word: 'dog' stands in the sentence without a word"):
            run(base, concept, attach=[AttentionSwap(mask_words="word")])


def base_piece(base, bound, position):
    return bound.sentence.filled.tokenize(base.tokenizer).piece(position)


def test_visual_only_modes(base, files, subject):
    concept = read("ip-adapter", base, files, subject)
    with concept.attach(base) as brought, torch.no_grad():
        filled = Prompt(TEXT).fill({"subject": concept.word})
        sentence = Sentence(base, filled, {"subject": concept}, (), None, {"subject": brought})
        empty = encode(base, "").embeds
        zeros, _ = visual_only(sentence, "subject", "zeros")
        first, _ = visual_only(sentence, "subject", "zeros_bos")
        _, visible = visual_only(sentence, "subject", "drop")
        noun, _ = visual_only(sentence, "subject", "null_text", "yes")
        assert zeros.embeds.abs().max() == 0
        assert torch.equal(first.embeds[:, 0], empty[:, 0]) and first.embeds[:, 1:].abs().max() == 0
        assert visible == (0,) and torch.equal(noun.embeds, encode(base, "a dog").embeds)


def test_a_sentence_that_says_nothing_else_is_left_and_said(base, files, subject):
    concept = read("ip-adapter", base, files, subject)
    made = generate(base, "a {subject}", concept=concept, adjust=["orchestrate"], options=OPTIONS)
    plain = generate(base, "a {subject}", concept=concept, options=OPTIONS)
    assert made.images[0].tobytes() == plain.images[0].tobytes()
    assert "nothing to orthogonalise to" in made.record["adjusted"][0]["says"]
    told = generate(base, TEXT, concept=concept, adjust=["orchestrate"], options=OPTIONS).record["adjusted"][0]
    assert "4 image tokens of rufus without sleeping on beach" in told["says"]
    assert told["visual"] == [f"rufus:{n}" for n in range(4)] and len(told["retained"]) == 4 and told["rank"] == 3
    learned = Concept.create(
        "textual-inversion", subject, base, word="<rufus>", tokens=["<rufus>"],
        tensors={"embeddings.safetensors": {"text_encoder": torch.randn(1, WIDTH)}},
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="space=value is for a picture that is read beside the text"):
        generate(base, TEXT, concept=learned, adjust=["orchestrate:space=value"], options=OPTIONS)


def test_two_subjects_add_up_and_one_second_branch_shows_one(base, files, subject):
    rufus = read("ip-adapter", base, files, subject)
    other = Subject("mimi", "cat", (Image.new("RGB", (16, 16), "red"),), (None,))
    mimi = read("ip-adapter", base, files, other)
    text = "a {rex} and a {mia} on the beach"
    both = {"rex": rufus, "mia": mimi}
    swapped = AttentionSwap(slot="rex", start=0.0, stop=1.0)
    with pytest.raises(ConfigurationError, match=r"several concepts \(rex, mia\): say which one"):
        generate(base, text, concept=both, interventions=["attention-swap"], options=OPTIONS)
    roles = {}
    from thisness.attention import ImageTokens

    read_by = ImageTokens._read_by
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ImageTokens, "_read_by", lambda self, role: roles.setdefault((id(self), role), read_by(self, role))
        )
        generate(base, text, concept=both, interventions=[swapped], options=OPTIONS)
    assert sorted(kind for (_, role), kind in roles.items() if role == "visual:rex") == [1, 2]  # its own; none
    assert [kind for (_, role), kind in roles.items() if role == "cond"] == [0, 0]


def test_the_command_line_and_a_replay(base_folder, photos, tmp_path, capsys):
    from thisness.bases import load_base

    base = load_base(str(base_folder))
    save_tensors(tmp_path / "ip.safetensors", random_tensors("ip-adapter", base))
    method = f"ip-adapter:weights={tmp_path / 'ip.safetensors'},image_encoder={tiny.clip_folder()},scale=0.9"
    words = ["generate", "a {subject} sleeping", "--base", base_folder, "--subject", photos, "--noun", "dog"]
    words += ["--method", method, "--recipe", "harmonizing", "--steps", "4", "--seeds", "0", "--out", tmp_path / "o"]
    assert cli.run([str(word) for word in words]) == 0
    assert "4 image tokens of rex without sleeping" in capsys.readouterr().err
    concept = Concept.load(tmp_path / "o" / "concept")
    assert concept.word.text == "dog" and concept.settings["scale"] == 0.9
    picture = next(path for path in (tmp_path / "o").glob("*.png") if path.name != "sheet.png")
    again = replay(picture, base, concept, subject=Subject.from_folder(photos, noun="dog"))
    assert again.images[0].tobytes() == Image.open(picture).convert("RGB").tobytes() and not again.differences


class TestRefusals:
    def test_a_mask_where_one_is_needed(self, base, files, subject):
        image = subject.images[0]
        bare = Subject("rufus", "dog", (image,), (None,), ("rufus.png",))
        with pytest.raises(ImageError, match=r"rufus\.png has no mask, which background=white needs"):
            read("ip-adapter", base, files, bare, background="white")
        whole, alone = (
            read("ip-adapter", base, files, subject),
            read("ip-adapter", base, files, subject, background="grey"),
        )
        pixels = np.where(subject.masks[0][..., None] > 0, np.asarray(image), 128).astype(np.uint8)
        cut = Subject("rufus", "dog", (Image.fromarray(pixels),), (None,))
        assert not torch.equal(whole.tensors[FILE]["tokens"], alone.tensors[FILE]["tokens"])
        assert torch.equal(alone.tensors[FILE]["tokens"], read("ip-adapter", base, files, cut).tensors[FILE]["tokens"])

    def test_weights_of_the_other_method_of_none_and_for_nothing_known(self, base, files, subject, tmp_path):
        with pytest.raises(ArtefactError, match="has the weights of ip-adapter-plus, not of ip-adapter: use --method"):
            read("ip-adapter", base, files, subject, weights=str(files / "ip-adapter-plus.safetensors"))
        save_tensors(tmp_path / "face.safetensors", {"image_proj.proj.0.weight": torch.ones(2, 2)})
        with pytest.raises(ArtefactError, match="FaceID files read a face recogniser instead"):
            read("ip-adapter", base, files, subject, weights=str(tmp_path / "face.safetensors"))
        with pytest.raises(ArtefactError, match="no weights of ip-adapter are known for 'tiny', whose text is 16 wide"):
            read("ip-adapter", base, files, subject, weights="")
        with pytest.raises(ArtefactError, match="may be a pickle"):
            read("ip-adapter", base, files, subject, weights="h94/IP-Adapter:models/ip-adapter_sd15.bin")
        with pytest.raises(ArtefactError, match="is not there"):
            read("ip-adapter", base, files, subject, weights=str(tmp_path / "no.safetensors"))

    def test_all_unmatched_names_in_one_line(self, base, subject, tmp_path):
        tensors = random_tensors("ip-adapter", base)
        tensors["ip_adapter.9.to_k_ip.weight"] = tensors.pop("ip_adapter.7.to_k_ip.weight")
        tensors["ip_adapter.1.to_v_ip.weight"] = torch.ones(3, 3)
        save_tensors(tmp_path / "ip-adapter.safetensors", tensors)
        with pytest.raises(ArtefactError) as refused:
            read("ip-adapter", base, tmp_path, subject)
        said = str(refused.value)
        assert "missing ip_adapter.7.to_k_ip.weight" in said and "unexpected ip_adapter.9.to_k_ip.weight" in said
        assert "other shapes: ip_adapter.1.to_v_ip.weight (3, 3), expected" in said and "\n" not in said

    def test_other_weights_than_those_it_was_read_with(self, base, files, subject, tmp_path):
        save_tensors(tmp_path / "ip-adapter.safetensors", random_tensors("ip-adapter", base))
        concept = read("ip-adapter", base, tmp_path, subject)
        save_tensors(tmp_path / "ip-adapter.safetensors", random_tensors("ip-adapter", base, seed=1))
        with pytest.raises(ArtefactError, match="read with other weights of ip-adapter"), concept.attach(base):
            pass

    def test_compiled_models_scales_and_encoders(self, base, files, subject):
        concept = read("ip-adapter", base, files, subject)
        compiled = Base.from_pipeline(tiny.pipeline("zero-snr"), name="tiny")
        compiled.denoiser._compiled_call_impl = lambda *args: None
        with pytest.raises(ConfigurationError, match=r"under torch\.compile"), concept.attach(compiled):
            pass
        with pytest.raises(ConfigurationError, match=r"scale -1\.0 must be in 0 \.\.\. 2"):
            read("ip-adapter", base, files, subject, scale=-1.0)
        with pytest.raises(ConfigurationError, match="image_encoder 'nothing'"):
            read("ip-adapter", base, files, subject, image_encoder="nothing")

    def test_another_image_encoder_than_the_adapters(self, base, subject, tmp_path):
        tensors = random_tensors("ip-adapter", base) | {"image_proj.proj.weight": torch.ones(4 * WIDTH, 7)}
        save_tensors(tmp_path / "ip-adapter.safetensors", tensors)
        with pytest.raises(ArtefactError, match="gives pooled features of width 12, and .* reads 7"):
            read("ip-adapter", base, tmp_path, subject)


SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


class Hollow:
    """A base whose denoiser has names and shapes only."""

    name, dtype, device = "hollow", torch.float32, torch.device("meta")

    def __init__(self, config):
        with torch.device("meta"):
            self.denoiser = UNet2DConditionModel(**config)


def published(config, method, sizes):
    """Names and shapes as in h94/IP-Adapter, written down without our modules."""
    base = Hollow(config)
    shapes = {}
    if method == "ip-adapter":
        features, width = sizes
        shapes |= {"proj.weight": (4 * width, features), "proj.bias": (4 * width,)}
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    else:
        features, wide, width, heads = sizes
        shapes |= {"latents": (1, 16, wide), "proj_in.weight": (wide, features), "proj_in.bias": (wide,)}
        shapes |= {"proj_out.weight": (width, wide), "proj_out.bias": (width,)}
        shapes |= {"norm_out.weight": (width,), "norm_out.bias": (width,)}
        for layer in range(4):
            inner = {"0.to_q.weight": (64 * heads, wide), "0.to_kv.weight": (128 * heads, wide)}
            inner |= {
                "0.to_out.weight": (wide, 64 * heads),
                "1.1.weight": (4 * wide, wide),
                "1.3.weight": (wide, 4 * wide),
            }
            norms = [f"{norm}.{part}" for norm in ("0.norm1", "0.norm2", "1.0") for part in ("weight", "bias")]
            shapes |= {
                f"layers.{layer}.{name}": shape for name, shape in (inner | dict.fromkeys(norms, (wide,))).items()
            }
    tensors = {f"image_proj.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    k = 1
    for name in base.denoiser.attn_processors:  # diffusers' own numbering: 1, 3, 5 ... over the cross-attentions
        if name.endswith("attn2.processor"):
            attn = base.denoiser.get_submodule(name.removesuffix(".processor"))
            for part in "kv":
                tensors[f"ip_adapter.{k}.to_{part}_ip.weight"] = torch.empty(attn.to_k.weight.shape, device="meta")
            k += 2
    return base, tensors


@pytest.mark.parametrize(
    ("config", "method", "sizes", "millions", "layers"),
    [
        pytest.param(SD15, "ip-adapter", (1024, 768), (3.2, 19.2), 16, id="sd15"),
        pytest.param(SD15, "ip-adapter-plus", (1280, 768, 768, 12), (29.9, 19.2), 16, id="plus-sd15"),
        pytest.param(SDXL, "ip-adapter", (1280, 2048), None, 70, id="sdxl"),
        pytest.param(SDXL, "ip-adapter-plus", (1280, 1280, 2048, 20), None, 70, id="plus-sdxl"),
    ],
)
def test_published_layouts_match_name_by_name(config, method, sizes, millions, layers):
    base, tensors = published(config, method, sizes)
    found, by_layer = adapter(method, AdapterWeights("published", {}, tensors, ""), base)
    assert len(by_layer) == layers
    counts = [
        sum(each.numel() for name, each in tensors.items() if name.startswith(group))
        for group in ("image_proj", "ip_adapter")
    ]
    assert millions is None or tuple(round(count / 1e6, 1) for count in counts) == millions  # as published
    ours = sum(each.numel() for each in found.parameters())
    assert [ours, sum(each.weight.numel() for pair in by_layer.values() for each in pair)] == counts
    if method == "ip-adapter":
        assert encoder_of(AdapterWeights("x", {}, {}, ""), "pooled", sizes[0]).startswith("h94/IP-Adapter:")


def test_full_face_keeps_every_patch():
    tensors = {f"image_proj.proj.{n}.weight": torch.zeros(s) for n, s in ((0, (6, 6)), (2, (4, 6)), (3, (4,)))}
    made = projection_for("ip-adapter-plus", tensors, "full-face").to_empty(device="cpu")
    assert made(torch.zeros(1, 9, 6)).shape == (1, 9, 4)


def test_sdxl_is_that_of_diffusers(subject, tmp_path):
    base, pipe = tiny.base_xl(), tiny.pipeline_xl()
    save_tensors(tmp_path / "ip-adapter.safetensors", random_tensors("ip-adapter", base))
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(tiny.clip_folder()),
        feature_extractor=CLIPImageProcessorPil.from_pretrained(tiny.clip_folder()),
    )
    pipe.load_ip_adapter(str(tmp_path), "", "ip-adapter.safetensors")
    pipe.set_ip_adapter_scale(0.8)
    stock = pipe(
        "a dog sleeping on the beach", ip_adapter_image=subject.images[0], num_inference_steps=1, guidance_scale=2.0,
        height=16, width=16, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).images  # fmt: skip
    concept = read("ip-adapter", base, tmp_path, subject)
    plain = run(base, concept, options=ONE)
    assert apart(plain, stock) < 1e-6
    assert apart(run(base, concept, adjust=[Orchestrate()], options=ONE), plain) > 1e-3
    swap = AttentionSwap(start=0.0, stop=1.0, mask="everywhere")
    assert apart(run(base, concept, adjust=[Orchestrate()], attach=[swap]), run(base, concept)) > 0.01


@pytest.mark.slow
def test_one_step_of_sd15_in_full_size():
    """Oracle: the stock pipeline with diffusers' loader, in bfloat16 on a random SD 1.5 UNet."""
    import json

    folder = Path(__file__).parents[1] / "data"
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = UNet2DConditionModel.from_config(json.loads((folder / "sd15.json").read_text())["unet"])
    finally:
        torch.set_default_dtype(default)
    tokens = tiny.tokenizer(length=77)
    parts = {"unet": unet, "vae": tiny.vae().bfloat16(), "text_encoder": tiny.text_encoder(tokens, 768).bfloat16()}
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline(tokenizer=tokens, scheduler=tiny.scheduler(), **parts, **more)
    base = Base.from_pipeline(pipe, name="sd15-random")
    _, meta = published(SD15, "ip-adapter", (1024, 768))
    tensors = {name: 0.02 * torch.randn(each.shape) for name, each in meta.items()}
    image, layers = adapter("ip-adapter", AdapterWeights("random", {}, tensors, ""), base)
    from thisness.attention import ImageTokens

    features = torch.randn(1, 1024)
    with torch.no_grad():
        tokens_of = image(features)[0], image(torch.zeros_like(features))[0]
        options = SamplingOptions(steps=1, guidance=2.0, scheduler="ddim", height=16, width=16)
        ours = sample(
            base, encode(base, "a dog"), encode_negative(base), (0,), options,
            interventions=[ImageTokens(layers, *tokens_of, 0.6)],
        )  # fmt: skip
    nested: dict[str, dict] = {"image_proj": {}, "ip_adapter": {}}
    for name, each in tensors.items():
        group, _, rest = name.partition(".")
        nested[group][rest] = each.bfloat16()
    pipe.load_ip_adapter(nested, "", "", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    embeds = torch.stack([torch.zeros_like(features), features]).bfloat16()
    stock = pipe(
        "a dog", ip_adapter_image_embeds=[embeds], num_inference_steps=1, guidance_scale=2.0, height=16, width=16,
        generator=torch.Generator().manual_seed(0), output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(ours.float(), stock.float(), atol=0.05) and ours.shape == stock.shape
