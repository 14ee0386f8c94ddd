"""Muon: matrices of one shape together, kernels as matrices."""

import torch

from core.muon import Muon, orthogonalise


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


def test_a_kernel_steps_as_the_matrix_it_is():
    generator = torch.Generator().manual_seed(2)
    kernel = torch.nn.Parameter(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(torch.zeros(4, 12))
    gradient = torch.randn(4, 12, generator=generator)
    kernel.grad, matrix.grad = gradient.view(4, 3, 2, 2), gradient
    Muon([kernel], lr=0.1).step()
    Muon([matrix], lr=0.1).step()
    assert torch.equal(kernel.reshape(4, 12), matrix)
