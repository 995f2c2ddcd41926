// Clocks: CLOCK_MONOTONIC, which Python's time.monotonic_ns reads too, and this process's CPU time.

package main

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func monotonicNs() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return now.Nano()
}

func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
