"""`diffdoctor evaluate`: `treat.evaluate` with the judge that its settings name."""

from core.errors import UserError
from core.prompts import read_prompts
from diffdoctor.evaluation_settings import Config
from treat import evaluate


def main(config: Config) -> int | None:
    """Hand over to `treat.evaluate`, which knows no judge by name."""
    if config.judge == "detector":
        return evaluate.main(config)
    from miniature.meters import NAME, Bench
    from miniature.oracle import categories

    unknown = [one for one in read_prompts(config.prompts) if one not in categories()]
    if unknown:
        raise UserError(
            f"the oracle does not know the prompt {unknown[0]!r}: give prompts of the miniature, "
            "or --judge detector."
        )
    oracle = Bench()
    return evaluate.main(config, oracle.judge, oracle.meters, oracle.flagged, NAME)
