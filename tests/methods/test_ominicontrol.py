"""OminiControl as a method. Oracles: the base before, the stock pipeline driving the same references, low-rank weights
saved by the stock pipeline, a count of operations on paper."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_flux
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from thisness import cli
from thisness.attention import attached
from thisness.bases import Base
from thisness.bases.flux import pack
from thisness.concept import Concept
from thisness.conditioning import encode
from thisness.errors import ArtefactError, ConfigurationError, UserError
from thisness.generation import generate, replay
from thisness.methods.flux_references import fresh_lora, installed_on
from thisness.methods.ominicontrol import FILE, black_latents, open_lora, reference_latents
from thisness.methods.zero_shot import read_subject
from thisness.sampling import SamplingOptions, sample
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=2, guidance=2.0)
SENTENCE = "a photo of a {subject} on the beach"


@pytest.fixture(scope="module")
def pipe():
    return tiny_flux.pipeline()


@pytest.fixture(scope="module")
def base(pipe):
    return Base.from_pipeline(pipe, name="tiny-flux")


def picture(seed=0, side=(32, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*side, 3), np.uint8))


@pytest.fixture(scope="module")
def subject():
    return Subject("rufus", "dog", (picture(),))


def tensors_of(model, size=0.4):
    drawn = torch.Generator().manual_seed(3)
    made = {key: each.detach() for key, each in fresh_lora(model, "full", 4).items()}
    return {k: torch.randn(e.shape, generator=drawn) * size if "lora_B" in k else e for k, e in made.items()}


@pytest.fixture(scope="module")
def weights(base, tmp_path_factory):
    """A folder as a recipe writes it."""
    folder = tmp_path_factory.mktemp("weights") / "omini"
    folder.mkdir()
    named = {f"transformer.{key}": each for key, each in tensors_of(base.denoiser).items()}
    save_file(named, folder / "model.safetensors")
    config = {"method": "ominicontrol", "base": base.signature, "base_name": "tiny-flux", "shift": "-w"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(subject, base, weights, **settings):
    return read_subject("ominicontrol", subject, base, settings={"weights": str(weights), **settings})


def pixels(made):
    return np.asarray(made.images[0], np.float32)


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_reads_saves_replays_and_leaves_the_base_alone(mode, base, subject, weights, tmp_path):
    plain = pixels(generate(base, SENTENCE, subject=subject, options=OPTIONS))
    concept = read(subject, base, weights, mode=mode)
    made = generate(base, SENTENCE, concept=concept, seeds=(0, 3), options=OPTIONS)
    assert np.abs(pixels(made) - plain).max() > 2  # of 255
    assert installed_on(base.denoiser) is None
    assert np.array_equal(pixels(generate(base, SENTENCE, subject=subject, options=OPTIONS)), plain)
    concept.save(tmp_path / "rufus")
    loaded = Concept.load(tmp_path / "rufus", base=base)
    png = made.save(tmp_path)[0]
    again = replay(png, base, loaded)
    assert np.array_equal(again.images[0], made.images[0]) and not again.differences
    other = read(Subject("rufus", "dog", (picture(1),)), base, weights, mode=mode)
    assert np.abs(pixels(generate(base, SENTENCE, concept=other, options=OPTIONS)) - pixels(made)).max() > 2


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_the_stock_pipeline_can_drive_it(mode, pipe, base, subject, weights):
    concept = read(subject, base, weights, mode=mode)
    with concept.attach(base) as brought, attached(base.denoiser, *brought.interventions):
        stock = pipe(
            "a photo of a dog on the beach", num_inference_steps=2, guidance_scale=2.0, height=32, width=32,
            generator=torch.Generator().manual_seed(0), max_sequence_length=24, output_type="latent",
        ).images  # fmt: skip
    with concept.attach(base) as brought:
        read_by = encode(base, "a photo of a dog on the beach")
        ours = sample(base, read_by, None, [0], OPTIONS, interventions=brought.interventions)
    assert torch.equal(pack(ours), stock)


def test_a_reference_is_read_once_for_all_steps_and_pictures(base, subject, weights):
    concept = read(subject, base, weights, mode="independent")
    with concept.attach(base) as brought:
        (references,) = brought.interventions
        for text in ("a photo of a dog", "a photo of a dog", "a dog in the snow"):
            sample(base, encode(base, text), None, [0, 1], OPTIONS, interventions=brought.interventions)
        assert references.computed == 2


def test_two_subjects_in_one_sentence(base, subject, weights):
    one, other = (read(Subject(n, "dog", (picture(s),)), base, weights) for n, s in (("rufus", 0), ("rex", 5)))
    sentence = "a photo of a {rufus} on a {rex}"
    both = generate(base, sentence, concept={"rufus": one, "rex": other}, options=OPTIONS)
    swapped = generate(base, sentence, concept={"rufus": other, "rex": one}, options=OPTIONS)
    alone = generate(base, sentence, concept={"rufus": one}, subject={"rex": tiny.toy("dog")}, options=OPTIONS)
    assert np.abs(pixels(both) - pixels(swapped)).max() <= 1  # their order does not matter, the words are the same
    assert np.abs(pixels(both) - pixels(alone)).max() > 2
    unlike = read(Subject("rex", "dog", (picture(5),)), base, weights, mode="independent")
    with pytest.raises(ConfigurationError, match="give all the same"):
        generate(base, sentence, concept={"rufus": one, "rex": unlike}, options=OPTIONS)
    assert installed_on(base.denoiser) is None


def test_weights_saved_by_the_stock_pipeline_load_with_their_alpha(pipe, base, subject, weights, tmp_path):
    from diffusers import FluxPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    model = tiny_flux.transformer()
    targets = ["x_embedder", "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"]
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets), adapter_name="default")
    layers = get_peft_model_state_dict(model)
    layers = {k: torch.randn(e.shape, generator=torch.Generator().manual_seed(1)) for k, e in layers.items()}
    meta = {"transformer": {"r": 4, "lora_alpha": 8}}
    FluxPipeline.save_lora_weights(tmp_path / "plain", transformer_lora_layers=layers)
    FluxPipeline.save_lora_weights(
        tmp_path / "told", transformer_lora_layers=layers, transformer_lora_adapter_metadata=meta["transformer"]
    )
    found = {}
    for name in ("plain", "told"):
        file = tmp_path / name / "pytorch_lora_weights.safetensors"
        found[name] = open_lora("ominicontrol", str(file), base)[1]
        assert {key.rsplit(".lora", 1)[0] for key in found[name]} == set(targets)
    for key, each in found["plain"].items():
        assert torch.equal(each, layers[key])
        factor = 2 if "lora_B" in key else 1  # alpha / rank; without a word of alpha it is the rank
        assert torch.equal(found["told"][key], factor * layers[key])
    concept = read(subject, base, tmp_path / "told" / "pytorch_lora_weights.safetensors", shift="+w", word="this item")
    assert concept.word.text == "this item" and concept.settings["shift"] == "+w"
    with pytest.raises(ConfigurationError, match="stands at positions of the picture"):
        generate(base, SENTENCE, concept=concept, options=SamplingOptions(steps=1, width=64))


def test_what_cannot_be_loaded_is_refused_in_one_line(base, subject, weights, tmp_path):
    good = load_file(weights / "model.safetensors")

    def refused(tensors):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(tensors, file)
        with pytest.raises(ArtefactError) as caught:
            read(subject, base, file)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    dora = {"transformer.x_embedder.lora_magnitude_vector": torch.ones(48)}
    assert "of the DoRA type" in refused(good | dora)
    assert "merged into a model act on every row" in refused({"x_embedder.weight": torch.ones(48, 64)})
    unet = {"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": torch.ones(4, 16)}
    assert "belongs to tiny-flux" in refused(unet)
    wide = {k: torch.zeros(4, 3072) if k.endswith("x_embedder.lora_A.weight") else e for k, e in good.items()}
    assert "for another model: " in refused(wide)
    text = {"transformer.context_embedder.lora_A.weight": torch.ones(4, 32)}
    text |= {"transformer.context_embedder.lora_B.weight": torch.ones(48, 4)}
    assert "rows of references never pass" in refused(good | text)
    unlike = Base.from_pipeline(tiny_flux.pipeline(num_layers=1), name="unlike")
    with pytest.raises(ArtefactError, match="were trained on tiny-flux"):
        read(subject, unlike, weights)
    with pytest.raises(ArtefactError, match="were trained on playroom-flux .* give weights for this one"):
        read_subject("ominicontrol", subject, base)
    concept = read(subject, base, weights)
    with pytest.raises(UserError), concept.attach(unlike):
        pass


def test_other_families_sizes_and_settings_are_refused(base, subject, weights):
    with pytest.raises(ConfigurationError, match="of the family sd: use --base flux-dev"):
        read(subject, tiny.base(), weights)
    with pytest.raises(ConfigurationError, match="height 30 must be a multiple of 4 .* try 32"):
        read(subject, base, weights, size=30)
    with pytest.raises(ConfigurationError, match="strength -1"):
        read(subject, base, weights, strength=-1.0)
    with pytest.raises(ConfigurationError, match="shift 'up': expected"):
        read(subject, base, weights, shift="up")
    with pytest.raises(ConfigurationError, match="there is no format"):
        read(subject, base, weights).export("nowhere")


def test_pictures_of_any_side_are_read_as_squares(base, weights):
    tall = Subject("rufus", "dog", (picture(0, (45, 31)),))
    concept = read(tall, base, weights, size=16, compact=2)
    assert concept.tensors[FILE]["latents"].shape == (16, 8, 8) and concept.settings["size"] == 16
    generate(base, SENTENCE, concept=concept, options=OPTIONS)


@torch.no_grad()
def test_a_black_picture_is_neither_zeros_nor_nothing(base, subject, weights):
    black = black_latents(base, 32)
    seen = reference_latents(Image.new("RGB", (32, 32)), base, 32)
    assert torch.allclose(black, seen) and float(black.abs().max()) > 0.01
    concept = read(subject, base, weights)
    made = {}
    for name, latents in (("black", black), ("zeros", torch.zeros_like(black))):
        changed = concept.with_tensors({FILE: {"latents": latents}})
        made[name] = pixels(generate(base, SENTENCE, concept=changed, options=OPTIONS))
    told = read(subject, base, weights, black=True)
    assert torch.equal(told.tensors[FILE]["latents"], black)
    made["none"] = pixels(generate(base, SENTENCE, subject=subject, options=OPTIONS))
    pairs = [("black", "zeros"), ("black", "none"), ("zeros", "none")]
    assert all(np.abs(made[one] - made[other]).max() > 0 for one, other in pairs)


def test_operations_are_those_of_the_paper_count(base, subject, weights):
    """Per block 24 d^2 for each token and 4 d for each pair of query and key; what is computed once is not done again.

    Low-rank weights and the layers into and out of the blocks are not in the published formula: at this width they
    count, so they are added.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    d, blocks, channels, text, noisy = 48, 4, 64, 24, 64
    main, length = text + noisy, noisy

    def paper(queries, pairs):
        return blocks * (24 * d * d * queries + 4 * d * pairs)

    def counted(mode, steps):
        concept = read(subject, base, weights, mode=mode)
        with concept.attach(base) as brought:
            conditioning = encode(base, "a photo of a dog")
            options = SamplingOptions(steps=steps, guidance=2.0)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                sample(base, conditioning, None, [0], options, interventions=brought.interventions)
        return counter.get_total_flops()

    one, four = ({mode: counted(mode, steps) for mode in ("independent", "joint")} for steps in (1, 4))
    step = {mode: (four[mode] - one[mode]) / 3 for mode in one}
    adapters = 0
    for key, each in tensors_of(base.denoiser).items():
        rows = 1 if "norm" in key else length  # modulation has one row
        adapters += 2 * rows * each.numel()
    embedding = 2 * length * channels * d
    once = paper(length, length * length) + adapters + embedding
    assert one["independent"] - step["independent"] == pytest.approx(once, rel=0.05)
    more = paper(main + length, (main + length) ** 2) - paper(main, main * (main + length))
    assert step["joint"] - step["independent"] == pytest.approx(more + adapters + 2 * embedding, rel=0.05)
    assert step["independent"] == pytest.approx(paper(main, main * (main + length)) + 2 * embedding, rel=0.05)


def test_the_command_line(pipe, weights, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "base")
    picture().save(tmp_path / "rufus.png")
    words = ["generate", "a {subject} on the beach", "--subject", tmp_path / "rufus.png", "--noun", "dog"]
    words += ["--method", f"ominicontrol:weights={weights},mode=independent", "--base", tmp_path / "base"]
    words += ["--steps", "2", "--out", tmp_path / "out", "--offload", "--dtype", "bfloat16", "--device", "cpu"]
    assert cli.run([str(word) for word in words]) == 0, capsys.readouterr().err
    assert any((tmp_path / "out").rglob("*.png"))
