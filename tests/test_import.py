"""What `import chrono_features` does not do."""

import json
import subprocess
import sys

import pytest

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
before = state()
import chrono_features
after = state()
modules = sorted({name.split(".")[0] for name in sys.modules})
ours = sorted(name for name in sys.modules if name.startswith("chrono_features."))
print(json.dumps([before, after, modules, ours]))
"""


@pytest.fixture(scope="module")
def report():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_nothing_global_changes(report):
    before, after, *_ = report
    assert after == before


def test_no_code_of_the_extras_is_loaded(report):
    assert {"torch", "numpy"} <= set(report[2])
    assert not {"timm", "torchvision", "huggingface_hub", "safetensors", "einops"} & set(report[2])
    assert not {"av", "PIL.ImageQt", "typer", "rich", "accelerate", "gdown", "mkdocs"} & set(report[2])


def test_no_video_training_evaluation_or_command_line_code_is_loaded(report):
    outer = ("video", "viz", "cli", "training", "evaluation", "refiners")
    assert not [name for name in report[3] if name.split(".")[1] in outer]
