"""The files around the package agree: locks, versions, workflows, hooks, forms."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import xraylib
from xraylib.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.M))
LOCKS = {"requirements.lock": ("cpu", "jax", "notebooks"), "requirements-dev.lock": ("dev",)}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins(name):
    """The pins of a lock, each with its marker and without its hashes."""
    lines = (ROOT / name).read_text().splitlines()
    return [line.removesuffix(" \\") for line in lines if re.match(r"[a-z0-9]", line)]


def names(name):
    """Names of the packages in a lock."""
    return {pin.split("==")[0] for pin in pins(name)}


def requirements(extras):
    """What the package needs with some extras, and what the extras of itself need."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                texts += map(str, requirements(sorted(requirement.extras)))
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_package_by_hash(name):
    text = (ROOT / name).read_text()
    without_comments = "\n".join(line for line in text.splitlines() if line[:1] != "#")
    packages = re.split(r"\n(?=[a-z0-9])", without_comments)
    assert len(packages) > 50
    assert "://" not in text
    for package in packages:
        assert re.match(r"[a-z0-9._-]+==\S+", package), package[:80]
        assert "--hash=sha256:" in package, package[:80]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_pyproject_asks_for(name):
    locked = [Requirement(pin) for pin in pins(name)]
    for python in ("3.11", "3.12", "3.13"):
        machine = default_environment() | {
            "python_version": python,
            "python_full_version": f"{python}.0",
        }
        versions = {
            canonicalize_name(pin.name): next(iter(pin.specifier)).version
            for pin in locked
            if pin.marker is None or pin.marker.evaluate(machine)
        }
        for needed in requirements(LOCKS[name]):
            if needed.marker is None or needed.marker.evaluate(machine):
                version = versions[canonicalize_name(needed.name)]
                assert needed.specifier.contains(version), (needed, version, "Fix: make lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_was_compiled_by_the_command_in_the_makefile(name):
    (command,) = re.findall(r"^#    (.*)", (ROOT / name).read_text(), flags=re.M)
    (flags,) = re.findall(r"^COMPILE := (.*) --quiet$", MAKEFILE, flags=re.M)
    (rest,) = re.findall(rf"\$\(COMPILE\) (.* -o {name} pyproject.toml)", MAKEFILE)
    assert command == f"{flags} {rest}"
    assert re.findall(r"--extra (\S+)", rest) == [*LOCKS[name]]


def test_the_lock_for_development_only_adds_to_the_other():
    assert set(pins("requirements.lock")) < set(pins("requirements-dev.lock"))


def test_reproducing_installs_no_tool_for_testing_and_no_gpl_decoder():
    unwanted = {"mypy", "playwright", "pytest", "nbval", "ruff", "pylibjpeg-libjpeg"}
    assert unwanted.isdisjoint(names("requirements.lock"))
    assert unwanted < names("requirements-dev.lock")
    # The package is installed without build isolation.
    assert "setuptools" in names("requirements.lock")
    for extra, needed in PROJECT["optional-dependencies"].items():
        asked = any("pylibjpeg-libjpeg" in text for text in needed)
        assert asked == (extra == "dicom-gpl"), extra


def test_one_version_in_one_place(tmp_path):
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == xraylib.__version__
    changes = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert changes[0] == "Unreleased"
    assert changes[1:] == sorted(changes[1:], key=Version, reverse=True)
    # The version that is built is the one in the source.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "xraylib").mkdir()
    shutil.copy(ROOT / "xraylib" / "__init__.py", tmp_path / "xraylib")
    build = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    assert f"\nVersion: {xraylib.__version__}\n" in metadata.read_text()


def ci_steps():
    """Names of the steps that .ci/run takes."""
    (listed,) = re.findall(r"^  ([a-z |]+)\) \"\$\{1:-all\}\" ;;$", CI, flags=re.M)
    return {*listed.split(" | "), *re.findall(r"^  ([a-z]+)\) [a-z]+ ;;$", CI, flags=re.M)}


CI = (ROOT / ".ci" / "run").read_text()


def commands(job):
    """Every command that a job runs, once for each value of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for step in job["steps"]:
        text = step.get("run", "")
        for line in text.splitlines():
            found = re.search(r"\$\{\{ matrix\.(\w+) \}\}", line)
            values = matrix[found[1]] if found else [""]
            yield from (line.replace(found[0], value) if found else line for value in values)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_this_repository_has(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    ran = [command for job in jobs.values() for command in commands(job)]
    assert ran
    for command in ran:
        program, *rest = command.split()
        if program == ".ci/run":
            assert set(rest) <= ci_steps(), command
        elif program == "make":
            assert set(rest) <= TARGETS, command
        else:
            assert command.startswith("gh release create "), command
    assert "secrets." not in path.read_text()


def test_continuous_integration_has_every_step_and_the_oldest_and_newest_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    ran = {command.removeprefix(".ci/run ") for job in jobs.values() for command in commands(job)}
    # The radiographs are not there.
    assert ran == ci_steps() - {"all", "data"}
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_the_steps_of_ci_call_targets_of_make():
    called = re.findall(r"^ *(?:[a-z]+\(\) \{ )?make ([a-z-]+)", CI, flags=re.M)
    assert {"lint", "unit", "slow", "stored", "test", "setup"} <= set(called) <= TARGETS
    done = subprocess.run([ROOT / ".ci" / "run", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    for step in ci_steps() - {"all"}:
        assert step in done.stderr
        assert f".ci/run {step}" in CI


def test_hooks_and_locks_have_one_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = [repo for repo in hooks if "ruff" in repo["repo"]]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in pins("requirements-dev.lock")


def test_the_development_container_is_built_by_make():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    program, target = container["postCreateCommand"].split()
    assert program == "make"
    assert target in TARGETS
    assert container["image"].endswith(":3.11")


def test_the_form_for_a_published_system_asks_for_the_fields_of_a_recipe():
    path = ROOT / ".github" / "ISSUE_TEMPLATE" / "add-published-system.yml"
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    asked = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(asked)) == len(asked)
    assert {"source", "claims", "network", "retained", "corrected"} <= set(asked)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"])
def test_a_page_names_targets_that_make_has(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`|&& )make ([a-z][a-z-]*)", text, flags=re.M)
    assert set(named) <= TARGETS
