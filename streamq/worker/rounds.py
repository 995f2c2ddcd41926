"""One pass over several queues, in which a queue that Redis refuses does not keep the others waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from streamq.broker.keys import QueueKeys
from streamq.errors import ServerError, Unavailable

T = TypeVar("T")


async def each(queues: Collection[QueueKeys], step: Callable[[QueueKeys], Awaitable[T]]) -> list[T]:
    """Take the step for one queue after the other; answers what each brought.

    What a queue is refused (a key of the wrong type, a missing right) is raised at the end, with the
    queue's name. When Redis is away, that is raised at once. The queues may change meanwhile.
    """
    brought, refused, where = [], None, ""
    for queue in tuple(queues):
        try:
            brought.append(await step(queue))
        except Unavailable:
            raise
        except ServerError as error:
            refused, where = refused or error, where or queue.name
    if refused is not None:
        raise type(refused)(f"queue {where}: {refused}") from refused
    return brought
