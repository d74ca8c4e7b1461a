/* DataFlare's columnar lane, ABI 1, for C. Freestanding: no libc, one header, in exactly one file of a module.
 *
 * The host lays Arrow data out in this module's memory (the Arrow C Data Interface as wasm32 sees it) and calls the
 * exports below. A module writes df_describe, df_init and what its kind needs:
 *
 *     processor    DF_EXPORT(df_process)  uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out)
 *     source       DF_EXPORT(df_read)     uint32_t df_read(const uint8_t *state, uint32_t len, uint32_t max_rows, df_read_out *out)
 *     destination  DF_EXPORT(df_write)    uint32_t df_write(ArrowArray *in, ArrowSchema *schema)
 *                  DF_EXPORT(df_flush)    uint32_t df_flush(df_ack *ack)
 *
 * Everything returns 0 for success, or what df_fail returns. The README beside this file is the whole ABI.
 */
#ifndef DATAFLARE_H
#define DATAFLARE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DF_EXPORT(name) __attribute__((export_name(#name), used))
#define DF_IMPORT(name) __attribute__((import_module("dataflare"), import_name(#name)))

typedef struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;
    uint32_t release, private_data;
} ArrowSchema;

typedef struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    uint32_t release, private_data;
} ArrowArray;

typedef struct { const uint8_t *ptr; uint32_t len; } df_bytes;
typedef struct { ArrowArray *array; ArrowSchema *schema; } df_out;
typedef struct { ArrowArray *array; ArrowSchema *schema; df_bytes state; uint32_t done; } df_read_out;
typedef struct { uint64_t rows; } df_ack;

_Static_assert(sizeof(void *) == 4, "build for wasm32");
_Static_assert(sizeof(ArrowSchema) == 48 && sizeof(ArrowArray) == 64, "the layout of wasm32");
_Static_assert(sizeof(df_out) == 8 && sizeof(df_read_out) == 20 && sizeof(df_ack) == 8, "the layout of ABI 1");

/* ---- what the host gives; a module that calls one of these has to name it in its manifest ---------------- */

DF_IMPORT(log) void df_host_log(uint32_t level, const void *text, uint32_t len);           /* host: [log]; 0 debug .. 3 error */
DF_IMPORT(metric) void df_host_metric(const void *name, uint32_t len, double value);       /* host: [metric] */
DF_IMPORT(clock) int64_t df_host_clock(void);                                              /* host: [clock]; microseconds since 1970 */
DF_IMPORT(state_get) int32_t df_host_state_get(const void *key, uint32_t key_len, void *to, uint32_t room);   /* state; length or -1 */
DF_IMPORT(state_put) int32_t df_host_state_put(const void *key, uint32_t key_len, const void *value, uint32_t len);
DF_IMPORT(http_send) int32_t df_host_http_send(const void *request, uint32_t len);         /* net; status, or -1: do not go on */
DF_IMPORT(http_body) int32_t df_host_http_body(void *to, uint32_t room);                   /* length of the whole body */
DF_IMPORT(http_header) int32_t df_host_http_header(const void *name, uint32_t name_len, void *to, uint32_t room);

/* ---- memory: an arena that the host empties after every call -------------------------------------------- */

extern uint8_t __heap_base;
static uint32_t df_top, df_bottom;

static inline uint32_t df_first(void) { return ((uint32_t)(uintptr_t)&__heap_base + 63u) & ~63u; }

/* Bytes in the arena, aligned to 64; NULL when there are none. What is in them is not known. */
static inline void *df_new(uint32_t size) {
    if (!df_bottom) df_bottom = df_top = df_first();
    uint32_t begin = df_top;
    if (size > 0xffffffffu - begin - 127u) return NULL;
    uint32_t end = (begin + size + 63u) & ~63u, have = (uint32_t)__builtin_wasm_memory_size(0), need = (end + 65535u) >> 16;
    if (need > have && __builtin_wasm_memory_grow(0, need - have) == (size_t)-1) return NULL;
    df_top = end;
    return (void *)(uintptr_t)begin;
}

/* What has been allocated so far outlives the host's df_reset. */
static inline void df_keep(void) { df_bottom = df_top; }
/* Everything that was kept may be forgotten with the next df_reset. */
static inline void df_forget(void) { df_bottom = df_first(); }

static inline void df_copy(void *to, const void *from, uint32_t size) { __builtin_memcpy(to, from, size); }
static inline uint32_t df_length(const char *text) { uint32_t n = 0; while (text[n]) n++; return n; }

