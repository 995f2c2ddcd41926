"""One run of ``compare``: environments, servers, rounds of measurements, the tables at the end.

Peers are interleaved: each round gives every peer one go at a workload before the next workload starts, and
every second round goes through the peers backwards, so that a machine that slows down does not do so for one
peer only.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness.children import ChildFailed
from harness.environments import (
    LOGS,
    Environment,
    EnvironmentFailed,
    check_out,
    find_python,
    make_environment,
    prepare_cache,
    python_version,
)
from harness.measuring import Measurement
from harness.options import Options, parse
from harness.peers import Peer, load_peers
from harness.results import Run, describe_machine
from harness.server import Server
from harness.showing import show
from harness.workloads import Workload, pick_workloads
from kit.board import Board


def main() -> int:
    """Run it all. Returns the exit status: 0 when every asked measurement succeeded."""
    options = parse()
    signal.signal(signal.SIGTERM, _leave)
    peers, workloads = load_peers(options.peers), pick_workloads(options.workloads)
    prepare_cache()
    if options.baseline:
        peers.insert(1, _baseline(options.baseline))
    python = find_python(options.python)
    run = Run(machine=describe_machine(), settings=_settings(options, python))
    environments = _make_environments(run, peers, python)
    try:
        for persistence in options.persistences:
            _measure_all(
                run,
                options,
                [p for p in peers if p.name in environments],
                environments,
                workloads,
                persistence,
            )
    except KeyboardInterrupt:
        _tell("interrupted: what follows is what was measured so far")
    if options.json:
        run.save(options.json)
    show(run)
    return 1 if any(result.error for result in run.results.values()) else 0


def _baseline(revision: str) -> Peer:
    try:
        [streamq] = load_peers(["streamq"])
        return streamq.at(check_out(revision), revision)
    except EnvironmentFailed as error:
        raise SystemExit(str(error)) from None


def _settings(options: Options, python: str) -> dict[str, object]:
    return {
        "python": python_version(python),
        "repeat": options.repeat,
        "seconds": options.seconds,
        "tasks": options.tasks,
        "quick": options.quick,
    }


def _make_environments(run: Run, peers: Sequence[Peer], python: str) -> dict[str, Environment]:
    environments = {}
    for peer in peers:
        run.titles[peer.name] = peer.title
        _tell(f"preparing {peer.title}")
        try:
            environments[peer.name] = make_environment(peer, python)
        except EnvironmentFailed as error:
            run.skipped[peer.name] = str(error)
            _tell(f"  left out: {error}")
        else:
            run.versions[peer.name] = environments[peer.name].versions
    return environments


def _measure_all(
    run: Run,
    options: Options,
    peers: Sequence[Peer],
    environments: dict[str, Environment],
    workloads: Sequence[Workload],
    persistence: str,
) -> None:
    server = Server(aof=persistence == "aof")
    run.redis = server.version
    try:
        with tempfile.TemporaryDirectory(prefix="streamq-bench-") as directory:
            board = Board(Path(directory) / "board")
            for repeat in range(options.repeat):
                for workload in workloads:
                    if persistence == "aof" and not workload.with_aof:
                        continue
                    for peer in peers if repeat % 2 == 0 else reversed(peers):
                        if workload.name in peer.workloads:
                            measurement = _measurement(
                                options, peer, environments[peer.name], workload, server, board
                            )
                            _measure(run, measurement, persistence, repeat)
    finally:
        server.close()


def _measurement(
    options: Options, peer: Peer, environment: Environment, workload: Workload, server: Server, board: Board
) -> Measurement:
    return Measurement(
        peer=peer,
        environment=environment,
        workload=workload,
        server=server,
        board=board,
        seconds=options.seconds,
        limit_s=options.limit,
        tasks_wanted=options.tasks,
        idle_window_s=options.idle_window_s,
    )


def _measure(run: Run, measurement: Measurement, persistence: str, repeat: int) -> None:
    """Add one repeat to its result. A peer that failed once at a workload is not tried at it again."""
    result = run.result(measurement.peer.name, measurement.workload.name, persistence)
    if result.error:
        return
    label = f"{persistence:4} round {repeat + 1}  {measurement.workload.name:17} {measurement.peer.name:14}"
    started = time.monotonic()
    try:
        figures = measurement.run()
    except (ChildFailed, OSError, json.JSONDecodeError) as error:
        result.error = str(error)
        _tell(f"{label} FAILED: {error} (log: {LOGS.name}/{measurement.log_name})")
        return
    result.repeats.append(figures)
    told = "  ".join(f"{name} {value:,.4g}" for name, value in figures.items())
    _tell(f"{label} {time.monotonic() - started:5.1f} s  {told}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
