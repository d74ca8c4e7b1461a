// initials: the first letter of every word of a column, in a column of its own.
package main

import (
	"strings"
	"unicode/utf8"

	"initials/dataflare"
)

type guest struct{}

func init() { dataflare.Processor(guest{}) }

func main() {}

func (guest) Describe() string {
	return `{"kind": "processor", "reads": ["name"], "outputs": [{"rows": "same", "columns": [{"name": "initials", "format": "u"}]}]}`
}

func (guest) Init(config []byte) error { return nil }

func (guest) Process(in *dataflare.Array, schema *dataflare.Schema, out *dataflare.Out) error {
	if schema.Child(0).Kind() != "u" {
		return dataflare.Failure{Code: 3, Text: "name must be VARCHAR"}
	}
	names, rows := in.Child(0), int(in.Length)
	ends, endsAt := dataflare.Make[int32](rows + 1)
	var made strings.Builder
	for i := 0; i < rows; i++ {
		if !names.IsNull(i) {
			for _, word := range strings.Fields(string(names.Text(i))) {
				letter, _ := utf8.DecodeRuneInString(word)
				made.WriteRune(letter)
			}
		}
		ends[i+1] = int32(made.Len())
	}
	text, textAt := dataflare.Make[byte](made.Len())
	copy(text, made.String())
	_, column := dataflare.NewArray(int64(rows), []uint32{names.Buffer(0), endsAt, textAt}, nil)
	_, out.Array = dataflare.NewArray(int64(rows), []uint32{0}, []uint32{column})
	return nil
}
