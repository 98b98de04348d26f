"""The published data sets: where from, under which licence, whom to cite, how many images to expect."""

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xraylib import paths
from xraylib.datasets import manifest as naming
from xraylib.datasets.phantom import PhantomSettings
from xraylib.storage import NotFound

# Images by split: (normal, pneumonia), or the sum alone where no more is published.
Counts = Mapping[str, tuple[int, int] | int]


@dataclass(frozen=True)
class RemoteFile:
    """One file to download.

    Attributes
    ----------
    url, name
        Where it is, and the name it gets here.
    hash
        As the publisher states it, ``"md5:…"`` or ``"sha256:…"``; None when nothing is published.
    size
        Bytes, None when not known.
    into
        The split folder that the classes in this archive belong to; empty when the archive holds the splits.
    """

    url: str
    name: str
    hash: str | None = None
    size: int | None = None
    into: str = ""


@dataclass(frozen=True)
class Expected:
    """One known edition of a data set; `note` says what sets an incomplete one apart."""

    counts: Counts
    note: str = ""

    def differences(self, found: Mapping[str, tuple[int, int]]) -> list[tuple[str, int, int]]:
        """List where `found`, images by split and class, differs: (where, images found, images expected)."""
        rows = []
        for split in dict.fromkeys((*self.counts, *found)):
            there, due = found.get(split, (0, 0)), self.counts.get(split, (0, 0))
            if isinstance(due, int):
                rows.append((split, sum(there), due))
            else:
                rows.append((f"{split}/NORMAL", there[0], due[0]))
                rows.append((f"{split}/PNEUMONIA", there[1], due[1]))
        return [row for row in rows if row[1] != row[2]]


