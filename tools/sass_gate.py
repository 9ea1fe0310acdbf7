"""Checks the machine code of the CUDA kernels, on any machine: what nvcc made of them is what they were written for.

    python tools/sass_gate.py build/cuda/mt2o_ext/_C_cuda*.so

Needs cuobjdump and nvdisasm: in PATH, in CUDA_HOME, or `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
Exits with 1 if a kernel breaks its rule or has none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FLOAT64 = frozenset({"DADD", "DMUL", "DFMA"})


@dataclass(frozen=True)
class Rule:
    """What a kernel must and must not contain.  Never: local memory (LDL, STL), atomics (ATOM, RED)."""

    loads: bool = True  # of 128 bits
    stores: bool = True
    read_only: int = 0  # bits of the loads of what no thread writes
    float64: frozenset[str] = frozenset()  # allowed, although no template argument is double
    whole: bool = False  # no sixteen bytes are stored in pieces: none of eight, but where a template argument is double


# By the kernel's name and template arguments; the first that matches the whole of it.
RULES = {
    # Behind addresses the compiler does not know that memory is global: LD instead of LDG.
    r"combine_rows<.*, true>": Rule(loads=False, whole=True),
    r"combine_rows<.*>": Rule(whole=True),
    r"find_nonfinite<.*, true>": Rule(loads=False, stores=False),
    r"find_nonfinite<.*>": Rule(stores=False),
    r"step_rows<.*>": Rule(whole=True),
    r"(track_rows|feed_rows)<.*>": Rule(whole=True),
    # Sums over tasks and columns, in float64.
    r"excess_chunks<.*>": Rule(float64=FLOAT64),
    r"drop_signs_of<.*>": Rule(float64=FLOAT64, whole=True),
    r"step_masked_rows<.*>": Rule(),
    r"mask_row<.*>": Rule(),
    r"score_columns<float, (float|b?float16), true>": Rule(loads=False),  # values of 16 bits are loaded by eight bytes
    r"score_columns<float, b?float16, false>": Rule(loads=False),
    r"score_columns<double, .*>": Rule(stores=False),  # scores are float
    r"score_columns<.*>": Rule(),
    # Bits, digits and counts: nothing that is sixteen bytes.
    r"count_digits|next_digit|exchange_bits": Rule(loads=False, stores=False),
    r"advance_counters": Rule(loads=False, stores=False, float64=FLOAT64),  # a thread works out the constants of a row
    # Four columns of float or two of double for each thread; as many of 16 bits as of float, so that sums are the same.
    r"sum_rows<float, .*>": Rule(stores=False, read_only=128, float64=FLOAT64),
    r"sum_rows<.*>": Rule(loads=False, stores=False, read_only=64, float64=FLOAT64),
    r"gram_chunks<(float|double), .*, false>": Rule(stores=False, float64=FLOAT64),
    r"gram_chunks<.*>": Rule(loads=False, stores=False, float64=FLOAT64),
    r"(add_chunks|centre_products)": Rule(loads=False, stores=False, float64=FLOAT64),
    # Products are summed in float64, and a coefficient is rounded once; where a run of columns lies is worked out there
    # too.  The sums of four tasks and five leave registers for two or four columns of each.
    r"all_products<(b?float16|float), 5>|all_products<b?float16, 4>": Rule(loads=False, stores=False, float64=FLOAT64),
    r"(all_products|own_products)<.*>": Rule(stores=False, float64=FLOAT64),
    r"layer_coefficients": Rule(loads=False, stores=False, float64=FLOAT64),
    r"corrected_sum<.*>": Rule(float64=FLOAT64, whole=True),
    r"draw_numbers": Rule(loads=False, stores=False, float64=FLOAT64),
    # Few numbers of small tables, in float64.
    r"gather_scalars|judge_rows|settle_rows|count_rows": Rule(loads=False, stores=False, float64=FLOAT64),
    r"(solve_problems|solve_alone)<.*>": Rule(loads=False, stores=False, float64=FLOAT64),  # small problems, in float64
    # M - I is rounded from float64 once for each block.  Of any number of rows: one column for each thread.
    r"(transfer_many<.*>|step_and_blend<.*, 0>)": Rule(loads=False, stores=False, float64=frozenset({"DADD"})),
    r"(transfer_rows|step_and_blend)<.*>": Rule(float64=frozenset({"DADD"}), whole=True),
}


@dataclass(frozen=True)
class Kernel:
    arch: str
    name: str  # without namespaces: combine_rows<float, float>
    opcodes: frozenset[str]

    def has(self, pattern: str) -> bool:
        return any(re.match(pattern, opcode) for opcode in self.opcodes)

    def problems(self) -> list[str]:
        rule = next((rule for pattern, rule in RULES.items() if re.fullmatch(pattern, self.name)), None)
        if rule is None:
            return ["has no rule in tools/sass_gate.py"]
        forbidden = ["LDL", "STL", "ATOM", "ATOMG", "ATOMS", "RED"]
        if not re.search(r"\bdouble\b", self.name):
            forbidden += sorted(FLOAT64 - rule.float64)
        found = [f"contains {opcode}" for opcode in forbidden if self.has(rf"{opcode}(\.|$)")]
        if rule.whole and "double" not in self.name and self.has(r"STG\.E\.64(\.SYS)?$"):
            found.append("stores sixteen bytes in pieces")
        wanted = [opcode for opcode, wide in (("LDG", rule.loads), ("STG", rule.stores)) if wide]
        found += [f"has no {opcode} of 128 bits" for opcode in wanted if not self.has(rf"{opcode}\..*128")]
        if rule.read_only and not self.has(rf"LDG\..*{rule.read_only}\.CONSTANT"):
            found.append(f"has no LDG of {rule.read_only} bits of what no thread writes")
        return found


def demangled(names: Sequence[str]) -> list[str]:
    text = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout
    return [re.sub(r"^void |\w+::|\(.*", "", line) for line in text.splitlines()]


def kernels_of(sass: str) -> Iterator[Kernel]:
    """The kernels in what `cuobjdump -sass` prints."""
    arch, mangled, opcodes = "", [], []
    for line in sass.splitlines():
        if match := re.match(r"\s*arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            mangled.append((arch, match[1]))
            opcodes.append(set())
        elif opcodes and (match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)):
            opcodes[-1].add(match[1])
    names = demangled([name for _, name in mangled]) if mangled else []
    for (arch, _), name, codes in zip(mangled, names, opcodes, strict=True):
        yield Kernel(arch, name, frozenset(codes))


def check(kernels: Sequence[Kernel]) -> list[str]:
    """What is wrong, a line for each kernel that breaks its rule, and for each rule that no kernel uses."""
    wrong = [f"{k.arch} {k.name}: {', '.join(k.problems())}" for k in kernels if k.problems()]
    names = {kernel.name for kernel in kernels}
    unused = [pattern for pattern in RULES if not any(re.fullmatch(pattern, name) for name in names)]
    return wrong + [f"no kernel is called {pattern}" for pattern in unused]


def disassembled(library: str) -> str:
    package = Path(sysconfig.get_path("purelib"), "nvidia")
    folders = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"]
    path = os.pathsep.join([*folders, *map(str, package.glob("cu*/bin"))])
    cuobjdump = shutil.which("cuobjdump", path=path)
    if cuobjdump is None or shutil.which("nvdisasm", path=path) is None:
        raise SystemExit("no cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    done = subprocess.run(
        [cuobjdump, "-sass", library], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    if done.returncode != 0:
        raise SystemExit(f"{cuobjdump} {library}: {done.stderr}")
    return done.stdout


def main(libraries: Sequence[str]) -> int:
    kernels = [kernel for library in libraries for kernel in kernels_of(disassembled(library))]
    wrong = check(kernels)
    archs = {kernel.arch for kernel in kernels}
    print(*wrong, f"SASS: {len(kernels)} kernels for {', '.join(sorted(archs))}, {len(wrong)} problems", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
