"""How the compiled part is found, what is said when it is not, and that its constants agree with Python's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mt2o_ext
from mt2o_ext import _native
from mt2o_ext.__main__ import main
from mt2o_ext.ops import FIELDS, MOMENTS, NUM_CONSTANTS, Order, Rule, plan_layout, reference

ROOT = Path(__file__).resolve().parents[1]
needs_native = pytest.mark.skipif(_native.C is None, reason=f"the compiled part was not loaded: {_native.load_error}")

# An import hook that plays a library which the loader refuses.
WITHOUT_NATIVE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "mt2o_ext._C":
            raise ImportError("libtorch_cpu.so: cannot open shared object file")

sys.meta_path.insert(0, Refuse())
"""
STEPS = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mt2o_ext
for warning in caught:
    print("warning:", warning.category.__name__, warning.message)
import torch
from mt2o_ext import _native
from mt2o_ext.__main__ import main
assert _native.C is None and not _native.available("cpu")

torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
x, y = torch.randn(8, 3), torch.randn(8, 2)
optimizer = mt2o_ext.MT2OFused(model.parameters(), num_tasks=2, num_subproblems=5, lr=0.1)
losses = [optimizer.step(lambda: ((model(x) - y) ** 2).mean(0)) for _ in range(12)]
assert losses[-1].shape == (5, 2) and bool((losses[-1].sum(1) < losses[0].sum(1)).all())
print("steps work")
"""


def run(
    tmp_path: Path, *command: str, without_native: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python with this checkout first on its path and, if wanted, the hook in a sitecustomize."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_NATIVE if without_native else "")
    path = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MT2O_")}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**variables, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_backend_info_is_plain_and_complete() -> None:
    info = mt2o_ext.backend_info()
    assert all(isinstance(value, (str, list, type(None))) for value in info.values())
    assert info["torch"] == torch.__version__
    assert info["load error"] == _native.load_error
    if _native.C is not None:
        assert info["mt2o_ext"] == mt2o_ext.__version__
        assert Path(info["native library"]).parent == Path(mt2o_ext.__file__).parent
        assert info["instruction set"] in info["instruction sets"]


@needs_native
def test_constants_agree() -> None:
    assert len(FIELDS) == _native.C.num_fields
    assert _native.C.num_constants == NUM_CONSTANTS
    assert _native.C.alignment == reference.ALIGNMENT
    assert tuple(_native.C.moments) == MOMENTS
    assert _native.C.rules == [(rule.name.lower(), len(rule.moments)) for rule in Rule]
    assert [int(order) for order in Order] == [0, 1]


@needs_native
@given(numels=st.lists(st.one_of(st.integers(0, 100), st.integers(0, 30_000_000)), max_size=8))
def test_the_compiled_planner_equals_the_reference(numels: list[int]) -> None:
    assert plan_layout(numels) == reference.plan_layout(numels)


@needs_native
def test_only_cpu_tensors_are_the_compiled_parts() -> None:
    assert _native.available("cpu")
    assert _native.available(torch.device("cpu"))
    assert not _native.available("meta")
    if torch.version.cuda is None:
        assert not _native.available("cuda")


# ---------------------------------------------------------------------- the CUDA part
@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        ("7.5;8.0", (7, 5), True),
        ("8.0", (8, 6), True),  # the same major version, a later minor one
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 9), False),
        ("8.0 9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
        ("10.0f", (10, 3), True),
        ("8.0;9.0;12.0+PTX", (10, 0), False),
    ],
)
def test_which_gpus_the_code_is_for(archs: str, capability: tuple[int, int], covered: bool) -> None:
    assert _native.covers(archs, capability) == covered


class FakeCudaPart:
    archs = "8.0;9.0+PTX"


@needs_native
def test_a_gpu_without_code_for_it_runs_on_the_reference_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MT2O_REQUIRE_NATIVE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (7, 5), (7, 5)][index])
    monkeypatch.setattr(_native, "C_cuda", FakeCudaPart)
    monkeypatch.setattr(_native, "_usable", {})
    assert _native.available("cuda:0")
    message = r"cuda:1\. mt2o_ext: sm_75 is not in \[8\.0, 9\.0\+PTX\]; rebuild with TORCH_CUDA_ARCH_LIST=7\.5"
    with pytest.warns(RuntimeWarning, match=message):
        assert not _native.available("cuda:1")
    assert not _native.available("cuda:1")
    monkeypatch.setenv("MT2O_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match="sm_75 is not in"):
        _native.available("cuda:2")


@needs_native
def test_without_the_cuda_part_a_gpu_gets_a_warning_that_says_how_to_rebuild(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MT2O_REQUIRE_NATIVE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_native, "C_cuda", None)
    monkeypatch.setattr(_native, "cuda_load_error", "No module named 'mt2o_ext._C_cuda'")
    monkeypatch.setattr(_native, "_usable", {})
    with pytest.warns(RuntimeWarning, match=r"built without CUDA: No module named .* rebuild with `FORCE_CUDA=1 pip"):
        assert not _native.available("cuda:0")


@pytest.mark.skipif(_native.C_cuda is not None, reason="there is a CUDA part")
@needs_native
@pytest.mark.parametrize("name", ["combine_", "gram_", "transfer_", "step_", "finite_"])
def test_an_operator_on_a_gpu_says_that_there_is_no_cuda_part(name: str) -> None:
    """As the dispatcher would call it for tensors on a GPU."""
    arguments = {
        "combine_": [torch.zeros(1, 16), torch.zeros(1, 1, 16), torch.ones(1, 1).double()],
        "gram_": [torch.zeros(1, 0, 1, 1).double(), torch.zeros(1, 0, 1).double(), torch.zeros(1, 1, 16), None],
        "transfer_": [torch.zeros(1, 16), torch.ones(1, 1).double()],
        "finite_": [torch.zeros(1), torch.zeros(1, 1, 16)],
        "step_": [torch.zeros(1, 16), *[None] * 5, torch.zeros(1, 0), torch.zeros(1, 0, NUM_CONSTANTS).double(),
                  torch.zeros(1, 1, 16), None, None, torch.zeros(0, len(FIELDS)).double()],
    }[name]  # fmt: skip
    options = {"gram_": {"centre": False, "diagonal": False}, "step_": {"rule": 0, "order": 0}}.get(name, {})
    more = [None] * 3 if name == "step_" else []
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    operator = getattr(torch.ops.mt2o_ext, name).default
    with pytest.raises(RuntimeError, match=r"mt2o_ext was built without CUDA: .* rebuild with"):
        operator.redispatch(keys, *arguments, torch.zeros(0, 3, dtype=torch.int64), *more, **options)


# A library that is there and that the loader refuses, under a torch with CUDA.
BROKEN_CUDA_PART = """
import importlib.machinery, sys, torch
torch.version.cuda = "13.0"

