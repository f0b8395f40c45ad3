"""Start-up: a command imports what it needs, and nothing that takes seconds beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import sam_blvit
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.commands.scripts import COMMANDS
from sam_blvit.config import MODELS
from sam_blvit.model.build import build_sam

ROOT = Path(__file__).parents[1]
RUN = """
import sys
from sam_blvit.cli import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("imported:", *sys.modules)
raise SystemExit(code)
"""
NEEDLESS = {
    *("torch._inductor.compile_fx", "torch.nn.attention.flex_attention", "torch.utils.tensorboard"),
    *("matplotlib", "scipy", "skimage", "onnx", "onnxruntime", "pyarrow", "lvis", "jinja2"),
    *(
        "sam_blvit.automatic_mask_generator",
        "sam_blvit.train",
        "sam_blvit.evaluate",
        "sam_blvit.benchmark",
        "sam_blvit.importing",
    ),
}
"""What `segment` does without. PyTorch's tracer (`torch._dynamo`, `sympy`) it cannot: torchvision imports it, which
segment_anything imports."""


RUN_FILE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sys.modules)
"""
SCRIPTS = sorted(path for folder in ("tools", "eval") for path in (ROOT / folder).glob("*.py"))


def imported(*args: str, code: int = 0, run: str = RUN) -> set[str]:
    """The modules that a process has imported after `sam-blvit` with `args`, which exits with `code`."""
    done = subprocess.run([sys.executable, "-c", run, *args], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], *([name, "--help"] for name in ("segment", "benchmark", *COMMANDS))],
    ids=" ".join,
)
def test_help_does_not_import_torch(args: list[str]) -> None:
    assert not {"torch", "numpy", "matplotlib"} & imported(*args)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_of_a_script_does_not_import_torch(script: Path) -> None:
    heavy = {"torch", "torchvision", "segment_anything", "numpy", "matplotlib", "cv2"}
    assert not heavy & imported(str(script), "--help", run=RUN_FILE)


def test_a_mistake_in_a_flag_does_not_import_torch() -> None:
    assert "torch" not in imported("segment", "a.jpg", "--output", "x", "--device", "tpu", code=2)


def test_segment_imports_neither_compiler_nor_charts(tmp_path: Path) -> None:
    save_sam(build_sam(MODELS["blvit_tiny"]), tmp_path / "ours.safetensors")
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    flags = ["--model", str(tmp_path / "ours.safetensors"), "--device", "cpu", "--output", str(tmp_path / "out")]
    modules = imported("segment", str(tmp_path / "photo.png"), "--point", "1,1", *flags)
    assert "torch" in modules
    assert not NEEDLESS & modules


def test_the_package_imports_without_torch() -> None:
    code = "import sam_blvit, sys; assert 'torch' not in sys.modules; dir(sam_blvit)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sam_blvit.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(sam_blvit, name) is not None
    assert name in dir(sam_blvit)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        sam_blvit.nosuch  # noqa: B018


def test_the_package_runs_as_a_module_and_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "sam_blvit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sam-blvit {sam_blvit.__version__}\n"


def test_the_package_is_typed() -> None:
    assert (Path(sam_blvit.__file__).parent / "py.typed").is_file()
