// Columns: Arrow buffers under construction. Python allocates them and says how large they are (codec/memory.py has the
// same struct); nothing is written beyond, a value that does not fit is reported and the row is decoded again.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef float f32x4 __attribute__((vector_size(16)));
typedef u8 u8x16 __attribute__((vector_size(16)));

#define EXPORT(name) __attribute__((export_name(#name), used))
#define RARE(x) __builtin_expect(!!(x), 0)
#define MAX_COLUMNS 1664  // PostgreSQL's limit of entries in a target list; a table has 1600

// The numbers of types.py's Codec.
enum {
  SKIP, BOOL, INT2, INT4, INT8, OID, FLOAT4, FLOAT8, NUMERIC, NUMERIC_TEXT, STRING, BYTES, JSONB, UUID, DATE, TIMESTAMP, TIME, LIST, TEXT
};

// What came of a value. From REFUSED on: PostgreSQL has the value and Arrow has not, the row is refused.
enum {
  OK, FULL, BROKEN,
  REFUSED = 16, INFINITE = 16, MINUS_INFINITE, NOT_A_NUMBER, OUT_OF_RANGE, DIMENSIONS, NOT_UTF8, ZERO_BYTE, NOT_UUID, NOT_NUMERIC
};

typedef struct column {
  u32 codec;
  u32 precision, scale;     // of a decimal; of a timestamp, scale 1: with a zone
  u8 *values;               // list: unused
  u32 *offsets;             // variable width and lists: rows + 1
  u8 *valid;                // bits, all set at first
  u8 *unchanged;            // bits, none set at first; 0 where changes are not read
  u32 capacity;             // variable width: bytes of values; list: elements of the child
  u32 has_nulls, has_unchanged;
  struct column *child;     // of a list
  u32 key;                  // identifies a row
  u32 reserved[4];
} column;

typedef struct {
  u32 relation, row, column, reason;
} refusal;

// How a call ended, and what the next one needs. Python reads and writes it.
typedef struct {
  u32 status;               // one of the ENDED values
  u32 consumed;             // copy: bytes that are done with
  u32 need;                 // ENDED_COLUMN: capacity the column needs; ENDED_INPUT: bytes the row or the message needs at least
  column *column;           // ENDED_COLUMN: which
  u32 place;                // ENDED_BROKEN: a number that says where in this code
  u32 refused, max_refused;
  refusal *refusals;
  u32 row, max_rows;        // copy
  u32 relation;             // changes: which one ended the call
  u32 in_transaction;
  u32 reply;
  u32 xid;
  u32 bytes;                // changes: bytes of the input that are done with
  u32 reserved;
  u64 position;             // end of the last commit that was seen
  u64 wal_end;              // of the last keepalive
  u64 sent;                 // all commits before it have been seen
  u64 until, commit_ts;
} state;

enum { ENDED_INPUT, ENDED_ROWS, ENDED_COLUMN, ENDED_TRAILER, ENDED_BROKEN, ENDED_OTHER, ENDED_UNTIL };

static state S;
EXPORT(state_address) state *state_address(void) { return &S; }

static inline u16 be16(const u8 *p) { u16 v; __builtin_memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline u32 be32(const u8 *p) { u32 v; __builtin_memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline u64 be64(const u8 *p) { u64 v; __builtin_memcpy(&v, p, 8); return __builtin_bswap64(v); }

static inline u32 broken(u32 place) { S.place = place; return BROKEN; }
static inline u32 full(column *c, u32 need) { S.column = c; S.need = need; return FULL; }

static inline u32 width(u32 codec) {
  switch (codec) {
    case INT2: return 2;
    case INT4: case FLOAT4: case DATE: return 4;
    case INT8: case OID: case FLOAT8: case TIMESTAMP: case TIME: return 8;
    case NUMERIC: return 16;
    default: return 0;
  }
}

static inline void set_valid(column *c, u32 row) {
  if (c->has_nulls) c->valid[row >> 3] |= 1 << (row & 7);
}

static void set_null(column *c, u32 row) {
  if (c->codec == SKIP) return;
  c->valid[row >> 3] &= ~(1 << (row & 7));
  c->has_nulls = 1;
  u32 wide = width(c->codec);
  if (wide) __builtin_memset(c->values + row * wide, 0, wide);
  else if (c->codec == BOOL) c->values[row >> 3] &= ~(1 << (row & 7));
  else c->offsets[row + 1] = c->offsets[row];
}

static inline void put_bool(column *c, u32 row, u32 value) {
  u32 bit = row & 7;
  u8 *byte = c->values + (row >> 3);
  *byte = (*byte & ~(1 << bit)) | value << bit;
  set_valid(c, row);
}
static inline void put2(column *c, u32 row, u16 v) { ((u16 *)c->values)[row] = v; set_valid(c, row); }
static inline void put4(column *c, u32 row, u32 v) { ((u32 *)c->values)[row] = v; set_valid(c, row); }
static inline void put8(column *c, u32 row, u64 v) { ((u64 *)c->values)[row] = v; set_valid(c, row); }

// A valid sequence is never longer than a code point of 0x10FFFF, never overlong, never a surrogate.
static int is_utf8(const u8 *p, u32 n) {
  const u8 *end = p + n;
  while (p < end) {
    u8 a = *p++;
    if (a < 0x80) continue;
    u32 more = a >= 0xF0 ? 3 : a >= 0xE0 ? 2 : 1;
    if (a < 0xC2 || a > 0xF4 || (u32)(end - p) < more) return 0;
    if ((a == 0xE0 && *p < 0xA0) || (a == 0xED && *p > 0x9F) || (a == 0xF0 && *p < 0x90) || (a == 0xF4 && *p > 0x8F)) return 0;
    for (; more; more--) if ((*p++ & 0xC0) != 0x80) return 0;
  }
  return 1;
}

// Copies in steps of 16 bytes: what is read from and written to has that much room behind it. Returns whether a high bit was seen
// (perhaps behind the end, so it only says that a closer look is due).
static inline int copy_wide(u8 *to, const u8 *from, u32 n) {
  u8x16 seen = {0};
  for (u32 i = 0; i < n; i += 16) {
    u8x16 v;
    __builtin_memcpy(&v, from + i, 16);
    __builtin_memcpy(to + i, &v, 16);
    seen |= v;
  }
  u64 halves[2];
  __builtin_memcpy(halves, &seen, 16);
  return ((halves[0] | halves[1]) & 0x8080808080808080ull) != 0;
}

static inline u32 put_bytes(column *c, u32 row, const u8 *p, u32 n) {
  u32 at = c->offsets[row];
  if (RARE(n > c->capacity - at)) return full(c, at + n);
  copy_wide(c->values + at, p, n);
  c->offsets[row + 1] = at + n;
  set_valid(c, row);
  return OK;
}

static inline u32 put_string(column *c, u32 row, const u8 *p, u32 n) {
  u32 at = c->offsets[row];
  if (RARE(n > c->capacity - at)) return full(c, at + n);
  if (RARE(copy_wide(c->values + at, p, n)) && !is_utf8(p, n)) return NOT_UTF8;
  c->offsets[row + 1] = at + n;
  set_valid(c, row);
  return OK;
}
