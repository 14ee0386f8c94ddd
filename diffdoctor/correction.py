"""`diffdoctor correct`: `treat.correct` with the judge that its settings name."""

from core.errors import UserError
from core.prompts import read_prompts
from diffdoctor.correction_settings import Config
from treat import correct


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
