"""Oracles: the stock pipeline over the same folder; the files that are there; the text of the error."""

import http.server
import json
import shutil
import socket
import threading
import time

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny
from thisness.bases import FAMILIES, Base, known, load_base
from thisness.bases.loading import hub_patterns
from thisness.bases.registry import find
from thisness.bases.stable_diffusion import StableDiffusion
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, ThisnessError, UserError
from thisness.sampling import SamplingOptions, sample


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd"
    tiny.pipeline("v_prediction", pad="!").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "copy")


def refused(name, *words, error=UserError):
    with pytest.raises(error) as caught:
        load_base(name)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_a_folder_loads_to_what_the_stock_pipeline_loads(saved):
    base = load_base(saved)
    pipe = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        "a dog", num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images  # fmt: skip
    ours = sample(base, encode(base, "a dog"), None, [0], SamplingOptions(steps=2, guidance=3.0))
    assert torch.equal(ours, stock)
    assert (base.name, base.family, base.resolution, base.prediction_type) == ("tiny-sd", "sd", 16, "v_prediction")
    assert not any(parameter.requires_grad for parameter in base.unet.parameters()) and not base.unet.training


def test_its_pipeline_is_the_stock_one_over_the_same_parts(saved, tmp_path):
    base = load_base(saved)
    pipe = base.to_pipeline()
    assert type(pipe) is StableDiffusionPipeline and pipe.unet is base.unet and pipe.scheduler is not base.scheduler
    pipe.save_pretrained(tmp_path / "again")
    assert load_base(tmp_path / "again").signature == base.signature


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_of_every_part(saved, dtype):
    base = load_base(saved, dtype=dtype)
    assert {p.dtype for module in base.modules.values() for p in module.parameters()} == {dtype}
    assert base.signature == load_base(saved).signature


def test_files_in_float16_are_computed_in_float32(saved, folder):
    StableDiffusionPipeline.from_pretrained(saved, dtype=torch.float16, safety_checker=None).save_pretrained(folder)
    base = load_base(folder)
    assert {p.dtype for module in base.modules.values() for p in module.parameters()} == {torch.float32}
    assert base.signature == load_base(folder, dtype=torch.bfloat16).signature


def test_the_signature_is_that_of_the_model_and_nothing_else(saved, folder):
    signature = load_base(saved).signature
    assert load_base(folder).signature == signature
    assert Base.from_pipeline(tiny.pipeline("v_prediction", pad="!"), name="other").signature == signature
    others = {
        "weights": tiny.base("v_prediction", pad="!", seed=1),
        "prediction": tiny.base("epsilon", pad="!"),
        "heads": tiny.base("v_prediction", pad="!", attention_head_dim=4),
        "width": tiny.base("v_prediction", pad="!", block_out_channels=(8, 24)),
    }
    changed = tiny.pipeline("v_prediction", pad="!")
    for parameter in changed.unet.parameters():
        parameter.data += 0.02
    others["tuned"] = Base.from_pipeline(changed)
    words = tiny.pipeline("v_prediction", pad="!")
    words.tokenizer.add_tokens(["<new>"])
    words.text_encoder.resize_token_embeddings(len(words.tokenizer))
    others["vocabulary"] = Base.from_pipeline(words)
    found = {name: base.signature for name, base in others.items()} | {"same": signature}
    assert len(set(found.values())) == len(found), found
    assert others["tuned"].signature.split("-")[0] == signature.split("-")[0]  # the architecture is the same


def test_the_signature_stays_while_something_is_attached(saved):
    from peft import LoraConfig

    base = load_base(saved)
    before = base.signature
    base.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert base.signature == before


# --- what cannot be loaded ---


def test_names_that_are_nothing():
    refused("playrom-sd", "no base 'playrom-sd'", "did you mean 'playroom-sd'", error=ConfigurationError)
    refused("./nowhere", "is not a folder")
    refused("nowhere/", "is not a folder")


