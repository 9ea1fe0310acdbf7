"""The step of K subproblems with T tasks on P parameters, and everybody's way to do it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mt2o_ext import ops

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 1e-2


class StepProblem:
    """Combination of task gradients with weights, AdamW, and a transfer M theta: theta <- M theta - u."""

    def __init__(
        self,
        num_rows: int,
        num_tasks: int,
        columns: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        _, row, chunks = ops.plan_layout([columns])
        self.num_rows, self.num_tasks, self.columns = num_rows, num_tasks, columns
        self.chunks = torch.tensor(chunks, device=device)
        self.theta, self.grads = normal(num_rows, row), normal(num_rows, num_tasks, row).to(dtype)
        self.m, self.v = 0.1 * normal(num_rows, row), normal(num_rows, row).square()
        self.weights = torch.softmax(normal(num_rows, num_tasks).double(), 1)
        coupling = torch.full((num_rows, num_rows), 1 / num_rows, dtype=torch.float64)
        self.mix = (0.9 * torch.eye(num_rows, dtype=torch.float64) + 0.1 * coupling).to(device)
        fields = {"lr": LR, "weight_decay": DECAY, "decoupled": 1, "eps": EPS, "transfer": 1}
        fields |= {"beta1": BETAS[0], "beta2": BETAS[1]}
        self.segments = torch.tensor([[fields.get(name, 0.0) for name in ops.FIELDS]], dtype=torch.float64).to(device)
        self.step = torch.zeros(num_rows, 1, device=device)
        self.constants = torch.zeros(num_rows, 1, ops.NUM_CONSTANTS, dtype=torch.float64, device=device)

    @property
    def num_bytes(self) -> int:
        """What must move: theta and two moments read and written, gradients read."""
        item = self.grads.element_size()
        return self.num_rows * self.columns * (6 * 4 + self.num_tasks * item)

    def ours(self) -> Callable[[], object]:
        mix = self.mix if self.num_rows > 1 else None
        return lambda: ops.step_(
            self.theta, self.m, self.v, None, None, None, self.step, self.constants, self.grads, self.weights, mix,
            self.segments, self.chunks, rule=ops.Rule.ADAM,
        )  # fmt: skip

    def eager(self, compile_it: bool = False) -> Callable[[], object]:
        """The step written in torch, in place."""
        theta, m, v = self.theta.clone(), self.m.clone(), self.v.clone()
        grads, weights, mix = self.grads, self.weights.float(), self.mix.float()
        lr = torch.tensor(LR, device=theta.device)

        def step(count: Tensor) -> None:
            g = torch.einsum("kt,ktp->kp", weights, grads) if self.num_tasks > 1 else grads[:, 0]
            m.lerp_(g, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            size = lr / (1 - BETAS[0] ** count)
            update = size * m / (v.sqrt() / (1 - BETAS[1] ** count).sqrt() + EPS) + LR * DECAY * theta
            theta.copy_((mix @ theta if self.num_rows > 1 else theta) - update)

        function = torch.compile(step) if compile_it else step
        count = torch.zeros((), device=theta.device)

        def run() -> None:
            count.add_(1)
            function(count)

        return torch.no_grad()(run)

    def optimizer(self, **options: bool) -> Callable[[], object]:
        """torch.optim.AdamW on the stacked tensor, beside an einsum and a matrix product into buffers."""
        theta = torch.nn.Parameter(self.theta.clone())
        theta.grad = torch.zeros_like(theta)
        blended = torch.empty_like(theta)
        weights, mix = self.weights.float(), self.mix.float()
        adamw = torch.optim.AdamW([theta], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **options)

        def run() -> None:
            if self.num_tasks > 1:
                torch.bmm(weights.unsqueeze(1), self.grads, out=theta.grad.unsqueeze(1))
            else:
                theta.grad = self.grads[:, 0]
            if self.num_rows > 1:  # theta <- M theta first, then - u: the consensus order
                torch.mm(mix, theta.detach(), out=blended)
                theta.detach().copy_(blended)
            adamw.step()

        return torch.no_grad()(run)
