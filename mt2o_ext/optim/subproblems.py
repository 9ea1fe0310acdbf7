"""One model, K rows: which subproblem the user's model shows, and what goes with it (buffers, gradients)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_function, check_index
from ..pareto import ParetoFront
from ..pareto.evaluation import Evaluated, Evaluation, check_trained, states_of_bank
from ..preferences import check_point
from ..ranks import checksums, together
from .base import FlatOptimizer
from .model_buffers import ModelBuffers
from .now import Loop
from .shown_model import ShownModel

__all__ = ["OneModel"]


class OneModel(FlatOptimizer):
    """Switching between subproblems of one ordinary model.

    The parameters are views into the row that is active: switching copies nothing.  Buffers (BatchNorm statistics) are
    few and small: they are copied in and out.
    """

    _model_buffers: ModelBuffers

    @property
    def preferences(self) -> Tensor:
        """float64 [K, T]."""
        raise NotImplementedError

    @preferences.setter
    def preferences(self, preferences: Tensor | Sequence[Sequence[float]]) -> None:
        raise NotImplementedError

    @property
    def _model(self) -> ShownModel:
        return ShownModel(self._buffers, self._model_buffers, self._now)

    @property
    def _num_subproblems(self) -> int:
        return len(self.preferences)

    @property
    def subproblems_here(self) -> range:
        """The subproblems (with ``front="vertices"`` the points of a step) of this rank; all, without other ranks."""
        return self._buffers.share.own

    @property
    def _evaluated_here(self) -> range:
        """The subproblems that this rank evaluates: of rows those that lie here."""
        return self._buffers.share._replace(total=self._num_subproblems).own

    def _same_on_all_ranks(self) -> dict[str, Any]:
        """Facts about what all ranks have: the vertices."""
        if self._buffers.vertices is None:
            return {}
        key = "checksum (were weights changed, or a checkpoint loaded, on some ranks only?)"
        return {"vertices": [{key: one} for one in checksums([flat.theta for flat in self._buffers.flats])]}

    def _synchronize(self) -> None:
        self._check_trained_shown()
        super()._synchronize()

    @torch.no_grad()
    def _leave(self) -> None:
        """Stores what belongs to the active subproblem: its parameters, gradients and buffers."""
        self._synchronize()
        if self._buffers.keeps_rows:
            self._store_gradients()
        self._model_buffers.store(self._now.row)

    def _store_gradients(self) -> None:
        if self._tasks is not None:  # they are in the tables since backward
            return
        try:
            for flat in self._buffers.flats:
                flat.tasks.take(self._now.row)
        except TypeError:
            self.zero_grad()  # nothing half-stored, and the way back to another subproblem is free
            raise

    def _rounds(self) -> Generator[int, None, None]:
        """One round for each subproblem; a single one if they are stacked."""
        if self._buffers.stacked:
            yield 0
        else:
            yield from self.subproblems()

    def subproblems(self) -> Generator[int, None, None]:
        """Goes through the subproblems 0 .. K-1; in each round of the loop the model is that subproblem.

        With ``front="vertices"`` the model is the k-th of the random points of this step in round k, and the first of
        them outside of the loop; `subproblem` shows the points at ``preferences``.  With ``subproblem_mesh=`` the loop
        goes through those of this rank, by their numbers among all K.

        The gradients that a round leaves in ``.grad`` are stored for ``step()``, and added to what is stored already
        until ``step()`` uses them up, or ``zero_grad()``.  Afterwards, and after ``break``, the model is what it was
        before the loop: subproblem 0, whenever no other one was asked for.
        """
        self._check_one_model()
        loop = Loop(self._now.row, self._now.detached)
        self._now.loops.append(loop)
        try:
            for row, k in enumerate(self._buffers.share.own):
                if self._now.loops[-1] is not loop:
                    raise RuntimeError(
                        "another loop over subproblems() began inside of this one and has not ended: leave it first"
                    )
                if row != self._now.row:
                    self._leave()
                    self._model.enter(row)
                yield k
        finally:
            self._end(loop)

    def _end(self, loop: Loop) -> None:
        """Goes back to where a loop began; one that a newer loop is inside of has to wait for that.

        (A generator that was left by ``break`` but is kept, in a traceback say, ends at any time.)
        """
        loop.ended = True
        last = None
        while self._now.loops and self._now.loops[-1].ended:
            last = self._now.loops.pop()
        if last is not None and self._now.row != last.before:
            self._leave()
            self._model.go_back(last.before, detached=last.detached)

    def _check_behind_loops(self) -> None:
        if self._now.loops:
            raise RuntimeError(
                "step() belongs behind the loop over subproblems(), when all have their gradients (a loop that was "
                "left by break ends when its generator is closed: rounds.close())"
            )

    @contextmanager
    def subproblem(self, k: int, *, ema: bool = False) -> Iterator[None]:
        """In this context the model is subproblem k: for evaluation, for saving, for going on with it.

        Its parameters are tensors of their own here (not views: ``torch.save(model.state_dict())`` writes this
        subproblem only); what is changed in them is kept.  With ``ema`` they are the running average, and changes are
        dropped.  With ``front="vertices"`` it is the point of the front at ``preferences[k]``, see `at`.

        Raises:
            IndexError: for a number that is none of 0 .. K - 1.
            ValueError: for a row of another rank, with ``subproblem_mesh=``.
        """
        self._check_one_model()
        k = check_index("subproblem", k, self._num_subproblems)
        self._check_average(ema)
        if self._buffers.vertices is not None:
            with self.at(self.preferences[k], ema=ema):
                self._model_buffers.show_evaluated("ema" if ema else "theta", k)
                yield
            return
        row = self._buffers.share.row_of(k)
        before, detached = self._now.row, self._now.detached
        self._leave()
        self._model.enter(row)
        self._model.detach("ema" if ema else None)
        self._now.averaged = ema
        if ema:
            self._model_buffers.show_evaluated("ema", k)
        try:
            yield
        finally:
            self._now.averaged = False
            if not ema:
                self._leave()
            elif self._buffers.keeps_rows:  # those of the subproblems are stored
                for _, p in self._parameters():
                    p.grad = None
            self._now.detached = False
            self._model.go_back(before, detached=detached)

    @contextmanager
    def at(self, preference: Tensor | Sequence[float], *, ema: bool = False) -> Iterator[None]:
        """With ``front="vertices"``: in this context the model is the point of the front at any preference.

        The parameters are tensors of their own here.  They belong to no row that is trained: what is changed in them
        is dropped, with a warning, and so are gradients that are made there.

        Args:
            preference: [T] on the simplex.
            ema: the same point of the running averages.

        Raises:
            RuntimeError: with another front, or with ``stacked=True``.
            ValueError: for a preference off the simplex.
        """
        self._check_one_model()
        if self._buffers.vertices is None:
            raise RuntimeError('expected an optimizer with front="vertices" for at(), got K rows: use subproblem(k)')
        weights = check_point(preference, self._num_tasks).to(self._buffers.device)
        self._check_average(ema)
        name, outer = "ema" if ema else None, self._now.point
        if outer is None:
            self._leave()
            self._model.take_changes()
        kept = [(p, p.grad) for _, p in self._parameters()]
        self._model.show_point(name, weights)
        for p, _ in kept:
            p.grad = None
        try:
            yield
            self._warn_of(self._model.lost_changes(name, weights))
        finally:
            for p, grad in kept:  # those made inside are of a point that is in no step
                p.grad = grad
            self._now.averaged, self._now.point = False, None
            if outer is None:
                self._model.go_back(self._now.row, detached=False)
            else:
                self._model.show_point(*outer)

    def _warn_of(self, found: Iterator[tuple[str, str]]) -> None:
        for key, text in found:
            self._warn_once(key, text, stacklevel=6)

    @contextmanager
    def all_subproblems(self, *, ema: bool = False) -> Iterator[None]:
        """With stacked=True: in this context the models of the bank are the subproblems 0 .. K-1; changes are dropped.

        With ``front="vertices"`` these are the points of the front at ``preferences``, where the bank shows the random
        points of the next step outside.

        Args:
            ema: the running averages.

        Raises:
            RuntimeError: without ``stacked=True``.
        """
        if not self._buffers.stacked:
            raise RuntimeError("all_subproblems() is for stacked=True: use subproblem(k)")
        with self._all_shown(ema):
            yield

    @contextmanager
    def _all_shown(self, ema: bool) -> Iterator[None]:
        """In this context a bank shows all subproblems, those of the running averages or of theta."""
        self._check_average(ema)
        name = "ema" if ema else None
        self._synchronize()
        if self._buffers.vertices is None:
            self._model.detach(name)
        else:
            self._model.take_changes()
            self._model.show_point(name, self.preferences.to(self._buffers.device))
        self._model_buffers.store(0)
        self._model_buffers.show_evaluated("ema" if name else "theta", 0)
        self._now.averaged = True
        try:
            yield
            if self._buffers.vertices is not None:
                self._warn_of(self._model.foreign_statistics())
        finally:
            self._now.averaged = self._now.detached = False
            self._now.point = None
            self._model_buffers.show(0)
            for flat in self._buffers.flats:
                flat.activate(0)

    # ------------------------------------------------------------------ BatchNorm statistics
    def update_buffers(self, update: Callable[[], Any], *, ema: bool | None = None) -> None:
        """Computes the model's buffers (BatchNorm statistics) anew for each subproblem.

            optimizer.update_buffers(lambda: torch.optim.swa_utils.update_bn(loader, model))
            front = optimizer.front(evaluate, ema=True)

        Running averages of parameters, and points of a front on vertices, are models that were never trained: running
        statistics of the models that were do not fit them.  What is computed is kept, saved in the state dict, and
        used by ``subproblem(k)``, ``front()`` and ``all_subproblems()`` until the next call.  With
        ``subproblem_mesh=`` all ranks call this, each for its own subproblems.

        Args:
            update: called with the model at each subproblem (a bank: once); it changes the model's buffers.
            ema: for the running averages; by default if there are any.

        Raises:
            TypeError: for anything but a function.
            RuntimeError: if the optimizer was made without ``buffers=``.
        """
        if not self._model_buffers.shown:
            raise RuntimeError(
                f"expected {type(self).__name__}(..., buffers=model.buffers()) for update_buffers(), got none"
            )
        check_function("update", update, "pass one that computes the buffers of the model as it is")
        averages = self._ema is not None if ema is None else ema
        key = "ema" if averages else "theta"
        trained = not averages and self._buffers.vertices is None
        if self._buffers.stacked:
            with nullcontext() if trained else self._all_shown(averages):
                update()
                if not trained:
                    self._model_buffers.keep_evaluated(key, 0)
            return
        peers = self._buffers.peers
        with together(peers):
            for k in self._evaluated_here:
                with self.subproblem(k, ema=averages):
                    update()
                    if not trained:
                        self._model_buffers.keep_evaluated(key, k)
        if peers is not None:
            peers.agree({"call": "update_buffers()", "ema": averages})
            self._model_buffers.gather_evaluated(key, peers)

    # ------------------------------------------------------------------ the front
    def front(
        self,
        evaluate: Callable[[], Evaluation],
        *,
        ema: bool = False,
        model: nn.Module | None = None,
        reference: Tensor | Sequence[float] | None = None,
        task_names: Sequence[str] = (),
    ) -> ParetoFront:
        """Evaluates every subproblem and returns the front.

        With ``subproblem_mesh=`` all ranks call this, each evaluates its own, and all return the same front.

        Args:
            evaluate: returns the T losses of the model as it is ([K, T], if stacked), or a pair of them and a
                dictionary of metrics, numbers by their name ([K], if stacked); called under no_grad.
            ema: evaluate the running averages.
            model: whose state dicts the front keeps, one for each subproblem (if stacked, the bank), so that
                ``front.model(k, template)`` gives models back, also of a front that was saved and loaded.  With
                ``subproblem_mesh=`` the front of the first rank has them, on the host.
            reference: the hypervolume's reference point, one value per task.
            task_names: for plots and tables.

        Raises:
            TypeError: for anything but a function, before anything is evaluated.
            ValueError: for a model with none of the optimizer's parameters, before anything is evaluated.
        """
        self._check_average(ema)
        check_function("evaluate", evaluate, "pass a function that returns the losses of the model as it is")
        if model is not None:
            model = getattr(model, "_orig_mod", model)  # of torch.compile, which puts it before all names
            check_trained(model, [p for _, p in self._parameters()])
        found = Evaluated(self._num_subproblems, self._num_tasks)
        if self._buffers.stacked:
            trained = not ema and self._buffers.vertices is None
            with nullcontext() if trained else self._all_shown(ema), torch.no_grad():
                found.add_all(evaluate())
                found.states += [] if model is None else states_of_bank(model)
        else:
            with together(self._buffers.peers):
                for k in self._evaluated_here:
                    with self.subproblem(k, ema=ema), torch.no_grad():
                        found.add(evaluate(), model)
            if self._buffers.peers is not None:
                self._buffers.peers.agree({"call": "front()", "ema": ema, **self._same_on_all_ranks()})
                found.gather(self._buffers.peers)
        if reference is not None:
            reference = torch.as_tensor(reference, dtype=torch.float64)
        preferences = self.preferences.cpu()
        return ParetoFront(found.losses, preferences, reference, task_names, found.metrics, found.states)

    # ------------------------------------------------------------------ checks
    def _check_trained_shown(self) -> None:
        if self._now.averaged:
            raise RuntimeError(
                "the parameters are running averages, or a point of the front, now: leave the context that shows them "
                "first"
            )

    def _check_average(self, ema: bool) -> None:
        if check_flag("ema", ema) and self._ema is None:
            raise ValueError(
                "expected an optimizer with a running average for ema=True, got one without: make MT2OFused(..., "
                "ema=0.98), or leave ema= out"
            )

    def _check_one_model(self) -> None:
        if self._buffers.stacked:
            raise RuntimeError(
                "with stacked=True all subproblems are in the bank's parameters at once: use bank.subproblem(k), "
                "inside of optimizer.all_subproblems(), with ema=True for the running averages"
            )
