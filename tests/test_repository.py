"""The house rules: what no single module can keep by itself."""

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from xraylib import cli

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "xraylib").glob("*.py"))
EACH_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
EACH_MODULE = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)

# A module imports from those above it only.
# fmt: off
ORDER = (
    "errors", "paths", "storage", "scores", "thorax", "phantom", "decoding", "images",
    "naming", "datasets", "archives", "downloads", "catalog", "splits", "networks", "models", "systems",
    "recipes", "accelerators", "resampling", "ranking", "operating", "metrics", "calibration", "pairs",
    "subgroups", "abstention", "claimed", "comparisons", "corruptions", "shortcuts", "batches", "checkpoints",
    "features", "heads", "runs", "training", "canvas", "dataplots", "curveplots", "scoreplots", "storyplots",
    "evalplots", "trustplots", "galleries", "plots", "reports", "pages", "cards", "predict", "studies",
    "trials", "robustness", "explain", "execution", "environment", "cli", "__main__",
)
# fmt: on
# Plain Keras, so that TensorFlow and JAX both run it.
PLAIN_KERAS = ("networks", "models", "batches", "training", "checkpoints", "features", "heads")


def cells(path, kind=None):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if kind in (None, cell.cell_type)]


def imported(path, package="xraylib"):
    """Modules of the package that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
    return found & {module.stem for module in MODULES}


def test_every_module_has_its_place_in_the_order():
    assert sorted(ORDER) == sorted(path.stem for path in MODULES if path.stem != "__init__")


@EACH_MODULE
def test_a_module_imports_only_from_those_above_it(path):
    above = [] if path.stem == "__init__" else ORDER[: ORDER.index(path.stem)]
    assert imported(path) - set(above) - {"__init__"} == set()


@EACH_MODULE
def test_no_module_is_longer_than_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", PLAIN_KERAS)
def test_training_is_plain_keras(name):
    tree = ast.parse((ROOT / "xraylib" / f"{name}.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    libraries = {
        (name or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert not names & {"tf", "jax", "jnp"} and not libraries & {"tensorflow", "jax", "torch"}


@EACH_MODULE
def test_every_module_has_a_test_file_or_is_tested_with_another(path):
    with_others = {"archives", "downloads", "naming", "datasets"}, {"canvas", "dataplots", "curveplots"}
    covered = set.union(*with_others) | {
        "claimed",
        "scoreplots",
        "storyplots",
        "evalplots",
        "trustplots",
        "systems",
        "runs",
        "galleries",
        "__init__",
        "__main__",
        "errors",
        "paths",
    }
    covered |= {"batches", "checkpoints", "features", "heads", "decoding", "thorax", "networks", "pages"}
    assert path.stem in covered or (ROOT / "tests" / f"test_{path.stem}.py").exists()


def test_nothing_is_left_undone():
    # Put together here so that this file passes its own test.
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X\\b", "raise Not" + "Implemented")))
    for path in tracked():
        # A notebook's pictures may spell anything.
        text = re.sub(r'"image/png": ".*"', "", path.read_text(encoding="utf-8", errors="replace"))
        if path.suffix in (".py", ".md", ".ipynb", ".toml", ".j2") or path.name == "Makefile":
            assert not marks.search(text), path


def test_there_are_seven_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 8)]


@EACH_NOTEBOOK
def test_a_notebook_opens_with_question_input_time_and_badge(path):
    title = cells(path)[0]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert re.search(rf"\[!\[Open in Colab\]\(\S+\)\]\(\S+/notebooks/{path.name}\)", title.source)
    for word in ("**Question.**", "**Input.**", "**Time.**", "not a medical device"):
        assert word in title.source


@EACH_NOTEBOOK
def test_the_bootstrap_cell_does_nothing_outside_colab(path):
    bootstrap = cells(path, "code")[0].source
    plain = re.sub(r"^(\s+)%pip .*$", r"\1raise AssertionError", bootstrap, flags=re.M)
    assert plain != bootstrap
    exec(compile(plain, path.name, "exec"), {})
    tree = ast.parse(plain)
    assert [type(node) for node in tree.body] == [ast.Import, ast.If]
    assert "google.colab" in ast.unparse(tree.body[1].test)


@EACH_NOTEBOOK
def test_parameters_are_the_second_code_cell(path):
    code = cells(path, "code")
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [code[1]]
    given = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(code[1].source).body}
    assert {"dataset", "budget", "seed", "recipes", "reuse"} <= set(given)
    assert (given["dataset"], given["budget"], given["seed"]) == ("phantom", "quick", 0)


@EACH_NOTEBOOK
def test_a_notebook_was_run_from_top_to_bottom_without_error(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


@EACH_NOTEBOOK
def test_outputs_name_no_path_of_a_machine(path):
    text = str([cell.outputs for cell in cells(path, "code")])
    assert not re.search(r"/(?:home|root|Users|tmp|work)/\w", text)


@EACH_NOTEBOOK
def test_the_last_cell_prints_versions(path):
    last = cells(path)[-1]
    assert last.cell_type == "code" and "importlib.metadata" in last.source
    for name in ("keras", "numpy", "pandas", "scikit-learn", "pillow"):
        assert f'"{name}"' in last.source


@EACH_NOTEBOOK
def test_notebooks_call_and_do_not_define(path):
    for cell in cells(path, "code")[1:]:
        assert len(cell.source.splitlines()) <= 20, cell.source
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}, cell.source


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *(ROOT / "reports" / name for name in ("model_card.md", "checklist.md")),
]


def anchors(page):
    """Names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def test_the_readme_leads_into_the_repository():
    assert any("notebooks/" in link for link in links(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_of_a_page_resolve(page):
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


COMMANDS = re.compile(
    r"python -m xraylib (?!COMMAND)"
    r"((?:data|train|evaluate|external|robustness|strangeness|predict|report|execute)\b[^\n`#|;]*)"
)


def test_commands_in_the_documentation_are_understood():
    pages = [*PAGES, *NOTEBOOKS, ROOT / "xraylib" / "recipes.py"]
    found = [command for page in pages for command in COMMANDS.findall(page.read_text(encoding="utf-8"))]
    assert len(found) >= 4
    for command in found:
        words = [word for word in shlex.split(command.split("\\n")[0]) if word != "…"]
        cli._parser().parse_args(words)


def test_the_lock_pins_every_package_by_hash_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text()
    pins = re.split(r"\n(?=[a-z0-9])", "\n".join(line for line in text.splitlines() if line[:1] != "#"))
    assert len(pins) > 50
    for pin in pins:
        assert re.match(r"[A-Za-z0-9._\[\],-]+==\S+", pin) and "--hash=sha256:" in pin, pin[:80]
    assert "://" not in text and "--index-url" not in text and "--find-links" not in text


def tracked():
    """Files that git holds, or would hold once added."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_registry_and_no_machine_is_named():
    registry = r"(?:index-url|find-links|trusted-host)\s*[= ]\s*\S+://"
    machine = r"[ \"'](?:/root|/work|/home/\w+)/"
    hosts = re.compile(f"{registry}|{machine}")
    for path in tracked():
        if path.name == Path(__file__).name or path.suffix in (".png", ".csv"):
            continue
        assert not hosts.search(path.read_text(encoding="utf-8")), path


def test_no_picture_of_a_patient_is_in_git():
    inside = [path.relative_to(ROOT).as_posix() for path in tracked()]
    assert not [name for name in inside if re.match(r"reports/[^/]+/(?:local|notebooks)/", name)]
    assert not [name for name in inside if name.startswith("data/") and name != "data/README.md"]
    assert not [name for name in inside if re.search(r"\.(?:jpe?g|dcm|npy|npz|h5|keras|zip)$", name)]


def test_what_shows_patients_would_be_ignored():
    names = ["reports/kermany/local/01_samples.png", "data/chest_xray/train/NORMAL/IM-0001-0001.jpeg"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == names


def test_no_file_in_git_is_large():
    assert {path.name for path in tracked() if path.stat().st_size > 5_000_000} == set()


def test_the_committed_report_links_to_committed_files():
    shown = subprocess.run(
        ["git", "show", "HEAD:reports/index.html"], cwd=ROOT, capture_output=True, text=True
    )
    held = {str(path.relative_to(ROOT)) for path in tracked()}
    linked = re.findall(r'(?:href|src)="([^"#:]+)"', shown.stdout)
    assert linked
    for link in linked:
        assert str((ROOT / "reports" / link).resolve().relative_to(ROOT)) in held, link