@pytest.fixture
def online(monkeypatch):
    """Offline mode is off, and the hub is wherever the test says."""
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    return lambda port: monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("name", ["nobody/nothing", "sd1.5"])
def test_offline_mode_is_said(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    refused(name, "was not fetched before", "HF_HUB_OFFLINE is set", "local folder")


@pytest.mark.parametrize("name", ["nobody/nothing", "sd1.5"])
def test_a_dead_network_is_known_at_once(name, online):
    """The hub's client tries five times and more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        online(server.getsockname()[1])
    start = time.monotonic()
    refused(name, "was not fetched before", "cannot be reached")
    assert time.monotonic() - start < 5


def test_a_hub_that_never_answers_is_given_up(online, monkeypatch):
    monkeypatch.setattr("thisness.bases.locate.HUB_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        online(server.getsockname()[1])
        start = time.monotonic()
        refused("nobody/nothing", "was not fetched before", "cannot be reached")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(401, "RepoNotFound", "no public model"), (403, "GatedRepo", "accept its terms"), (503, "", "status 503")],
)
def test_what_the_hub_says(status, code, words, online):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        online(server.server_port)
        refused("nobody/nothing", words)
        server.shutdown()


def test_a_model_that_was_fetched_before_is_used_offline(saved, tmp_path, monkeypatch):
    """Also when its id is gone upstream. The layout is that of the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for hub_id in ("somebody/tiny", "runwayml/stable-diffusion-v1-5"):
        repository = tmp_path / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    base = load_base("somebody/tiny")
    assert base.name == "somebody/tiny" and base.signature == load_base(saved).signature
    with pytest.raises(
        ConfigurationError, match="sd1.5 should predict epsilon"
    ):  # it was opened, and is not that model
        load_base("runwayml/stable-diffusion-v1-5")


def test_what_is_gone_upstream_is_said():
    refused("runwayml/stable-diffusion-v1-5", "removed by its publisher in August 2024", "write sd1.5")
    refused("stabilityai/stable-diffusion-2-1", "November 2025", "write sd2.1")


def test_single_files_are_refused_with_the_way_to_convert_them(tmp_path):
    for name in ("model.ckpt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, "from_single_file")


def test_a_folder_that_is_no_pipeline(tmp_path, folder):
    refused(tmp_path, "model_index.json is missing")
    index = json.loads((folder / "model_index.json").read_text())
    for change, words in (
        ({"_class_name": ["pipeline", "Mine"]}, ["code of its own"]),
        ({"_class_name": "StableDiffusion3Pipeline"}, ["StableDiffusion3Pipeline is not supported"]),
        ({"unet": ["unet.my_unet", "UNet2DConditionModel2"]}, ["its unet is 'UNet2DConditionModel2'"]),
        ({"unet": ["diffusers", "PriorTransformer"]}, ["its unet is 'PriorTransformer'"]),
        ({"scheduler": ["diffusers", "StableDiffusionPipeline"]}, ["its scheduler is 'StableDiffusionPipeline'"]),
    ):
        (folder / "model_index.json").write_text(json.dumps(index | change))
        refused(folder, *words)
    (folder / "model_index.json").write_text("{")
    refused(folder, "not readable JSON")


def test_pickles_are_never_opened(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refused(folder, "no safetensors", "diffusion_pytorch_model.bin", "refused")
    assert not any(".bin" in pattern or "ckpt" in pattern for pattern in hub_patterns(StableDiffusion))


def test_missing_weights_are_not_made_up(folder):
    """diffusers and transformers would fill them with random numbers and a warning."""
    from safetensors.torch import load_file, save_file

    for part, file in (("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        path = folder / part / file
        tensors = load_file(path)
        kept = dict(list(sorted(tensors.items()))[3:])
        save_file(kept, path, {"format": "pt"})
        refused(folder, part, "weights missing")
        save_file(tensors, path, {"format": "pt"})
    assert load_base(folder)


def test_a_missing_part_or_tokenizer(folder):
    shutil.rmtree(folder / "vae")
    refused(folder, "has no folder vae")


def test_an_empty_tokenizer_is_not_taken(folder):
    """transformers makes a tokenizer of two tokens from a folder without its files."""
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    refused(folder, "the tokenizer knows 2 tokens but the text encoder")


def test_parts_that_do_not_fit_are_all_listed():
    pipe = tiny.pipeline()
    pipe.register_modules(unet=tiny.unet(width=24, in_channels=9))
    with pytest.raises(ConfigurationError) as caught:
        Base.from_pipeline(pipe)
    for words in ("2 problems", "text of width 24", "takes 9 channels", "inpainting"):
        assert words in str(caught.value)


def test_a_registered_name_must_be_what_it_says(folder, monkeypatch):
    from thisness.bases import locate

    facts = find("sd1.5")
    monkeypatch.setattr(locate, "from_hub", lambda hub_id, patterns: folder)
    with pytest.raises(ConfigurationError, match="sd1.5 should predict epsilon at 512 px"):
        load_base("SD1.5")
    assert facts.hub == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_the_embedded_model_that_is_not_installed_is_said(monkeypatch, tmp_path):
    from thisness.bases import locate

    monkeypatch.setattr(locate.resources, "files", lambda package: tmp_path)
    refused("playroom-sd", "not in this installation")


# --- the registry ---


def test_no_name_is_used_twice():
    names = [n.lower() for facts in known().values() for n in (facts.name, *facts.aliases, facts.hub, *facts.gone) if n]
    assert len(set(names)) == len(names)
    for name in names:
        assert find(name.upper()) is find(name) is not None


def test_every_entry_is_complete():
    for facts in known().values():
        assert facts.family in FAMILIES and facts.licence and facts.schedule
        assert bool(facts.hub) != bool(facts.folder)
        assert facts.resolution in (128, 512, 768, 1024)
        assert facts.prediction_type in ("epsilon", "v_prediction", "flow_prediction")
    assert {"playroom-sd", "sd1.4", "sd1.5", "sd2.0", "sd2.1", "sd2.1-base"} <= known().keys()


# --- the parts of a family ---


def test_images_to_latents_and_back_are_the_autoencoders():
    base = tiny.base()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = base.vae.encode(images).latent_dist
    assert torch.equal(base.encode_images(images), posterior.mean * base.vae.config.scaling_factor)
    drawn = base.encode_images(images, torch.Generator().manual_seed(1))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    expected = (posterior.mean + posterior.std * noise) * base.vae.config.scaling_factor
    assert torch.allclose(drawn, expected, atol=1e-6)
    assert torch.equal(base.decode(drawn), base.vae.decode(drawn / base.vae.config.scaling_factor).sample)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "zero-snr"])
def test_the_predicted_clean_latents_are_the_schedulers(kind):
    base = tiny.base(kind)
    base.scheduler.set_timesteps(4)
    latents, prediction = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in base.scheduler.timesteps[1:]:
        expected = base.scheduler.step(prediction, timestep, latents).pred_original_sample
        assert torch.allclose(base.predicted_clean(latents, prediction, timestep), expected, rtol=1e-4, atol=1e-5)


def test_sides_that_cannot_be_made():
    base = tiny.base()
    assert base.latent_shape(32, 8) == (4, 16, 4)
    with pytest.raises(ConfigurationError, match="2 problems: height 15 .* try 16; width 100000 .* try 4096"):
        base.latent_shape(15, 100000)


def test_errors_are_of_ours():
    assert issubclass(UserError, ThisnessError)
