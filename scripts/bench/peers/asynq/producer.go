// The producing commands. Asynq has no bulk call; its best bulk path is many goroutines on one client.

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
)

const (
	goroutines = 100
	warmUp     = 20
	interval   = 20 * time.Millisecond
	delay      = 200 * time.Millisecond
	far        = time.Hour
)

var text = strings.Repeat("x", 100)

// payload is what every peer's task carries: one int and a 100-byte string.
type payload struct {
	Number int64  `json:"n"`
	Text   string `json:"t"`
}

type producer struct {
	client *asynq.Client
	stdin  *bufio.Reader
}

func newProducer(redis asynq.RedisConnOpt) *producer {
	return &producer{client: asynq.NewClient(redis), stdin: bufio.NewReader(os.Stdin)}
}

func (p *producer) enqueue(task string, number int64, options ...asynq.Option) error {
	data, err := json.Marshal(payload{Number: number, Text: text})
	if err != nil {
		return err
	}
	_, err = p.client.Enqueue(asynq.NewTask(task, data), options...)
	return err
}

func (p *producer) run(command string, count int, task string) error {
	switch command {
	case "enqueue-one-sync":
		return p.oneByOne(count)
	case "enqueue-bulk", "enqueue-100":
		return p.concurrently(count)
	case "preload":
		return p.spread(count, task)
	case "preload-scheduled":
		return p.spread(count, task, asynq.ProcessIn(far))
	case "pickup":
		return p.paced(count, 0)
	case "lateness":
		return p.paced(count, delay, asynq.ProcessIn(delay))
	}
	return fmt.Errorf("unknown command %s", command)
}

func (p *producer) oneByOne(count int) error {
	for number := range warmUp {
		if err := p.enqueue("noop", int64(number)); err != nil {
			return err
		}
	}
	calls := make([]time.Duration, count)
	clock := p.waitForGo()
	for number := range count {
		called := time.Now()
		if err := p.enqueue("noop", int64(number)); err != nil {
			return err
		}
		calls[number] = time.Since(called)
	}
	clock.tell(count, calls)
	return nil
}

func (p *producer) concurrently(count int) error {
	if err := p.spread(goroutines*2, "noop"); err != nil {
		return err
	}
	clock := p.waitForGo()
	if err := p.spread(count, "noop"); err != nil {
		return err
	}
	clock.tell(count, nil)
	return nil
}

// spread enqueues count tasks from all goroutines, each one at a time.
func (p *producer) spread(count int, task string, options ...asynq.Option) error {
	var group sync.WaitGroup
	failures := make(chan error, goroutines)
	for index := range goroutines {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := index; number < count; number += goroutines {
				if err := p.enqueue(task, int64(number), options...); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	close(failures)
	return <-failures
}

func (p *producer) paced(count int, wait time.Duration, options ...asynq.Option) error {
	if err := p.enqueue("noop", 0); err != nil {
		return err
	}
	clock := p.waitForGo()
	for range count {
		called := monotonicNs()
		if err := p.enqueue("stamp", called+int64(wait), options...); err != nil {
			return err
		}
		time.Sleep(interval - time.Duration(monotonicNs()-called))
	}
	clock.tell(count, nil)
	return nil
}

type clock struct {
	started time.Time
	cpu     time.Duration
}

// waitForGo tells the harness that everything is connected and warm, and goes on when it says so.
func (p *producer) waitForGo() clock {
	fmt.Println("ready")
	p.stdin.ReadString('\n')
	return clock{started: time.Now(), cpu: cpuTime()}
}

func (c clock) tell(tasks int, calls []time.Duration) {
	told := map[string]float64{
		"tasks":        float64(tasks),
		"seconds":      time.Since(c.started).Seconds(),
		"client_cpu_s": (cpuTime() - c.cpu).Seconds(),
	}
	if len(calls) > 0 {
		sort.Slice(calls, func(i, j int) bool { return calls[i] < calls[j] })
		told["p50_ms"] = calls[len(calls)/2].Seconds() * 1e3
		told["p99_ms"] = calls[min(len(calls)-1, len(calls)*99/100)].Seconds() * 1e3
	}
	json.NewEncoder(os.Stdout).Encode(told)
}
