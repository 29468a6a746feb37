"""The public surface, and an import that is light and silent."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import senet

PUBLIC = [
    "BlockCheck",
    "BlockExcitations",
    "BlockOptions",
    "Excitations",
    "Plan",
    "Recalibrated",
    "Site",
    "SlimReport",
    "Slimmed",
    "SqueezeExcite",
    "UserError",
    "VerificationError",
    "__version__",
    "adopt",
    "attach",
    "attached_plan",
    "create_model",
    "deploy",
    "detach",
    "list_models",
    "load",
    "plan",
    "recalibrate",
    "record",
    "se_parameters",
    "slim",
    "verify",
]


def test_public_names():
    assert sorted(senet.__all__) == PUBLIC
    assert all(hasattr(senet, name) for name in PUBLIC)


def test_no_public_function_hides_a_module():
    modules = {module.name for module in pkgutil.iter_modules(senet.__path__)}
    assert not modules & set(PUBLIC)


@pytest.mark.parametrize("name", [n for n in PUBLIC if not n.startswith("__")])
def test_public_things_are_documented(name):
    assert (getattr(senet, name).__doc__ or "").strip()


def test_every_module_says_what_is_public():
    for module in pkgutil.walk_packages(senet.__path__, "senet."):
        if not module.name.endswith("__main__"):
            loaded = importlib.import_module(module.name)
            assert loaded.__doc__, module.name
            assert hasattr(loaded, "__all__"), module.name


def test_import_is_light_and_silent():
    code = "import json, sys, torch; torch_only = set(sys.modules); import senet; " + (
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - torch_only})))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    loaded = set(json.loads(run.stdout))
    heavy = {"timm", "torchvision", "lightning", "pytorch_lightning", "torchmetrics"}
    heavy |= {"jsonargparse", "matplotlib", "plotly", "sklearn", "rich", "PIL"}
    heavy |= {"sympy"}  # comes with the compiler, torch._dynamo, and takes as long as torch itself
    assert not loaded & heavy
    assert "senet" in loaded
