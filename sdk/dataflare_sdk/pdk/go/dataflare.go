// Package dataflare is DataFlare's columnar lane, ABI 1, for Go (GOOS=wasip1 GOARCH=wasm -buildmode=c-shared).
//
// Copy this file into a folder `dataflare` of your module. A guest calls dataflare.Processor in an init function:
//
//	func init() { dataflare.Processor(guest{}) }
//
// Go's runtime needs WASI: name it in the manifest (`host: [wasi]`). The host gives it a clock and random numbers, and no
// files, arguments, environment or network, and a wait is over at once. Memory that goes to the host is held until its next
// df_reset. A panic is a trap: it costs the instance.
package dataflare

import (
	"errors"
	"unsafe"
)

// Schema is Arrow's C Data Interface as wasm32 sees it; addresses are uint32, because Go's own pointers are 64 bits wide.
type Schema struct {
	Format, Name, Metadata uint32
	_                      uint32
	Flags, NChildren       int64
	Children, Dictionary   uint32
	Release, PrivateData   uint32
}

// Array is the other half of it.
type Array struct {
	Length, NullCount, Offset, NBuffers, NChildren int64
	Buffers, Children, Dictionary                  uint32
	Release, PrivateData                           uint32
	_                                              uint32
}

// Guest is a processor.
type Guest interface {
	Describe() string
	Init(config []byte) error
	Process(in *Array, schema *Schema, out *Out) error
}

// Out is where the answer of an output goes: addresses of an Array and of a Schema.
type Out struct{ Array, Schema uint32 }

// Failure is an error with a code: 1 these rows, 2 try later, 3 configuration, 4 for good. It may be wrapped; errors without one
// are about these rows.
type Failure struct {
	Code int32
	Text string
}

func (f Failure) Error() string { return f.Text }

var (
	guest  Guest
	held   [][]uint64
	report [3]uint32
	said   [2]uint32
	text   []byte
)

// Processor registers the guest.
func Processor(g Guest) { guest = g }

// At returns a pointer into this module's memory.
func At[T any](address uint32) *T { return (*T)(unsafe.Pointer(uintptr(address))) }

// Slice returns n values at an address.
func Slice[T any](address uint32, n int) []T {
	if address == 0 || n == 0 {
		return nil
	}
	return unsafe.Slice(At[T](address), n)
}

// Address returns where something lies; it must be held until the host has read it.
func Address[T any](p *T) uint32 { return uint32(uintptr(unsafe.Pointer(p))) }

// Make returns n values that the host may read until its next df_reset, and their address.
func Make[T any](n int) ([]T, uint32) {
	var one T
	words := make([]uint64, (n*int(unsafe.Sizeof(one))+15)/8+1)
	held = append(held, words)
	p := (*T)(unsafe.Pointer(&words[0]))
	return unsafe.Slice(p, n), Address(p)
}

// Words returns the addresses at an address.
func Words(address uint32, n int64) []uint32 { return Slice[uint32](address, int(n)) }

// Child returns a column.
func (a *Array) Child(i int) *Array { return At[Array](Words(a.Children, a.NChildren)[i]) }

// Child returns a column's schema.
func (s *Schema) Child(i int) *Schema { return At[Schema](Words(s.Children, s.NChildren)[i]) }

// Kind returns the format string.
func (s *Schema) Kind() string {
	n := 0
	for *At[byte](s.Format + uint32(n)) != 0 {
		n++
	}
	return string(Slice[byte](s.Format, n))
}

// Buffer returns the address of a buffer, 0 when there is none.
func (a *Array) Buffer(i int) uint32 { return Words(a.Buffers, a.NBuffers)[i] }

// IsNull tells whether a row is NULL.
func (a *Array) IsNull(i int) bool {
	valid := a.Buffer(0)
	return valid != 0 && *At[byte](valid + uint32(i>>3))>>(i&7)&1 == 0
}

// Text returns the text of a row.
func (a *Array) Text(i int) []byte {
	ends := Slice[int32](a.Buffer(1), int(a.Length)+1)
	return Slice[byte](a.Buffer(2)+uint32(ends[i]), int(ends[i+1]-ends[i]))
}

// NewArray returns an array over buffers and children, given by address.
func NewArray(rows int64, buffers, children []uint32) (*Array, uint32) {
	arrays, at := Make[Array](1)
	places, first := Make[uint32](len(buffers) + len(children) + 1)
	copy(places[copy(places, buffers):], children)
	arrays[0] = Array{Length: rows, NullCount: -1, NBuffers: int64(len(buffers)), NChildren: int64(len(children)), Release: 1}
	arrays[0].Buffers, arrays[0].Children = first, first+4*uint32(len(buffers))
	return &arrays[0], at
}

func answer(err error) uint32 {
	if err == nil {
		return 0
	}
	code := int32(1)
	var failure Failure
	if errors.As(err, &failure) {
		code = failure.Code
	}
	text = append([]byte(err.Error()), 0)
	report = [3]uint32{Address(&text[0]), uint32(len(text) - 1), uint32(code)}
	return 1
}

//go:wasmexport dataflare_abi_version
func abiVersion() uint32 { return 1 }

//go:wasmexport df_alloc
func alloc(n uint32) uint32 {
	_, at := Make[byte](int(n) + 64)
	return (at + 63) &^ 63
}

//go:wasmexport df_reset
func reset() {
	clear(held)
	held = held[:0]
}

//go:wasmexport df_last_error
func lastError() uint32 { return Address(&report) }

//go:wasmexport df_describe
func describe() uint32 {
	text = append([]byte(guest.Describe()), 0)
	said = [2]uint32{Address(&text[0]), uint32(len(text) - 1)}
	return Address(&said)
}

//go:wasmexport df_init
func initialise(config uint32) uint32 {
	at := Slice[uint32](config, 2)
	return answer(guest.Init(Slice[byte](at[0], int(at[1]))))
}

//go:wasmexport df_process
func process(in, schema, out uint32) uint32 {
	return answer(guest.Process(At[Array](in), At[Schema](schema), At[Out](out)))
}
