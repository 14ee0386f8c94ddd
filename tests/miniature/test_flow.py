"""Attention as matrix products against the fused one, and Muon's matrices of one shape together."""

import torch
import torch.nn.functional as F

from miniature.flow import PlainAttention
from miniature.muon import Muon, orthogonalise


def test_plain_attention_equals_the_fused_and_leaves_masks_to_it():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, generator=generator) for _ in range(3))
    fused = F.scaled_dot_product_attention(query, key, value)
    with PlainAttention():
        plain = F.scaled_dot_product_attention(query, key, value)
        causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        masked = F.scaled_dot_product_attention(
            query, key, value, attn_mask=torch.ones(5, 5).tril().bool()
        )
    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(masked, causal)
    assert not torch.allclose(masked, fused)  # control: the mask counts


def test_matrices_of_one_shape_step_as_each_alone():
    generator = torch.Generator().manual_seed(1)
    weights = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn(4, 6, generator=generator)
    gradients = [weight.grad.clone() for weight in weights if weight.grad is not None]
    Muon(weights, lr=0.1).step()
    for weight, gradient in zip(weights, gradients, strict=True):
        expected = -0.1 * 0.2 * 6**0.5 * orthogonalise(gradient)
        torch.testing.assert_close(weight.data, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(weights[0], weights[1])
