"""MT2O (reconstructed): K subproblems of one multi-task problem, trained together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..flat import FlatParameters
from ..ops import Order
from ..pareto import ParetoFront
from ..preferences import check_preferences, default_preferences
from ..scalarization import Linear, Scalarization, as_scalarization
from ..transfer import Identity, Spectral, TransferContext, TransferRule, as_transfer_rule
from .losses import check_losses, check_running_statistics
from .moments import Moments, blend_moments
from .rules import AdamW, BaseRule, as_base_rule
from .subproblems import OneModel

__all__ = ["MT2OFused"]

Losses = Tensor | Sequence[Tensor]


class MT2OFused(OneModel):
    """Trains K models with different trade-offs between T tasks at once; one run returns a Pareto front.

    Multi-task learning is cast as multi-objective optimisation and decomposed by weight vectors into K scalar subproblems
    f_k(theta) = s(w_k, L(theta)), each with parameters of its own; every step may blend parameters between them:

        theta_k <- sum_j M_kj theta_j - u_k,     u_k = base rule applied to grad f_k(theta_k)

    After MT2O (arXiv 2403.16162), reconstructed: the paper's abstract, the predecessor's published code and our own analysis
    are behind it, not the paper's text.  Transfer averages gradient noise between the subproblems, so give each its own
    mini-batches (:func:`mt2o_ext.repeat`, :func:`mt2o_ext.stack`), and raise the learning rate 2 to 4 times over that of
    independent runs: that is where the gain is.

    Three ways to use it:

        losses = optimizer.step(lambda: task_losses(model, *next(stream)))       # calls it once for each subproblem

        for k in optimizer.subproblems():                                        # loops that own backward
            optimizer.backward(task_losses(model, *next(stream)))
        optimizer.step(); optimizer.zero_grad()

        optimizer.backward(task_losses(bank(x), y)); optimizer.step()            # stacked=True, SubproblemBank

    Args:
        params: parameters or parameter groups.  A group may set every option of the base rule, and ``transfer=False``
            for tensors that are never blended.
        num_tasks: T.
        num_subproblems: K.
        lr: learning rate, a float or a one-element tensor.
        base: ``AdamW()`` (default), ``Adam()`` or ``SGD()`` of this package, with torch.optim's options; or their names.
        preferences: [K, T] weight vectors on the simplex; default: evenly spaced (T = 2), Riesz energy (T > 2).
        scalarization: how losses and preferences become one loss; :class:`Linear` by default.  Use
            :class:`SmoothTchebycheff` where the front may be non-convex.
        transfer: the rule that gives M; :class:`Spectral` by default.  None: K independent runs.  Any callable
            ``context -> M`` with rows that sum to one.
        order: "consensus" (above) or "adapt_then_combine": theta <- M (theta - u).
        ema: decay of a running average of every subproblem's parameters (0.98, say), or None.
        stacked: the parameters have a leading dimension K (:class:`mt2o_ext.SubproblemBank`).
        buffers: ``model.buffers()`` where the model has BatchNorm or the like: each subproblem keeps its own.
        start: called as ``start(k)`` with the model at subproblem k, to initialise each differently.  By default all
            start from the model as it is (averaging networks of independent initialisation mixes unrelated units).
        moments: whether transfers blend the base rule's moments too; see :class:`Moments`.
        skip_nonfinite: "subproblem": an infinite or NaN gradient or loss skips that subproblem's step; "all": everybody's.

    Raises TypeError or ValueError, before anything is changed, for options out of range and parameters that it cannot hold.
    """

    def __init__(
        self,
        params: Any,
        *,
        num_tasks: int,
        num_subproblems: int = 5,
        lr: float | Tensor = 1e-3,
        base: BaseRule | str = AdamW(),  # noqa: B008  (frozen)
        preferences: Tensor | Sequence[Sequence[float]] | None = None,
        scalarization: Scalarization = Linear(),  # noqa: B008  (frozen)
        transfer: TransferRule | Callable[[TransferContext], Tensor | None] | bool | None = True,
        order: str = "consensus",
        ema: float | None = None,
        stacked: bool = False,
        buffers: Iterable[Tensor] = (),
        start: Callable[[int], None] | None = None,
        moments: Moments = Moments.KEEP,
        skip_nonfinite: str = "subproblem",
    ) -> None:
        _check_options(num_tasks, num_subproblems, order, ema, skip_nonfinite, start, stacked)
        self._num_tasks = num_tasks
        if preferences is None:
            preferences = default_preferences(num_subproblems, num_tasks)
        self._preferences = check_preferences(preferences, num_subproblems, num_tasks)
        self._scalarization = as_scalarization(scalarization)
        self._transfer = (
            (Spectral() if num_subproblems > 1 else Identity()) if transfer is True else as_transfer_rule(transfer)
        )
        self._moments = moments.check(self._transfer)
        self._order = (
            Order.ADAPT_THEN_COMBINE if "adapt_then_combine" in (order, self._transfer.order) else Order.CONSENSUS
        )
        self._steps = 0
        self._losses: list[Tensor | None] = [None] * (1 if stacked else num_subproblems)
        base = as_base_rule(base)
        defaults = {"lr": lr, "transfer": True, "ema": ema, **base.defaults()}
        super().__init__(
            params, defaults, base, num_rows=num_subproblems, stacked=stacked, skip_all=skip_nonfinite == "all"
        )
        self._device_tables()
        self._transfer.bind(self._preferences)
        self._initial_lr = float(self.param_groups[0].get("initial_lr", self.param_groups[0]["lr"]))
        self._keep_buffers(buffers)
        if start is not None:
            self._start(start)

    def _device_tables(self) -> None:
        device = next(iter(self._flat or []), None)
        if device is not None:
            self._preferences = self._preferences.to(device.device)
            self._skipped = self._skipped.to(device.device)

    def _start(self, start: Callable[[int], None]) -> None:
        with torch.no_grad():
            for k in self.subproblems():
                start(k)
                for flat in self._synchronize():
                    flat.adopt(k)
        for flat in self._flat or []:
            self._prepare(flat)

    def _prepare(self, flat: FlatParameters) -> None:
        if self.defaults.get("ema") is not None:
            flat.buffers["ema"] = flat.theta.clone()
        if self._transfer.relative:
            flat.buffers["transfer_base"] = flat.theta.clone()

    def _named_buffers(self, group: dict[str, Any]) -> dict[str, str]:
        extra = ["ema"] * (self.defaults.get("ema") is not None) + ["transfer_base"] * self._transfer.relative
        return {**super()._named_buffers(group), **{name: name for name in extra}}

    # ------------------------------------------------------------------ losses and gradients
    @property
    def preferences(self) -> Tensor:
        """float64 [K, T]."""
        return self._preferences.clone()

    def backward(self, losses: Losses, *, scaler: Any = None, retain_graph: bool = False) -> None:
        """Backward of the scalarized losses, into ``.grad``.

        Args:
            losses: T scalars of the active subproblem, as a tensor [T] or a sequence; [K, T] if stacked.
            scaler: a ``torch.amp.GradScaler``, whose factor the gradients then carry.
            retain_graph: as in ``torch.autograd.backward``.

        Raises ValueError or TypeError, before any gradient is computed, for losses of another number or without a graph.
        """
        stacked = check_losses(losses, self._num_tasks, self._num_rows if self._stacked else None)
        row = 0 if self._stacked else self._row
        if self._num_rows > 1 and not self._stacked and self._steps == 0 and not self._model_buffers:
            check_running_statistics(stacked, self._warn_once)
        detached = stacked.detach().double()
        preferences = self._preferences if self._stacked else self._preferences[row]
        coefficients = self._scalarization.coefficients(detached, preferences)
        self._losses[row] = detached
        total = (stacked * coefficients.to(stacked.dtype)).sum()
        (total if scaler is None else scaler.scale(total)).backward(retain_graph=retain_graph)

    def _last_losses(self) -> Tensor | None:
        """float64 [K, T], NaN-free or not, or None where a subproblem has none yet."""
        if self._stacked:
            return self._losses[0]
        if any(losses is None for losses in self._losses):
            return None
        return torch.stack([losses for losses in self._losses if losses is not None])

    # ------------------------------------------------------------------ the step
    @torch.no_grad()
    def step(self, closure: Callable[[], Losses] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of all K subproblems.

        Args:
            closure: returns the losses of the model as it is: T scalars, or [K, T] if stacked.  It is called once for each
                subproblem, under grad mode, with the model at that subproblem; backward is done here.

        Returns the losses, float64 [K, T], if there was a closure, else None.
        Raises RuntimeError, and changes nothing, if there is no gradient at all.
        """
        losses = None if closure is None else self._run(closure)
        self._collect_gradients()
        flats = self._flat or []
        for flat, groups in zip(flats, self._groups, strict=True):
            self._refresh_segments(flat, groups)
        last = self._last_losses()
        found = self._find_nonfinite(None if last is None else ~torch.isfinite(last).all(dim=1))
        if not self._count_skipped(found):
            mixes = self._mixes(found, last)
            self._apply(found, mixes, self._order)
            blend_moments(flats, mixes, self._moments)
        if not isinstance(self._transfer, Identity):
            self._steps += 1
        self._losses = [None] * len(self._losses)
        return losses

    def _run(self, closure: Callable[[], Losses]) -> Tensor:
        self.zero_grad()
        with torch.enable_grad():
            for _ in [0] if self._stacked else self.subproblems():
                self.backward(closure())
        losses = self._last_losses()
        assert losses is not None
        return losses

    def _collect_gradients(self) -> None:
        flats = self._synchronize()
        for flat in flats:
            flat.collect_gradients(self._row, detach=self._keeps_rows)
        if flats and not any(flat.any_filled() for flat in flats):
            raise RuntimeError("step() needs gradients: call optimizer.backward(losses) first, or step(closure)")

    def _mixes(self, found: Tensor, losses: Tensor | None) -> list[Tensor | None]:
        """For each buffer M [K, K] or [S, K, K], or None where no transfer is due."""
        flats = self._flat or []
        nothing: list[Tensor | None] = [None] * len(flats)
        if isinstance(self._transfer, Identity) or self._num_rows == 1:
            return nothing
        if self._steps == 0 and self._transfer.fixed and losses is not None:
            self._check_own_batches(losses)
        if not self._transfer.due(self._steps):
            return nothing
        changes = self._changes(flats)
        gram = (
            torch.cat([flat.centred_gram(rows) for flat, rows in zip(flats, changes, strict=True)])
            if self._transfer.needs_gram
            else None
        )
        lr = torch.as_tensor(self.param_groups[0]["lr"], dtype=torch.float64).to(self._preferences)
        context = TransferContext(self._preferences, gram, losses, self._steps, lr, self._initial_lr)
        mix = self._transfer.matrix(context)
        if mix is None:
            return nothing
        eye = torch.eye(self._num_rows, dtype=mix.dtype, device=mix.device)
        mix = torch.where(found.unsqueeze(1) != 0, eye, mix).contiguous()  # skipped rows keep their bits
        self._moments.check_matrix(mix)
        sizes = [len(flat.parameters) for flat in flats]
        mixes = [mix] * len(flats) if mix.dim() == 2 else [part.contiguous() for part in mix.split(sizes)]
        return self._blend_changes(flats, changes, mixes) if self._transfer.relative else list(mixes)

    def _check_own_batches(self, losses: Tensor) -> None:
        if bool((losses == losses[0]).all()):
            self._warn_once(
                "shared batch",
                f"all {self._num_rows} subproblems started with exactly the same losses: they seem to share their mini-batches. "
                f"Transfer by a fixed rule ({type(self._transfer).__name__}) averages gradient noise, and shared batches leave "
                "none to average: draw one for each subproblem (repeat(loader), stack(...)), or use Spectral().",
            )

    def _changes(self, flats: list[FlatParameters]) -> list[Tensor | None]:
        if not self._transfer.relative:
            return [None] * len(flats)
        return [flat.theta - flat.buffers["transfer_base"] for flat in flats]

    def _blend_changes(
        self, flats: list[FlatParameters], changes: list[Tensor | None], mixes: list[Tensor]
    ) -> list[Tensor | None]:
        """Blends what has changed since the last transfer, not the position: theta <- theta + (M - I) change."""
        from ..ops import transfer_

        for flat, change, mix in zip(flats, changes, mixes, strict=True):
            assert change is not None
            flat.theta.sub_(change)
            transfer_(change, mix, flat.transfer_chunks)
            flat.theta.add_(change)
            flat.buffers["transfer_base"].copy_(flat.theta)
        return [None] * len(flats)

    # ------------------------------------------------------------------ the front
    def front(
        self,
        evaluate: Callable[[], Losses],
        *,
        ema: bool = False,
        reference: Sequence[float] | None = None,
        task_names: Sequence[str] | None = None,
    ) -> ParetoFront:
        """Evaluates every subproblem and returns the front.

        Args:
            evaluate: returns the T losses of the model as it is (of all K at once, [K, T], if stacked); called under no_grad.
            ema: evaluate the running averages.
            reference: the hypervolume's reference point, one value per task.
            task_names: for plots and tables.
        """
        if self._stacked:
            if ema:
                with self.averaged():
                    return self.front(evaluate, reference=reference, task_names=task_names)
            with torch.no_grad():
                rows = _as_losses(evaluate(), (self._num_rows, self._num_tasks))
        else:
            collected = []
            for k in range(self._num_rows):
                with self.subproblem(k, ema=ema), torch.no_grad():
                    collected.append(_as_losses(evaluate(), (self._num_tasks,)))
            rows = torch.stack(collected)
        return ParetoFront(losses=rows, preferences=self._preferences.cpu(), reference=reference, task_names=task_names)

    # ------------------------------------------------------------------ state
    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        result = super().state_dict()
        if self._num_rows > 1:
            result["state"]["mt2o"] = {
                "preferences": self._preferences.clone(),
                "steps": self._steps,
                "skipped": self._skipped.clone(),
                "initial_lr": self._initial_lr,
                "transfer": {key: value.clone() for key, value in self._transfer.state_dict().items()},
                "buffers": self._saved_buffers(),
            }
        return result

    def _saved_buffers(self) -> list[list[Tensor]]:
        rows = [[buffer.clone() for buffer in row] for row in self._row_buffers]
        if rows and not self._stacked:
            rows[self._row] = [buffer.detach().clone() for buffer in self._model_buffers]
        return rows

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        super()._check_state_dict(loaded)
        shared = loaded["state"].get("mt2o")
        expected = tuple(self._preferences.shape)
        if shared is None:
            if self._num_rows > 1:
                raise ValueError(
                    f"expected the state of an MT2OFused with {self._num_rows} subproblems, got one of another optimizer"
                )
            return
        if tuple(shared["preferences"].shape) != expected:
            raise ValueError(
                f"expected the state of {expected[0]} subproblems and {expected[1]} tasks, got one of "
                f"{shared['preferences'].shape[0]} subproblems and {shared['preferences'].shape[1]} tasks"
            )
        if len(shared["buffers"][0]) != len(self._model_buffers):
            raise ValueError(
                f"expected {len(self._model_buffers)} model buffers, got {len(shared['buffers'][0])}: pass the same buffers="
            )

    def _import_shared(self, state: dict[Any, Any]) -> None:
        shared = state.get("mt2o")
        self.state.pop("mt2o", None)
        if shared is None:
            return
        self._preferences.copy_(shared["preferences"])
        self._steps = int(shared["steps"])
        self._skipped.copy_(shared["skipped"])
        self._initial_lr = float(shared["initial_lr"])
        self._transfer.bind(self._preferences)
        if shared["transfer"]:
            self._transfer.load_state_dict(
                {key: value.to(self._preferences.device) for key, value in shared["transfer"].items()}
            )
        for kept, saved in zip(self._row_buffers, shared["buffers"], strict=True):
            for buffer, value in zip(kept, saved, strict=True):
                buffer.copy_(value)
        if not self._stacked:
            self._enter(self._row)


