/* total: price times quantity, in a column of its own. */
#include "dataflare.h"

DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"kind\": \"processor\", \"reads\": [\"price\", \"quantity\"],"
                   " \"outputs\": [{\"rows\": \"same\", \"columns\": [{\"name\": \"total\", \"format\": \"g\"}]}]}");
}

DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) {
    (void)config;
    return 0;
}

DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    const ArrowSchema *types[2] = {schema->children[0], schema->children[1]};
    if (types[0]->format[0] != 'g' || types[1]->format[0] != 'l') return df_fail(DF_CONFIG, "price must be DOUBLE and quantity BIGINT");
    const ArrowArray *price = in->children[0], *quantity = in->children[1];
    uint32_t rows = (uint32_t)in->length;
    ArrowArray *table = df_table(rows, 1), *total = df_column(rows, sizeof(double));
    if (!table || !total) return df_fail(DF_FATAL, "no memory for the result");
    const double *p = df_values(price);
    const int64_t *q = df_values(quantity);
    double *t = df_fresh(total, 1);
    for (uint32_t i = 0; i < rows; i++) t[i] = p[i] * (double)q[i];
    /* NULL where either is: the bits of both, word by word; the host gives whole words. */
    const uint64_t *left = (const uint64_t *)df_valid(price), *right = (const uint64_t *)df_valid(quantity);
    if (left || right) {
        uint64_t *valid = (uint64_t *)df_bits(rows);
        if (!valid) return df_fail(DF_FATAL, "no memory for the result");
        for (uint32_t i = 0; i < (rows + 63) / 64; i++) valid[i] = (left ? left[i] : ~0ull) & (right ? right[i] : ~0ull);
        total->buffers[0] = valid;
    }
    table->children[0] = total;
    out->array = table;
    return 0;
}
