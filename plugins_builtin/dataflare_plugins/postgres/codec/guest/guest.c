// The wire formats of PostgreSQL, for WebAssembly without a library. Built by codec/build.py into guest.wasm.
//
// Memory belongs to Python; what this code is handed are addresses in it. Every length from the wire is checked against
// the end of the input before it is used and against the room in the column before anything is written; WebAssembly
// itself keeps a mistake within this memory.
#include "columns.h"
#include "decimals.h"
#include "binary.h"
#include "text.h"
#include "copy_out.h"
#include "frames.h"
#include "changes.h"
#include "copy_in.h"