DF_EXPORT(dataflare_abi_version) uint32_t dataflare_abi_version(void) { return 1; }
DF_EXPORT(df_alloc) void *df_alloc(uint32_t size) { return df_new(size); }
DF_EXPORT(df_reset) void df_reset(void) { if (df_bottom) df_top = df_bottom; }

/* ---- errors --------------------------------------------------------------------------------------------- */

enum { DF_ROWS = 1, DF_TRY_LATER = 2, DF_CONFIG = 3, DF_FATAL = 4 };
static struct { const char *ptr; uint32_t len; int32_t code; } df_error;

/* Say why, and return what the export has to return. */
static inline uint32_t df_fail(int32_t code, const char *text) {
    df_error.ptr = text, df_error.len = df_length(text), df_error.code = code;
    return 1;
}
DF_EXPORT(df_last_error) const void *df_last_error(void) { return &df_error; }

/* The answer of df_describe. */
static df_bytes df_said;
static inline const df_bytes *df_says(const char *json) {
    df_said.ptr = (const uint8_t *)json, df_said.len = df_length(json);
    return &df_said;
}

/* ---- columns -------------------------------------------------------------------------------------------- */

static inline const uint8_t *df_valid(const ArrowArray *a) { return (const uint8_t *)a->buffers[0]; }
static inline const void *df_values(const ArrowArray *a) { return a->buffers[1]; }
static inline const int32_t *df_offsets(const ArrowArray *a) { return (const int32_t *)a->buffers[1]; }
static inline const uint8_t *df_text(const ArrowArray *a) { return (const uint8_t *)a->buffers[2]; }
static inline bool df_bit(const uint8_t *bits, uint32_t i) { return bits[i >> 3] >> (i & 7) & 1; }
static inline bool df_is_null(const ArrowArray *a, uint32_t i) { return df_valid(a) && !df_bit(df_valid(a), i); }
static inline void df_set(uint8_t *bits, uint32_t i, bool on) {
    bits[i >> 3] = (uint8_t)((bits[i >> 3] & ~(1u << (i & 7))) | ((uint32_t)on << (i & 7)));
}

/* An array with room for its pointers; NULL when there is no memory. Buffers are NULL until they are set. */
static inline ArrowArray *df_array(int64_t rows, uint32_t buffers, uint32_t children) {
    ArrowArray *a = df_new(sizeof(ArrowArray) + 4 * (buffers + children));
    if (!a) return NULL;
    const void **places = (const void **)(a + 1);
    for (uint32_t i = 0; i < buffers + children; i++) places[i] = NULL;
    *a = (ArrowArray){.length = rows, .null_count = -1, .n_buffers = buffers, .n_children = children, .release = 1};
    a->buffers = buffers ? places : NULL;
    a->children = children ? (ArrowArray **)(places + buffers) : NULL;
    return a;
}

/* A column of values of `bytes` bytes each; write them through df_fresh. */
static inline ArrowArray *df_column(int64_t rows, uint32_t bytes) {
    ArrowArray *a = df_array(rows, 2, 0);
    if (a && !(a->buffers[1] = df_new((uint32_t)rows * bytes + 8))) return NULL;
    return a;
}
static inline void *df_fresh(ArrowArray *a, uint32_t buffer) { return (void *)a->buffers[buffer]; }

/* A bitmap for `rows` rows, rounded up to whole 64-bit words. */
static inline uint8_t *df_bits(int64_t rows) { return df_new(((uint32_t)rows + 63) / 64 * 8); }

/* The table of what is given: `columns` children, to be filled in. */
static inline ArrowArray *df_table(int64_t rows, uint32_t columns) { return df_array(rows, 1, columns); }

static inline ArrowSchema *df_field(const char *name, const char *format, uint32_t children) {
    ArrowSchema *s = df_new(sizeof(ArrowSchema) + 4 * children);
    if (!s) return NULL;
    *s = (ArrowSchema){.format = format, .name = name, .flags = 2, .n_children = children, .release = 1};
    s->children = children ? (ArrowSchema **)(s + 1) : NULL;
    return s;
}

/* ---- configuration: text and numbers at the top of the JSON that df_init is given ------------------------ */

