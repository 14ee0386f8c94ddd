"""Attention as matrix products against the fused one."""

import torch
import torch.nn.functional as F

from miniature.flow import PlainAttention


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
