"""Real user code: everything here must be accepted by mypy --strict, as it stands.

It is checked, never run. What must be refused is in test_typing.py.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type
from zoneinfo import ZoneInfo

from streamq import (
    INJECTED,
    CallNext,
    Client,
    Concurrency,
    Cron,
    CronEvent,
    CronInfo,
    CronTick,
    Depends,
    Drop,
    Exponential,
    Fixed,
    GroupInfo,
    GroupRule,
    Inspector,
    Isolation,
    Limits,
    Listed,
    Member,
    Permit,
    Progress,
    QueueInfo,
    QueueLimits,
    Reason,
    Release,
    Retry,
    RetryAfter,
    Semaphore,
    SkipRetry,
    SlidingWindow,
    State,
    StreamQ,
    StreamQError,
    SyncClient,
    SyncPermit,
    SyncSemaphore,
    SyncTaskHandle,
    Task,
    TaskCall,
    TaskContext,
    TaskHandle,
    TaskInfo,
    TokenBucket,
    Unique,
    Worker,
    WorkerInfo,
    current_task,
)
from streamq.errors import (
    BatchError,
    DuplicateTask,
    EnqueueRateExceeded,
    QueueLimitReached,
    TaskFailed,
    Unavailable,
)

log = logging.getLogger(__name__)


@dataclass
class Shop:
    name: str


@asynccontextmanager
async def lifespan() -> AsyncIterator[Shop]:
    yield Shop("corner")


async def on_error(context: TaskContext, error: BaseException) -> None:
    log.error("%s %s failed in attempt %d: %s", context.type, context.id, context.attempt, error)


def on_success(context: TaskContext, result: Any) -> None:
    log.info("%s %s", context.id, result)


def on_archive(context: TaskContext, cause: BaseException | Reason) -> None:
    if isinstance(cause, Reason):
        assert_type(cause, Reason)
    log.error("%s: %s", context.id, cause)


app = StreamQ(
    "redis://localhost:6379/0",
    namespace="shop",
    defaults={"queue": "mail", "retry": 3, "timeout": timedelta(seconds=30)},
    limits=Limits(payload_bytes=1 << 16),
    enqueue_timeout=2.5,
    lifespan=lifespan,
    on_error=on_error,
    on_success=on_success,
    on_archive=on_archive,
    is_failure=lambda error: not isinstance(error, Unavailable),
)


@app.task(
    queue="mail", timeout=30, retry=Retry(max_retries=5), retention=timedelta(minutes=10), priority="high"
)
async def send_mail(to: str, subject: str, *, copies: Sequence[str] = ()) -> str:
    if not to:
        raise SkipRetry("nobody to write to")
    return f"{to}: {subject} {copies}"


@app.task(name="report:make", is_failure=lambda error: not isinstance(error, Unavailable))
def make_report(day: datetime, pages: int = 1) -> list[int]:
    if pages < 1:
        raise Drop
    return list(range(pages + day.day))


@app.task(retry=None, timeout=None, retention=None, headers=None)
async def clean_up() -> None:
    context = current_task()
    assert_type(context.cancelled, str | None)
    assert_type(context.headers["trace"], str)


@app.task(unique=Unique("window", ttl=timedelta(hours=1), key=["order"], on_conflict="return"))
async def remind(order: int) -> None: ...


@app.task(unique="keep_last")
async def refresh(document: int) -> int:
    return document


async def be_unique() -> None:
    kept = remind.options(unique=Unique(key="one", keep_when_archived=True))
    assert_type(await kept.enqueue(1), TaskHandle[None])
    tens = refresh.options(unique=Unique("debounce", key=lambda document: document % 10))
    assert_type(await tens.enqueue(7), TaskHandle[int])
    try:
        await remind.options(unique=True).enqueue(1)
        await remind.options(unique=None).enqueue(1)
    except DuplicateTask as duplicate:
        assert_type(duplicate.task_id, str)
    except EnqueueRateExceeded as late:
        assert_type(late.retry_after, float)
    except QueueLimitReached as refused:
        assert_type(refused.queue, str)


@app.middleware
async def timed(context: TaskContext, call_next: CallNext) -> Any:
    log.info("%s begins", context.type)
    return await call_next()


@app.enqueue_middleware
@contextmanager
def traced(call: TaskCall[Any]) -> Iterator[TaskCall[Any]]:
    assert_type(call.headers.get("trace"), str | None)
    yield call.with_options(headers={"trace": "1"})


def get_shop(context: TaskContext) -> Shop:
    return context.state_as(Shop)


async def get_till(shop: Annotated[Shop, Depends(get_shop)]) -> AsyncIterator[list[str]]:
    yield [shop.name]


@app.task(name="sale:*", on_error=on_error, on_success=on_success, on_archive=on_archive)
async def sell(what: str, count: int = 1, *, till: Annotated[list[str], Depends(get_till)] = INJECTED) -> int:
    if count > 100:
        raise RetryAfter(timedelta(minutes=5), "too many at once", spend=False)
    if what == "nothing":
        raise Release("not in this shop")
    return len(till)


@app.batch_task(name="index", group_rule=GroupRule(grace=1, max_delay=timedelta(minutes=1), max_size=None))
async def index(members: list[Member], shop: Annotated[Shop, Depends(get_shop)] = INJECTED) -> int:
    for member in members:
        assert_type(member.id, str)
        assert_type(member.args, tuple[Any, ...])
        assert_type(member.enqueued_at, datetime | None)
    return len(members) + len(shop.name)


@app.batch_task
def write(members: list[Member]) -> str:
    return ",".join(member.id for member in members)


def digest(group: str, members: list[Member]) -> TaskCall[str] | None:
    return send_mail.call(group, f"{len(members)} news") if members else None


async def digest_later(group: str, members: list[Member]) -> TaskCall[Any]:
    return make_report.call(datetime.now(UTC), len(members) + len(group))


@app.task(aggregate=digest, group_rule=GroupRule())
async def news(user: str) -> str:
    return user


@app.task(aggregate=digest_later)
async def pages(user: str) -> None: ...


async def use_groups(inspector: Inspector) -> None:
    assert_type(await index.in_group("user:42").enqueue(7, lang="en"), TaskHandle[int])
    assert_type(await (await write.enqueue(1)).result(), str)
    assert_type(await index([Member("a")]), int)
    assert_type(write([]), str)
    assert_type(await news.in_group("user:42").enqueue("ann"), TaskHandle[str])
    await pages.options(group="g", group_rule=GroupRule(max_size=5)).enqueue("ann")
    await app.enqueue("index", {"document": 7}, group="user:42")
    assert_type(current_task().members, Sequence[Member])
    assert_type(current_task().group, str | None)
    for group in await inspector.groups("mail"):
        assert_type(group, GroupInfo)
        assert_type(group.due_at, datetime)
    assert_type((await inspector.queue("mail")).aggregating, int)
    assert_type((await inspector.task("mail", "id")).batch, str | None)


@app.task
def count_stock(context: TaskContext = INJECTED, shop: Annotated[Shop, Depends(get_shop)] = INJECTED) -> str:
    return f"{context.id} {shop.name}"


async def inject() -> None:
    assert_type(await sell.named("sale:apples").enqueue("apple", count=3), TaskHandle[int])
    assert_type(await sell.options(delay=5).named("sale:pears").enqueue("pear"), TaskHandle[int])
    assert_type(await count_stock.enqueue(), TaskHandle[str])
    assert_type(await sell("apple", till=["test"]), int)
    assert_type(current_task().state_as(Shop), Shop)
    with app.override(get_shop, lambda: Shop("fake")):
        await count_stock.enqueue()


async def produce() -> None:
    async with app:
        handle = await send_mail.enqueue("a@example.org", subject="hi")
        assert_type(handle, TaskHandle[str])
        assert_type(await handle.result(timeout=10), str)
        assert_type(await handle.info(), TaskInfo)
        assert_type(await handle.progress(), Progress | None)
        assert_type((await handle.info()).state, State)
        assert_type((handle.id, handle.queue, handle.created), tuple[str, str, bool])

        assert_type(await handle.cancel(), bool)
        assert_type(await handle.cancel("retry", delay=timedelta(minutes=1)), bool)
        assert_type(await app.client.cancel("mail", handle.id, outcome="delete"), bool)

        later = send_mail.options(delay=timedelta(minutes=5), priority="low", headers={"trace": "1"})
        assert_type(await later.enqueue("b@example.org", "x", copies=["c@example.org"]), TaskHandle[str])
        assert_type(await make_report.enqueue(datetime.now(UTC)), TaskHandle[list[int]])
        assert_type(await clean_up.enqueue(), TaskHandle[None])

        await (
            send_mail.options(
                queue="other",
                at=datetime.now(UTC),
                deadline=datetime.now(UTC),
                expires=60,
                task_id="welcome:7",
                on_conflict="return",
                retention=None,
                timeout=2.5,
                retry=Retry(3, delay=Exponential(1, cap=60)),
            )
            .options(retry=5)
            .enqueue("a", "b")
        )

        many = await app.enqueue_many(send_mail.call(f"{n}@example.org", subject="y") for n in range(10))
        assert_type(many, list[TaskHandle[str]])
        assert_type(await app.enqueue(send_mail.call("a", "b")), TaskHandle[str])
        assert_type(await app.enqueue(send_mail.call("a", "b"), delay=5), TaskHandle[str])
        assert_type(await app.enqueue("email:send", {"to": "a"}, queue="mail", delay=5), TaskHandle[Any])
        assert_type(app.client, Client)
        try:
            await app.enqueue_many([make_report.call(datetime.now(UTC), pages=3)])
        except BatchError as error:
            log.error("%d results", len(error.results))
        except (TaskFailed, StreamQError):
            raise


def produce_blocking() -> None:
    with app.sync() as client:
        assert_type(client, SyncClient)
        handle = client.enqueue(send_mail.call("a@example.org", "hi"))
        assert_type(handle, SyncTaskHandle[str])
        assert_type(handle.result(timeout=timedelta(seconds=5)), str)
        assert_type(handle.info(), TaskInfo)
        assert_type(handle.progress(), Progress | None)
        assert_type(client.enqueue(make_report.call(datetime.now(UTC)), retry=1), SyncTaskHandle[list[int]])
        assert_type(client.enqueue("email:send", {"to": "a"}, priority="low"), SyncTaskHandle[Any])
        assert_type(client.enqueue_many([send_mail.call("a", "b")]), list[SyncTaskHandle[str]])


async def call_directly() -> None:
    assert_type(await send_mail("a@example.org", "hi"), str)
    assert_type(make_report(datetime.now(UTC), pages=2), list[int])
    await clean_up()


async def schedule(task: Task[[str, str], str], call: TaskCall[int]) -> int:
    """Tasks and calls are values that may be passed on with their types."""
    assert_type(await task.enqueue("a", "b"), TaskHandle[str])
    return await (await app.enqueue(call)).result()


async def operate() -> None:
    async with app.inspector() as inspector:
        assert_type(inspector, Inspector)
        assert_type(await inspector.queues(), list[str])
        assert_type(await inspector.queue("mail"), QueueInfo)
        await inspector.set_limits("mail", QueueLimits(size=10, rate=(100, 60), types=["mail:*"]))
        await inspector.set_limits("mail", QueueLimits(producer_rate=(1, timedelta(minutes=1))))
        assert_type(await inspector.limits("mail"), QueueLimits)
        await inspector.set_limits("mail", None)
        assert_type(await inspector.workers(), list[WorkerInfo])
        assert_type(await inspector.task("mail", "x"), TaskInfo)
    worker = app.worker(queues={"mail": 6, "default": 3}, concurrency=50)
    assert_type(worker, Worker)
    await worker.run()


def account_of(account: str, *, full: bool) -> tuple[str, bool]:
    return account.lower(), full


limits = [
    Concurrency(5),
    Concurrency(1, key="account", scope="worker"),
    TokenBucket(0.5, per=timedelta(minutes=1), burst=3, key=account_of),
    SlidingWindow(100, per=60, name="mail-api"),
]


@app.task(limits=limits, retry=3)
async def sync_account(account: str, *, full: bool) -> bool:
    return full


async def take_turns() -> None:
    semaphore = app.semaphore("report", limit=3, lease=timedelta(seconds=10), timeout=None)
    assert_type(semaphore, Semaphore)
    async with semaphore as permit:
        assert_type(permit, Permit)
        assert_type(permit.held, bool)
    assert_type(await semaphore.try_acquire(), Permit | None)
    await (await app.client.semaphore("report", limit=3).acquire(timeout=5)).release()


def take_turns_blocking() -> None:
    with app.sync() as client:
        semaphore = client.semaphore("report", limit=3)
        assert_type(semaphore, SyncSemaphore)
        with semaphore as permit:
            assert_type(permit, SyncPermit)
        assert_type(semaphore.try_acquire(), SyncPermit | None)


def own_delay(failures: int, error: BaseException) -> float:
    return 2.0 * failures


policies = [
    Retry(3, delay=own_delay),
    Retry(3, delay=Listed(1, timedelta(seconds=5), 60)),
    Retry(3, delay=Fixed(0.5)),
    Retry(delay=timedelta(seconds=1)),
]


# Schedules


@app.task
async def summary(number: int) -> str:
    return str(number)


app.cron("nightly", "0 3 * * *", summary.call(1), tz="Europe/Berlin", jitter=30, misfire="skip")
app.cron(
    "often", timedelta(seconds=90), summary.call(1), tz=ZoneInfo("UTC"), start=datetime.now(UTC), end=None
)


@app.cron_provider(every=timedelta(minutes=5))
async def wished() -> list[Cron]:
    return [Cron("mine", "@daily", summary.call(2), misfire="all")]


@app.cron_provider()
def wished_too() -> Iterator[Cron]:
    yield Cron("mine too", timedelta(hours=1), app.call("summary", {"number": 1}))


@app.before_fire
def about_to_fire(event: CronEvent) -> None:
    logging.getLogger("cron").info("%s at %s", event.id, event.tick)


@app.after_fire
async def has_fired(event: CronEvent) -> None:
    assert_type(event.error, BaseException | None)


async def steer_schedules() -> None:
    await app.crons.add(Cron("mine", "@daily", summary.call(2)))
    await app.crons.change(Cron("mine", "@weekly", summary.call(2)))
    await app.crons.pause("mine")
    await app.crons.resume("mine", queue="default")
    assert_type(await app.crons.fire("mine"), TaskHandle[Any])
    assert_type(await app.crons.list(), list[CronInfo])
    assert_type(await app.crons.get("mine"), CronInfo)
    assert_type(await app.crons.history(limit=10, offset=5), list[CronTick])
    await app.crons.remove("mine")


def steer_schedules_blocking() -> None:
    with app.sync() as client:
        client.crons.add(Cron("mine", "@daily", summary.call(2)))
        assert_type(client.crons.fire("mine"), SyncTaskHandle[Any])
        assert_type(client.crons.list(queue="default"), list[CronInfo])
        assert_type(client.crons.history(), list[CronTick])


# Child processes


@app.task(isolate=Isolation(memory=256 << 20, cpu=timedelta(minutes=1), files=64, runs=1))
def convert(path: str) -> int:
    current_task().progress(0.5, "half of it")
    current_task().progress(None)
    return len(path)


@app.task(isolate=True, timeout=60)
async def convert_async(path: str) -> int:
    return len(path)


async def enqueue_isolated() -> None:
    assert_type(await (await convert.enqueue("a.pdf")).result(), int)
    assert_type(await (await convert_async.enqueue("a.pdf")).result(), int)
    assert_type(convert("a.pdf"), int)
