// The board: a memory-mapped file on which handlers count. The layout is told in ../../kit/board.py.

package main

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	slots        = 1024
	firstSlot    = 8
	wordsPerSlot = 4
	boardBytes   = 8 * (firstSlot + slots*wordsPerSlot)

	pidWord   = 0
	countWord = 1
	firstWord = 2
)

// A board is this process's slot, shared by all its goroutines: counted atomically, so one slot is enough.
type board struct {
	words   []int64
	start   int
	began   atomic.Bool
	samples *os.File
}

func openBoard() (*board, error) {
	path := os.Getenv("BENCH_BOARD")
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := syscall.Mmap(int(file.Fd()), 0, boardBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	samples, err := os.OpenFile(path+".samples", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	words := unsafe.Slice((*int64)(unsafe.Pointer(&data[0])), boardBytes/8)
	b := &board{words: words, samples: samples}
	return b, b.claim(file)
}

func (b *board) claim(file *os.File) error {
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	defer syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
	number := b.words[0]
	b.start = firstSlot + int(number)*wordsPerSlot
	b.words[b.start+pidWord] = int64(os.Getpid())
	b.words[0] = number + 1
	return nil
}

// begin notes when the first task started.
func (b *board) begin() {
	if !b.began.Load() && b.began.CompareAndSwap(false, true) {
		atomic.StoreInt64(&b.words[b.start+firstWord], monotonicNs())
	}
}

// tick counts one finished task.
func (b *board) tick() {
	b.begin()
	atomic.AddInt64(&b.words[b.start+countWord], 1)
}

// sample records one delay. Eight bytes in one append are never torn.
func (b *board) sample(delayNs int64) {
	var data [8]byte
	binary.LittleEndian.PutUint64(data[:], uint64(delayNs))
	b.samples.Write(data[:])
}
