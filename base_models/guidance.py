"""What is asked of a base's guidance in; checked, and as options of `load_base`, out.

Asked is the scale (None: the base's own) and, of a base that is guided by what it makes of the
empty prompt, whether that half learns as well (`learn_empty`).
"""

from typing import Any

from base_models.load import FAMILIES, locate, read_parts
from core.errors import UserError
from core.storage import read_json


def check_guidance(base: str, scale: float | None, learn_empty: bool = True) -> None:
    """Raise `UserError` where the base has nothing of the kind; no weights are read."""
    if scale is None and learn_empty:
        return
    name, folder, _ = read_parts(locate(base, weights=False))
    kind = FAMILIES[name].guidance
    if kind == "told" and not read_json(folder / "transformer/config.json").get("guidance_embeds"):
        kind = None
    if scale is not None and kind is None:
        raise UserError(f"{base} draws without guidance: leave --guidance out.")
    if not learn_empty and kind != "halves":
        raise UserError(f"{base} is not guided by the empty prompt: leave --no-learn-empty out.")


def guidance_options(scale: float | None, learn_empty: bool = True) -> dict[str, Any]:
    """What `load_base` is told: only what differs from the base's own."""
    options: dict[str, Any] = {} if scale is None else {"guidance": scale}
    return options if learn_empty else options | {"learn_empty": False}
