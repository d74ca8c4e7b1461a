/* What is measured: arithmetic, a filter, a search in text, capitals; `do` says which. Also an instance that does nothing. */
#include "dataflare.h"
#include <wasm_simd128.h>

static enum { TOTAL, FILTER, CONTAINS, UPPER } deed;

DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) {
    df_bytes text = df_config_text(config, "do");
    if (text.len) deed = text.ptr[0] == 't' ? TOTAL : text.ptr[0] == 'f' ? FILTER : text.ptr[0] == 'c' ? CONTAINS : UPPER;
    return 0;
}

DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    static const char *const said[] = {
        "{\"reads\": [\"price\", \"qty\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"total\", \"format\": \"g\"}]}]}",
        "{\"reads\": [\"price\", \"qty\"], \"outputs\": [{\"rows\": \"mask\", \"columns\": [{\"name\": \"keep\", \"format\": \"b\"}, {\"name\": \"total\", \"format\": \"g\"}]}]}",
        "{\"reads\": [\"name\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"found\", \"format\": \"b\"}]}]}",
        "{\"reads\": [\"name\"], \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"name\", \"format\": \"u\"}]}]}",
    };
    return df_says(said[deed]);
}

static ArrowArray *total(const ArrowArray *price, const ArrowArray *qty, uint32_t rows) {
    ArrowArray *made = df_column(rows, 8);
    const double *p = df_values(price);
    const int64_t *q = df_values(qty);
    double *t = df_fresh(made, 1);
    /* Two whole numbers a step, as high and low halves: both convert exactly, and their sum is rounded once, as (double) does it. */
    v128_t scale = wasm_f64x2_splat(4294967296.0);
    for (uint32_t i = 0; i < rows; i += 2) {
        v128_t whole = wasm_v128_load(q + i);
        v128_t high = wasm_f64x2_convert_low_i32x4(wasm_i32x4_shuffle(whole, whole, 1, 3, 1, 3));
        v128_t low = wasm_f64x2_convert_low_u32x4(wasm_i32x4_shuffle(whole, whole, 0, 2, 0, 2));
        wasm_v128_store(t + i, wasm_f64x2_mul(wasm_v128_load(p + i), wasm_f64x2_add(wasm_f64x2_mul(high, scale), low)));
    }
    const uint64_t *left = (const uint64_t *)df_valid(price), *right = (const uint64_t *)df_valid(qty);
    if (left || right) {
        uint64_t *valid = (uint64_t *)df_bits(rows);
        for (uint32_t i = 0; i < (rows + 63) / 64; i++) valid[i] = (left ? left[i] : ~0ull) & (right ? right[i] : ~0ull);
        made->buffers[0] = valid;
    }
    return made;
}

static ArrowArray *above(const ArrowArray *price, uint32_t rows) {
    ArrowArray *made = df_array(rows, 2, 0);
    uint64_t *bits = (uint64_t *)df_bits(rows);
    const double *p = df_values(price);
    for (uint32_t w = 0; w * 64 < rows; w++) {
        uint64_t word = 0;
        uint32_t end = rows - w * 64 < 64 ? rows - w * 64 : 64;
        for (uint32_t i = 0; i < end; i++) word |= (uint64_t)(p[w * 64 + i] > 100.0) << i;
        bits[w] = word;
    }
    made->buffers[0] = price->buffers[0], made->buffers[1] = bits;
    return made;
}

/* Rows that hold "foo": the whole column is searched at once, sixteen bytes a step. */
static ArrowArray *holds(const ArrowArray *name, uint32_t rows) {
    ArrowArray *made = df_array(rows, 2, 0);
    uint8_t *bits = df_bits(rows);
    __builtin_memset(bits, 0, (rows + 63) / 64 * 8);
    const int32_t *ends = df_offsets(name);
    const uint8_t *text = df_text(name);
    uint32_t size = rows ? (uint32_t)ends[rows] : 0, row = 0;
    v128_t f = wasm_i8x16_splat('f'), o = wasm_i8x16_splat('o');
    for (uint32_t at = 0; at < size; at += 16) {
        v128_t here = wasm_v128_and(wasm_i8x16_eq(wasm_v128_load(text + at), f), wasm_i8x16_eq(wasm_v128_load(text + at + 1), o));
        uint32_t hits = wasm_i8x16_bitmask(wasm_v128_and(here, wasm_i8x16_eq(wasm_v128_load(text + at + 2), o)));
        for (; hits; hits &= hits - 1) {
            uint32_t found = at + (uint32_t)__builtin_ctz(hits);
            while (row < rows && (uint32_t)ends[row + 1] <= found) row++;
            if (row < rows && found + 3 <= (uint32_t)ends[row + 1]) bits[row >> 3] |= (uint8_t)(1u << (row & 7));
        }
    }
    made->buffers[0] = name->buffers[0], made->buffers[1] = bits;
    return made;
}

static ArrowArray *capitals(const ArrowArray *name, uint32_t rows) {
    ArrowArray *made = df_array(rows, 3, 0);
    uint32_t size = rows ? (uint32_t)df_offsets(name)[rows] : 0;
    uint8_t *loud = df_new(size + 16);
    const uint8_t *text = df_text(name);
    v128_t a = wasm_i8x16_splat('a'), n = wasm_i8x16_splat(26), bit = wasm_i8x16_splat(32);
    for (uint32_t i = 0; i < size; i += 16) {
        v128_t c = wasm_v128_load(text + i);
        wasm_v128_store(loud + i, wasm_v128_xor(c, wasm_v128_and(wasm_u8x16_lt(wasm_i8x16_sub(c, a), n), bit)));
    }
    made->buffers[0] = name->buffers[0], made->buffers[1] = name->buffers[1], made->buffers[2] = loud;
    return made;
}

DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    (void)schema;
    uint32_t rows = (uint32_t)in->length;
    ArrowArray *const *c = in->children, *table = df_table(rows, deed == FILTER ? 2 : 1);
    if (deed == FILTER) table->children[0] = above(c[0], rows);
    table->children[table->n_children - 1] = deed <= FILTER ? total(c[0], c[1], rows) : deed == CONTAINS ? holds(c[0], rows) : capitals(c[0], rows);
    out->array = table;
    return 0;
}