@dataclass(frozen=True)
class Dataset:
    """A data set by name.

    Attributes
    ----------
    folder
        Below `paths.DATA`, or an absolute path.
    patients_known
        False when each image has to count as its own patient.
    files
        What `catalog.fetch` downloads; empty when it cannot.
    by_hand
        How to get data that `catalog.fetch` cannot.
    kaggle
        The owner and name of the same data on Kaggle.
    split
        The split of every image when there is no folder level for it.
    names
        Reads patient and kind from a file name.
    expected
        The editions known, images a split and class; empty when nothing is published.
    phantom
        Settings of a synthetic set, which is written instead of downloaded.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    folder: str
    patients_known: bool = True
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""
    kaggle: str | None = None
    split: str | None = None
    names: naming.NameReader = naming.patient_and_kind
    expected: tuple[Expected, ...] = ()
    phantom: PhantomSettings | None = None

    @property
    def root(self) -> Path:
        """The folder that holds the split folders (or the class folders when `split` is set)."""
        if self.phantom:
            return paths.CACHE / f"phantom-{self.phantom.key}"
        return paths.DATA / self.folder


_KERMANY_TEST = {"test": (234, 390)}

KERMANY = Dataset(
    name="kermany",
    title="Chest radiographs of children, Guangzhou (Kermany et al. 2018)",
    source="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    licence="CC BY 4.0",
    citation=(
        "Kermany DS, Goldbaum M, Cai W, et al. Identifying medical diagnoses and treatable diseases by "
        "image-based deep learning. Cell 2018;172(5):1122-1131.e9. doi:10.1016/j.cell.2018.02.010. "
        "Data: Kermany D, Zhang K, Goldbaum M. Labeled optical coherence tomography (OCT) and chest X-ray "
        "images for classification. Mendeley Data 2018, version 2. doi:10.17632/rscbjbr9sj.2"
    ),
    folder="chest_xray",
    files=(
        RemoteFile(
            url="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
            name="ChestXRay2017.zip",
            size=1_235_512_464,
        ),
    ),
    kaggle="paultimothymooney/chest-xray-pneumonia",
    expected=(
        Expected({"train": (1341, 3875), "val": (8, 8), **_KERMANY_TEST}),
        # The publisher's own archive has no val folder: its 16 images are among the train images.
        Expected({"train": (1349, 3883), **_KERMANY_TEST}),
        Expected(
            {"train": (1341, 3875), **_KERMANY_TEST}, note="the 16 images of the val folder are missing"
        ),
    ),
)

_ROBOFLOW = "https://huggingface.co/datasets/keremberke/chest-xray-classification"

KERMANY_ROBOFLOW = Dataset(
    name="kermany-roboflow",
    title="Kermany's radiographs at 640×640, dealt anew image by image (Roboflow export)",
    source=_ROBOFLOW,
    licence="CC BY 4.0",
    citation=(
        f"{KERMANY.citation}. Export: Traore M. chest-x-rays-qjmia, version 2. Roboflow Universe 2022. "
        "https://universe.roboflow.com/mohamed-traore-2ekkp/chest-x-rays-qjmia/dataset/2"
    ),
    folder="chest_xray_roboflow",
    files=tuple(
        RemoteFile(f"{_ROBOFLOW}/resolve/main/data/{part}.zip", f"chest-xray-roboflow-{part}.zip", into=split)
        for part, split in (("train", "train"), ("valid", "val"), ("test", "test"))
    ),
    expected=(Expected({"train": 4077, "val": 1165, "test": 582}),),
)

NIH = Dataset(
    name="nih",
    title="NIH ChestX-ray14, a selection of frontal radiographs for external testing",
    source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="no restriction on use; credit the NIH Clinical Center and cite the paper",
    citation=(
        "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: hospital-scale chest X-ray database "
        "and benchmarks on weakly-supervised classification and localization of common thorax diseases. "
        "CVPR 2017, 3462-3471. doi:10.1109/CVPR.2017.369. Images: NIH Clinical Center"
    ),
    folder="nih_external",
    by_hand=(
        "download images and Data_Entry_2017.csv from https://nihcc.app.box.com/v/ChestXray-NIHCC and put "
        "those labelled 'No Finding' into a folder NORMAL and those labelled Pneumonia into a folder "
        "PNEUMONIA there, under their own names"
    ),
    split="test",
    names=naming.nih_patient_and_kind,
)

PHANTOM = Dataset(
    name="phantom",
    title="Synthetic radiographs with a known lesion",
    source="xraylib.datasets.phantom",
    licence="Apache-2.0",
    citation="written by this repository",
    folder="",
    phantom=PhantomSettings(),
)


def _pneumoniamnist(size: int, md5: str, length: int) -> Dataset:
    suffix = "" if size == 28 else f"_{size}"
    url = f"https://zenodo.org/records/10519652/files/pneumoniamnist{suffix}.npz"
    return Dataset(
        name=f"pneumoniamnist{suffix}".replace("_", "-"),
        title=f"PneumoniaMNIST: Kermany's radiographs, centre-cropped, {size}×{size}",
        source="https://zenodo.org/records/10519652",
        licence="CC BY 4.0",
        citation=(
            "Yang J, Shi R, Wei D, et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D "
            "biomedical image classification. Sci Data 2023;10:41. doi:10.1038/s41597-022-01721-8. "
            f"{KERMANY.citation}"
        ),
        folder=f"pneumoniamnist_{size}",
        patients_known=False,
        files=(RemoteFile(f"{url}?download=1", f"pneumoniamnist{suffix}.npz", f"md5:{md5}", length),),
        names=naming.each_its_own,
        expected=(Expected({"train": (1214, 3494), "val": (135, 389), **_KERMANY_TEST}),),
    )


_MNIST = (
    (28, "28209eda62fecd6e6a2d98b1501bb15f", 4_170_669),
    (64, "8f4eceb4ccffa70c672198ea285246c6", 20_606_998),
    (128, "05b46931834c231683c68f40c47b2971", 75_506_212),
    (224, "d6a3c71de1b945ea11211b03746c1fe1", 214_384_716),
)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (PHANTOM, KERMANY, KERMANY_ROBOFLOW, *(_pneumoniamnist(*row) for row in _MNIST), NIH)
}


def find(name: str | Path | Dataset) -> Dataset:
    """Return the data set of that name, or one for the folder at that path.

    Raises
    ------
    NotFound
        When it is neither a known name nor a folder.
    """
    if isinstance(name, Dataset):
        return name
    if name in DATASETS:
        return DATASETS[str(name)]
    folder = Path(name).expanduser()
    if folder.is_dir() or isinstance(name, Path) or os.sep in name:
        return _users_folder(folder.resolve())
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(DATASETS)
    raise NotFound(f"no data set is named {name!r}.{hint} Fix: take one of {known}, or a folder's path.")


def _users_folder(folder: Path) -> Dataset:
    # Two folders of one name must not share an index or a quarantine list.
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return Dataset(
        name=f"folder-{folder.name}-{mark}",
        title=f"Images in the folder {folder.name}",
        source="",
        licence="",
        citation="",
        folder=str(folder),
        by_hand="put images there as <split>/<class>/<image>",
    )
