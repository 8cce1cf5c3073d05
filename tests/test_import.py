"""What `import chrono_features` does not do."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chrono_features

SCRIPT = """
import json, sys
import torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "random numbers": torch.get_rng_state().sum().item(),
        "seed": torch.initial_seed(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "cudnn": [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
                      torch.backends.cuda.math_sdp_enabled()],
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "denormals": (torch.tensor(1e-40) * 1).item(),
        "python random": hash(__import__("random").getstate()),
        "numpy random": __import__("numpy").random.get_state()[1].tolist(),
        "cuda": torch.cuda.is_initialized(),
    }

torch.manual_seed(3)
import numpy
before, known = state(), set(sys.modules)
from chrono_features import soft_argmax_track
after = state()
modules = sorted({name.split(".")[0] for name in sys.modules.keys() - known})
ours = sorted(name for name in sys.modules if name.startswith("chrono_features."))
print(json.dumps([before, after, modules, ours]))
"""


@pytest.fixture(scope="module")
def report():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_nothing_global_changes(report):
    before, after, *_ = report
    assert after == before


def test_only_torch_and_numpy_are_loaded(report):
    assert set(report[2]) - sys.stdlib_module_names <= {"chrono_features", "torch", "numpy"}


def test_no_video_training_evaluation_or_command_line_code_is_loaded(report):
    outer = ("video", "viz", "cli", "training", "evaluation", "refiners")
    assert not [name for name in report[3] if name.split(".")[1] in outer]


# What is imported anywhere is declared

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
SOURCE = Path(chrono_features.__file__).parent
IMPORTED_AS = {"pillow": "PIL", "opencv-python-headless": "cv2", "scikit-learn": "sklearn"}  # others as they are called
WITH_TORCH = {"triton"}  # where PyTorch is built for GPUs
ROOMS_OF_EXTRAS = {"cli": "cli"}  # folders whose modules run with an extra only


def declared(extra=""):
    """The packages of an extra, or of the core, by the names they are imported by."""
    project = pytest.importorskip("tomllib").loads(PROJECT.read_text())["project"]
    found = set()
    for requirement in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        if inner := re.match(r"chrono-features\[(.*)\]", requirement):
            found.update(*(declared(name) for name in inner[1].split(",")))
        else:
            name = re.match(r"[\w-]+", requirement)[0]
            found.add(IMPORTED_AS.get(name, name.replace("-", "_")))
    return found


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE), list(ast.walk(ast.parse(path.read_text())))


def test_every_import_is_of_a_declared_dependency():
    core = declared() | WITH_TORCH | sys.stdlib_module_names
    undeclared = []
    for path, nodes in modules():
        extra = ROOMS_OF_EXTRAS.get(path.parts[0])
        allowed = core | (declared(extra) if extra else set())
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        undeclared += [f"{path}: {name}" for name in names if name.partition(".")[0] not in allowed]
    assert not undeclared


def test_every_extra_holds_what_is_required_of_it():
    missing, count = [], 0
    for path, nodes in modules():
        for node in nodes:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                *_, extra = node.args
                names = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                known = declared(extra.value)
                missing += [f"{path}: {name}" for name in names if name.partition(".")[0] not in known]
                count += 1
    assert count > 20 and not missing
