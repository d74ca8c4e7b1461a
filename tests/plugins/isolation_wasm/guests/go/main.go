// calls does what the text of each row says; the answer comes back in its place, and how the columns lie beside it.
package main

import (
	"fmt"
	"runtime"
	"strconv"
	"unsafe"

	"guest/dataflare"
)

type guest struct{ config *string }

func init() { dataflare.Processor(guest{new(string)}) }

func main() {}

//go:wasmimport dataflare log
func log(level uint32, text unsafe.Pointer, length uint32)

//go:wasmimport dataflare clock
func clock() int64

func (guest) Describe() string {
	return `{"reads": ["s", "n"], "outputs": [{"rows": "same", "columns": [{"name": "s", "format": "u"}, {"name": "code", "format": "l"}]}]}`
}

func (g guest) Init(config []byte) error {
	*g.config = string(config)
	return nil
}

func (g guest) Process(in *dataflare.Array, schema *dataflare.Schema, out *dataflare.Out) error {
	texts, numbers, rows := in.Child(0), in.Child(1), int(in.Length)
	if schema.Child(0).Kind() != "u" || schema.Child(1).Kind() != "l" {
		return dataflare.Failure{Code: 3, Text: "s is VARCHAR, and n is BIGINT"}
	}
	values := dataflare.Slice[int64](numbers.Buffer(1), rows)
	codes, codesAt := dataflare.Make[int64](rows)
	ends, endsAt := dataflare.Make[int32](rows + 1)
	var said []byte
	for i := 0; i < rows; i++ {
		ends[i+1] = ends[i]
		if texts.IsNull(i) {
			continue
		}
		text := texts.Text(i)
		rest := string(text[1:])
		number, _ := strconv.Atoi(rest)
		switch text[0] {
		case 'l':
			log(1, unsafe.Pointer(unsafe.StringData(rest)), uint32(len(rest)))
		case 'c':
			codes[i] = clock()
		case 'o':
			fmt.Println(rest)
		case 'i':
			said = append(said, *g.config...)
		case 'f':
			return dataflare.Failure{Code: int32(number), Text: "told"}
		case 'w':
			return fmt.Errorf("row %d: %w", i, dataflare.Failure{Code: int32(number), Text: "told"})
		case 'e':
			return fmt.Errorf("row %d is odd", i)
		case 'p':
			panic("a panic is a trap")
		case 'a':
			codes[i] = int64((texts.Buffer(0) | texts.Buffer(1) | texts.Buffer(2) | numbers.Buffer(0) | numbers.Buffer(1)) % 64)
		case 'v':
			codes[i] = -1
			if !numbers.IsNull(i) {
				codes[i] = values[i]
			}
		case 'k':
			for range number {
				dataflare.Make[byte](1 << 20)
			}
		case 'g':
			var memory runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&memory)
			codes[i] = int64(memory.HeapAlloc >> 20)
		}
		ends[i+1] = int32(len(said))
	}
	bytes, bytesAt := dataflare.Make[byte](len(said))
	copy(bytes, said)
	_, text := dataflare.NewArray(int64(rows), []uint32{texts.Buffer(0), endsAt, bytesAt}, nil)
	_, code := dataflare.NewArray(int64(rows), []uint32{0, codesAt}, nil)
	_, out.Array = dataflare.NewArray(int64(rows), []uint32{0}, []uint32{text, code})
	return nil
}
