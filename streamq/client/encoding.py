"""From a TaskCall to the three words that the enqueue script takes for it.

Everything that can be refused is refused here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from streamq.broker import producing
from streamq.broker.producing import CONFLICT_LETTERS, OWN_ID, LockRule, how
from streamq.client.dedup import KeyMaker
from streamq.client.producer import Producer
from streamq.clock import wall_ms
from streamq.codec import MessageTemplate, check_headers, encode_payload
from streamq.errors import OptionError
from streamq.model.call import TaskCall
from streamq.model.durations import duration_ms, moment_ms
from streamq.model.groups import DEFAULT_RULE, GroupRule
from streamq.model.lanes import lane_for
from streamq.model.limits import Limits
from streamq.model.message import DROP, NO_TIMEOUT
from streamq.model.names import check_key_name, check_type
from streamq.model.options import DEFAULT_QUEUE, UNSET, Options
from streamq.model.retry import Retry, store_policy
from streamq.model.unique import Unique

_ROUTES_KEPT = 512


class Encoded(NamedTuple):
    """One task, ready to be sent."""

    queue: str
    how: bytes
    task_id: str
    name: bytes
    """The task id as it is sent, and after a space the dedup key where it has a lock."""
    message: bytes


@dataclass(frozen=True, slots=True)
class _Route:
    """What calls with the same type and options share."""

    options: Options  # kept alive: routes are found by its identity
    queue: str
    how: bytes
    task_id: str | None
    template: MessageTemplate
    keys: KeyMaker | None
    """Makes the dedup keys of unique tasks."""


Parameters = Callable[[str], tuple[str, ...] | None]


class Encoder:
    """Encodes the calls of one client."""

    def __init__(
        self,
        defaults: Options,
        limits: Limits,
        parameters: Parameters,
        dedup_secret: bytes | None = None,
        *,
        takes_groups: Callable[[str], bool] = lambda _task: True,
    ) -> None:
        """``parameters`` answers the positional ones of a task's handler, None where it is not known.

        ``takes_groups`` answers whether tasks of a type may have a group.
        """
        self._takes_groups = takes_groups
        self._defaults = defaults
        self._limits = limits
        self._parameters = parameters
        self._dedup_secret = dedup_secret
        self._routes: dict[tuple[str, int], _Route] = {}

    def encode(self, call: TaskCall[Any], producer: Producer) -> Encoded:
        """The task as it is sent.

        Raises OptionError and PayloadError; nothing has been written then.
        """
        try:
            route = self._routes.get((call.type, id(call.options)))
        except AttributeError:  # asked afterwards, since nearly every call is one
            raise OptionError(
                "calls", f"must be calls such as task.call(...), not {type(call).__name__}"
            ) from None
        if route is None:
            route = self._find_route(call)
        payload = encode_payload(call.args, call.kwargs, self._limits)
        message = route.template.encode(payload, wall_ms())
        task_id = route.task_id or producer.new_task_id()
        name = task_id.encode()
        if route.keys is not None:
            name += b" " + route.keys.make(call.args, call.kwargs)
        return Encoded(route.queue, route.how, task_id, name, message)

    def _find_route(self, call: TaskCall[Any]) -> _Route:
        route = self._make_route(call)
        # A relative expiry is counted from each call, so such a route serves one call only.
        if not isinstance(call.options.over(self._defaults).expires, int | float | timedelta):
            if len(self._routes) >= _ROUTES_KEPT:
                self._routes.clear()
            self._routes[call.type, id(call.options)] = route
        return route

    def _make_route(self, call: TaskCall[Any]) -> _Route:
        options = call.options.over(self._defaults)
        task_type = check_type("type", call.type)
        task_id = _given(options.task_id)
        if task_id is None and options.on_conflict is not UNSET:
            raise OptionError(
                "on_conflict",
                "goes with a task_id; what happens to a second unique task says Unique.on_conflict",
            )
        unique = options.unique if isinstance(options.unique, Unique) else None
        group = self._joining(options, task_type, unique)
        return _Route(
            options=call.options,
            queue=check_key_name("queue", _given(options.queue) or DEFAULT_QUEUE),
            how=_how(options, unique, group),
            task_id=task_id,
            template=MessageTemplate(_fields(task_type, options, self._limits)),
            keys=None if unique is None else self._key_maker(unique, task_type),
        )

    def _joining(self, options: Options, task_type: str, unique: Unique | None) -> producing.GroupRule | None:
        group = _given(options.group)
        if group is None:
            return None
        if not self._takes_groups(task_type):
            problem = (
                f"{task_type!r} makes no batches; see app.batch_task and the aggregate option of app.task"
            )
            raise OptionError("group", problem)
        if unique is not None and unique.mode == "keep_last":
            raise OptionError(
                "unique", "keep_last waits for one task to end, which members of a group do not"
            )
        rule: GroupRule = _given(options.group_rule) or DEFAULT_RULE
        return producing.GroupRule(task_type, group, *rule.stored)

    def _key_maker(self, unique: Unique, task_type: str) -> KeyMaker:
        return KeyMaker(unique, task_type, self._parameters(task_type), self._dedup_secret)


def _how(options: Options, unique: Unique | None, group: producing.GroupRule | None) -> bytes:
    conflict = OWN_ID
    if _given(options.task_id) is not None:
        conflict = CONFLICT_LETTERS[_given(options.on_conflict) or "raise"]
    delay, at = _given(options.delay), _given(options.at)
    return how(
        lane_for(_given(options.priority) or "normal"),
        conflict,
        delay_ms=None if delay is None else duration_ms("delay", delay),
        at_ms=None if at is None else moment_ms("at", at),
        lock=None if unique is None else _lock_rule(unique),
        group=group,
    )


def _lock_rule(unique: Unique) -> LockRule:
    return LockRule(unique.letter, CONFLICT_LETTERS[unique.on_conflict], unique.window_ms)


def _fields(task_type: str, options: Options, limits: Limits) -> dict[str, Any]:
    """The message's fields for these options; what is not given stays open for the worker's definition."""
    retry = options.retry if isinstance(options.retry, Retry) else None
    headers = _given(options.headers) or {}
    check_headers(headers, limits)
    deadline = _given(options.deadline)
    expires_ms = _expires_ms(_given(options.expires))
    return {
        "type": task_type,
        "max_retries": retry.max_retries if retry else None,
        "retry_policy": store_policy(retry) if retry else None,
        "timeout_ms": _timeout_ms(options),
        "deadline_ms": None if deadline is None else moment_ms("deadline", deadline),
        "expires_ms": expires_ms,
        # Said for a task of which a call may still not expire: then it means nothing.
        "on_expiry": DROP if options.on_expiry == "drop" and expires_ms is not None else None,
        "retention_ms": _retention_ms(options),
        "headers": dict(headers) or None,
        "lock": options.unique.letter if isinstance(options.unique, Unique) else None,
    }


def _timeout_ms(options: Options) -> int | None:
    if options.timeout is UNSET:
        return None
    if options.timeout is None:
        return NO_TIMEOUT
    return duration_ms("timeout", options.timeout)


def _retention_ms(options: Options) -> int | None:
    if options.retention is UNSET:
        return None
    return 0 if options.retention is None else duration_ms("retention", options.retention)


def _expires_ms(expires: Any) -> int | None:
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return moment_ms("expires", expires)
    return wall_ms() + duration_ms("expires", expires)


def _given(value: Any) -> Any:
    return None if value is UNSET else value
