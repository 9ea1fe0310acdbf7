"""Registries: the classes of one kind of piece (weightings, transfer rules, scalarizations) by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

__all__ = ["Registry"]

Piece = TypeVar("Piece")
Class = TypeVar("Class", bound=type)


class Registry(Mapping[str, type[Piece]]):
    """A mapping from names to the classes of one kind of piece, in the order of the names.

    A class enters by one line, the decorator ``@register("cagrad")``, when its file is imported. What takes a piece
    takes its name too (`make`), the package exports what is registered, the documentation lists it, and the tests of
    what all pieces keep to iterate over it. In look-ups "-", "_" and the case do not matter, and the name of the class
    counts as well.

    Args:
        kind: the piece in words, for messages: "weighting".
        base: the class that every piece is of.
        more: a sentence that ends the message about an unknown name.
    """

    def __init__(self, kind: str, base: Any, more: str = "") -> None:
        self.kind, self.base, self.more = kind, base, more
        self._classes: dict[str, type[Piece]] = {}

    def __call__(self, name: str) -> Callable[[Class], Class]:
        """Return a decorator that enters a class under ``name``; it leaves the class as it is.

        Raises:
            TypeError: for what is no class of this kind.
            ValueError: for a name that another class has.
        """

        def enter(cls: Class) -> Class:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"expected a class of {self.base.__name__}, got {cls!r}: derive it from there")
            before = self._find(name) or self._find(cls.__name__)
            if before is not None and (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"expected a new name for {cls.__name__}, got {name!r}: {before.__name__} has it")
            self._classes[name] = cls
            return cls

        return enter

    def make(self, piece: object) -> Piece:
        """Return a piece itself, or a new one of the class with this name and its default settings.

        Args:
            piece: an instance or a name.

        Raises:
            TypeError: for anything else, such as a class.
            ValueError: for an unknown name, with those that are near, and for a class that has no default settings.
        """
        if isinstance(piece, self.base):
            return cast(Piece, piece)
        if not isinstance(piece, str):
            meant = piece if isinstance(piece, type) and issubclass(piece, self.base) else None
            example = f"{(meant or next(iter(self._classes.values()))).__name__}(...)"
            got = f"the class {piece.__name__}" if isinstance(piece, type) else f"{piece!r:.80}"
            raise TypeError(f"expected a {self.kind} or its name, got {got}: pass an instance such as {example}")
        found = self._find(piece)
        if found is None:
            raise ValueError(self._unknown(piece))
        required = [p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty]
        if required:
            raise ValueError(
                f"expected a {self.kind} with its settings, got the name {piece!r}: pass an instance, "
                f"{found.__name__}({', '.join(f'{name}=...' for name in required)})"
            )
        return found()

    def __getitem__(self, name: str) -> type[Piece]:
        found = self._find(name)
        if found is None:
            raise KeyError(self._unknown(name))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def _find(self, name: str) -> type[Piece] | None:
        return self._spellings().get(_plain(name))

    def _spellings(self) -> dict[str, type[Piece]]:
        """Every plain spelling that a class is found by."""
        by_class = {_plain(cls.__name__): cls for cls in self._classes.values()}
        return by_class | {_plain(name): cls for name, cls in self._classes.items()}

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(_plain(name), list(self._spellings()), n=3)
        chosen = dict.fromkeys(self._spellings()[each] for each in near)
        names = [repr(known) for cls in chosen for known, other in self._classes.items() if other is cls]
        meant = f"did you mean {' or '.join(names)}? All names" if names else "the names"
        return (
            f"expected the name of a {self.kind}, got {name!r}: {meant} are {', '.join(self)}"
            f"{'; ' if self.more else ''}{self.more}"
        )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