def _check_options(
    num_tasks: int,
    num_subproblems: int,
    order: str,
    ema: float | None,
    skip_nonfinite: str,
    start: object,
    stacked: bool,
) -> None:
    if num_tasks < 1 or num_subproblems < 1:
        raise ValueError(f"num_tasks and num_subproblems must be at least 1, not {num_tasks} and {num_subproblems}")
    if order not in ("consensus", "adapt_then_combine"):
        raise ValueError(f'order must be "consensus" or "adapt_then_combine", not {order!r}')
    if ema is not None and not 0.0 <= ema < 1.0:
        raise ValueError(f"ema must be in [0, 1), not {ema}")
    if skip_nonfinite not in ("subproblem", "all"):
        raise ValueError(f'skip_nonfinite must be "subproblem" or "all", not {skip_nonfinite!r}')
    if start is not None and stacked:
        raise ValueError("start= is for one model; initialise the slices of a bank before the optimizer is made")


def _as_losses(losses: Losses, shape: tuple[int, ...]) -> Tensor:
    values = losses if isinstance(losses, Tensor) else torch.stack([torch.as_tensor(loss) for loss in losses])
    if tuple(values.shape) != shape:
        raise ValueError(f"evaluate() must return losses of shape {list(shape)}, got {list(values.shape)}")
    return values.detach().to("cpu", torch.float64)
