import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xraylib.evaluation import scores
from xraylib.storage import DataInvalid, Failed


def table(values=(0.5,), **columns):
    n = len(values)
    given = {
        "recipe": ["tiny-cnn-28"] * n,
        "protocol": ["strict"] * n,
        "seed": [0] * n,
        "split": ["test"] * n,
        "image_id": [f"image{i}" for i in range(n)],
        "patient": [f"patient{i}" for i in range(n)],
        "kind": ["normal"] * n,
        "label": [0] * n,
        "score": list(values),
    }
    return pd.DataFrame(given | columns)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_every_float32_comes_back_exactly(tmp_path_factory, values):
    file = tmp_path_factory.getbasetemp() / "float32.csv"
    scores.write(table(values), file)
    back = scores.read(file)["score"].to_numpy(dtype=np.float32)
    np.testing.assert_array_equal(back, np.array(values, dtype=np.float32))


NAMES = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12)


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_names_come_back_as_written(tmp_path_factory, names):
    file = tmp_path_factory.getbasetemp() / "names.csv"
    written = table([0.5] * len(names), image_id=names, patient=names)
    scores.write(written, file)
    pd.testing.assert_frame_equal(scores.read(file), written, check_dtype=False)


@pytest.mark.parametrize("name", ["0012", "1e5", "NA", "nan", "None", "", "true", "1_000", "0x10"])
def test_names_that_look_like_something_else_stay_text(tmp_path, name):
    scores.write(table(image_id=[name], patient=[name]), tmp_path / "scores.csv")
    back = scores.read(tmp_path / "scores.csv")
    assert back.loc[0, ["image_id", "patient"]].tolist() == [name, name]


BAD_CELLS = {
    "seed": ("0.5", "", "one"),
    "label": ("0.7", "", "ill"),
    "score": ("high", "nan", "NaN", "", "inf", "-inf"),
}


@pytest.mark.parametrize(("column", "cell"), [(c, cell) for c, cells in BAD_CELLS.items() for cell in cells])
def test_a_cell_that_is_no_number_is_named_with_its_image_and_line(tmp_path, column, cell):
    file = tmp_path / "scores.csv"
    bad = table([0.5, 0.6, 0.7], image_id=["a", "b", "c"]).astype(str)
    bad.loc[1, column] = cell
    bad.to_csv(file, index=False)
    said = f"scores.csv: b has {cell!r} as {column}, which is no number (1 rows, the first in line 3)."
    with pytest.raises(DataInvalid, match=re.escape(said)):
        scores.read(file)


def test_columns_have_their_order_and_types(tmp_path):
    scores.write(table([0.25])[::-1][list(reversed(scores.COLUMNS))], tmp_path / "scores.csv")
    back = scores.read(tmp_path / "scores.csv")
    assert tuple(back.columns) == scores.COLUMNS
    kinds = {column: back[column].dtype.kind for column in ("seed", "label", "score")}
    assert kinds == {"seed": "i", "label": "i", "score": "f"}


WRONG = {
    "another table": b"a,b\n1,2\n",
    "no text": bytes(range(256)),
    "an empty file": b"",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_what_is_no_scores_table_is_refused_by_name(tmp_path, content):
    file = tmp_path / "scores.csv"
    file.write_bytes(content.replace(b"%s", ",".join(scores.COLUMNS).encode()))
    with pytest.raises(DataInvalid, match=r"scores\.csv is not a scores table.*Fix: "):
        scores.read(file)


def test_a_write_that_fails_leaves_the_old_table(tmp_path):
    file = tmp_path / "scores.csv"
    scores.write(table([0.25]), file)
    with pytest.raises(Failed, match="Fix: "):
        scores.write(table([0.75]), file / "below-a-file.csv")
    assert scores.read(file)["score"].tolist() == [0.25]
    assert [one.name for one in tmp_path.iterdir()] == ["scores.csv"]
