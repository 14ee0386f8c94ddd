"""How a reader learns: vectors that it makes of prompts in, the share of right answers out.

From each vector alone, a linear head must tell every stated factor and every letter of a sign.
Readers that are taught on, because prompts have changed, are held to what they said.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.seeds import generator
from miniature.text import answers

BATCH = 48
HELD = 30.0
"""Weight of the readers' change, in variances of what they said before, against the answers."""
LOOSE = 0.1
"""The same for prompts with a new word, as a share."""
Read = Callable[[list[str]], list[Tensor]]
"""Prompts -> vectors (b, d), whose widths may differ."""


def teach_to_read(
    readers: Sequence[nn.Module],
    read: Read,
    steps: Iterable[int],
    seed: int,
    held: Collection[str] = (),
) -> float:
    """Train the readers behind `read`, on their device, to tell what every prompt states.

    `held`: prompts that they read already; what they say of these is to change little, and of all
    others not much. Returns the share of right answers over every prompt.
    """
    prompts, labels, sizes = answers()
    place = next(readers[0].parameters()).device
    labels = {question: known.to(place) for question, known in labels.items()}
    with torch.random.fork_rng():
        torch.manual_seed(int(generator(seed).initial_seed()))
        heads = [nn.ModuleDict({q: nn.Linear(v.shape[1], n) for q, n in sizes.items()})
                 for v in read(prompts[:1])]  # fmt: skip
    modules = nn.ModuleList([*readers, *heads]).to(place)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=2e-3, weight_decay=0.01)
    g = generator(seed, 1)
    before = joined(read, prompts) if held else []
    known = set(held)
    tied = torch.tensor([1.0 if prompt in known else LOOSE for prompt in prompts], device=place)
    for _ in steps:
        rows = torch.randperm(len(prompts), generator=g)[:BATCH]
        vectors = read([prompts[i] for i in rows])
        loss = examine(heads, vectors, labels, rows)[0]
        if held:
            loss = loss + HELD * change(vectors, before, tied, rows.to(place))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return final_mark(heads, read, prompts, labels)


def examine(
    heads: Sequence[nn.ModuleDict],
    vectors: Sequence[Tensor],
    labels: dict[str, Tensor],
    rows: Int[Tensor, " b"],
) -> tuple[Tensor, list[Tensor]]:
    """Sum of the cross-entropies of all questions, and one 0 or 1 for each answer."""
    loss, hits = torch.zeros((), device=vectors[0].device), []
    for own, vector in zip(heads, vectors, strict=True):
        for question, head in own.items():
            known = (labels[question] >= 0)[rows.to(vector.device)]
            if known.any():
                answer = head(vector[known])
                target = labels[question][rows.to(vector.device)][known]
                loss = loss + F.cross_entropy(answer, target)
                hits.append((answer.argmax(1) == target).float())
    return loss, hits


def change(
    vectors: Sequence[Tensor],
    before: Sequence[Tensor],
    weights: Float[Tensor, " p"],
    rows: Int[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Weighted squared change of what is said of some rows, in variances of what was said."""
    total = weights.new_zeros(())
    for now, said in zip(vectors, before, strict=True):
        moved = (now - said[rows]).square().mean(dim=1)
        total = total + (moved * weights[rows]).mean() / said.var()
    return total


@torch.no_grad()
def joined(read: Read, prompts: list[str]) -> list[Tensor]:
    """The vectors of all prompts."""

    def numbered(some: list[str]) -> dict[str, Tensor]:
        return {str(i): vectors for i, vectors in enumerate(read(some))}

    return list(in_chunks(numbered, prompts).values())


@torch.no_grad()
def final_mark(
    heads: Sequence[nn.ModuleDict], read: Read, prompts: list[str], labels: dict[str, Tensor]
) -> float:
    hits = []
    for rows in torch.arange(len(prompts)).split(BATCH):
        hits += examine(heads, read([prompts[i] for i in rows]), labels, rows)[1]
    return float(torch.cat(hits).mean())


@torch.no_grad()
def in_chunks(
    read: Callable[[list[str]], dict[str, Tensor]], prompts: list[str]
) -> dict[str, Tensor]:
    """What a reader says of many prompts, a few at a time."""
    chunks = [read(prompts[at : at + BATCH]) for at in range(0, len(prompts), BATCH)]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
