"""The house rules: what no single module can keep by itself."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from xraylib import cli
from xraylib.paths import ROOT

MODULES = sorted((ROOT / "xraylib").rglob("*.py"))
# A folder or module imports from those before it, or from its own folder.
ORDER = (
    *(
        {"errors"},
        {"paths"},
        {"storage"},
        {"devices"},
        {"datasets"},
        {"training"},
        {"evaluation"},
        {"figures"},
        {"report"},
    ),
    *({"experiment", "answers", "packaged"}, {"prediction"}, {"export"}),
    *({"app", "commands"}, {"cli"}, {"__main__"}, {"__init__"}),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *(
        ROOT / "reports" / "kermany" / name
        for name in ("model_card.md", "checklist.md", "selection.md")
    ),
]


def place(path):
    return path.relative_to(ROOT / "xraylib").parts[0].removesuffix(".py")


def imported(path):
    """Folders and top modules of the package that a module imports, anywhere in its text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "xraylib":
            yield from (alias.name for alias in node.names if alias.name in LEVEL)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xraylib."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("xraylib."))


def test_a_folder_imports_only_from_those_above_it():
    for path in MODULES:
        own = place(path)
        up = {name for name in imported(path) if name != own and LEVEL[name] >= LEVEL.get(own, 0)}
        assert not up, f"{path} imports {up}"


def test_the_package_keeps_its_budget():
    def lines(paths):
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)

    package = lines(MODULES)
    assert len([path for path in MODULES if path.stem != "__init__"]) <= 40
    assert package <= 7476
    assert lines((ROOT / "tests").glob("*.py")) <= package


def test_training_is_plain_keras():
    other = re.compile(r"^\s*(?:import|from) (?:tensorflow|jax|torch)|\b(?:tf|jax|jnp)\.\w", re.M)
    for path in (ROOT / "xraylib" / "training").glob("*.py"):
        assert not other.search(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_the_installed_package_runs_with_its_folders_and_templates(tmp_path):
    for name in ("xraylib", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(
            ROOT / name,
            tmp_path / "source" / name if copy is shutil.copytree else tmp_path / "source",
        )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
    ]
    subprocess.run(
        [*pip, "--target", tmp_path / "there"], cwd=tmp_path / "source", check=True, timeout=100
    )
    package = [
        path
        for path in (ROOT / "xraylib").rglob("*")
        if path.suffix in (".py", ".j2", ".tflite") or path.name == "SHA256SUMS"
    ]
    for path in package:
        assert (tmp_path / "there" / path.relative_to(ROOT)).exists(), path
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "there")}
    command = [sys.executable, "-m", "xraylib", "data", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "kermany" in done.stdout, done.stderr
    # It answers without TensorFlow, JAX or Keras.
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).save(tmp_path / "ramp.png")
    lean = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'jax', 'keras'])); from xraylib import cli; "
    command = [sys.executable, "-c", lean + "sys.exit(cli.main(['predict', 'ramp.png', '--json']))"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "abstained", done.stderr


def anchors(page):
    """Names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_of_a_page_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for link in (link for link in found if not re.match(r"[a-z]+:", link)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_commands_in_the_documentation_are_understood():
    texts = [
        path.read_text(encoding="utf-8") for path in (*PAGES, *(ROOT / "notebooks").glob("*.ipynb"))
    ]
    found = [
        c
        for text in texts
        for c in re.findall(r"python -m xraylib (?!COMMAND|--)([a-z][^\n`#|;)]*)", text)
    ]
    assert len(found) >= 4
    for command in found:
        words = [word for word in shlex.split(re.split(r"[\\\"]", command)[0]) if word != "…"]
        cli._parser().parse_args(words)


def tracked():
    """Files that git holds, or would hold once added."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_image_of_a_patient_and_no_large_file_is_in_git():
    names = [path.relative_to(ROOT).as_posix() for path in tracked()]
    assert not [name for name in names if re.match(r"reports/[^/]+/(?:local|notebooks)/", name)]
    # Films of the phantom, as test_predict shows.
    examples = [
        f"data/examples/{name}"
        for name in ("abstained.jpeg", "normal.jpeg", "pneumonia.dcm", "pneumonia.jpeg")
    ]
    assert sorted(name for name in names if name.startswith("data/")) == [
        "data/README.md",
        *examples,
    ]
    heavy = [
        name for name in names if re.search(r"\.(?:jpe?g|dcm|npy|npz|h5|keras|tflite|zip)$", name)
    ]
    assert sorted(heavy) == [
        *examples,
        "xraylib/weights/model.tflite",
    ]
    assert not [path for path in tracked() if path.stat().st_size > 6_000_000]
    hidden = [
        "reports/kermany/local/01_samples.png",
        "data/chest_xray/train/NORMAL/IM-0001-0001.jpeg",
    ]
    hidden.append("reports/kermany/runs/tiny-cnn-28/strict-0/model.weights.h5")
    done = subprocess.run(
        ["git", "check-ignore", *hidden], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == hidden


def test_the_committed_page_links_to_committed_files():
    page = ROOT / "reports" / "kermany" / "index.html"
    held, text = {str(path) for path in tracked()}, page.read_text(encoding="utf-8")
    for link in re.findall(r'(?:href|src)="([^"#:]+)"', text):
        assert str((page.parent / link).resolve()) in held, link


def test_the_lock_pins_by_hash_and_no_registry_or_machine_is_named():
    text = (ROOT / "requirements.lock").read_text()
    pins = re.split(
        r"\n(?=[a-z0-9])", "\n".join(line for line in text.splitlines() if line[:1] != "#")
    )
    assert len(pins) > 50 and "://" not in text
    for pin in pins:
        assert re.match(r"[A-Za-z0-9._\[\],-]+==\S+", pin) and "--hash=sha256:" in pin, pin[:80]
    hosts = (
        r"(?:index-url|find-links|trusted-host)\s*[= ]\s*\S+://"
        + r"|[ \"'](?:/root|/work|/home/\w+)/"
    )
    for path in tracked():
        if path.name != "test_repository.py" and path.suffix not in (
            ".png",
            ".csv",
            ".h5",
            ".tflite",
            ".jpeg",
            ".dcm",
        ):
            assert not re.search(hosts, path.read_text(encoding="utf-8")), path
