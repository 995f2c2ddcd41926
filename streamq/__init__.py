"""StreamQ: a distributed task queue for Python on Redis Streams."""

from streamq.app import StreamQ
from streamq.broker.address import Address
from streamq.client.client import Client
from streamq.client.handles import SyncTaskHandle, TaskHandle
from streamq.client.semaphore import Permit, Semaphore
from streamq.client.sync_client import SyncClient
from streamq.client.sync_semaphore import SyncPermit, SyncSemaphore
from streamq.errors import Drop, Release, RetryAfter, SkipRetry, StreamQError
from streamq.inspector import Inspector
from streamq.model.call import TaskCall
from streamq.model.dependency import INJECTED, Depends
from streamq.model.groups import GroupInfo, GroupRule, Member
from streamq.model.info import Audit, QueueInfo, TaskInfo, WorkerInfo
from streamq.model.isolation import Isolation
from streamq.model.limits import Limits
from streamq.model.parked import Reason
from streamq.model.progress import Progress
from streamq.model.queue_limits import QueueLimits
from streamq.model.retry import Exponential, Fixed, Listed, Retry
from streamq.model.run_limits import Concurrency, SlidingWindow, TokenBucket
from streamq.model.schedule import Cron, CronEvent, CronInfo, CronTick
from streamq.model.states import State
from streamq.model.unique import Unique
from streamq.task import Task
from streamq.worker.context import TaskContext, current_task
from streamq.worker.middleware import CallNext
from streamq.worker.worker import Worker

__version__ = "0.1.0"

# Grouped by what a reader looks for; a test pins this list.
__all__ = [  # noqa: RUF022
    # the app and its tasks
    "StreamQ",
    "Address",
    "Task",
    "TaskCall",
    "Retry",
    "Exponential",
    "Fixed",
    "Listed",
    "Limits",
    "GroupRule",
    "Unique",
    "Concurrency",
    "TokenBucket",
    "SlidingWindow",
    "Isolation",
    # around and inside a handler
    "CallNext",
    "Depends",
    "INJECTED",
    "current_task",
    "TaskContext",
    "Member",
    "RetryAfter",
    "Release",
    "SkipRetry",
    "Drop",
    # schedules
    "Cron",
    "CronEvent",
    "CronInfo",
    "CronTick",
    # producing and looking
    "Client",
    "SyncClient",
    "TaskHandle",
    "SyncTaskHandle",
    "Semaphore",
    "SyncSemaphore",
    "Permit",
    "SyncPermit",
    "Inspector",
    "State",
    "Reason",
    "TaskInfo",
    "Progress",
    "QueueInfo",
    "GroupInfo",
    "QueueLimits",
    "WorkerInfo",
    "Audit",
    # working
    "Worker",
    # errors; the whole tree is streamq.errors
    "StreamQError",
]
