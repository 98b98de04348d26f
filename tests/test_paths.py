import pytest
from conftest import run_python

from xraylib import paths


def test_places_follow_their_variable_at_every_access(tmp_path, monkeypatch):
    for name in ("DATA", "CACHE", "RUNS", "REPORTS", "WEIGHTS"):
        monkeypatch.setenv(f"XRAYLIB_{name}", str(tmp_path / name))
        assert getattr(paths, name) == tmp_path / name
    monkeypatch.setenv("XRAYLIB_REPORTS", "elsewhere")
    assert paths.REPORTS == paths.ROOT / "elsewhere"
    monkeypatch.delenv("XRAYLIB_REPORTS")
    monkeypatch.delenv("XRAYLIB_WEIGHTS")
    assert (paths.REPORTS, paths.WEIGHTS) == (paths.ROOT / "reports", None)
    with pytest.raises(AttributeError, match="NOWHERE"):
        _ = paths.NOWHERE


def test_core_modules_load_nothing_heavy():
    said = run_python(
        "import sys\n"
        "from xraylib import devices, paths, storage\n"
        "heavy = ('keras', 'tensorflow', 'jax', 'numpy', 'pandas', 'scipy', 'sklearn', 'PIL')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert said.strip() == "[]"
