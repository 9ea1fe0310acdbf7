"""State dicts: torch.optim's form, and loading that either is complete or changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import BaseRule
from ..entries import check_entry, member_dict
from ..gradients.parameters import check_parameters
from ..gradients.tasks import Batch
from ..sharding import any_nonzero
from .buffers import Buffers
from .now import Now
from .state import StateViews, cloned
from .whole_state import own_part

__all__ = ["SavedState"]

FAMILIES = ("weighted", "mt2o", "connection_strength", "harmony")


class SavedState(torch.optim.Optimizer):
    """The part of an optimizer that is saved, loaded, copied and pickled."""

    _family: str  # key of what is kept for no parameter in particular
    _base: BaseRule
    _buffers: Buffers
    _views: StateViews
    _now: Now
    _num_tasks: int
    _copies: list[str]  # buffers that begin as copies of theta, also their keys in the state

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as plain tensors and numbers (copies, not views of the buffers).

        With one subproblem the dict is that of torch.optim's SGD, Adam or AdamW, and theirs can be loaded.
        """

        def complete(_: torch.optim.Optimizer, result: dict[str, Any]) -> None:
            result["state"] = cloned(result["state"])
            if shared := self._export_shared():
                groups = result["param_groups"]  # the distributed API drops what stands in a group without parameters
                next((group for group in groups if group["params"]), groups[0])[self._family] = shared

        self._read_shown()
        if (
            self._buffers.rows_key is not None
        ):  # no dict of torch.optim: one before the first step has room for all that follow
            self._views.attach_all(self.state, self.param_groups)
        known = {p for _, p in self._parameters()}
        taken_out = [p for p in self.state if isinstance(p, Tensor) and p not in known]
        strangers = {p: self.state.pop(p) for p in taken_out}
        handle = self.register_state_dict_post_hook(complete, prepend=True)  # the user's hooks see all of it
        try:
            return super().state_dict()
        finally:
            handle.remove()
            self.state.update(strangers)

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` gave; also a dict of torch.optim's SGD, Adam or AdamW, if there is one subproblem.

        Where an error is raised, nothing has been changed.

        Raises:
            TypeError: for values of another kind.
            ValueError: for a dict of another number of subproblems or another set of parameters, and for values that
                cannot be.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"expected a state dict, got {type(state_dict).__name__}")
        final: dict[str, Any] = {}
        commits: list[Callable[[], None]] = []

        def check(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            loaded = self._own_part(loaded)
            self._check_dict(loaded)
            ours = [group for group in loaded["param_groups"] if self._family in group]
            shared = [member_dict(group, self._family, "a parameter group") for group in ours]
            commits.append(self._loaded_shared(shared[0] if shared else None, loaded["state"]))
            self._check_parameters_of(loaded, complete=bool(shared))
            final.update(loaded)
            return loaded

        def import_(_: torch.optim.Optimizer) -> None:
            # torch casts state to the parameter's dtype, which would round float32 moments: take the dict's own.
            ids = [i for group in final["param_groups"] for i in group["params"]]
            values = {p: final["state"].get(i, {}) for i, (_, p) in zip(ids, self._parameters(), strict=True)}
            for group in self.param_groups:
                group.pop(self._family, None)
            self.state = defaultdict(dict, {p: dict(state) for p, state in values.items() if state})
            if not self._buffers.is_of(self.param_groups, self._is_held):  # frozen parameters that were trained
                self._build()
            self._views.import_(self.state, values, self.param_groups)
            for commit in commits:
                commit()

        self._read_shown()
        # Ours come after the user's pre hooks, to see what those made of the dict, and before the user's post hooks.
        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(import_, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _only_asked_for_state(self) -> bool:
        """True if this is the step that torch's distributed state dicts make to see the state of a new optimizer.

        It is of learning rate 0, with gradients of 0 in ``.grad``.  Then all state is shown, and there is nothing else
        to do.
        """
        if torch.compiler.is_compiling() or self._views.shows_any:
            return False
        if self._has_gradients() or any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        trained = [p for _, p in self._parameters() if p.requires_grad]
        grads = [p.grad for p in trained if p.grad is not None and p.grad.layout == torch.strided]
        if len(grads) < len(trained) or any_nonzero(grads):
            return False
        self._views.attach_all(self.state, self.param_groups)
        return True

    def _has_gradients(self) -> bool:
        """True if there are gradients for the next step that are not in ``.grad``."""
        return any(any(flat.tasks.reached()) for flat in self._buffers.flats)

    def _own_part(self, loaded: Any) -> Any:
        """The part of a dict that is this rank's; the dict itself, where it has all there is or is none."""
        share, vertices = self._buffers.share, self._buffers.vertices is not None
        return own_part(loaded, self._family, share, vertices=vertices)

    # ------------------------------------------------------------------ what belongs to no parameter
    def _export_shared(self) -> dict[str, Any]:
        """Values that are kept for no parameter in particular; empty where the dict is that of torch.optim."""
        return {}

    def _loaded_shared(self, shared: Any, state: dict[Any, Any]) -> Callable[[], None]:
        """Checks what ``_export_shared`` gave (None: nothing), and the state beside it.

        Returns:
            A function that puts it into its place, and cannot fail.

        Raises:
            TypeError: for an entry of another kind.
            ValueError: for a state that does not fit.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ checks
    def _check_dict(self, loaded: dict[str, Any]) -> None:
        """The dict has the form of a state dict of these groups."""
        state, groups = loaded.get("state"), loaded.get("param_groups")
        if not isinstance(state, dict) or not isinstance(groups, list):
            raise TypeError(f"expected a state dict with a dict `state` and a list `param_groups`, got {list(loaded)}")
        for group in groups:
            if not isinstance(group, dict) or not isinstance(group.get("params"), list):
                raise TypeError(f"expected groups as dicts with a list `params`, got {group!r:.80}")
            for other in FAMILIES:
                if other in group and other != self._family:
                    name = type(self).__name__
                    way = ", or load this one where it is from and go on with branch_from(optimizer)"
                    raise ValueError(
                        f"expected the state of a {name}, got that of another optimizer: load one that a {name} has "
                        f"saved{way if hasattr(self, 'branch_from') else ''}"
                    )
        sizes, expected = ([len(group["params"]) for group in some] for some in (groups, self.param_groups))
        if sizes != expected:
            raise ValueError(
                f"expected the state of groups of {expected} parameters, got one of {sizes}: make the optimizer with "
                "the groups that it was saved with"
            )
        ids = [i for group in groups for i in group["params"]]
        if any(not isinstance(i, (int, str)) for i in ids) or len(set(ids)) < len(ids):
            raise ValueError(f"expected every parameter once in the groups, by number or name, got {ids!r:.80}")
        if unknown := [i for i in state if i not in ids]:
            raise ValueError(f"expected the state of the parameters in the groups, got one of {unknown[:5]} too")
        for group in groups:
            self._check_options({**self.defaults, **group})

    def _check_parameters_of(self, loaded: dict[str, Any], *, complete: bool) -> None:
        """complete: the dict is ours, so that nothing that we keep may be missing."""
        groups = [group for group in loaded["param_groups"] for _ in group["params"]]
        ids = [i for group in loaded["param_groups"] for i in group["params"]]
        rows_key, vertices = self._buffers.rows_key, self._buffers.vertices
        rows = f"{self._buffers.share} subproblems" if vertices is None else f"{self._num_tasks} vertices"
        for index, (i, options, (_, p)) in enumerate(zip(ids, groups, self._parameters(), strict=True)):
            saved, where = loaded["state"].get(i, {}), f"parameter {index} ({rows})"
            if not isinstance(saved, dict):
                raise TypeError(f"expected the state of {where} as a dict, got {saved!r:.80}")
            if not saved and not self._is_held(p):
                continue  # frozen then and now
            check_parameters([p], None, self._buffers.num_rows if self._buffers.stacked else None)
            expected = self._views.expected({**self.defaults, **options}, p)
            there = {key for key in expected if saved.get(key) is not None}
            for key in there:
                check_entry(key, saved[key], expected[key], where)
            needed = set(self._base.needed) if there & {*self._base.needed} else set()
            if complete and (there or rows_key):
                needed |= set(self._copies)
            if rows_key is not None:
                needed |= {rows_key, "step"}
            if missing := sorted(needed - there):
                remedy = ": load it into an optimizer with ema=None" if missing[0] == "ema" else ""
                raise ValueError(f"expected `{missing[0]}` of {where}, got none{remedy}")

    def _check_options(self, options: dict[str, Any]) -> None:
        raise NotImplementedError

    def _is_held(self, p: Tensor) -> bool:
        raise NotImplementedError

    def _parameters(self) -> list[tuple[dict[str, Any], Tensor]]:
        raise NotImplementedError

    def _read_shown(self) -> None:
        raise NotImplementedError

    def _build(self) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------------ copies
    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the buffers are left out and made anew from ``state``."""
        left_out = {"_views", "_zero_grad_profile_name", "step"}  # step: a scheduler's wrapper of it
        own = {key: value for key, value in self.__dict__.items() if key not in left_out and not key.endswith("_hooks")}
        own["_now"] = Now(row=self._now.row, batch=self._new_batch(), warned=set(self._now.warned))
        own["state"] = {p: cloned(state) for p, state in self.state.items()}
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # dicts of torch.optim and of older versions lack some of our options
            for key, value in self.defaults.items():
                if key != "differentiable":  # which torch has just put there
                    group.setdefault(key, value)
        if "_buffers" in state:  # unpickled or copied; load_state_dict comes by here with two keys only
            self.state = defaultdict(dict, self.state)
            kept = {p: dict(own) for p, own in self.state.items() if isinstance(p, Tensor)}
            self._views = StateViews(self._buffers, self._base, self._copies)
            self._build()
            self._views.import_(self.state, kept, self.param_groups)

    def _new_batch(self) -> Batch:
        raise NotImplementedError
