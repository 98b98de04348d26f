"""The data sets by name: where from, under which licence, how many images to expect (whom to cite: data/README.md)."""

import difflib
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xraylib import paths
from xraylib.datasets.phantom import PhantomSettings
from xraylib.errors import NotFoundError

_log = logging.getLogger(__name__)

# Images by split: (normal, pneumonia), or the sum alone where no more is published.
Counts = Mapping[str, tuple[int, int] | int]


@dataclass(frozen=True)
class Dataset:
    """A data set: what `fetch` downloads, how `manifest` reads it, and what `verify` expects.

    `folder` is below `paths.DATA`, or absolute. `url` with the archive's `file` name and its `checksum` (None when none
    is published) is what `fetch` downloads, `kaggle` the same data there; `by_hand` says how to get what cannot be
    fetched. `split` is the split of all images when there is no folder level for it. `names` tells how a file name is
    read: as Kermany's, as NIH's, or as saying nothing, so that each image has to count as its own patient. `originals`
    is a list of original files below `paths.DATA`, for copies that were brought to one size (see `audit.originals`).
    `expected` holds the editions that are known, a remark for an incomplete one.
    """

    name: str
    title: str
    source: str
    licence: str
    folder: str
    url: str = ""
    file: str = ""
    checksum: str | None = None
    kaggle: str = ""
    by_hand: str = ""
    split: str | None = None
    names: str = "kermany"
    originals: str = ""
    expected: tuple[tuple[Counts, str], ...] = ()
    phantom: PhantomSettings | None = None

    @property
    def root(self) -> Path:
        """The folder that holds the split folders (or the class folders when `split` is set)."""
        if self.phantom:
            return paths.CACHE / f"phantom-{self.phantom.key}"
        return paths.DATA / self.folder

    @property
    def fix(self) -> str:
        """How to get what is missing, for an error message."""
        if self.phantom:
            return f"remove {self.root}; it is written anew"
        if Path(self.folder).is_absolute():
            return self.by_hand
        how = f"run `python -m xraylib data fetch {self.name}`" if self.url else self.by_hand
        return f"{how}; or set XRAYLIB_DATA to the folder that holds {self.folder} (it is {paths.DATA})"


_TEST = {"test": (234, 390)}
_ROBOFLOW = "https://huggingface.co/datasets/keremberke/chest-xray-classification"

_ALL = (
    Dataset(
        name="phantom",
        title="Synthetic radiographs with a known lesion",
        source="xraylib.datasets.phantom",
        licence="Apache-2.0",
        folder="",
        phantom=PhantomSettings(),
    ),
    Dataset(
        name="kermany",
        title="Chest radiographs of children, Guangzhou (Kermany et al. 2018)",
        source="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        licence="CC BY 4.0",
        folder="chest_xray",
        originals="kermany_originals.csv",
        url="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
        file="ChestXRay2017.zip",
        kaggle="paultimothymooney/chest-xray-pneumonia",
        expected=(
            ({"train": (1341, 3875), "val": (8, 8), **_TEST}, ""),
            # The publisher's own archive has no val folder: its 16 images are among the train images.
            ({"train": (1349, 3883), **_TEST}, ""),
            ({"train": (1341, 3875), **_TEST}, "the 16 images of the val folder are missing"),
        ),
    ),
    Dataset(
        name="kermany-roboflow",
        title="Kermany's radiographs at 640×640, split anew image by image (Roboflow export)",
        source=_ROBOFLOW,
        licence="CC BY 4.0",
        folder="chest_xray_roboflow",
        by_hand=f"unpack data/train.zip, data/valid.zip and data/test.zip of {_ROBOFLOW} into the folders "
        "train, val and test there",
        expected=(({"train": 4077, "val": 1165, "test": 582}, ""),),
    ),
    Dataset(
        name="pneumoniamnist",
        title="PneumoniaMNIST: Kermany's radiographs, centre-cropped, 28×28",
        source="https://zenodo.org/records/10519652",
        licence="CC BY 4.0",
        folder="pneumoniamnist_28",
        url="https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",
        file="pneumoniamnist.npz",
        checksum="md5:28209eda62fecd6e6a2d98b1501bb15f",
        names="none",
        expected=(({"train": (1214, 3494), "val": (135, 389), **_TEST}, ""),),
    ),
    Dataset(
        name="nih",
        title="NIH ChestX-ray14, a selection of frontal radiographs for external validation",
        source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="no restriction on use; credit the NIH Clinical Center and cite the paper",
        folder="nih_external",
        by_hand="download images and Data_Entry_2017.csv from https://nihcc.app.box.com/v/ChestXray-NIHCC, "
        "and put those labelled 'No Finding' into a folder NORMAL and those labelled Pneumonia into a folder "
        "PNEUMONIA there, under their own names",
        split="test",
        names="nih",
    ),
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
# Folders that this process has looked up by path, by the name of their report.
_FOLDERS: dict[str, Dataset] = {}


def get_dataset(name: str | Path | Dataset) -> Dataset:
    """Return the data set of that name, or one for the folder at that path; `NotFoundError` otherwise.

    The name of a folder's report, as `manifest.attrs["dataset"]` holds it, finds the folder again in
    the process that has looked the folder up by its path.
    """
    if isinstance(name, Dataset):
        return name
    if name in DATASETS:
        return DATASETS[str(name)]
    if name in _FOLDERS:
        return _FOLDERS[str(name)]
    if "://" in str(name):
        raise NotFoundError(
            f"{name} is an address. Fix: mount it (`gcsfuse` for a bucket) and give the folder."
        )
    folder = Path(name).expanduser()
    if not (folder.is_dir() or isinstance(name, Path) or os.sep in name):
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(DATASETS)
        raise NotFoundError(
            f"no data set is named {name!r}.{hint} Fix: take one of {known}, or a folder's path."
        )
    folder = folder.resolve()
    # Two folders of one name must not share an index or a quarantine list.
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    dataset = Dataset(
        name=f"folder-{folder.name}-{mark}",
        title=f"Images in the folder {folder.name}",
        source="",
        licence="",
        folder=str(folder),
        by_hand="put images there as <split>/<class>/<image>",
    )
    _FOLDERS[dataset.name] = dataset
    return dataset


def reference(name: str) -> str:
    """Return what a user types for the data set of a report: its name, or the path of its folder."""
    return _FOLDERS[name].folder if name in _FOLDERS else name
