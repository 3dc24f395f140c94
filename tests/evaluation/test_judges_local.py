"""Oracles: the expectation by hand; for a tiny LLaVA with random weights, its own forward and generate."""

import json
import math

import pytest
import torch
from PIL import Image

from thisness.errors import ConfigurationError, UserError
from thisness.evaluation.items import Item, Picture
from thisness.evaluation.judges import make_judge, vision_language
from thisness.evaluation.judges.vision_language import expectation, score_tokens

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_expectation_by_hand():
    score, shares = expectation([0.0, 0.0, math.log(2), 0.0, math.log(5)])
    assert shares == pytest.approx([0.1, 0.1, 0.2, 0.1, 0.5])
    assert score == pytest.approx(0.1 + 0.4 + 0.3 + 2.0)
    assert expectation([1e4, 0, 0, 0, 0])[0] == 0 and expectation([7.0] * 5)[0] == pytest.approx(2)


def test_where_tokenizers_put_the_numbers():
    """The ways of real ones: the space is a token of its own, belongs to the digit, or to the word before."""
    words: dict[str, int] = {}

    def by(pieces):
        return lambda text: [words.setdefault(piece, len(words)) for piece in pieces(text)]

    apart = by(lambda text: list(text.replace("Score:", "@")))  # "@", " ", "3"
    lead, ids = score_tokens(apart)
    assert (lead, ids) == ("Score: ", [words[digit] for digit in "01234"])
    joined = by(lambda text: [text[:6], *([text[6:]] if text[6:] else [])])  # "Score:", " 3"
    lead, ids = score_tokens(joined)
    assert (lead, ids) == ("Score:", [words[f" {digit}"] for digit in "01234"])
    with pytest.raises(UserError, match="does not write 0 ... 4 as one token each"):
        score_tokens(by(lambda text: [text[:4], text[4:], "end"]))
    with pytest.raises(UserError, match="use mode=sample"):
        score_tokens(lambda text: [7] * len(text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LLaVA, its vision tower at 32 px, bytes as tokens; its processor needs no torchvision."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    names = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokens, patch_size=16, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(
        vocab_size=len(tokens), num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=1.0, **small,
    )  # fmt: skip
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=names.index("<image>"))
    )
    path = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def item(shade: int) -> Item:
    def picture(n):
        return Picture(Image.new("RGB", (40, 30), (n, 255 - n, 100)))

    return Item(f"i{shade}", "r", "s", "c", 0, picture(shade), (picture(250),), "dog", "a dog")


def columns(folder, tmp_path, settings, said=None):
    say = (said if said is not None else []).append
    return make_judge(f"transformers:model={folder},{settings}", answers=tmp_path / "a.jsonl", say=say)


def test_expected_is_the_models_own_distribution(folder, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    cp, pf = columns(folder, tmp_path, "mode=expected")
    assert (cp.name, pf.name) == ("transformers-expected:cp", "transformers-expected:pf")
    some = [item(10), item(240)]
    values = cp.score(some)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for one, value in zip(some, values, strict=True):
        turns = cp.judge.asked("cp", one)[0].question.turns
        text = (
            f"user: {turns[0].parts[0]}\nassistant: {turns[1].parts[0]}\n"
            "user: The reference:<image>The picture to judge:<image>\nassistant: Score: "
        )
        shown = [each.image.resize((512, 512), Image.Resampling.LANCZOS) for each in (one.references[0], one.picture)]
        with torch.no_grad():
            logits = model(**processor(text=[text], images=shown, return_tensors="pt")).logits[0, -1]
        shares = torch.softmax(logits[processor.tokenizer.convert_tokens_to_ids(list("01234"))].double(), 0)
        assert value == pytest.approx(float(shares @ torch.arange(5.0).double()) / 4, abs=1e-5)
    assert values[0] != values[1], "pictures matter"
    assert columns(folder, tmp_path / "other", "mode=expected")[0].score(some) == values, "the same every time"
    kept = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(kept) == 2 and all(sum(json.loads(line["raw"])["probabilities"]) == pytest.approx(1) for line in kept)
    assert cp.identity["passes"] == 1 and cp.identity["mode"] == "expected" and cp.identity["model"] == "tiny-llava"
    assert str(folder.parent) not in json.dumps(cp.identity)


def test_sampled_answers_are_parsed_and_babble_is_a_failure(folder, tmp_path, monkeypatch):
    said: list[str] = []
    before = torch.random.get_rng_state()
    (pf,) = columns(folder, tmp_path, "columns=pf,passes=2,asks=2,max_tokens=5", said)
    assert pf.score([item(10)]) == [0.0]
    assert [each.reason for each in pf.failures] == ["no score in the answer"] * 2
    assert pf.judge.rater.made == 4 and "2 of 2 ratings failed and count as 0" in said[-1]
    assert torch.equal(before, torch.random.get_rng_state()), "nobody else's random numbers are touched"
    raws = [json.loads(line)["raw"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert raws[0] != raws[1], "passes are independent"
    (again,) = columns(folder, tmp_path / "again", "columns=pf,passes=2,asks=2,max_tokens=5")
    again.score([item(10)])
    assert [json.loads(line)["raw"] for line in (tmp_path / "again" / "a.jsonl").read_text().splitlines()] == raws

    seen = []

    def talk(self, asked, seed):
        seen.append(seed)
        return "It fits.\nScore: 3" if len(seen) % 2 == 0 else "Well."

    monkeypatch.setattr(vision_language.LocalRater, "_generate", talk)
    (pf,) = columns(folder, tmp_path / "talk", "columns=pf,passes=2")
    assert pf.name == "transformers:pf" and pf.score([item(10)]) == [0.75] and len(set(seen)) == 4


def test_models_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="model is not set"):
        make_judge("transformers")
    for wrong in (tmp_path, "nobody/has-this"):
        with pytest.raises(UserError, match="holds no model|there is no folder or model") as told:
            make_judge(f"transformers:model={wrong}")
        assert "\n" not in str(told.value)
    words = json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (pf,) = make_judge(f"transformers:model={tmp_path},columns=pf,mode=expected", answers=tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="has no chat template"):
        pf.score([item(1)])
    (tmp_path / "config.json").write_text(json.dumps({**words, "model_type": "vit", "architectures": ["ViTModel"]}))
    (pf,) = make_judge(f"transformers:model={tmp_path},columns=pf", answers=tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="cannot be loaded as a model for pictures and text"):
        pf.score([item(1)])
