"""What may be asked of a base's guidance, by its configs alone."""

import pytest

from base_models.guidance import check_guidance, guidance_options
from base_models.load import load_base
from core.errors import UserError
from tests.base_models.families import CASES, UNCONDITIONAL

HALVES, TOLD, NONE = "halves", "told", "none"
KINDS = {"flux": NONE, "flux, guidance embedded": TOLD, "sdxl": HALVES, "sd": HALVES,
         "sd3": HALVES, "kolors": HALVES, "ddpm": NONE, "ldm": NONE}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_only_what_a_base_has_may_be_asked(name, tmp_path):
    base, kind = str(tmp_path / "base"), KINDS[name]
    (CASES | UNCONDITIONAL)[name].pipeline().save_pretrained(base)
    for file in (tmp_path / "base").rglob("*.safetensors"):
        file.unlink()  # no weights are needed
    check_guidance(base, None)
    if kind == NONE:
        with pytest.raises(UserError, match="draws without guidance: leave --guidance out"):
            check_guidance(base, 3.0)
    else:
        check_guidance(base, 3.0)
    if kind == HALVES:
        check_guidance(base, 3.0, learn_empty=False)
    else:
        with pytest.raises(UserError, match="leave --no-learn-empty out"):
            check_guidance(base, None, learn_empty=False)


def test_the_base_is_told_only_what_differs_from_its_own(tmp_path):
    assert guidance_options(None) == {}
    CASES["sdxl"].pipeline().save_pretrained(tmp_path)
    model = load_base(str(tmp_path), **guidance_options(2.0, learn_empty=False))
    assert (model.guidance, model.learn_empty) == (2.0, False)  # pyright: ignore
