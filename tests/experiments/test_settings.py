import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES
from backpass.experiments.settings import replace_setting
from backpass.training.recipe import Recipe

RECIPE = RECIPES["digits"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("sgs.q", 1, "unknown setting 'q' of SgsSettings; expected one of k, measure"),
        ("agc", 1, "'agc' is a group of settings; expected one of agc.clip_factor, "),
        ("epochs.x", 1, "'epochs' is a single setting, it has no 'x'"),
        ("epochs", "many", "expected epochs to be of type int, got 'many'"),
        ("epochs", 1.5, "expected epochs to be of type int, got 1.5"),
        ("sgs.alpha", "half", "expected alpha to be of type float, got 'half'"),
        ("data.limit_train", "1.5", "expected limit_train to be of type int, got 1.5"),
    ],
)
def test_settings_that_do_not_exist_or_fit(key, value, text):
    with pytest.raises(InputError, match=text):
        replace_setting(RECIPE, key, value)


def test_settings_are_read_as_their_type():
    assert replace_setting(Recipe(), "clip_norm", "0.5").clip_norm == 0.5
    assert replace_setting(Recipe(), "optimizer.nesterov", "True").optimizer.nesterov is True
    assert replace_setting(Recipe(), "sgs.measure", "autocorrelation").sgs.measure == "autocorrelation"
    assert replace_setting(Recipe(), "sgs.alpha", "1") == replace_setting(Recipe(), "sgs.alpha", 1.0)
    assert replace_setting(Recipe(), "sgs.branches", "('3x3', '1x1')").sgs.branches == ("3x3", "1x1")
    assert replace_setting(Recipe(), "data.root", "2024").data.root == "2024"
    assert replace_setting(Recipe(clip_norm=1.0), "clip_norm", "None").clip_norm is None
