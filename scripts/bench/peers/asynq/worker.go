// The worker. How Asynq is set up here, and why:
//
//   - Concurrency 100: the bench's; its default is the number of CPUs, which is slower on these workloads.
//   - TaskCheckInterval and DelayedTaskCheckInterval stay at their defaults, 1 s and 5 s: its manual warns that lower
//     ones load Redis. They are why pickup on an idle worker and scheduled tasks are late.
//   - LogLevel error; no retention, its default.
//   - Handlers decode their JSON payload, as every handler of a real program does and as the Python peers do for theirs.

package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/hibiken/asynq"
)

const nap = 50 * time.Millisecond

func handlers(b *board) *asynq.ServeMux {
	mux := asynq.NewServeMux()
	handle := func(name string, body func(payload)) {
		mux.HandleFunc(name, func(_ context.Context, task *asynq.Task) error {
			var told payload
			if err := json.Unmarshal(task.Payload(), &told); err != nil {
				return err
			}
			body(told)
			return nil
		})
	}
	handle("noop", func(payload) { b.tick() })
	handle("yield_once", func(payload) { runtime.Gosched(); b.tick() })
	handle("nap", func(payload) { b.begin(); time.Sleep(nap); b.tick() })
	handle("stamp", func(told payload) { b.sample(monotonicNs() - told.Number); b.tick() })
	return mux
}

func work(redis asynq.RedisConnOpt, concurrency int) error {
	b, err := openBoard()
	if err != nil {
		return err
	}
	server := asynq.NewServer(redis, asynq.Config{Concurrency: concurrency, LogLevel: asynq.ErrorLevel})
	return server.Run(handlers(b))
}

// workInChildren is the supervisor Asynq does not have: one child of this program per process.
func workInChildren(processes int, concurrency string, workload string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	children := make([]*exec.Cmd, processes)
	for index := range children {
		child := exec.Command(os.Args[0], "worker", "1", concurrency, workload)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			return err
		}
		children[index] = child
	}
	<-stop
	for _, child := range children {
		child.Process.Signal(syscall.SIGTERM)
		child.Wait()
	}
	return nil
}