class Broken:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "mt2o_ext._C_cuda" else None
    def create_module(self, spec):
        raise ImportError("undefined symbol: cudaLaunchKernel")
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Broken())
import mt2o_ext
print(mt2o_ext.backend_info()["CUDA load error"])
"""


@needs_native
def test_a_broken_cuda_part_breaks_nothing_else(tmp_path: Path) -> None:
    process = run(tmp_path, "-c", BROKEN_CUDA_PART, without_native=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "undefined symbol: cudaLaunchKernel"
    assert process.stderr.count("RuntimeWarning") == 1
    process = run(tmp_path, "-c", BROKEN_CUDA_PART, without_native=False, MT2O_REQUIRE_NATIVE="1")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == "ImportError: undefined symbol: cudaLaunchKernel"


def test_without_the_compiled_part_everything_works_after_one_warning(tmp_path: Path) -> None:
    process = run(tmp_path, "-c", STEPS)
    assert process.returncode == 0, process.stderr
    *warnings, last = process.stdout.splitlines()
    assert last == "steps work"
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: RuntimeWarning mt2o_ext runs on its slow reference in plain torch")
    assert "libtorch_cpu.so: cannot open shared object file" in warnings[0]


def test_the_compiled_part_can_be_required(tmp_path: Path) -> None:
    process = run(tmp_path, "-c", "import mt2o_ext", MT2O_REQUIRE_NATIVE="1")
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == "ImportError: libtorch_cpu.so: cannot open shared object file"
    assert "RuntimeWarning" not in process.stderr


def test_requiring_it_can_be_switched_off(tmp_path: Path) -> None:
    assert run(tmp_path, "-W", "ignore", "-c", "import mt2o_ext", MT2O_REQUIRE_NATIVE="0").returncode == 0


# ---------------------------------------------------------------------- what an import costs
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "sympy",
    "pandas",
    "matplotlib",
    "moocore",
    "tqdm",
)


@needs_native
def test_an_import_brings_in_nothing_that_takes_long() -> None:
    """torch._dynamo, for one, takes as long as torch itself."""
    script = (
        "import sys, torch; before = set(sys.modules); import mt2o_ext; new = set(sys.modules) - before; "
        f"print([name for name in {HEAVY} if name in new])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_answer_about_a_gpu_is_a_constant_for_compilers_as_torch_marks_one() -> None:
    def asked() -> bool:
        return True

    torch.compiler.assume_constant_result(asked)
    assert vars(asked) == vars(_native._gpu_available) != {}


# ---------------------------------------------------------------------- python -m mt2o_ext
ELEMENTS = ("track", "feed", "excess", "drop_signs", "draw")
MASKS = ("mask", "harmony", "exchange")
OTHERS = ("combine", "gram", "priority", "transfer", "finite", "judge", "settle", "count", "step", "solve")
FAMILIES = (*OTHERS, *ELEMENTS, *MASKS)


def checked(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if line.endswith(" ok")]


@needs_native
def test_main_prints_what_was_found_and_checks_it(tmp_path: Path) -> None:
    process = run(tmp_path, "-m", "mt2o_ext", without_native=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"torch             {torch.__version__}" in process.stdout
    assert set(checked(process.stdout)) == set(FAMILIES)
    assert process.stderr == ""


def test_main_without_the_compiled_part(tmp_path: Path) -> None:
    process = run(tmp_path, "-W", "ignore", "-m", "mt2o_ext")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "cannot open shared object file" in process.stdout
    assert set(checked(process.stdout)) == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "function"),
    [
        *((family, f"{family}_") for family in FAMILIES if family != "solve"),
        *(("solve", function) for function in ("minimum_norm_", "power_barrier_", "dual_cone_")),
    ],
)
def test_main_fails_where_a_kernel_is_wrong(
    family: str, function: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mt2o_ext.ops, function, lambda *arguments, **options: None)
    assert main() == 1
    assert set(checked(capsys.readouterr().out)) == set(FAMILIES) - {family}