/* The raw JSON value of a key (text with its quotes), or {NULL, 0}. Escapes are left as they are. */
static inline df_bytes df_config(const df_bytes *config, const char *key) {
    const uint8_t *p = config->ptr, *end = p + config->len;
    uint32_t depth = 0, n = df_length(key);
    for (; p < end; p++) {
        if (*p == '{' || *p == '[') { depth++; continue; }
        if (*p == '}' || *p == ']') { depth--; continue; }
        if (*p != '"') continue;
        const uint8_t *begin = ++p;
        while (p < end && *p != '"') p += *p == '\\' ? 2 : 1;
        const uint8_t *after = p + 1;
        while (after < end && *after == ' ') after++;
        if (depth != 1 || after >= end || *after != ':') continue;
        bool same = (uint32_t)(p - begin) == n;
        for (uint32_t i = 0; same && i < n; i++) same = begin[i] == (uint8_t)key[i];
        if (!same) continue;
        for (after++; after < end && *after == ' '; after++) {}
        const uint8_t *stop = after;
        if (stop < end && *stop == '"') {
            for (stop++; stop < end && *stop != '"'; stop += *stop == '\\' ? 2 : 1) {}
            stop++;
        } else {
            while (stop < end && *stop != ',' && *stop != '}' && *stop != ' ') stop++;
        }
        return (df_bytes){after, (uint32_t)(stop - after)};
    }
    return (df_bytes){NULL, 0};
}

/* The text of a key, without its quotes; {NULL, 0} when it is not there or no text. */
static inline df_bytes df_config_text(const df_bytes *config, const char *key) {
    df_bytes v = df_config(config, key);
    return v.len >= 2 && v.ptr[0] == '"' ? (df_bytes){v.ptr + 1, v.len - 2} : (df_bytes){NULL, 0};
}

/* The number of a key, or `otherwise`. Digits, a sign and a point; no exponent. */
static inline double df_config_number(const df_bytes *config, const char *key, double otherwise) {
    df_bytes v = df_config(config, key);
    double whole = 0, scale = 0;
    bool minus = v.len && v.ptr[0] == '-';
    if (!v.len) return otherwise;
    for (uint32_t i = minus; i < v.len; i++) {
        if (v.ptr[i] == '.' && !scale) { scale = 1; continue; }
        if (v.ptr[i] < '0' || v.ptr[i] > '9') return otherwise;
        whole = whole * 10 + (v.ptr[i] - '0');
        scale *= 10;
    }
    return (minus ? -whole : whole) / (scale ? scale : 1);
}

/* ---- text, written piece by piece ------------------------------------------------------------------------ */

typedef struct { uint8_t *ptr; uint32_t len, room; } df_writer;

/* Append bytes; false when there is no room. */
static inline bool df_put(df_writer *w, const void *data, uint32_t size) {
    if (size > w->room - w->len) return false;
    df_copy(w->ptr + w->len, data, size);
    w->len += size;
    return true;
}
/* Room for `more` bytes, for what is kept from call to call, such as rows that a destination stages. What is there is moved when it
   has to grow; everything that was allocated before is kept then. False when there is no memory. */
static inline bool df_room(df_writer *w, uint32_t more) {
    if (w->room - w->len >= more) return true;
    if (more > 0x7fff0000u - w->len) return false;
    uint32_t size = 2 * (w->len + more) + 65536;
    uint8_t *larger = df_new(size);
    if (!larger) return false;
    if (w->len) df_copy(larger, w->ptr, w->len);
    w->ptr = larger, w->room = size;
    df_keep();
    return true;
}
static inline bool df_say(df_writer *w, const char *text) { return df_put(w, text, df_length(text)); }
static inline bool df_say_int(df_writer *w, int64_t value) {
    uint8_t digits[20];
    uint32_t n = 20;
    uint64_t left = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do digits[--n] = (uint8_t)('0' + left % 10), left /= 10; while (left);
    return (value >= 0 || df_put(w, "-", 1)) && df_put(w, digits + n, 20 - n);
}
/* A JSON string of these bytes, which are UTF-8. */
static inline bool df_say_json(df_writer *w, const uint8_t *text, uint32_t size) {
    static const char hex[] = "0123456789abcdef";
    if (!df_put(w, "\"", 1)) return false;
    for (uint32_t i = 0; i < size; i++) {
        uint8_t c = text[i], unicode[6] = {'\\', 'u', '0', '0', (uint8_t)hex[c >> 4], (uint8_t)hex[c & 15]}, quoted[2] = {'\\', c};
        if (!(c < 32 ? df_put(w, unicode, 6) : c == '"' || c == '\\' ? df_put(w, quoted, 2) : df_put(w, &c, 1))) return false;
    }
    return df_put(w, "\"", 1);
}
#endif
