"""`diffdoctor correct`: `treat.correct` with the judge that its settings name."""

from typing import Literal

from core.errors import UserError
from core.prompts import read_prompts
from treat import correct


class Config(correct.Config):
    """Same prompts, same seeds: a base model's images before and after a corrector."""

    judge: Literal["detector", "oracle"] = "detector"
    """The first of the judges, or the exact oracle of the miniature world."""


def main(config: Config) -> int | None:
    """Hand over to `treat.correct`, which knows no judge by name."""
    if config.judge == "detector":
        return correct.main(config)
    from miniature import meters, unprompted
    from miniature.oracle import categories

    if config.prompts is None:
        any_category = unprompted.Unprompted()
        return correct.main(
            config,
            any_category.judge,
            any_category.meters,
            any_category.flagged,
            unprompted.NAME,
        )
    unknown = [one for one in read_prompts(config.prompts) if one not in categories()]
    if unknown:
        raise UserError(
            f"the oracle does not know the prompt {unknown[0]!r}: give prompts of the miniature, "
            "or --judge detector."
        )
    oracle = meters.Bench()
    return correct.main(config, oracle.judge, oracle.meters, oracle.flagged, meters.NAME)
