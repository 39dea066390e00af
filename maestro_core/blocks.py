"""`with` blocks that give a context variable another value inside them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from contextvars import ContextVar, Token
    from types import TracebackType

__all__ = ["Block"]

T = TypeVar("T")


class Block(Generic[T]):
    """Inside the block, `with` or `async with`, the variable is what `_inside` says. Blocks of one object may overlap."""

    __slots__ = ("_tokens", "_variable")

    def __init__(self, variable: ContextVar[T]) -> None:
        self._variable = variable
        self._tokens: list[Token[T]] = []

    @abstractmethod
    def _inside(self, around: T) -> T:
        """Return the value inside, from the one around."""

    def __enter__(self) -> Self:
        self._tokens.append(self._variable.set(self._inside(self._variable.get())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Tasks and threads may share one object, so the newest token need not be this context's. Where none is, the
        # block was left in another context than it was entered in, as async generators may do; that other context
        # never had the value, so there is nothing to take back.
        for token in reversed(self._tokens):
            try:
                self._variable.reset(token)
            except ValueError:
                continue
            self._tokens.remove(token)
            return

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
