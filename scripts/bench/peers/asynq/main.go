// Asynq under the bench: one program that speaks the adapters' command line, told in ../../kit/commands.py.

package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/hibiken/asynq"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(words []string) error {
	if len(words) < 2 {
		return fmt.Errorf("usage: asynq <command> <count> [task] | asynq worker <processes> <concurrency> <workload>")
	}
	redis, err := asynq.ParseRedisURI(os.Getenv("BENCH_REDIS_URL"))
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	if words[0] == "worker" {
		return runWorker(redis, count, words[2], words[3])
	}
	task := "noop"
	if len(words) > 2 {
		task = words[2]
	}
	producer := newProducer(redis)
	defer producer.client.Close()
	return producer.run(words[0], count, task)
}

func runWorker(redis asynq.RedisConnOpt, processes int, concurrency string, workload string) error {
	if processes > 1 {
		return workInChildren(processes, concurrency, workload)
	}
	slots, err := strconv.Atoi(concurrency)
	if err != nil {
		return err
	}
	return work(redis, slots)
}
