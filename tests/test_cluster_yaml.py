"""Ray's own checks are the authority: its schema for cluster.yaml, its packer for what a job ships."""

import logging
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "clipray/__init__.py",
    "clipray/report/page.html.j2",
    "jobs/run.py",
    "configs/demo.yaml",
    "pyproject.toml",
)


@pytest.fixture(scope="module")
def cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(prepared)
    return prepared


def test_ray_knows_every_key(cluster):
    import json

    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(cluster) <= set(schema["properties"])


def test_the_head_computes_nothing(cluster):
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in command for command in cluster["head_start_ray_commands"])


def test_workers_on_demand_and_spot_within_bounds(cluster):
    workers = {
        k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]
    }
    assert set(workers) == {"cpu", "gpu", "gpu_spot"}
    for node in workers.values():
        assert node["min_workers"] == 0 < node["max_workers"]
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]
    spot = {
        name for name, node in workers.items() if "InstanceMarketOptions" in node["node_config"]
    }
    assert spot == {"cpu", "gpu_spot"}


def test_every_machine_installs_the_tested_versions(cluster):
    wanted = "--require-hashes -r ~/clipray/cluster-requirements.txt"
    assert any(wanted in command for command in cluster["setup_commands"])
    for local in cluster["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).is_file()


def test_the_cluster_has_the_versions_of_constraints_each_with_hashes_and_from_nowhere_in_particular():
    """Every dependency and what it needs; a line that names a host would tie all machines to it."""
    text = (ROOT / "configs" / "cluster-requirements.txt").read_text()
    entries = re.findall(
        r"^(\S+)==(\S+)[^\\\n]*((?:\\\n\s+--hash=sha256:[0-9a-f]{64}\s*)+)", text, re.M
    )
    assert len(entries) == len(re.findall(r"^\S", text, re.M))
    assert "://" not in text
    tested = dict(
        re.findall(r"^([^\s=]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.M)
    )
    pinned = {name: version for name, version, _ in entries}
    assert {name: tested[name] for name in pinned} == pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {
        re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in project["dependencies"]
    }
    assert direct <= set(pinned)


def test_all_machines_ask_for_the_token(cluster):
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """name → size of the files that `ray job submit --working-dir .` sends, packed as Ray packs them."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(
        str(ROOT),
        target,
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
        logger=logging.getLogger("quiet"),
    )
    with zipfile.ZipFile(target) as package:
        sizes = {one.filename: one.file_size for one in package.infolist()}
    return sizes, target.stat().st_size


def test_a_job_ships_what_it_needs_and_little_more(shipped):
    sizes, packed = shipped
    assert {name for name in NEEDED if (ROOT / name).exists()} <= set(sizes)
    weights = {
        str(p.relative_to(ROOT)) for p in (ROOT / "configs" / "backbones").glob("*/*.safetensors")
    }
    assert weights <= set(sizes)
    assert packed < 30 * 2**20
    tops = {name.partition("/")[0] for name in sizes}
    assert not tops & {
        ".git",
        ".venv",
        ".ci",
        "workspace",
        "tests",
        "benchmarks",
        "build",
        ".pytest_cache",
    }
    assert not [name for name in sizes if "__pycache__" in name or name.endswith(".db")]


def test_code_of_ours_named_like_an_ignored_folder_still_ships(shipped):
    sizes, _ = shipped
    code = {
        str(p.relative_to(ROOT)) for top in ("clipray", "jobs") for p in (ROOT / top).rglob("*.py")
    }
    assert code <= set(sizes)
