"""Bars are shown to people, and can be turned off everywhere."""

import pytest
from tqdm import notebook

from xraylib import progress


@pytest.mark.parametrize(
    ("value", "disabled"),
    [(None, False), ("", False), ("0", False), ("1", True), ("true", True)],
)
def test_the_variable_turns_bars_off_in_notebooks_too(monkeypatch, value, disabled):
    if value is None:
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
    else:
        monkeypatch.setenv("TQDM_DISABLE", value)
    monkeypatch.setattr(progress, "_tqdm", notebook.tqdm)
    with progress.tqdm(range(3)) as bar:
        assert bar.disable is disabled
