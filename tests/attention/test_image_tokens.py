"""Attention to a picture beside the text. Oracle: eq. 5 written out, and runs without it."""

import pytest
import torch
from torch import nn

import tiny
from thisness.attention import Context, ImageTokens, Row, attached, probabilities, sites_of
from thisness.errors import ThisnessError

ROWS = ("uncond", "visual:subject-uncond", "cond", "visual:subject")


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


@pytest.fixture
def unet():
    return tiny.unet()


def image_tokens(unet, scale=0.7, count=3):
    torch.manual_seed(1)
    layers = {}
    for name, site in sites_of(unet).items():
        if site.kind == "cross":
            wide = unet.get_submodule(name).to_k.weight.shape[0]
            layers[name] = (Counted(16, wide, bias=False), Counted(16, wide, bias=False))
    return ImageTokens(layers, 2 * torch.randn(count, 16), torch.randn(count, 16), scale)


@torch.no_grad()
def run(unet, *interventions, roles=ROWS, calls=1):
    torch.manual_seed(2)
    latents, text = torch.randn(len(roles), 4, 8, 8), torch.randn(len(roles), 5, 16)
    with attached(unet, *interventions) as context:
        context.rows = tuple(Row(role, 0) for role in roles)
        return [unet(latents, 10 * step, text).sample for step in range(calls)]


def test_it_is_equation_5_with_the_tokens_of_each_role(unet):
    picture = image_tokens(unet)
    site = sites_of(unet)[next(iter(picture.layers))]
    attn = unet.get_submodule(site.name)
    q, out = torch.randn(4, attn.heads, 9, 4), torch.randn(4, attn.heads, 9, 4)
    given = torch.randn(3, 16)
    picture.change(given)
    to_k, to_v = picture.layers[site.name]
    found = picture.extra(site, attn, q, out, Context(rows=tuple(Row(role, 0) for role in ROWS)))
    for row, tokens in enumerate((picture.null, picture.null, given, picture.tokens)):
        k, v = (to(tokens).view(1, 3, attn.heads, 4).transpose(1, 2) for to in (to_k, to_v))
        wanted = out[row] + 0.7 * (probabilities(q[row : row + 1], k, None) @ v)[0]
        assert torch.allclose(found[row], wanted, atol=1e-6)


def test_scale_0_is_the_text_alone_to_the_bit(unet):
    plain = run(unet)[0]
    assert torch.equal(run(unet, image_tokens(unet, scale=0.0))[0], plain)
    assert not torch.allclose(run(unet, image_tokens(unet))[0], plain, atol=1e-2)


def test_keys_and_values_are_made_once_and_anew_after_a_change(unet):
    picture = image_tokens(unet)
    first = run(unet, picture, calls=3)
    assert {to.calls for pair in picture.layers.values() for to in pair} == {1}
    picture.change(torch.randn(3, 16))
    other = run(unet, picture, calls=3)
    assert {to.calls for pair in picture.layers.values() for to in pair} == {2}
    for step in range(3):  # only the rows of the sentence have changed
        same = [torch.equal(first[step][row], other[step][row]) for row in range(4)]
        assert same == [True, True, False, True]
    picture.change(picture.tokens)
    assert torch.equal(run(unet, picture)[0], first[0])


def test_values_can_be_given_and_new_tokens_forget_them(unet):
    picture = image_tokens(unet)
    plain = run(unet, picture)[0]
    name = next(iter(picture.layers))
    keys, values = picture.keys_values(name)
    picture.change_values({name: (keys[0], values[0])})
    assert torch.equal(run(unet, picture)[0], plain)
    picture.change_values({name: (keys[0], 0 * values[0])})
    changed = run(unet, picture)[0]
    assert [torch.equal(plain[row], changed[row]) for row in range(4)] == [True, True, False, True]
    picture.change(picture.tokens)
    assert torch.equal(run(unet, picture)[0], plain)


def test_a_process_of_another_subject_sees_no_picture(unet):
    picture, hidden, null = (image_tokens(unet) for _ in range(3))
    hidden.hide_from("visual:subject")
    null.tokens = null.null
    plain, seen, wanted = (run(unet, each)[0] for each in (picture, hidden, null))
    assert torch.equal(seen[3], wanted[3]) and not torch.equal(seen[3], plain[3])
    assert torch.equal(seen[:3], plain[:3])


def test_rows_that_nobody_named_are_refused(unet):
    named = "called with 1 rows but the roles of 0 are known"
    with attached(unet, image_tokens(unet)), pytest.raises(ThisnessError, match=named), torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), 0, torch.randn(1, 5, 16))
