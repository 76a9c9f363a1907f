"""Which sites lie in which module."""

import pytest

from srdd.site_names import lies_in


@pytest.mark.parametrize(
    ("site", "module", "inside"),
    [
        ("lm_head", "lm_head", True),
        ("model.layers.1.mlp.act_fn", "model.layers.1", True),
        ("model.layers.10", "model.layers.1", False),
        ("model", "model.layers", False),
    ],
)
def test_a_site_lies_in_the_modules_whose_whole_names_begin_its_own(site, module, inside):
    assert lies_in(site, module) is inside
